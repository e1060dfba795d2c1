"""Accuracy of full fine-tuning, LoRA and Prune-LoRA on GLUE, with the control arms that every claim needs.

    python benchmarks/glue.py --model MODEL --data-dir GLUE --tasks rte mrpc sst2 --seeds 0 1 2 \
        --output benchmarks/results/glue-minilm.json

Each cell (task x arm x seed) is one whole run of the pipeline: measure importance, plan, prune, train, merge, load the
merged model from disk, evaluate. Cells that the output file already holds are skipped, so the grid resumes after any
interruption. Beside the JSON, a Markdown table of the same name is written. With two CPU cores the grid above takes
several hours; with one GPU and --jobs 6, about ten minutes.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from provenance import command_of, heading

# As the paper chooses; `criteria_trained.py` compares with the recipe's own way.
BEFORE_TRAINING = {"prune_after": 0.0, "order": "first", "normalization": "block", "reconstruct": "none"}
ARMS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "lora": {"method": "lora"},
    "prune-lora gradient": {"method": "prune-lora", "scorer": "gradient", **BEFORE_TRAINING},
    "prune-lora random": {"method": "prune-lora", "scorer": "random", **BEFORE_TRAINING},
    "prune-lora reversed": {"method": "prune-lora", "scorer": "reversed", **BEFORE_TRAINING},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or hub id")
    parser.add_argument("--model-id", help="name to record instead of a folder")
    parser.add_argument("--data-dir", required=True, help="folder of GLUE data")
    parser.add_argument("--tasks", nargs="+", default=["rte", "mrpc", "sst2"])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--train-rows", type=int, default=8000, help="at the most, per task")
    parser.add_argument("--keep-ratio", type=float, default=0.7)
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--epochs", type=float)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--bf16", action="store_true", help="train with bfloat16 matrix products")
    parser.add_argument("--jobs", type=int, default=1, help="cells at once; more than 1 only where a GPU has room")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of each job")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()

    done = json.loads(options.output.read_text())["cells"] if options.output.exists() else []
    seen = {(cell["task"], cell["arm"], cell["seed"]) for cell in done}
    wanted = [(task, arm, seed) for seed in options.seeds for task in options.tasks for arm in options.arms]
    todo = [cell for cell in wanted if cell not in seen]
    print(f"{len(todo)} cells to run, {len(seen)} done")
    start = time.monotonic()
    # Spawned, because CUDA does not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=context, initializer=set_up, initargs=(options.threads,)) as pool:
        running = {pool.submit(run_cell, vars(options), *cell): cell for cell in todo}
        for number, future in enumerate(as_completed(running), 1):
            done.append(future.result())
            write(options, done)
            left = (time.monotonic() - start) / number * (len(todo) - number)
            cell = done[-1]
            said = f"{cell['task']:6} {cell['arm']:20} seed {cell['seed']}: {cell['value']:.4f}"
            print(f"{said}   ~{left / 60:.0f} min left", flush=True)
    print(options.output.with_suffix(".md").read_text())


def set_up(threads: int) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import torch
    import transformers

    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def run_cell(options: dict[str, Any], task: str, arm: str, seed: int) -> dict[str, Any]:
    from pruning_adapter.pipeline import Run
    from pruning_adapter.settings import Settings
    from pruning_adapter.training.tasks import load_glue

    rows = len(load_glue(task, data_dir=Path(options["data_dir"])).train)
    settings = Settings(
        model=options["model"],
        task=task,
        data_dir=options["data_dir"],
        train_rows=options["train_rows"] if rows > options["train_rows"] else None,
        recipe=options["recipe"],
        epochs=options["epochs"],
        learning_rate=options["learning_rate"],
        keep_ratio=options["keep_ratio"],
        bf16=options["bf16"],
        seed=seed,
        **ARMS[arm],
    )
    with tempfile.TemporaryDirectory() as folder:
        run = Run(settings, Path(folder))
        run.train()
        # Latency is measured by benchmarks/training_step.py and the report, not with other cells beside it.
        result = run.evaluate(compare=False)
    name, quality = next(iter(result.quality.items()))
    metric, measure = next(iter(quality.metrics.items()))
    return {
        "task": task,
        "arm": arm,
        "seed": seed,
        "validation": name,
        "metric": metric,
        "value": measure.value,
        "low": measure.low,
        "high": measure.high,
        "metrics": {key: value.value for key, value in quality.metrics.items()},
        "examples": quality.examples,
        "majority_rate": quality.majority_rate,
        "at_majority": quality.at_majority,
        "train_examples": result.task["train_examples"],
        "epochs": [entry[f"eval_{metric}"] for entry in result.history if f"eval_{metric}" in entry],
        "trainable_parameters": result.cost["trainable_parameters"],
        "parameters": result.cost["parameters"],
        "recipe": result.recipe,
        "versions": dict(result.versions),
        "machine": dict(result.machine),
    }


def write(options: argparse.Namespace, cells: list[dict[str, Any]]) -> None:
    from pruning_adapter.storage import write_json, write_text

    command = command_of(options)
    content = {"command": command, "model": options.model_id or options.model, "cells": cells}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.output, content)
    write_text(options.output.with_suffix(".md"), table(command, content["model"], cells))


def table(command: str, model: str, cells: list[dict[str, Any]]) -> str:
    """Mean over seeds with its 95 % interval (Student's t over seeds), one row per task and arm."""
    from scipy import stats

    title = f"{model}: accuracy on GLUE by method"
    more = (
        "The interval is Student's t over seeds; the standard error of one run on the validation set stands beside it."
    )
    lines = [
        *heading(title, command, cells[0]["machine"], cells[0]["versions"], more),
        "| task | train / validation rows | majority | arm | metric | mean ± 95 % over seeds | one run's s.e. | seeds "
        "| trainable | parameters |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for task in dict.fromkeys(cell["task"] for cell in cells):
        for arm in ARMS:
            group = [cell for cell in cells if (cell["task"], cell["arm"]) == (task, arm)]
            if not group:
                continue
            values, first = [100 * cell["value"] for cell in group], group[0]
            mean = statistics.mean(values)
            spread = "n/a"
            if len(values) > 1:
                half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
                spread = f"{half:.1f}"
            error = (mean * (100 - mean) / first["examples"]) ** 0.5
            stuck = sum(cell["at_majority"] for cell in group)
            lines.append(
                f"| {task} | {first['train_examples']:,} / {first['examples']:,} | {100 * first['majority_rate']:.1f} "
                f"| {arm} | {first['metric']} | {mean:.1f} ± {spread}{f' ({stuck} at majority)' if stuck else ''} "
                f"| {error:.1f} | {len(values)} | {first['trainable_parameters']:,} | {first['parameters']:,} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
