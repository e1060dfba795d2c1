"""Killed, or out of disk, while an old file or folder is replaced: it is wholly the old or wholly the new one."""

import math
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model

from conformance import make_plan
from forge import ENDED, KILLED, Forge, Moment, Outcome, check_refused
from matrix import make_uniform_plan
from pruning_adapter import PruneLoraConfig, prune_, save_adapter, save_pruned
from pruning_adapter.run_folder import LOCK
from tiny import make_model
from tiny_encoder import save_tiny_tokenizer

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kills and forks")

EXPORTS = {
    "stock": "--stock",
    "uniform": "--uniform-heads",
    "transformers4": "--transformers4",
    "torch.export": "--torch-export",
    "onnx": "--onnx",
    "int8": "--int8",
}
FORMS = (*EXPORTS, "save_adapter", "prune_checkpoint")

Files = dict[str, bytes]


@dataclass(frozen=True)
class Replacement:
    """What is written over something older of its kind, and what an undisturbed writer leaves."""

    write: Callable[..., Outcome]
    """The newer one into a folder; `how` it may end is told in forge_server.py."""
    old: Files
    new: Files
    moments: list[Moment]

    def place(self, place: float) -> int:
        """The moment at this share of all changes."""
        return int(place * len(self.moments))

    def time(self, generator: random.Random) -> tuple[int, float]:
        """Any time, as a moment and what is waited after the one before it."""
        times = [0.0, *(moment.seconds for moment in self.moments)]
        spans = [after - before for before, after in pairwise(times)]
        (place,) = generator.choices(range(len(spans)), weights=spans)
        return place, generator.uniform(0, spans[place])


def files_in(folder: Path) -> Files:
    """All files but the lock, to the bit."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: content for name, content in found.items() if name != LOCK}


def complete_in(folder: Path) -> Files:
    """What does not bear the name of something unfinished."""
    return {
        name: content
        for name, content in files_in(folder).items()
        if ".unfinished-by-pruning-adapter-" not in name.partition("/")[0]
    }


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An older and a newer model of two families, and two plans for a dense one, with an adapter of it."""
    folder = tmp_path_factory.mktemp("sources")
    for number in (0, 1):
        encoder, decoder = make_model("bert", dtype=torch.float32), make_model("llama", dtype=torch.float32)
        plan = make_plan(encoder, {number: [1], 2: [0, 3]})
        plan.save(folder / f"plan-{number}.json")
        save_pruned(prune_(encoder, plan), folder / f"bert-{number}")
        save_tiny_tokenizer(folder / f"bert-{number}")
        prune_(decoder, make_uniform_plan(decoder, heads=True))
        decoder.model.norm.weight.data.fill_(1.0 + number)
        save_pruned(decoder, folder / f"llama-{number}")
    dense: Any = make_model("bert", dtype=torch.float32)
    dense.save_pretrained(folder / "dense")
    save_tiny_tokenizer(folder / "dense")
    adapted = get_peft_model(dense, PruneLoraConfig(pruning=make_plan(dense, {0: [1]}), task_type="SEQ_CLS", r=2))
    save_adapter(adapted, folder / "adapter")
    return folder


def write(forge: Forge, sources: Path, form: str, number: int, folder: Path, **how: Any) -> Outcome:
    """Write the older (0) or the newer one (1) into `folder`."""
    if form == "save_adapter":
        return forge.call(form, sources / "dense", sources / "adapter", 1 + number, folder=folder, **how)
    if form == "prune_checkpoint":
        return forge.call(form, sources / "dense", sources / f"plan-{number}.json", folder=folder, **how)
    model = sources / f"{'llama' if form == 'uniform' else 'bert'}-{number}"
    return forge.run(["export", EXPORTS[form], "--model", model, "--output-dir", folder, "--overwrite"], folder, **how)


@pytest.fixture(scope="module")
def replacements(forge: Forge, sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Replacement]:
    """By their form; each is made when it is first asked for."""
    known: dict[str, Replacement] = {}

    def find(form: str) -> Replacement:
        if form not in known:
            folder = tmp_path_factory.mktemp("undisturbed")
            found: list[Files] = []
            for number in (0, 1):
                told = write(forge, sources, form, number, folder)
                assert told.status == ENDED, told.said
                found.append(files_in(folder))
                # One that is there already is opened twice, and what the old one is laid out in has none.
                (folder / LOCK).unlink(missing_ok=True)
            assert found[0] != found[1]

            def write_newer(folder: Path, **how: Any) -> Outcome:
                return write(forge, sources, form, 1, folder, **how)

            known[form] = Replacement(write_newer, found[0], found[1], told.moments)
        return known[form]

    return find


@pytest.mark.in_turn("form", FORMS)
def test_killed_or_out_of_disk_it_is_wholly_the_old_or_wholly_the_new_one(
    replacements: Callable[[str], Replacement], tmp_path: Path, form: str, turn: int, pytestconfig: pytest.Config
) -> None:
    if form in ("onnx", "int8"):
        pytest.importorskip("onnxscript")
    replacement, generator = replacements(form), random.Random(f"{form} {turn}")
    for name, content in replacement.old.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)

    turns = math.ceil(pytestconfig.getoption("moments") / len(FORMS))
    changes = replacement.place((turn + generator.random()) / turns), None
    killed = replacement.write(
        tmp_path, kill_at=replacement.time(generator) if (FORMS.index(form) + turn) % 2 else changes
    )
    assert killed.status == KILLED, killed.said
    left = complete_in(tmp_path)
    assert left in (replacement.old, replacement.new)

    room = int(generator.uniform(0, max(map(len, replacement.new.values())) - 1))
    check_refused(replacement.write(tmp_path, file_limit=room), "File too large")
    assert complete_in(tmp_path) == left

    again = replacement.write(tmp_path)
    assert again.status == ENDED, again.said
    # What was killed goes as soon as somebody holds the folder.
    assert (files_in if form in EXPORTS else complete_in)(tmp_path) == replacement.new
