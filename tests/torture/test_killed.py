"""Killed at any moment, interrupted, or out of disk: every file is the old or the new one, and the end is the same.

`pytest tests/torture --moments 50` is the whole campaign; by default a few moments are tried.
"""

import json
import os
import random
import re
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from forge import ENDED, KILLED, Forge, Moment, Outcome, check_refused
from pruning_adapter import ImportanceScores, PruningPlan, RankPlan, load_pruned
from pruning_adapter.evaluation.result import Result
from pruning_adapter.pipeline import PREDICTIONS, TRAINING
from pruning_adapter.run_folder import LOCK
from pruning_adapter.settings import Settings
from pruning_adapter.storage import read_json
from tiny_encoder import make_texts, save_tiny_encoder

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kills and forks")

STAGE_OF = {
    "start-checkpoints": "training",
    "start": "saving",
    "importance.json": "importance",
    "ranks.json": "pruning",
    "plan.json": "pruning",
    "base": "pruning",
    "checkpoints": "training",
    "adapter": "saving",
    "training.json": "saving",
    "merged": "merging",
    "predictions.json": "evaluating",
}
"""What a run is at when it is about to change these, or works towards it. After the last, it is at that to its end."""
STAGES = tuple(dict.fromkeys(STAGE_OF.values()))
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


@dataclass(frozen=True)
class Scene:
    """A model, a task, the command that runs them, and what an undisturbed run of it leaves."""

    argv: list[object]
    undisturbed: Path
    moments: list[Moment]
    seconds: float

    def at_a_change(self, stage: str, generator: random.Random) -> tuple[int, None]:
        """Just before one of the changes of a stage."""
        return generator.choice(self._places(stage)), None

    def in_between(self, stage: str, generator: random.Random) -> tuple[int, float]:
        """At any time of a stage, whether something changes or not."""
        times = [0.0, *(moment.seconds for moment in self.moments)]
        spans = {place: times[place + 1] - times[place] for place in self._places(stage)}
        (place,) = generator.choices(list(spans), weights=list(spans.values()))
        return place, generator.uniform(0, spans[place])

    def _places(self, stage: str) -> list[int]:
        return [place for place, found in enumerate(stages_of(self.moments)) if found == stage]

    def run(self, forge: Forge, folder: Path, *more: str, **how: Any) -> Outcome:
        return forge.run([*self.argv, "--output-dir", folder, *more], folder, **how)

    def check_end(self, forge: Forge, folder: Path) -> None:
        """The run goes on, and ends as the undisturbed one did."""
        resumed = self.run(forge, folder, "--resume")
        assert resumed.status == ENDED, resumed.said
        assert tree(folder) == tree(self.undisturbed)
        for name in SAME:
            # The adapter names its base, by where that lies.
            here, there = ((each / name).read_bytes().replace(bytes(each), b"") for each in (folder, self.undisturbed))
            assert here == there, name
        one, other = (Result.load(each / "result.json") for each in (folder, self.undisturbed))
        assert (one.quality, one.history) == (other.quality, other.history)


