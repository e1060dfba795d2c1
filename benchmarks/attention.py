"""Which attention kernel a training step is faster with on a CPU, by the length of its rows.

    python benchmarks/attention.py --model MODEL --output benchmarks/results/attention.json

A step of LoRA without dropout (forward, loss, backward) under Transformers' plain attention, as a ratio to SDPA, in
bfloat16 autocast and in float32. The two take turns in one process; the second SDPA shows the noise.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from provenance import command_of, heading, model_name
from pruning_adapter.costs.inputs import make_inputs
from pruning_adapter.environment import machine, versions
from pruning_adapter.evaluation.cost import measure_ratios
from pruning_adapter.storage import write_json, write_text
from pruning_adapter.training.base_model import load_base
from pruning_adapter.training.methods import apply_method
from pruning_adapter.training.precision import halve_frozen_
from pruning_adapter.training.recipes import RECIPES

# Rows of so many tokens, and about as many tokens in all.
SHAPES = ((24, 64), (48, 32), (96, 16), (128, 12), (192, 8), (256, 6), (512, 3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or hub id of an encoder")
    parser.add_argument("--model-id", help="name to record instead of a folder")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

    rows: list[dict[str, Any]] = []
    for bf16 in (True, False):
        for length, batch in SHAPES:
            sdpa, again, plain = (
                step(options.model, kernel, batch, length, bf16) for kernel in ("sdpa", "sdpa", "eager")
            )
            rows.append(
                {
                    "precision": "bfloat16" if bf16 else "float32",
                    "length": length,
                    "batch": batch,
                    "plain": measure_ratios(plain, sdpa, repeats=options.repeats, warmup=2),
                    "noise": measure_ratios(again, sdpa, repeats=options.repeats, warmup=2),
                }
            )
            print(rows[-1], flush=True)
    content: dict[str, Any] = {
        "command": command_of(options),
        "machine": machine(),
        "versions": versions(),
        "rows": rows,
    }
    write_json(options.output, content)
    lines = [
        *heading(
            f"A training step with plain attention, {model_name(options)}",
            content["command"],
            content["machine"],
            content["versions"],
            "Time as a ratio to SDPA's, median (quartiles); the last column is SDPA again.",
        ),
        "| precision | tokens x rows | plain | SDPA again |",
        "| --- | --- | --- | --- |",
        *(
            f"| {row['precision']} | {row['length']} x {row['batch']} | {told(row['plain'])} | {told(row['noise'])} |"
            for row in rows
        ),
    ]
    write_text(options.output.with_suffix(".md"), "\n".join(lines) + "\n")
    print(options.output.with_suffix(".md").read_text())


def step(model: str, kernel: str, batch: int, length: int, bf16: bool) -> Callable[[], None]:
    base = load_base(model, label_names=("no", "yes"), seed=0, attention=kernel)
    adapted = apply_method(base, "lora", RECIPES["default"]).train()
    if bf16:
        halve_frozen_(adapted)
    inputs = {**make_inputs(adapted, batch=batch, length=length), "labels": torch.arange(batch) % 2}

    def run() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            loss = adapted(**inputs).loss
        loss.backward()
        adapted.zero_grad()

    return run


def told(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['q1']:.2f} - {ratio['q3']:.2f})"


if __name__ == "__main__":
    main()
