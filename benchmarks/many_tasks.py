"""Many tasks on one base: bytes of a pack, bytes in memory, and the time of a switch, beside merged models apart.

    python benchmarks/many_tasks.py --model MODEL --output benchmarks/results/many-tasks.json

Every task has a plan of its own from random importance, and an adapter that was not trained: LoRA of rank 8 on the
attentions, norms and a classifier, all random. Neither bytes nor time depend on what weights say. `PrunedTasks` is
compared with loading the same model, merged, from disk (`load_pruned`), in turn, task after task; a second
`load_pruned` in each round shows the noise of the machine (A/A). The files are in the system's cache, so disks have no
part in it. A round takes about two seconds for a small encoder, and there are four times `--rounds` of them.
"""

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import get_peft_model

import pruning_adapter as pa
from provenance import command_of, heading, model_name
from pruning_adapter.costs.inputs import make_inputs
from pruning_adapter.environment import machine, versions
from pruning_adapter.serving.build import bytes_of
from pruning_adapter.storage import write_json, write_text
from pruning_adapter.training.base_model import load_base

PLANS: dict[str, dict[str, Any]] = {
    "70 % of heads": {"keep_ratio": 0.7},
    "50 % of operations": {"keep_macs": 0.5, "length": 128, "multiple_of": 8},
}
FIRST_TEXT = 16
"""Tokens of the one text that is answered first."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or hub id of an encoder")
    parser.add_argument("--model-id", help="name to record instead of a folder")
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    rows: list[dict[str, Any]] = []
    for plan in PLANS:
        with tempfile.TemporaryDirectory() as folder:
            packs = {f"task {number}": Path(folder) / f"{number}" for number in range(options.tasks)}
            for number, pack in enumerate(packs.values()):
                save_pack(options.model, pack / "adapter", plan, number)
            adapters = {name: pack / "adapter" for name, pack in packs.items()}
            base = pa.PrunedTasks(options.model, adapters)
            for name, pack in packs.items():
                pa.save_pruned(base.model(name), pack / "merged")
            for merge in (True, False):
                row = {"plan": plan, "merged": merge, "tasks": options.tasks}
                row |= measure_bytes(options.model, packs, merge=merge)
                row |= measure_time(base.base, packs, merge=merge, rounds=options.rounds)
                rows.append(row)
                print(row, flush=True)
    name, command = model_name(options), command_of(options)
    content = {"command": command, "model": name, "machine": machine(), "versions": versions(), "rows": rows}
    write_json(options.output, content)
    write_text(options.output.with_suffix(".md"), table(content))
    print(table(content))


def save_pack(model: str, folder: Path, plan: str, number: int) -> None:
    """An adapter that was not trained, with as many classes as no task beside it."""
    base = load_base(model, label_names=tuple(f"class {label}" for label in range(2 + number)), seed=number)
    scores = pa.random_importance(base.model, seed=number, units=("heads", "neurons"))
    if "keep_ratio" in PLANS[plan]:
        scores = pa.random_importance(base.model, seed=number)
    chosen = pa.plan_pruning(scores, **PLANS[plan])
    config = pa.PruneLoraConfig(pruning=chosen, task_type="SEQ_CLS", modules_to_save=list(base.fresh))
    adapted: Any = get_peft_model(base.model, config)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * 0.02)
    adapted.save_pretrained(folder, save_embedding_layers=False)


def measure_bytes(model: str, packs: dict[str, Path], *, merge: bool) -> dict[str, float]:
    """As shares of the base's bytes in memory; what several share is counted once."""
    adapters = {name: pack / "adapter" for name, pack in packs.items()}
    tasks = pa.PrunedTasks(model, adapters, cache=len(packs), merge=merge)
    base = bytes_of([*tasks.base.parameters(), *tasks.base.buffers()])
    none = tasks.nbytes
    apart = 0
    for name, pack in packs.items():
        tasks.model(name)
        merged = pa.load_pruned(pack / "merged")
        apart += bytes_of([*merged.parameters(), *merged.buffers()])
    few = pa.PrunedTasks(model, adapters, merge=merge)
    for name in packs:
        few.model(name)
    on_disk = [sum(file.stat().st_size for file in folder.iterdir()) for folder in adapters.values()]
    return {
        "pack_on_disk": statistics.mean(on_disk) / base,
        "packs_and_base": none / base,
        "with_two_models": few.nbytes / base,
        "with_all_models": tasks.nbytes / base,
        "merged_apart": apart / base,
    }


