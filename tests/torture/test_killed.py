"""Killed at any moment, interrupted, or out of disk: every file is the old or the new one, and the end is the same.

`pytest tests/torture --moments 50` is the whole campaign; by default a few moments are tried.
"""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import pytest
from safetensors import safe_open

from pruning_adapter import ImportanceScores, PruningPlan, RankPlan, load_pruned
from pruning_adapter.evaluation.result import Result
from pruning_adapter.pipeline import PREDICTIONS, TRAINING
from pruning_adapter.run_folder import LOCK
from pruning_adapter.settings import Settings
from pruning_adapter.storage import read_json
from tiny_encoder import make_texts, save_tiny_encoder

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kills and forks")

ENDED, KILLED = 0, -signal.SIGKILL
SAME = (
    "importance.json",
    "plan.json",
    "ranks.json",
    "predictions.json",
    "adapter/adapter_model.safetensors",
    "adapter/adapter_config.json",
    "base/model.safetensors",
    "base/config.json",
    "merged/model.safetensors",
    "merged/config.json",
    "start/model.safetensors",
)
"""What a run gives to the bit whenever it is run."""


class Forge:
    """Runs of the command line that end as they are told to; see forge.py."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def run(self, argv: Sequence[object], folder: Path, **how: Any) -> dict[str, Any]:
        return self._ask({"argv": [str(word) for word in argv], "folder": str(folder), **how})

    def save_in_turns(self, sources: Sequence[Path], folder: Path, *, kill_after: float) -> dict[str, Any]:
        return self._ask({"save": [str(source) for source in sources], "folder": str(folder), "kill_after": kill_after})

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        asked, answers = cast("tuple[IO[str], IO[str]]", (self._process.stdin, self._process.stdout))
        print(json.dumps(order), file=asked, flush=True)
        return json.loads(answers.readline())


@dataclass(frozen=True)
class Scene:
    """A model, a task, the command that runs them, and what an undisturbed run of it leaves."""

    argv: list[object]
    undisturbed: Path
    moments: list[str]
    seconds: float

    def run(self, forge: Forge, folder: Path, *more: str, **how: Any) -> dict[str, Any]:
        return forge.run([*self.argv, "--output-dir", folder, *more], folder, **how)

    def check_end(self, forge: Forge, folder: Path) -> None:
        """The run goes on, and ends as the undisturbed one did."""
        resumed = self.run(forge, folder, "--resume")
        assert resumed["status"] == ENDED, resumed["said"]
        assert tree(folder) == tree(self.undisturbed)
        for name in SAME:
            # The adapter names its base, by where that lies.
            here, there = ((each / name).read_bytes().replace(bytes(each), b"") for each in (folder, self.undisturbed))
            assert here == there, name
        one, other = (Result.load(each / "result.json") for each in (folder, self.undisturbed))
        assert (one.quality, one.history) == (other.quality, other.history)


@pytest.fixture(scope="module")
def forge() -> Generator[Forge]:
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("forge.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert "ready" in json.loads(process.stdout.readline())
        yield Forge(process)
        process.kill()


@pytest.fixture(scope="module")
def scene(forge: Forge, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("scene")
    model = save_tiny_encoder(folder / "model")
    for name, count in (("train.csv", 64), ("dev.csv", 16)):
        rows = (f"{text},{('no', 'yes')[place]}" for text, place in make_texts(name, count, 2))
        (folder / name).write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")
    argv: list[object] = ["run", "--model", model, "--text-columns", "text", "--label-column", "label"]
    argv += ["--train-file", folder / "train.csv", "--validation-file", folder / "dev.csv"]
    argv += ["--keep-macs", 0.5, "--epochs", 2, "--learning-rate", 0.01, "--threads", 1]
    undisturbed = folder / "undisturbed"
    found = forge.run([*argv, "--output-dir", undisturbed], undisturbed)
    assert found["status"] == ENDED, found["said"]
    # The classes are learnt, or equal predictions would say little.
    assert Result.load(undisturbed / "result.json").quality["validation"].metrics["accuracy"].value > 0.8
    return Scene(argv, undisturbed, found["moments"], found["seconds"])


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {LOCK}


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")} - {LOCK}


def check_whole(folder: Path) -> None:
    """Everything that bears one of a run's names is complete."""
    read: dict[str, Any] = {
        "settings.json": Settings.load,
        "importance.json": ImportanceScores.load,
        "plan.json": PruningPlan.load,
        "ranks.json": RankPlan.load,
        "training.json": lambda path: read_json(path, kind=TRAINING),
        "predictions.json": lambda path: read_json(path, kind=PREDICTIONS),
        "result.json": Result.load,
        "report.html": check_page,
        "adapter": check_adapter,
        **dict.fromkeys(("start", "base", "merged"), load_pruned),
    }
    for path in folder.iterdir():
        if path.name in read:
            read[path.name](path)
        else:
            # The Trainer's own, and what is being written, in places of their own.
            assert path.name.startswith(".") or path.name in ("checkpoints", "start-checkpoints"), path.name


def check_page(path: Path) -> None:
    assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")


def check_adapter(path: Path) -> None:
    json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
    with safe_open(path / "adapter_model.safetensors", framework="pt") as file:
        assert file.keys()


def choose(scene: Scene, moment: int, count: int) -> dict[str, Any]:
    """Every other time just before a file changes, spread over the run; else at a random time."""
    generator = random.Random(moment)
    if moment % 2:
        return {"kill_after": generator.uniform(0, scene.seconds)}
    return {"kill_at": int(len(scene.moments) * (moment + generator.uniform(0, 2)) / (count + 1))}


