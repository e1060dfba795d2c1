"""Time of a training step: full fine-tuning, stock PEFT LoRA and Prune-LoRA, side by side on real batches.

    python benchmarks/training_step.py --model MODEL --data-dir GLUE --threads 2 --output RESULT.json

In one process, the arms take turns on the same batches, A B C A B C ...; what is reported is the ratio to "stock LoRA"
step by step: median and quartiles. A second stock LoRA shows the noise of the machine (A/A). Batches hold 32 examples
of the task's own lengths. Two kinds of batches, never mixed: "random" as most people train (random order, padded to the
longest), and "grouped" by length, as the recipe `default` does. Arms "stock" keep the model's own dropout; "no dropout"
differs from Prune-LoRA in nothing but the pruning and the ranks. About five minutes on two cores.
"""

import argparse
import random
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pruning_adapter.environment import machine, versions
from pruning_adapter.evaluation.cost import count_trainable
from pruning_adapter.importance import random_importance
from pruning_adapter.planning import plan_pruning, plan_ranks
from pruning_adapter.storage import write_json, write_text
from pruning_adapter.training.base_model import load_base, load_tokenizer
from pruning_adapter.training.methods import apply_method
from pruning_adapter.training.recipes import RECIPES
from pruning_adapter.training.tasks import load_glue
from pruning_adapter.training.tokenize import tokenize
from pruning_adapter.training.trainer import make_collator

STOCK = replace(RECIPES["default"], adapter_dropout=None)
PLAIN = RECIPES["default"]
ARMS: dict[str, tuple[Any, Any]] = {
    "stock LoRA": ("lora", STOCK),
    "stock LoRA again (noise)": ("lora", STOCK),
    "full fine-tuning": ("full", STOCK),
    "LoRA, no dropout": ("lora", PLAIN),
    "Prune-LoRA": ("prune-lora", PLAIN),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or hub id")
    parser.add_argument("--model-id", help="name to record instead of a folder")
    parser.add_argument("--data-dir", required=True, help="folder of GLUE data")
    parser.add_argument("--tasks", nargs="+", default=["rte", "sst2"])
    parser.add_argument("--keep-ratio", type=float, default=0.7)
    parser.add_argument("--steps", type=int, default=12, help="counted steps of each arm")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    rows = [row for task in options.tasks for row in measure_task(options, task)]
    command = shlex.join(["python", *sys.argv])
    for path, shown in (
        (options.model, options.model_id or Path(options.model).name),
        (options.data_dir, "GLUE"),
        (str(options.output), options.output.name),
    ):
        command = command.replace(path, shown)
    content = {"command": command, "machine": machine(), "versions": versions(), "rows": rows}
    write_json(options.output, content)
    write_text(options.output.with_suffix(".md"), table(content))
    print(table(content))


def measure_task(options: argparse.Namespace, task: str) -> list[dict[str, Any]]:
    data, tokenizer = load_glue(task, data_dir=Path(options.data_dir)), load_tokenizer(options.model)
    features = tokenize(data.train, tokenizer, max_length=PLAIN.max_length, label_names=data.label_names)
    arms = {name: make_step(options, data.label_names, *arm) for name, arm in ARMS.items()}
    found = list[dict[str, Any]]()
    for kind in ("random", "grouped"):
        batches = make_batches(features, make_collator(tokenizer), grouped=kind == "grouped", count=options.steps + 2)
        seconds = {name: list[float]() for name in arms}
        for number, batch in enumerate(batches):
            for name, (step, _) in arms.items():
                start = time.perf_counter()
                step(batch)
                # The first two warm up.
                if number >= 2:
                    seconds[name].append(time.perf_counter() - start)
        for name, (_, trainable) in arms.items():
            ratios = [a / b for a, b in zip(seconds[name], seconds["stock LoRA"], strict=True)]
            q1, median, q3 = statistics.quantiles(ratios, n=4)
            tokens = statistics.mean(batch["input_ids"].numel() for batch in batches[2:])
            found.append(
                {
                    "task": task,
                    "batches": kind,
                    "arm": name,
                    "median": median,
                    "q1": q1,
                    "q3": q3,
                    "trainable_parameters": trainable,
                    "tokens_per_batch": tokens,
                }
            )
    return found


def make_step(
    options: argparse.Namespace, labels: tuple[str, ...], method: Any, recipe: Any
) -> tuple[Callable[[Any], None], int]:
    base = load_base(options.model, label_names=labels, seed=0)
    plan = ranks = None
    if method == "prune-lora":
        # Which heads go does not change the time, only how many.
        scores = random_importance(base.model, seed=0)
        plan = plan_pruning(scores, keep_ratio=options.keep_ratio)
        ranks = plan_ranks(scores, plan, top_blocks=round(len(plan.kept_heads) / 3))
    model: Any = apply_method(base, method, recipe, plan=plan, ranks=ranks)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)

    def step(batch: Any) -> None:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, count_trainable(model)


def make_batches(features: list[Any], collate: Any, *, grouped: bool, count: int, size: int = 32) -> list[Any]:
    generator = random.Random(0)
    order = sorted(features, key=lambda feature: len(feature["input_ids"])) if grouped else features.copy()
    if not grouped:
        generator.shuffle(order)
    batches = [order[start : start + size] for start in range(0, len(order) - size + 1, size)]
    return [collate(batch) for batch in generator.sample(batches, min(count, len(batches)))]


def table(content: dict[str, Any]) -> str:
    where = content["machine"]
    lines = [
        "# Time of a training step, as a ratio to stock LoRA",
        "",
        f"    {content['command']}",
        "",
        f"On {where['processor']}, {where['threads']} threads; "
        + ", ".join(f"{name} {version}" for name, version in content["versions"].items())
        + ".",
        "",
        "| task | batches | tokens a batch | arm | step time (quartiles) | trainable |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row['task']} | {row['batches']} | {row['tokens_per_batch']:,.0f} | {row['arm']} "
        f"| {row['median']:.2f} ({row['q1']:.2f} - {row['q3']:.2f}) | {row['trainable_parameters']:,} |"
        for row in content["rows"]
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
