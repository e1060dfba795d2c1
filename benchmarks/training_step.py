"""Time and memory of a training step: full fine-tuning, stock PEFT LoRA and Prune-LoRA, side by side.

    python benchmarks/training_step.py --model MODEL --data-dir GLUE --output RESULT.json
    python benchmarks/training_step.py --model MODEL --shape bert-base --tasks --steps 5 --output RESULT.json

In one process the arms take turns on the same batches of 32 examples, A B C, B C A, ...: every arm comes first in its
turn, after a step that does not count, because whoever meets a batch first pays for the memory it needs. What is
reported is the ratio to a baseline batch by batch: median and quartiles. There are two baselines, never mixed: *stock*
is PEFT LoRA as people run it, with the model's own dropout; *stock, no dropout* differs from ours in nothing but the
method and the ranks (each as the recipe has them). A second stock LoRA shows the noise of the machine (A/A). Batches
have fixed lengths (random tokens), or those of a task: "random" as most people train (random order, padded to the
longest), and "grouped" by length, as the recipe `default` does. "whole run" is the time of an epoch of such batches
over that of stock LoRA on random ones; what `default` does before it prunes, and scoring, are not in it.

Memory is exact: "activations" are the bytes kept for the backward pass that are no weights, "peak" is the most that a
step holds above the weights and the optimizer's state, gradients included.
"""

import argparse
import random
import statistics
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from provenance import command_of, heading
from pruning_adapter.architectures.identity import identify
from pruning_adapter.costs.macs import count_model_macs
from pruning_adapter.environment import machine, versions
from pruning_adapter.evaluation.cost import count_trainable, peak_memory
from pruning_adapter.importance import random_importance
from pruning_adapter.planning import plan_pruning, plan_ranks
from pruning_adapter.settings import Settings
from pruning_adapter.storage import write_json, write_text
from pruning_adapter.training.base_model import BaseModel, load_base, load_tokenizer
from pruning_adapter.training.methods import apply_method
from pruning_adapter.training.padding_free import leave_out_padding_
from pruning_adapter.training.precision import halve_frozen_
from pruning_adapter.training.recipes import RECIPES
from pruning_adapter.training.tasks import load_glue
from pruning_adapter.training.tokenize import tokenize
from pruning_adapter.training.trainer import make_collator

PLAIN = RECIPES["default"]
STOCK = replace(PLAIN, adapter_dropout=None)
BASELINES = ("stock LoRA", "stock LoRA, no dropout")
ARMS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "stock LoRA": ("lora", STOCK, {}),
    "stock LoRA again (noise)": ("lora", STOCK, {}),
    "full fine-tuning": ("full", STOCK, {}),
    "stock LoRA, no dropout": ("lora", PLAIN, {}),
    "ours, dense": ("prune-lora", PLAIN, {"keep_ratio": 1.0}),
    "ours, 70 % of heads": ("prune-lora", PLAIN, {"keep_ratio": 0.7}),
    "ours, 70 % of heads, padding-free": ("prune-lora", PLAIN, {"keep_ratio": 0.7, "padding_free": True}),
    "ours, 50 % of encoder MACs": ("prune-lora", PLAIN, {"encoder_macs": 0.5}),
}
"""Method, recipe, and what is kept."""


