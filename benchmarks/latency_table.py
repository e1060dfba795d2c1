"""How well a latency table predicts: plans at shares of the dense model's time, beside what their models take.

    python benchmarks/latency_table.py --model MODEL --output benchmarks/results/latency-table.json

One table is measured for the encoder; heads and neurons are scored at random (time does not care which go); each plan
is carried out on a copy, and run in turn with the dense model. Everything is a ratio of runs side by side. Beside the
JSON, a Markdown table of the same name is written.
"""

import argparse
import copy
from pathlib import Path
from typing import Any

import torch
import transformers

import pruning_adapter as pa
from provenance import command_of, heading, model_name
from pruning_adapter.environment import machine, versions
from pruning_adapter.evaluation.latency import check_prediction
from pruning_adapter.storage import write_json, write_text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or hub id of an encoder")
    parser.add_argument("--model-id", help="name to record instead of a folder")
    parser.add_argument("--shares", nargs="+", type=float, default=[0.8, 0.6, 0.4, 0.3])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()

    dense = transformers.AutoModelForSequenceClassification.from_pretrained(options.model).eval()
    table = pa.measure_latency(dense, batch=options.batch, length=options.length, cache=None)
    cells: list[dict[str, Any]] = []
    for share in options.shares:
        for seed in options.seeds:
            scores = pa.random_importance(dense, seed=seed, units=("heads", "neurons"))
            plan = pa.plan_pruning(scores, keep_latency=share, latency=table)
            found = check_prediction(table, pa.prune_(copy.deepcopy(dense), plan), dense)
            macs = plan.count_macs(options.length) / plan.count_dense_macs(options.length)
            cells.append({"asked": share, "seed": seed, "macs": macs, **found})
            print(cells[-1], flush=True)
    name = model_name(options)
    command = command_of(options)
    content = {
        "command": command,
        "model": name,
        "machine": machine(),
        "versions": versions(),
        "spread": table.spread,
        "multiple_of": table.multiple_of,
        "roundings": table.roundings,
        "cells": cells,
    }
    write_json(options.output, content)
    write_text(options.output.with_suffix(".md"), markdown(content))
    print(options.output.with_suffix(".md").read_text())


def markdown(content: dict[str, Any]) -> str:
    worst = max(abs(cell["error"]) for cell in content["cells"])
    title = f"{content['model']}: time that the latency table predicts, and that pruned models take"
    more = (
        f"Shares of the dense model's time. The table states a spread of {content['spread']:.1%}; feed-forward widths "
        f"are rounded to multiples of {content['multiple_of']}. Largest error: {worst:.1%}."
    )
    lines = [
        *heading(title, content["command"], content["machine"], content["versions"], more),
        "| asked | seed | multiply-accumulates | predicted | measured (quartiles) | predicted / measured - 1 |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {cell['asked']:.2f} | {cell['seed']} | {cell['macs']:.3f} | {cell['predicted']:.3f} "
        f"| {cell['measured']:.3f} ({cell['q1']:.3f} - {cell['q3']:.3f}) | {cell['error']:+.1%} |"
        for cell in content["cells"]
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