@pytest.fixture(scope="module")
def scene(forge: Forge, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("scene")
    model = save_tiny_encoder(folder / "model")
    for name, count in (("train.csv", 96), ("dev.csv", 16)):
        rows = (f"{text},{('no', 'yes')[place]}" for text, place in make_texts(name, count, 2))
        (folder / name).write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")
    argv: list[object] = ["run", "--model", model, "--text-columns", "text", "--label-column", "label"]
    argv += ["--train-file", folder / "train.csv", "--validation-file", folder / "dev.csv"]
    argv += ["--keep-macs", 0.5, "--epochs", 2, "--learning-rate", 0.01, "--threads", 1]
    # Units go after three steps of six.
    argv += ["--prune-after", 0.5]
    undisturbed = folder / "undisturbed"
    found = forge.run([*argv, "--output-dir", undisturbed], undisturbed)
    assert found.status == ENDED, found.said
    # The classes are learnt, or equal predictions would say little.
    assert Result.load(undisturbed / "result.json").quality["validation"].metrics["accuracy"].value > 0.8
    return Scene(argv, undisturbed, found.moments, found.seconds)


def stages_of(moments: Sequence[Moment]) -> list[str]:
    """The stage that leads to each moment."""
    found: list[str] = []
    stage = "evaluating"
    # Backwards, for much is made ready before a name tells what for.
    for moment in reversed(moments):
        name = re.sub(r"^\.+|\.unfinished-by-.*", "", moment.path.removeprefix("/").partition("/")[0])
        stage = STAGE_OF.get(name, stage)
        found.append(stage)
    found.reverse()
    # The cards are written into folders that were there before.
    last = next(place for place, moment in enumerate(moments) if "/.predictions.json" in moment.path)
    return [*found[:last], *("evaluating" for _ in found[last:])]


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


@pytest.mark.in_turn("stage", STAGES)
def test_a_run_killed_at_any_moment_goes_on_to_the_same_end(
    forge: Forge, scene: Scene, tmp_path: Path, stage: str, turn: int
) -> None:
    folder, number = tmp_path / "run", STAGES.index(stage) + turn
    generator = random.Random(f"{stage} {turn}")
    kill_at = (scene.at_a_change if number % 2 else scene.in_between)(stage, generator)
    killed = scene.run(forge, folder, kill_at=kill_at)
    assert killed.status == KILLED, killed.said
    # What it was about to do, had it not been killed.
    done = len(killed.moments)
    assert stages_of([*killed.moments, *scene.moments[done:]])[done] == stage
    began = folder.exists()
    if began:
        check_whole(folder)
    if number % 3 == 0:
        # And once more, on its way back.
        again = scene.run(forge, folder, "--resume", kill_after=generator.uniform(0, scene.seconds / 2))
        assert again.status in (ENDED, KILLED), again.said
        # Both may have come before anything was written; what was written stays.
        if began or folder.exists():
            check_whole(folder)
    scene.check_end(forge, folder)


@pytest.mark.parametrize(("how", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "Ctrl-C"])
def test_an_interrupted_run_leaves_no_half_file_and_goes_on(
    forge: Forge, scene: Scene, tmp_path: Path, how: signal.Signals, status: int
) -> None:
    folder, writing = (
        tmp_path / "run",
        next(
            place
            for place, moment in enumerate(scene.moments)
            if moment.event == "open" and "/.adapter." in moment.path
        ),
    )
    stopped = scene.run(forge, folder, signal_at=(writing, how))
    assert stopped.status == status, stopped.said
    assert "Interrupted. Go on with --resume." in stopped.said
    assert {name for name in names(folder) if name.startswith(".")} == set()
    assert "adapter" not in names(folder)
    check_whole(folder)
    scene.check_end(forge, folder)


@pytest.mark.every(3)
def test_a_disk_that_is_full_for_larger_files_is_one_clear_error(
    forge: Forge, scene: Scene, tmp_path: Path, moment: int, pytestconfig: pytest.Config
) -> None:
    """The smallest files fit first, so the limit decides which step fails."""
    sizes = sorted({path.stat().st_size for path in scene.undisturbed.rglob("*") if path.is_file()} - {0})
    place = moment * len(sizes) // pytestconfig.getoption("moments")
    # Anywhere between, for what is written on the way and goes again has sizes of its own.
    limit = random.Random(moment).randrange(sizes[place - 1] if place else 0, sizes[place])
    folder = tmp_path / "run"
    failed = scene.run(forge, folder, file_limit=limit)
    # PyTorch's own writer keeps the reason to itself.
    check_refused(failed, "File too large", "PyTorch could not write all of a file")
    check_whole(folder)
    assert not [name for name in names(folder) if name.startswith(".")]
    scene.check_end(forge, folder)


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


def test_saving_over_an_old_model_leaves_the_one_or_the_other(
    forge: Forge, scene: Scene, tmp_path: Path, moment: int
) -> None:
    sources = [scene.undisturbed / "merged", scene.undisturbed / "start"]
    weights = [(source / "model.safetensors").read_bytes() for source in sources]
    folder = tmp_path / "saved"
    for wait in (random.Random(10 * moment + part).uniform(0, 0.5) for part in range(5)):
        killed = forge.call("save_in_turns", *sources, folder=folder, kill_after=wait)
        assert killed.status == KILLED, killed.said
        assert killed.moments
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
