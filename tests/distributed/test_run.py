"""Runs of the command line in two processes: the same results, one writer, one message."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from accelerate_on_cpus import spread
from pair import Pair, free_port
from pruning_adapter import cli
from pruning_adapter.pipeline import Run
from pruning_adapter.settings import Settings
from tiny_encoder import make_texts, save_tiny_encoder

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="PyTorch was built without gloo")

PATIENCE = 300


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without dropout, which each process would draw for itself, and a task whose last batch is uneven."""
    folder = tmp_path_factory.mktemp("place")
    config = save_tiny_encoder(folder / "model") / "config.json"
    content = json.loads(config.read_text(encoding="utf-8"))
    content |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config.write_text(json.dumps(content), encoding="utf-8")
    for name, count in (("train.csv", 41), ("dev.csv", 16)):
        rows = [f"{text},{('no', 'yes')[label]}" for text, label in make_texts(name, count, 2)]
        (folder / name).write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")
    return folder


def settings(place: Path) -> dict[str, Any]:
    return {
        "model": str(place / "model"),
        "train_file": str(place / "train.csv"),
        "validation_file": str(place / "dev.csv"),
        "label_column": "label",
        "epochs": 1.0,
    }


def options(place: Path) -> list[str]:
    given = {**settings(place), "text_columns": "text", "threads": 1}
    return [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def assert_same_model(folder: Path, other: Path) -> None:
    ours, theirs = (load_file(each / "merged/model.safetensors") for each in (folder, other))
    assert list(ours) == list(theirs)
    for name, weight in ours.items():
        np.testing.assert_allclose(theirs[name].numpy(), weight.numpy(), atol=2e-5, err_msg=name)


def launch(program: Sequence[str], words: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    """Two processes of `program`, as people start them."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    return subprocess.run(
        [sys.executable, *launcher, *program, *words],
        env=environment(),
        timeout=PATIENCE,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def two(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe's whole way: the dense model trains, is scored, pruned and corrected, and trains on."""
    folder = tmp_path_factory.mktemp("undisturbed") / "two"
    done = launch(["-m", "pruning_adapter"], ["run", *options(place), "--output-dir", str(folder)])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Report:") == done.stdout.count("epoch 1 of 1") == 1
    return folder


def test_two_processes_leave_what_one_leaves(
    place: Path, two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = tmp_path / "one"
    monkeypatch.setattr(sys, "argv", ["pruning-adapter", "run", *options(place), "--output-dir", str(one)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()}
    for name in ("plan.json", "ranks.json", "predictions.json"):
        assert (two / name).read_bytes() == (one / name).read_bytes()
    assert_same_model(one, two)
    said = [json.loads((folder / "training.json").read_text(encoding="utf-8")) for folder in (one, two)]
    assert [each["processes"] for each in said] == [1, 2]
    assert json.loads((two / "result.json").read_text(encoding="utf-8"))["command"].startswith("torchrun")


KILL_ONE = """
import os, signal, sys
from pathlib import Path
from pruning_adapter import cli
from pruning_adapter.training import trainer

planned, compute = Path(sys.argv[-1]) / "ranks.json", trainer._Trainer.compute_loss

def compute_or_die(*arguments, **named):
    if planned.exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return compute(*arguments, **named)

if os.environ["RANK"] == "0":
    trainer._Trainer.compute_loss = compute_or_die
cli.main()
"""


@pytest.mark.skipif(os.name != "posix", reason="kills")
def test_a_run_of_which_one_process_was_killed_goes_on(place: Path, two: Path, tmp_path: Path) -> None:
    """The one that writes, in the pruned model's training, by the system, as for want of memory."""
    program, folder = tmp_path / "program.py", tmp_path / "run"
    program.write_text(KILL_ONE, encoding="utf-8")
    words = ["run", *options(place), "--output-dir", str(folder)]
    killed = launch([str(program)], words)
    assert killed.returncode != 0
    assert "SIGKILL" in killed.stderr
    # All that is there is whole, and what was not finished is not there.
    left = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    steps = {"settings.json", "importance.json", "plan.json", "ranks.json"}
    assert left - {"checkpoints", "start-checkpoints", "base"} == {*steps, "start"}
    for name in steps - {"settings.json"}:
        assert (folder / name).read_bytes() == (two / name).read_bytes(), name
    resumed = launch(["-m", "pruning_adapter"], [*words, "--resume"])
    assert resumed.returncode == 0, resumed.stderr
    assert {path.name for path in folder.iterdir()} == {path.name for path in two.iterdir()}
    for name in ("predictions.json", "merged/model.safetensors", "adapter/adapter_model.safetensors"):
        assert (folder / name).read_bytes() == (two / name).read_bytes(), name


ONE_LACKS_A_FILE = """
import os, sys
from pruning_adapter import cli
if os.environ["RANK"] == "1":
    sys.argv[sys.argv.index("--train-file") + 1] = "not-there.csv"
cli.main()
"""


def start_two(program: str, words: Sequence[str]) -> list[tuple[int, str, str]]:
    """Status, output and messages of two processes that meet without a launcher, which would end one with the other."""
    told = environment() | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program, *words],
            env={**told, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        return [(process.wait(), out, error) for process in running for out, error in [process.communicate(None, 120)]]
    finally:
        for process in running:
            process.kill()


def test_an_error_in_one_process_ends_both_with_one_message(place: Path, tmp_path: Path) -> None:
    words = ["run", *options(place), "--output-dir", str(tmp_path / "run")]
    first, second = start_two(ONE_LACKS_A_FILE, words)
    assert (first[0], second[0]) == (2, 2)
    assert "not-there.csv" in second[2]
    assert "error:" not in first[2]
    assert "Traceback" not in first[2] + second[2]
    assert not (tmp_path / "run" / "settings.json").exists()


VERB_AFTER_VERB = """
import os, shlex, sys
from pruning_adapter import cli
launched = dict(os.environ)
for line in sys.argv[1:]:
    os.environ |= launched
    sys.argv = ["pruning-adapter", *shlex.split(line)]
    try:
        cli.main()
    except SystemExit as end:
        print("status of", line.split()[0], end.code, file=sys.__stdout__, flush=True)
"""


def test_what_one_process_does_the_others_leave_to_it(place: Path, tmp_path: Path) -> None:
    """They neither wait for the folder's lock nor take it."""
    verbs = {
        "run": shlex.join(options(place)),
        "plan": "--dry-run",
        "report": "",
        "export": "--stock",
        "merge": "--overwrite",
    }
    lines = [f"{verb} {more} --output-dir {shlex.quote(str(tmp_path / 'run'))}" for verb, more in verbs.items()]
    first, second = start_two(VERB_AFTER_VERB, lines)
    statuses = [f"status of {verb} 0" for verb in verbs]
    assert second[1].splitlines() == statuses, second[2]
    assert [line for line in first[1].splitlines() if line.startswith("status of")] == statuses, first[2]
    assert first[1].count("Padded with zeros:") == first[1].count("Merged:") == 1
    assert "error: " not in first[2] + second[2]


def train_spread(rank: int, place: Path, folder: Path) -> None:
    with spread("bert"):
        train_at_once(place, folder)


def train_at_once(place: Path, folder: Path) -> None:
    chosen = {**settings(place), "text_columns": ("text",), "prune_after": 0.0}
    Run(Settings().changed(chosen), folder).train()


def test_a_run_can_spread_the_model_while_it_trains(
    pair: Pair, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.do(train_spread, place, tmp_path / "two")
    train_at_once(place, tmp_path / "one")
    ours, theirs = (load_file(tmp_path / each / "adapter/adapter_model.safetensors") for each in ("one", "two"))
    assert set(ours) == set(theirs)
    for name, weight in ours.items():
        np.testing.assert_allclose(theirs[name].numpy(), weight.numpy(), atol=2e-5, err_msg=name)


def refuse(rank: int, place: Path, folder: Path, chosen: dict[str, Any]) -> None:
    with spread("bert"):
        Run(Settings().changed({**settings(place), "text_columns": ("text",), **chosen}), folder)


@pytest.mark.parametrize(
    ("chosen", "why"),
    [({}, "units cannot leave a model in the midst of such a training"), ({"method": "full"}, "trains every weight")],
    ids=["prune_after", "full"],
)
def test_what_needs_whole_weights_is_refused(
    pair: Pair, place: Path, tmp_path: Path, chosen: dict[str, Any], why: str
) -> None:
    for failure in pair.fail(refuse, place, tmp_path, chosen):
        assert failure.kind == "TrainingError"
        assert why in failure.message