def test_a_run_killed_at_any_moment_goes_on_to_the_same_end(
    forge: Forge, scene: Scene, tmp_path: Path, moment: int, pytestconfig: pytest.Config
) -> None:
    folder = tmp_path / "run"
    how = choose(scene, moment, pytestconfig.getoption("moments"))
    killed = scene.run(forge, folder, **how)
    # By the clock, a fast run may have ended before.
    assert killed["status"] == KILLED or (killed["status"] == ENDED and "kill_after" in how), killed["said"]
    if folder.exists():
        check_whole(folder)
    if moment % 3 == 0:
        # And once more, on its way back.
        again = scene.run(forge, folder, "--resume", kill_after=random.Random(-moment).uniform(0, scene.seconds / 2))
        assert again["status"] in (ENDED, KILLED), again["said"]
        check_whole(folder)
    scene.check_end(forge, folder)


@pytest.mark.parametrize(("how", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "Ctrl-C"])
def test_an_interrupted_run_leaves_no_half_file_and_goes_on(
    forge: Forge, scene: Scene, tmp_path: Path, how: signal.Signals, status: int
) -> None:
    folder, writing = tmp_path / "run", next(n for n, told in enumerate(scene.moments) if "open /.adapter." in told)
    stopped = scene.run(forge, folder, signal_at=(writing, how))
    assert stopped["status"] == status, stopped["said"]
    assert "Interrupted. Go on with --resume." in stopped["said"]
    assert {name for name in names(folder) if name.startswith(".")} == set()
    assert "adapter" not in names(folder)
    check_whole(folder)
    scene.check_end(forge, folder)


def test_a_disk_that_is_full_for_larger_files_is_one_clear_error(
    forge: Forge, scene: Scene, tmp_path: Path, moment: int, pytestconfig: pytest.Config
) -> None:
    """The smallest files fit first, so the limit decides which step fails."""
    sizes = sorted({path.stat().st_size for path in scene.undisturbed.rglob("*") if path.is_file()} - {0})
    limit = sizes[moment * len(sizes) // pytestconfig.getoption("moments")] - 1
    folder = tmp_path / "run"
    failed = scene.run(forge, folder, file_limit=limit)
    check_refused(failed, "File too large")
    check_whole(folder)
    assert not [name for name in names(folder) if name.startswith(".")]
    scene.check_end(forge, folder)


def check_refused(failed: dict[str, Any], reason: str) -> None:
    assert failed["status"] == 2, failed["said"]
    assert "Traceback" not in failed["said"]
    assert "error: " in failed["said"]
    assert reason in " ".join(failed["said"].split())


def test_a_full_or_read_only_file_system_is_one_clear_error(forge: Forge, scene: Scene, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root may mount")
    folder = disk / "run"
    try:
        check_refused(scene.run(forge, folder), "No space left on device")
        check_whole(folder)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        check_refused(scene.run(forge, folder, "--resume"), "Read-only file system")
        check_whole(folder)
        subprocess.run(["mount", "-o", "remount,rw,size=64m", disk], check=True)
        scene.check_end(forge, folder)
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.fixture(scope="module")
def exported(forge: Forge, scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """An undisturbed export of all forms that this model has, and what it told."""
    folder = tmp_path_factory.mktemp("exported")
    told = forge.run(export(scene, folder), folder)
    assert told["status"] == ENDED, told["said"]
    return folder, told


def export(scene: Scene, folder: Path) -> list[object]:
    forms = ("--stock", "--torch-export", "--onnx", "--int8")
    return ["export", *forms, "--model", scene.undisturbed / "merged", "--output-dir", folder, "--overwrite"]


def test_an_export_killed_at_any_moment_leaves_old_files_or_new_ones(
    forge: Forge,
    scene: Scene,
    exported: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    moment: int,
    pytestconfig: pytest.Config,
) -> None:
    whole, told = exported
    folder = tmp_path / "run"
    every, part = len(told["moments"]), moment + random.Random(moment).random()
    killed = forge.run(export(scene, folder), folder, kill_at=int(every * part / pytestconfig.getoption("moments")))
    assert killed["status"] == KILLED, killed["said"]
    sizes = {path.relative_to(whole): path.stat().st_size for path in whole.rglob("*") if path.is_file()}
    for path in folder.rglob("*"):
        place = path.relative_to(folder)
        if path.is_file() and not place.parts[0].startswith("."):
            assert path.stat().st_size == sizes[place], place
    again = forge.run(export(scene, folder), folder)
    assert again["status"] == ENDED, again["said"]
    assert {str(path.relative_to(folder)) for path in folder.rglob("*")} == {
        str(path.relative_to(whole)) for path in whole.rglob("*")
    }


def test_saving_over_an_old_model_leaves_the_one_or_the_other(
    forge: Forge, scene: Scene, tmp_path: Path, moment: int
) -> None:
    sources = [scene.undisturbed / "merged", scene.undisturbed / "start"]
    weights = [(source / "model.safetensors").read_bytes() for source in sources]
    folder = tmp_path / "saved"
    for wait in (random.Random(10 * moment + part).uniform(0, 0.5) for part in range(5)):
        killed = forge.save_in_turns(sources, folder, kill_after=wait)
        assert killed["status"] == KILLED, killed["said"]
        assert killed["moments"]
        if not (folder / "which.json").exists():
            # Killed before the first pair was there.
            continue
        found = (folder / "merged/model.safetensors").read_bytes()
        assert found in weights
        which = sources[weights.index(found)]
        assert json.loads((folder / "merged/config.json").read_text()) == json.loads(
            (which / "config.json").read_text()
        )
        load_pruned(folder / "merged")
        assert read_json(folder / "which.json", kind="which")["source"] in map(str, sources)