def measure_time(base: Any, packs: dict[str, Path], *, merge: bool, rounds: int) -> dict[str, Any]:
    """Time until there is a model, and until it has answered one text, as ratios to `load_pruned`; quartiles."""
    adapters = {name: pack / "adapter" for name, pack in packs.items()}
    cold = pa.PrunedTasks(base, adapters, cache=0, merge=merge)
    warm = pa.PrunedTasks(base, adapters, cache=len(packs), merge=merge)
    for name in packs:
        warm.model(name)
    ways: dict[str, Callable[[str], Any]] = {
        "load": lambda name: pa.load_pruned(packs[name] / "merged"),
        "cold": cold.model,
        "cached": warm.model,
        "load again": lambda name: pa.load_pruned(packs[name] / "merged"),
    }
    inputs = make_inputs(base, batch=1, length=FIRST_TEXT)
    seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    names = list(packs)
    for number in range(-1, rounds):
        # Whoever comes first does not always do so.
        order = list(ways)[number % len(ways) :] + list(ways)[: number % len(ways)]
        for way in order:
            found = run(ways[way], names[number % len(names)], inputs)
            if number >= 0:
                seconds[way].append(found)
    measured: dict[str, Any] = {}
    for way in ("cold", "cached", "load again"):
        for place, what in enumerate(("switch", "first_answer")):
            pairs = zip(seconds[way], seconds["load"], strict=True)
            q1, median, q3 = statistics.quantiles([ours[place] / load[place] for ours, load in pairs], n=4)
            measured[f"{way.replace(' ', '_')}_{what}"] = {"median": median, "q1": q1, "q3": q3}
    return measured


@torch.no_grad()
def run(way: Callable[[str], Any], name: str, inputs: Any) -> tuple[float, float]:
    gc.collect()
    start = time.perf_counter()
    model = way(name)
    there = time.perf_counter()
    model(**inputs)
    return there - start, time.perf_counter() - start


def table(content: dict[str, Any]) -> str:
    rows = content["rows"]
    more = (
        f"{rows[0]['tasks']} tasks, each with a plan from random importance, LoRA of rank 8 on the attentions, norms "
        "and a classifier; adapters were not trained. Bytes are shares of the dense base's in memory, counted once "
        "where they are shared. Times are ratios to `load_pruned` of the same merged model from files in the system's "
        f"cache, in turn: medians (quartiles). The first answer is to one text of {FIRST_TEXT} tokens."
    )
    lines = [
        *heading(
            f"{content['model']}: many tasks on one base",
            content["command"],
            content["machine"],
            content["versions"],
            more,
        ),
        "| plans | LoRA | a pack on disk | base and packs | and 2 models | and all models | all merged models apart |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row['plan']} | {'merged' if row['merged'] else 'beside'} | {row['pack_on_disk']:.1%} "
        f"| {row['packs_and_base']:.2f} | {row['with_two_models']:.2f} | {row['with_all_models']:.2f} "
        f"| {row['merged_apart']:.2f} |"
        for row in rows
    ]
    lines += [
        "",
        "| plans | LoRA | a switch, cold | cached | load again (noise) "
        "| with the first answer: cold | cached | load again (noise) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        found = [
            row[f"{way}_{what}"] for what in ("switch", "first_answer") for way in ("cold", "cached", "load_again")
        ]
        lines.append(f"| {row['plan']} | {'merged' if row['merged'] else 'beside'} | {' | '.join(map(shown, found))} |")
    return "\n".join(lines) + "\n"


def shown(found: dict[str, float]) -> str:
    if found["q3"] < 0.001:
        return "below 0.001"
    return f"{found['median']:.2f} ({found['q1']:.2f} - {found['q3']:.2f})"


if __name__ == "__main__":
    main()
