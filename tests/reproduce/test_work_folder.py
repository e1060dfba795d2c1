"""Calls that share a grid do not get into each other's way, and go on only from what was meant alike."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from pruning_adapter.reproduce.work_folder import alike_of, remove_shared, work_in
from pruning_adapter.run_folder import LOCK
from pruning_adapter.settings import Settings


def test_two_that_meet_take_turns_and_leave_nothing(tmp_path: Path) -> None:
    """Locks belong to open files, so that threads meet as processes do."""
    together, inside, done = threading.Barrier(2, timeout=30), list[int](), list[int]()

    def work(number: int) -> None:
        for turn in range(20):
            together.wait()
            with work_in(tmp_path / "work" / "cell", "alike"):
                inside.append(number)
                assert len(inside) == 1
                (tmp_path / "work" / "cell" / "start").mkdir()
                (tmp_path / "work" / "cell" / "start" / "weights").write_bytes(b"0" * 1000)
                # As long as the other needs to come and wait.
                time.sleep(0.06 if turn % 2 else 0.0)
                inside.remove(number)
            done.append(number)

    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(work, number) for number in range(2)]:
            future.result()
    assert sorted(done) == [0] * 20 + [1] * 20
    assert not list((tmp_path / "work").iterdir())


def test_what_was_interrupted_is_gone_on_from_by_those_who_ask_for_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "cell"

    def begin(*, found: bool) -> None:
        with work_in(folder, "one"):
            assert (folder / "start").exists() == found
            (folder / "start").mkdir(exist_ok=True)
            raise KeyboardInterrupt

    for found in (False, True):
        with pytest.raises(KeyboardInterrupt):
            begin(found=found)
    with work_in(folder, "another"):
        assert not (folder / "start").exists()
    assert not folder.exists()


def test_a_folder_of_an_older_release_is_begun_anew(tmp_path: Path) -> None:
    folder = tmp_path / "cell"
    for left in ("{}", "no json"):
        (folder / "adapter").mkdir(parents=True)
        (folder / "begun.json").write_text(left)
        with work_in(folder, "one"):
            assert {path.name for path in folder.iterdir()} == {LOCK, "begun.json"}


def test_what_is_kept_stays(tmp_path: Path) -> None:
    for _ in range(2):
        with work_in(tmp_path / "teacher", "one", keep=True):
            (tmp_path / "teacher" / "merged").mkdir(exist_ok=True)
    assert (tmp_path / "teacher" / "merged").exists()


def test_what_is_shared_stays_while_another_is_at_work(tmp_path: Path) -> None:
    for name in ("starts", "teachers"):
        (tmp_path / name / "one").mkdir(parents=True)
    with work_in(tmp_path / "cell", "one"):
        remove_shared(tmp_path)
        assert (tmp_path / "starts" / "one").exists()
        assert (tmp_path / "teachers" / "one").exists()
    # One that was killed while it removed them.
    (tmp_path / ".starts.unfinished-by-pruning-adapter-abcd1234" / "starts").mkdir(parents=True)
    remove_shared(tmp_path)
    assert not tmp_path.exists()
    remove_shared(tmp_path)


def test_alike_is_what_does_the_same() -> None:
    settings = Settings(model="encoder", task="rte", keep_ratio=0.5)
    assert alike_of(settings) == alike_of(replace(settings))
    others = [replace(settings, keep_ratio=0.7), replace(settings, scorer="random"), replace(settings, recipe="paper")]
    assert len({alike_of(each) for each in (settings, *others)} | {alike_of(settings, taught=True)}) == 5
    # How the dense part trains depends on neither of the first two.
    starts = [alike_of(each, until_start=True) for each in (settings, *others)]
    assert starts[0] == starts[1] == starts[2] != starts[3]
