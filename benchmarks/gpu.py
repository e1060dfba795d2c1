"""Speed, memory and accuracy on one CUDA device, in less than ten minutes.

    python benchmarks/gpu.py --model MODEL --data-dir GLUE --output benchmarks/results/gpu.json

Of BERT-base and of a Llama with 1.2 billion parameters (random weights: speed and memory do not care), in bfloat16 and
in float32: a training step (`training_step.py`), inference (`inference.py`) and the importance pass (`importance.py`),
each as those scripts measure it, plus absolute times and peak memory from the allocator. Then `pruning-adapter
reproduce` trains MODEL on all of MRPC and SST-2, full / lora / prune-lora with three seeds, several cells at once, for
as long as is left; it goes on where it stopped when this script is run again. The result is written after every part,
so what was measured stays.

MODEL and the two tasks of GLUE take less than 64 MB. `--device cpu --shapes tiny` tries the script out without a GPU.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

import importance
import inference
import training_step
from provenance import command_of, heading
from pruning_adapter.environment import machine, versions
from pruning_adapter.storage import write_json, write_text
from pruning_adapter.training.base_model import BaseModel

BATCHES = {"bert-base": 32, "llama-1b": 16, "tiny": 4}
"""Examples of 128 tokens in a batch."""
LENGTH = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or hub id of the encoder that is trained")
    parser.add_argument("--model-id", help="name to record instead of a folder")
    parser.add_argument("--data-dir", required=True, help="folder of GLUE data")
    parser.add_argument("--shapes", nargs="*", default=["bert-base", "llama-1b"], choices=list(BATCHES))
    parser.add_argument("--tasks", nargs="*", default=["mrpc", "sst2"])
    parser.add_argument("--train-rows", type=int, help="at the most, per task; default: all")
    parser.add_argument("--jobs", type=int, default=8, help="cells of the grid at once")
    parser.add_argument("--minutes", type=float, default=9.5, help="after which nothing new is begun")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

    command = command_of(options)
    content: dict[str, Any] = {"command": command, "machine": machine(), "versions": versions(), "parts": []}
    # Accuracy comes last, because it can go on another time; it is given about half the time.
    for name, measure in parts(options):
        if time.monotonic() > end - 30 * options.minutes * bool(options.tasks):
            content["parts"].append({"name": name, "rows": [], "note": "not measured: no time was left"})
            continue
        start = time.monotonic()
        try:
            rows, note = measure(), ""
        except torch.OutOfMemoryError as error:
            rows, note = [], f"not measured: {str(error).splitlines()[0]}"
        content["parts"].append({"name": name, "rows": rows, "note": note})
        print(f"{name}: {time.monotonic() - start:.0f} s {note}", flush=True)
        write(options.output, content)
        if options.device == "cuda":
            torch.cuda.empty_cache()
    if options.tasks:
        content["accuracy"] = train(options, left=end - time.monotonic())
    write(options.output, content)
    print(options.output.with_suffix(".md").read_text())


def parts(options: argparse.Namespace) -> Iterator[tuple[str, Callable[[], list[dict[str, Any]]]]]:
    for shape in options.shapes:
        for precision in ("bfloat16", "float32"):
            where = f"{shape}, {precision}"
            yield f"training step, {where}", lambda s=shape, p=precision: measure_training(options, s, p)
            yield f"inference, {where}", lambda s=shape, p=precision: measure_inference(options, s, p)
            yield f"importance, {where}", lambda s=shape, p=precision: measure_importance(options, s, p)


def measure_training(options: argparse.Namespace, shape: str, precision: str) -> list[dict[str, Any]]:
    chosen = argparse.Namespace(shape=shape, device=options.device, bf16=precision == "bfloat16", steps=12)
    batches = [training_step.fixed_batch(LENGTH, seed, BATCHES[shape]) for seed in range(chosen.steps + 2)]
    return training_step.measure(chosen, {f"{BATCHES[shape]} x {LENGTH}": batches}, classes=2)


def measure_inference(options: argparse.Namespace, shape: str, precision: str) -> list[dict[str, Any]]:
    # A compiled model takes most of a minute to make; one kind tells what compiling does.
    compiled = ("compiled",) if (shape, precision) == ("bert-base", "bfloat16") else ()
    chosen = argparse.Namespace(
        batches=[1, BATCHES[shape]], lengths=[LENGTH], repeats=15, runtimes=("eager", "eager, fused", *compiled)
    )
    dense = training_step.make_shape(shape, 2, options.device).to(getattr(torch, precision)).eval()
    return inference.measure(dense, chosen)


def measure_importance(options: argparse.Namespace, shape: str, precision: str) -> list[dict[str, Any]]:
    model = training_step.make_shape(shape, 2, options.device).to(getattr(torch, precision))
    batches: list[dict[str, Tensor]] = [training_step.fixed_batch(LENGTH, seed, 16) for seed in range(8)]
    chosen = argparse.Namespace(repeats=5)
    return importance.measure_costs(shape, BaseModel(model, fresh=()), batches, chosen)


def train(options: argparse.Namespace, *, left: float) -> str:
    """The page of what the grid finished in time, as its place beside the result."""
    folder = options.output.with_name(f"{options.output.stem}-reproduction")
    command = [sys.executable, "-m", "pruning_adapter", "reproduce", "--output-dir", str(folder)]
    command += ["--model", options.model, "--data-dir", options.data_dir, "--jobs", str(options.jobs)]
    command += ["--tasks", ",".join(options.tasks), "--methods", "full,lora,prune-lora"]
    command += ["--model-name", options.model_id] if options.model_id else []
    command += ["--train-rows", str(options.train_rows)] if options.train_rows else []
    command += ["--bf16"] if options.device == "cuda" else []
    running = subprocess.Popen(command, start_new_session=True)
    try:
        if running.wait(timeout=max(left, 1)):
            raise SystemExit("the grid failed; see above")
    except subprocess.TimeoutExpired:
        # Its jobs too, which would go on to the end of their cells.
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        print("the grid ran out of time; run this again to go on", flush=True)
        subprocess.run([*command, "--only-report"], check=True)
    return f"{folder.name}/reproduction.md"


def write(path: Path, content: dict[str, Any]) -> None:
    write_json(path, content)
    title = "Speed, memory and accuracy on one GPU"
    lines = heading(title, content["command"], content["machine"], content["versions"])[:-1]
    for part in content["parts"]:
        columns = COLUMNS[part["name"].split(",")[0]]
        lines += ["", f"## {part['name'].capitalize()}", ""]
        if part["note"]:
            lines.append(part["note"])
            continue
        lines += [f"| {' | '.join(columns)} |", f"| {' | '.join('---' for _ in columns)} |"]
        lines += [f"| {' | '.join(show(row) for show in columns.values())} |" for row in part["rows"]]
    if "accuracy" in content:
        lines += ["", "## Accuracy", "", f"[The paper's comparison]({content['accuracy']})"]
    write_text(path.with_suffix(".md"), "\n".join(lines) + "\n")


def spread(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['q1']:.2f} - {ratio['q3']:.2f})"


def absolute(row: dict[str, Any]) -> str:
    return f"{row['milliseconds']:.2f}" if "milliseconds" in row else ""


STOCK, PLAIN = training_step.BASELINES
COLUMNS: dict[str, dict[str, Callable[[dict[str, Any]], str]]] = {
    "training step": {
        "batch": lambda row: row["batches"],
        "arm": lambda row: row["arm"],
        "ms": absolute,
        "time / stock (quartiles)": lambda row: spread(row[STOCK]["time"]),
        "time / stock, no dropout": lambda row: spread(row[PLAIN]["time"]),
        "activations / stock, / no dropout": lambda row: (
            f"{row[STOCK]['activations']:.2f}, {row[PLAIN]['activations']:.2f}"
        ),
        "peak / stock, / no dropout": lambda row: f"{row[STOCK]['peak']:.2f}, {row[PLAIN]['peak']:.2f}",
        "peak MB": lambda row: f"{row['peak_bytes'] / 1e6:,.0f}" if "peak_bytes" in row else "",
    },
    "inference": {
        "batch": lambda row: f"{row['batch']} x {row['length']}",
        "model": lambda row: row["model"],
        "runtime": lambda row: row["runtime"],
        "MACs": lambda row: f"{row['macs']:.3f}",
        "ms": absolute,
        "latency / dense eager (quartiles)": spread,
        "latency / MACs": lambda row: f"{row['median'] / row['macs']:.2f}",
    },
    "importance": {
        "arm": lambda row: row["arm"],
        "time, in forward passes (quartiles)": spread,
        "peak memory / a LoRA training step": lambda row: "" if row["peak"] is None else f"{row['peak']:.2f}",
    },
}


if __name__ == "__main__":
    main()
