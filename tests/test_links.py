"""No step writes through a link out of its folder, or takes along what such a link points to."""

from pathlib import Path

import pytest

from pruning_adapter.checkpoint.companions import copy_companions
from pruning_adapter.errors import OutputError
from pruning_adapter.pipeline import Run
from pruning_adapter.reproduce.study import begin_study
from pruning_adapter.run_folder import LOCK, check_links, lock_folder, remove_steps
from pruning_adapter.settings import Settings


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "secret").write_text("a password", encoding="utf-8")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


def check_untouched(elsewhere: Path) -> None:
    assert {path.name: path.read_text(encoding="utf-8") for path in elsewhere.iterdir()} == {"secret": "a password"}


@pytest.mark.parametrize("name", ["checkpoints", "start-checkpoints", "logs", "checkpoints/checkpoint-3"])
@pytest.mark.parametrize("step", ["measure", "train"])
def test_a_training_writes_through_no_link(run: Path, elsewhere: Path, name: str, step: str) -> None:
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).symlink_to(elsewhere)
    # It is refused before the model is looked for, which is not there.
    work = Run(Settings().changed({"model": "nowhere", "task": "rte", "data_dir": "nowhere", "prune_after": 0.5}), run)
    with pytest.raises(OutputError, match=rf"{name} is a link out of .*run, and no step writes through one\. Remove"):
        getattr(work, step)()
    check_untouched(elsewhere)
    remove_steps(run, "importance")
    check_links(run)
    check_untouched(elsewhere)


def test_the_run_itself_may_be_a_link_and_have_links_within(tmp_path: Path, run: Path) -> None:
    (run / "kept").mkdir()
    (run / "checkpoints").symlink_to("kept")
    (tmp_path / "link").symlink_to(run)
    check_links(tmp_path / "link")
    check_links(run)


def test_links_that_go_in_circles_are_left_alone(run: Path) -> None:
    (run / "checkpoints").symlink_to("checkpoints")
    (run / "vocab.txt").symlink_to("vocab.txt")
    check_links(run)
    copy_companions(run, run)
    assert {path.name for path in run.iterdir() if path.is_symlink()} == {"checkpoints", "vocab.txt"}


def test_a_lock_that_is_a_link_is_not_followed(run: Path, elsewhere: Path) -> None:
    (run / LOCK).symlink_to(elsewhere / "secret")
    with pytest.raises(OutputError, match="Cannot write into"):
        lock_folder(run)
    check_untouched(elsewhere)


@pytest.mark.parametrize("name", ["cells", "cost", "maps", "work", "work/starts"])
def test_a_grid_writes_through_no_link(run: Path, elsewhere: Path, name: str) -> None:
    base = Settings()
    begin_study(run, base)
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).symlink_to(elsewhere)
    with pytest.raises(OutputError, match=f"{name} is a link out of"):
        begin_study(run, base)


def test_what_a_link_points_to_elsewhere_is_not_taken_along(
    run: Path, elsewhere: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (run / "vocab.txt").write_text("word", encoding="utf-8")
    (run / "added_tokens.json").symlink_to("vocab.txt")
    (run / "notes.txt").symlink_to(elsewhere / "secret")
    target = tmp_path / "target"
    target.mkdir()
    copy_companions(run, target)
    assert {path.name: path.read_text(encoding="utf-8") for path in target.iterdir()} == {
        "vocab.txt": "word",
        "added_tokens.json": "word",
    }
    assert "notes.txt is a link out of its folder and is not copied" in caplog.text


@pytest.mark.parametrize("inside", ["", "sub"])
def test_the_links_of_the_hubs_cache_are_followed(tmp_path: Path, elsewhere: Path, inside: str) -> None:
    """Its snapshots are folders of links to files that are named by their content."""
    blobs, snapshot = tmp_path / "models--x--y" / "blobs", tmp_path / "models--x--y" / "snapshots" / "c0ffee" / inside
    target = tmp_path / "target"
    for folder in (blobs, snapshot, target):
        folder.mkdir(parents=True)
    (blobs / "d00d").write_text("word", encoding="utf-8")
    up = "../" * (3 if inside else 2)
    (snapshot / "vocab.txt").symlink_to(f"{up}blobs/d00d")
    (snapshot / "notes.txt").symlink_to(elsewhere / "secret")
    (tmp_path / "link").symlink_to(snapshot)
    for source in (snapshot, tmp_path / "link"):
        copy_companions(source, target)
        assert {path.name: path.read_text(encoding="utf-8") for path in target.iterdir()} == {"vocab.txt": "word"}
        (target / "vocab.txt").unlink()
