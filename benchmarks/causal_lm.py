"""Perplexity of a causal language model, pruned to a share of its multiply-accumulates, before and after LoRA.

    python benchmarks/causal_lm.py --model MODEL --output benchmarks/results/causal-lm.json

The text is what the dense model itself writes (sampled at temperature 1), so no data is needed, and the dense model's
perplexity on held-out texts is the entropy of its own predictions: nothing can do better. Each seed writes texts of
its own, splits them into training and held-out ones, scores heads and neurons on a part of the training texts, prunes
a copy of the model by every arm, and trains Prune-LoRA on what is left, all linear maps, for the same number of steps.
Beside the JSON, a Markdown table of the same name is written.
"""

import argparse
import copy
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import get_peft_model
from scipy import stats
from torch import Tensor

import pruning_adapter as pa
from provenance import command_of, heading, model_name
from pruning_adapter.costs.macs import count_macs
from pruning_adapter.environment import machine, versions
from pruning_adapter.storage import write_json, write_text

ARMS: dict[str, tuple[Any, Any, Any]] = {
    "dense": ("second", "none", "even"),
    "second order": ("second", "none", "even"),
    "second order, lstsq": ("second", "lstsq", "even"),
    "second order, whole groups": ("second", "none", "whole"),
    "second order, whole groups, lstsq": ("second", "lstsq", "whole"),
    "first order": ("first", "none", "even"),
    "random": ("random", "none", "even"),
    "reversed second order": ("reversed", "none", "even"),
}
"""Scorer, reconstruction, and what goes under grouped-query attention."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or hub id of a causal language model")
    parser.add_argument("--model-id", help="name to record instead of a folder")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--keep-macs", type=float, default=0.75, help="share of the model's multiply-accumulates")
    parser.add_argument("--length", type=int, default=256, help="tokens of a text")
    parser.add_argument("--texts", type=int, default=512, help="for training; a quarter as many are held out")
    parser.add_argument("--examples", type=int, default=128, help="training texts that are scored")
    parser.add_argument("--steps", type=int, default=300, help="of LoRA, with 16 texts each")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()

    cells: list[dict[str, Any]] = []
    for seed in options.seeds:
        dense = load(options.model)
        texts = write_texts(dense, options.texts + options.texts // 4, options.length, seed)
        train, held_out = texts[: options.texts], texts[options.texts :]
        for arm in ARMS:
            cells.append({"seed": seed, "arm": arm, **run_arm(options, dense, train, held_out, arm, seed)})
            print(cells[-1], flush=True)
    command, name = command_of(options), model_name(options)
    content = {"command": command, "model": name, "machine": machine(), "versions": versions(), "cells": cells}
    write_json(options.output, content)
    write_text(options.output.with_suffix(".md"), table(content))
    print(options.output.with_suffix(".md").read_text())


def load(path: str) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(path).eval()


@torch.no_grad()
def write_texts(model: Any, number: int, length: int, seed: int) -> Tensor:
    """`(number, length)` token ids."""
    torch.manual_seed(seed)
    start = torch.full((number, 1), model.config.bos_token_id)
    return model.generate(
        start,
        attention_mask=torch.ones_like(start),
        do_sample=True,
        top_k=0,
        min_length=length,
        max_length=length,
        pad_token_id=model.config.eos_token_id,
    )


def run_arm(
    options: argparse.Namespace, dense: Any, train: Tensor, held_out: Tensor, arm: str, seed: int
) -> dict[str, Any]:
    scorer, reconstruct, grouping = ARMS[arm]
    model, batches = copy.deepcopy(dense), list(batch(train[: options.examples]))
    units = ("heads", "neurons")
    if scorer == "random":
        scores = pa.random_importance(model, seed=seed, units=units)
    else:
        order: Any = "first" if scorer == "first" else "second"
        scores = pa.measure_importance(model, batches, units=units, order=order, progress=False)
    if scorer == "reversed":
        scores = pa.reversed_importance(scores)
    share = 1.0 if arm == "dense" else options.keep_macs
    plan = pa.plan_pruning(scores, keep_macs=share, length=options.length, grouping=grouping, reconstruct=reconstruct)
    before = count_macs(model, length=options.length)
    pa.reconstruct_(model, plan, batches, progress=False)
    after = count_macs(model, length=options.length)
    pruned = perplexity(model, held_out)
    ranks = pa.plan_ranks(scores, plan, top_blocks=2, high=8, low=4, target="all-linear")
    config = pa.PruneLoraConfig(pruning=plan, ranks=ranks, task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config)
    train_(adapted, train, options.steps, options.learning_rate, seed)
    return {
        "macs_share": after / before,
        "heads": plan.heads_kept,
        "neurons": plan.neurons_kept,
        "perplexity": pruned,
        "perplexity_after_lora": perplexity(adapted, held_out),
        "trainable": sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad),
    }


def train_(model: Any, texts: Tensor, steps: int, rate: float, seed: int) -> None:
    torch.manual_seed(seed)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    model.train()
    for _ in range(steps):
        chosen = texts[torch.randint(len(texts), (16,))]
        model(input_ids=chosen, labels=chosen).loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.eval()


@torch.no_grad()
def perplexity(model: Any, texts: Tensor) -> float:
    losses = [float(model(**inputs).loss) * len(inputs["labels"]) for inputs in batch(texts)]
    return math.exp(sum(losses) / len(texts))


def batch(texts: Tensor) -> Iterator[dict[str, Tensor]]:
    for chunk in texts.split(32):
        yield {"input_ids": chunk, "attention_mask": torch.ones_like(chunk), "labels": chunk}


def table(content: dict[str, Any]) -> str:
    """One row per arm: mean over seeds with Student's t interval."""
    cells = content["cells"]
    title = f"{content['model']}: perplexity on text of its own, pruned, before and after LoRA"
    more = "Mean over seeds, each with texts of its own, and half the 95 % interval (Student's t)."
    lines = [
        *heading(title, content["command"], content["machine"], content["versions"], more),
        "| arm | multiply-accumulates | heads | neurons | perplexity | after LoRA | trainable | seeds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for arm in dict.fromkeys(cell["arm"] for cell in cells):
        group = [cell for cell in cells if cell["arm"] == arm]
        shown = [
            f"{statistics.mean(cell['macs_share'] for cell in group):.1%}",
            f"{statistics.mean(cell['heads'] for cell in group):.0f}",
            f"{statistics.mean(cell['neurons'] for cell in group):.0f}",
            spread([cell["perplexity"] for cell in group]),
            spread([cell["perplexity_after_lora"] for cell in group]),
            f"{statistics.mean(cell['trainable'] for cell in group):,.0f}",
            str(len(group)),
        ]
        lines.append(f"| {arm} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def spread(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.2f}"
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):.2f} ± {half:.2f}"


if __name__ == "__main__":
    main()