SHAPES: dict[str, tuple[Any, Any, dict[str, int]]] = {
    "bert-base": (transformers.BertForSequenceClassification, transformers.BertConfig, {}),
    # The sizes of Llama 3.2 with 1.2 billion parameters.
    "llama-1b": (
        transformers.LlamaForSequenceClassification,
        transformers.LlamaConfig,
        {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32}
        | {"num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128_256, "pad_token_id": 0},
    ),
    # For trying a benchmark out.
    "tiny": (
        transformers.BertForSequenceClassification,
        transformers.BertConfig,
        {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4},
    ),
}
"""Model, config and what differs from its defaults."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or hub id of a BERT")
    parser.add_argument("--model-id", help="name to record instead of a folder")
    parser.add_argument("--shape", choices=["own", *SHAPES], default="own", help="sizes to take, with random weights")
    parser.add_argument("--data-dir", help="folder of GLUE data")
    parser.add_argument("--tasks", nargs="*", default=["rte", "sst2"], help="whose lengths are taken")
    parser.add_argument("--lengths", nargs="*", type=int, default=[32, 128], help="fixed lengths")
    parser.add_argument("--steps", type=int, default=12, help="counted steps of each arm")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16, which frozen weights are kept in")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()

    rows: list[dict[str, Any]] = []
    for length in options.lengths:
        batches = [fixed_batch(length, seed) for seed in range(options.steps + 2)]
        rows += measure(options, {f"{length} tokens": batches}, classes=2)
    for task in options.tasks:
        data, tokenizer = load_glue(task, data_dir=Path(options.data_dir)), load_tokenizer(options.model)
        features = tokenize(data.train, tokenizer, max_length=PLAIN.max_length, label_names=data.label_names)
        kinds = {
            f"{task}, {kind}": make_batches(
                features, make_collator(tokenizer), grouped=kind == "grouped", count=options.steps + 2
            )
            for kind in ("random", "grouped")
        }
        rows += measure(options, kinds, classes=len(data.label_names), epoch=(f"{task}, random", f"{task}, grouped"))
    command = command_of(options)
    content = {"command": command, "machine": machine(), "versions": versions(), "rows": rows}
    write_json(options.output, content)
    write_text(options.output.with_suffix(".md"), table(content))
    print(table(content))


@dataclass(frozen=True)
class Arm:
    """A model in training."""

    model: Any
    optimizer: torch.optim.Optimizer
    options: argparse.Namespace

    def step(self, batch: dict[str, Tensor]) -> None:
        self.forward(batch).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.options.device != "cpu":
            torch.accelerator.synchronize()

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        with torch.autocast(self.options.device, dtype=torch.bfloat16, enabled=self.options.bf16):
            return self.model(**batch).loss


def measure(
    options: argparse.Namespace,
    kinds: dict[str, list[dict[str, Tensor]]],
    *,
    classes: int,
    epoch: tuple[str, str] | None = None,
) -> list[dict[str, Any]]:
    # Batches of one length have no padding to leave out.
    arms = {
        name: make_arm(options, classes, *arm) for name, arm in ARMS.items() if epoch or "padding_free" not in arm[2]
    }
    seconds = {(kind, name): list[float]() for kind in kinds for name in arms}
    for number in range(options.steps + 2):
        for kind, batches in kinds.items():
            batch = {name: value.to(options.device) for name, value in batches[number].items()}
            turn = number % len(arms)
            order = [*list(arms)[turn:], *list(arms)[:turn]]
            arms[order[-1]].step(batch)
            for name in order:
                arm = arms[name]
                start = time.perf_counter()
                arm.step(batch)
                # The first two warm up.
                if number >= 2:
                    seconds[kind, name].append(time.perf_counter() - start)
    rows: list[dict[str, Any]] = []
    for kind, batches in kinds.items():
        # Memory repeats exactly and follows the length, so the fixed lengths tell it.
        device, first = torch.device(options.device), batches[0]
        peaks, kept = dict[str, int](), dict[str, int]()
        if epoch is None:
            first = {name: value.to(options.device) for name, value in first.items()}
            peaks = {name: peak_memory(partial(arm.step, first), device) for name, arm in arms.items()}
            kept = {name: activation_bytes(arm, first) for name, arm in arms.items()}
        for name, arm in arms.items():
            row: dict[str, Any] = {
                "batches": kind,
                "tokens_per_batch": statistics.mean(batch["input_ids"].numel() for batch in batches[2:]),
                "arm": name,
                "trainable_parameters": count_trainable(arm.model),
            }
            if options.device != "cpu":
                # A CPU's absolute times say more about the machine than about the model.
                row["milliseconds"] = 1000 * statistics.median(seconds[kind, name])
                row["peak_bytes"] = peaks.get(name)
            for baseline in BASELINES:
                ratios = [a / b for a, b in zip(seconds[kind, name], seconds[kind, baseline], strict=True)]
                q1, median, q3 = statistics.quantiles(ratios, n=4)
                row[baseline] = {
                    "time": {"median": median, "q1": q1, "q3": q3},
                    "activations": kept[name] / kept[baseline] if kept else None,
                    "peak": peaks[name] / peaks[baseline] if peaks else None,
                }
            if epoch is not None:
                whole = statistics.mean(seconds[epoch[0], BASELINES[0]])
                row["whole_run"] = statistics.mean(seconds[kind, name]) / whole
            rows.append(row)
            print(row, flush=True)
    return rows


def make_arm(options: argparse.Namespace, classes: int, method: Any, recipe: Any, keep: dict[str, Any]) -> Arm:
    if options.shape == "own":
        base = load_base(options.model, label_names=tuple(map(str, range(classes))), seed=0)
        base.model.to(options.device)
    else:
        base = BaseModel(make_shape(options.shape, classes, options.device), fresh=())
    plan = ranks = None
    if method == "prune-lora":
        # Which units go does not change the time, only how many.
        units: Any = ("heads", "neurons") if "encoder_macs" in keep else ("heads",)
        scores = random_importance(base.model, seed=0, units=units)
        if "encoder_macs" in keep:
            plan = plan_pruning(scores, keep_macs=share_of_model(base.model, keep["encoder_macs"]), length=128)
        else:
            plan = plan_pruning(scores, keep_ratio=keep["keep_ratio"])
        low, high = Settings(recipe=recipe.name).ranks
        ranks = plan_ranks(scores, plan, top_blocks=round(len(plan.kept_heads) / 3), high=high, low=low)
    model: Any = apply_method(base, method, recipe, plan=plan, ranks=ranks).to(options.device)
    if options.bf16 and method != "full":
        halve_frozen_(model)
    if "padding_free" in keep:
        leave_out_padding_(model)
    model.train()
    return Arm(model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5), options)


def make_shape(shape: str, classes: int, device: str) -> Any:
    """A model of well-known sizes and random weights: speed and memory do not care."""
    torch.manual_seed(0)
    model_class, config, sizes = SHAPES[shape]
    with torch.device(device):
        return model_class(config(num_labels=classes, **sizes))


def share_of_model(model: Any, share: float) -> float:
    """Of the whole model's multiply-accumulates, when this share of the encoder's is kept."""
    macs, sites = count_model_macs(model), identify(model).all_sites
    fixed, dense = macs.kept(sites, [()] * len(sites), 128), macs.dense(128)
    return (share * (dense - fixed) + fixed) / dense


def activation_bytes(arm: Arm, batch: dict[str, Tensor]) -> int:
    """What one forward pass keeps for the backward pass, weights apart, each storage once."""
    sizes: dict[int, int] = {}
    alive: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        alive.append(tensor)
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = arm.forward(batch)
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*arm.model.parameters(), *arm.model.buffers())}
    inputs = {value.untyped_storage().data_ptr() for value in batch.values()}
    del loss
    # The graph holds the hook, which holds what the graph saved: nobody else breaks that circle in time.
    alive.clear()
    return sum(size for place, size in sizes.items() if place not in weights | inputs)


def fixed_batch(length: int, seed: int, size: int = 32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1000, 20_000, (size, length), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(size) % 2}


def make_batches(features: list[Any], collate: Any, *, grouped: bool, count: int, size: int = 32) -> list[Any]:
    generator = random.Random(0)
    order = sorted(features, key=lambda feature: len(feature["input_ids"])) if grouped else features.copy()
    if not grouped:
        generator.shuffle(order)
    batches = [order[start : start + size] for start in range(0, len(order) - size + 1, size)]
    if not grouped:
        return [collate(batch) for batch in batches[:count]]
    # Evenly over all lengths, so that the mean is an epoch's.
    places = [round((number + 0.5) * len(batches) / count - 0.5) for number in range(count)]
    chosen = [collate(batches[place]) for place in places]
    generator.shuffle(chosen)
    return chosen


def table(content: dict[str, Any]) -> str:
    title = "Time and memory of a training step, as ratios to stock LoRA"
    lines = [
        *heading(title, content["command"], content["machine"], content["versions"]),
        "| batches (tokens) | arm | time / stock (quartiles) | time / stock, no dropout "
        "| activations / stock, / no dropout | peak / stock, / no dropout | whole run / stock | trainable |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in content["rows"]:
        stock, plain = (row[baseline] for baseline in BASELINES)
        whole = f"{row['whole_run']:.2f}" if "whole_run" in row else ""
        memory = [
            "" if stock[what] is None else f"{stock[what]:.2f}, {plain[what]:.2f}" for what in ("activations", "peak")
        ]
        lines.append(
            f"| {row['batches']} ({row['tokens_per_batch']:,.0f}) | {row['arm']} | {quartiles(stock['time'])} "
            f"| {quartiles(plain['time'])} | {' | '.join(memory)} | {whole} | {row['trainable_parameters']:,} |"
        )
    return "\n".join(lines) + "\n"


def quartiles(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['q1']:.2f} - {ratio['q3']:.2f})"


if __name__ == "__main__":
    main()
