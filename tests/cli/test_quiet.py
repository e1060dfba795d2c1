"""Who did not ask is told nothing: an import and a call are silent, and a verb prints what it is documented to."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tiny_encoder import make_texts, save_tiny_encoder

IMPORT = """
import json, logging, sys
before = {name: list(logging.getLogger(name).handlers) for name in ("", "pruning_adapter")}
level = logging.getLogger().level
import pruning_adapter as pa
for name in pa.__all__:
    getattr(pa, name)
after = {name: list(logging.getLogger(name).handlers) for name in before}
ours = logging.getLogger("pruning_adapter")
said = {"same": before == after, "level": ours.level, "propagates": ours.propagate}
said["root"] = logging.getLogger().level == level
sys.stderr.write(json.dumps(said))
"""

CALLS = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from peft import PeftModel, get_peft_model
import pruning_adapter as pa
from transformers.utils.logging import disable_progress_bar
from tiny import make_batch, make_model

# Transformers' own, of which its users decide.
disable_progress_bar()
folder = Path(sys.argv[2])
model, batches = make_model("bert"), [make_batch(size=80)]
model.save_pretrained(folder / "base")
scores = pa.measure_importance(model, batches, units=("heads", "neurons"), stop_when_stable=0.9)
pa.obs_importance(model, batches)
plan = pa.plan_pruning(scores, keep_macs=0.5, length=12, reconstruct="lstsq")
pa.plan_ranks(scores, plan, top_blocks=1)
scores.save(folder / "importance.json")
pa.reconstruct_(model, plan, batches)
pa.save_pruned(model, folder / "pruned")
pa.load_pruned(folder / "pruned")
adapted = get_peft_model(make_model("bert"), pa.PruneLoraConfig(pruning=pa.plan_pruning(scores, keep_heads=6)))
adapted.save_pretrained(folder / "adapter")
PeftModel.from_pretrained(make_model("bert"), folder / "adapter").merge_and_unload()
"""


def environment() -> dict[str, str]:
    # What the libraries warn of in their own code is theirs to mend.
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def python(*words: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *map(str, words)], env=environment(), capture_output=True, text=True, check=False
    )


def ours(said: str) -> list[str]:
    """Without what bitsandbytes says, as soon as PEFT finds it, of a kernel that it lacks."""
    return [line for line in said.splitlines() if not line.startswith("Failed to load CPU gemm_4bit_forward")]


def test_importing_sets_no_logging_up() -> None:
    done = python("-c", IMPORT)
    assert (done.returncode, done.stdout) == (0, "")
    (said,) = ours(done.stderr)
    assert json.loads(said) == {"same": True, "level": 0, "propagates": True, "root": True}


def test_calls_of_the_library_print_nothing(tmp_path: Path) -> None:
    done = python("-c", CALLS, Path(__file__).parent.parent, tmp_path)
    assert (done.returncode, done.stdout, ours(done.stderr)) == (0, "", [])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, "subprocess.CompletedProcess[str]"]:
    folder = tmp_path_factory.mktemp("quiet")
    save_tiny_encoder(folder / "model")
    for name, count in (("train.csv", 64), ("dev.csv", 16)):
        rows = (f"{text},{('no', 'yes')[place]}" for text, place in make_texts(name, count, 2))
        (folder / name).write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")
    words = ["--model", folder / "model", "--text-columns", "text", "--label-column", "label", "--epochs", 1]
    words += ["--train-file", folder / "train.csv", "--validation-file", folder / "dev.csv", "--keep-heads", 6]
    done = python("-m", "pruning_adapter", "run", *words, "--threads", 1, "--output-dir", folder / "run")
    return folder / "run", done


def test_a_run_says_nothing_on_the_stream_of_errors(
    finished: tuple[Path, "subprocess.CompletedProcess[str]"],
) -> None:
    folder, done = finished
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.rstrip().endswith(f"Report: {folder / 'report.html'}")
    # The Trainer prints every log entry as a dict where nobody stops it.
    assert "{'loss'" not in done.stdout


def test_a_verb_prints_its_line_and_nothing_else(finished: tuple[Path, "subprocess.CompletedProcess[str]"]) -> None:
    folder, _ = finished
    done = python("-m", "pruning_adapter", "report", "--output-dir", folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"Report: {folder / 'report.html'}\n"


def test_who_asks_hears_the_libraries_on_the_stream_of_errors(
    finished: tuple[Path, "subprocess.CompletedProcess[str]"],
) -> None:
    folder, _ = finished
    words = ("-m", "pruning_adapter", "merge", "--overwrite", "--output-dir", folder)
    quiet, verbose = python(*words), python(*words, "--verbose")
    assert (quiet.returncode, quiet.stderr, verbose.returncode) == (0, "", 0)
    assert "loading configuration file" in verbose.stderr
    # What the verb itself says is the same.
    assert verbose.stdout == quiet.stdout != ""
