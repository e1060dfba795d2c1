"""The paper's tables from the cells of a grid, each number beside the paper's."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from pruning_adapter.environment import tell_machine
from pruning_adapter.reproduce.accounting import Account
from pruning_adapter.reproduce.cells import ARMS
from pruning_adapter.reproduce.grid import Done
from pruning_adapter.reproduce.paper import ACCURACY, COSTS
from pruning_adapter.reproduce.significance import (
    chance_of_difference,
    chance_of_mean_difference,
    differences,
    tell_chance,
    tell_difference,
    tell_mean,
)
from pruning_adapter.training.recipes import METHODS

__all__ = [
    "Table",
    "accounting_table",
    "accuracy_tables",
    "cost_table",
    "difference_tables",
    "step_table",
    "time_to_accuracy_table",
]

SHOWN = ("full fine-tuning", "this recipe's LoRA", "Prune-LoRA")


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table as text, for Markdown and for HTML."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def accuracy_tables(cells: Sequence[Done]) -> list[Table]:
    """Table 1, one for each recipe: the primary metric of every task, by arm.

    Mean over seeds with Student's 95 % interval, and the probability that chance alone makes as large a difference to
    LoRA (see `significance`).
    """
    tables: list[Table] = []
    for recipe, of_recipe, tasks in _by_recipe(cells):
        rows: list[tuple[str, ...]] = []
        most = max(len(_of(of_recipe, task, arm)) for task in tasks for arm in ARMS)
        for arm in ARMS:
            row = [_accuracy(of_recipe, task, arm, most) for task in tasks]
            if any(row):
                rows.append((arm, *row))
            if arm in ACCURACY and any(row):
                printed = [ACCURACY[arm].get(task) for task in tasks]
                rows.append((f"{arm}, paper (BERT-base)", *("" if n is None else f"{n:.1f}" for n in printed)))
        majority = [_majority(of_recipe, task) for task in tasks]
        rows.append(("larger class", *majority))
        tables.append(
            Table(
                title=f"Table 1: accuracy, recipe {recipe}",
                columns=("", *tasks),
                rows=tuple(rows),
                note="Per cent of the validation set; mean over seeds ± half the 95 % interval over seeds "
                "(Student's t), and p, the probability that chance alone makes as large a difference to LoRA on the "
                f"same examples, over the seeds that both have. Seeds: {most}, or as many as stand in brackets. † "
                "marks arms with a run that gives every example the same answer.",
            )
        )
    return tables


def _by_recipe(cells: Sequence[Done]) -> Iterator[tuple[str, list[Done], list[str]]]:
    """Every recipe with its cells and their tasks."""
    for recipe in _unique(done.cell.recipe for done in cells):
        found = [done for done in cells if done.cell.recipe == recipe]
        yield recipe, found, _unique(done.cell.task for done in found)


def _accuracy(cells: Sequence[Done], task: str, arm: str, most: int) -> str:
    found = _of(cells, task, arm)
    if not found:
        return ""
    told = tell_mean([100 * done.value for done in found])
    if len(found) < most:
        told += f" [{len(found)}]"
    if any(done.quality["at_majority"] for done in found):
        told += " †"
    chance = None if arm == "lora" else chance_of_difference(found, _of(cells, task, "lora"))
    return told if chance is None else f"{told} ({tell_chance(chance)})"


def difference_tables(cells: Sequence[Done]) -> list[Table]:
    """What pruning costs and what its choices are worth, one for each recipe: Prune-LoRA minus every other arm.

    By task, over the seeds that both arms have; and the mean over all tasks, over the seeds in which every task has
    both.
    """
    tables: list[Table] = []
    for recipe, of_recipe, tasks in _by_recipe(cells):
        rows: list[tuple[str, ...]] = []
        for arm in ARMS:
            pairs = [(_of(of_recipe, task, "prune-lora"), _of(of_recipe, task, arm)) for task in tasks]
            by_task = [differences(*pair) for pair in pairs]
            if arm == "prune-lora" or not any(by_task):
                continue
            seeds = set[int].intersection(*(set(found) for found in by_task))
            means = [float(np.mean([found[seed] for found in by_task])) for seed in sorted(seeds)]
            told = [
                _difference(list(found.values()), chance_of_difference(*pair))
                for found, pair in zip(by_task, pairs, strict=True)
            ]
            rows.append((f"minus {arm}", *told, _difference(means, chance_of_mean_difference(pairs))))
        if rows:
            tables.append(
                Table(
                    title=f"What pruning costs, and what its choices are worth: recipe {recipe}",
                    columns=("prune-lora", *tasks, "mean of tasks"),
                    rows=tuple(rows),
                    note="Points by which prune-lora is better, over the seeds that both arms have; ± half the 95 % "
                    "interval over seeds (Student's t), and p as above. The mean of tasks, which count alike, is taken "
                    "seed by seed, over the seeds that every task has; its p is drawn from each task's exact "
                    "distribution. p asks whether other examples would say the same of these very runs; the interval "
                    "asks whether other seeds and draws would.",
                )
            )
    return tables


def _difference(found: Sequence[float], chance: float | None) -> str:
    if not found:
        return ""
    return tell_difference(found) if chance is None else f"{tell_difference(found)} ({tell_chance(chance)})"


def accounting_table(accounts: Sequence[Account]) -> Table:
    """Tables 2 and 3 for the paper's own model, counted."""
    printed = {
        "full fine-tuning": COSTS["full"],
        "LoRA, rank 4 on query, key, value": COSTS["lora"],
        "Prune-LoRA as the text says": COSTS["prune-lora"],
        "Prune-LoRA as the tables count": COSTS["prune-lora"],
    }
    rows: list[tuple[str, ...]] = []
    for account in accounts:
        paper = printed.get(account.name)
        rows.append(
            (
                account.name,
                _between(account.trainable),
                "" if paper is None else _short(paper["trainable"]),
                _between(account.parameters),
                "" if paper is None else _short(paper["parameters"]),
                _between(tuple(4 * count for count in account.parameters)),
                "" if paper is None else f"{paper['memory'] / 1e6:.1f} MB",
            )
        )
    return Table(
        title="Tables 2 and 3: parameters of bert-base-uncased with two labels, counted from its configuration",
        columns=("", "trainable", "paper", "parameters", "paper", "bytes in float32", "paper, inference memory"),
        rows=tuple(rows),
        note="Without the task head in what trains, as the paper counts. Where heads are chosen, from the smallest "
        "number to the largest that the choice allows. The paper's text (44 of 144 heads pruned, LoRA on query, key, "
        "value and output, rank 8 in the 4 most important blocks and 4 in the others) cannot give the 308.7 K and "
        "101.29 M that its tables print. Both figures follow exactly from 43 heads, LoRA on query, key and value only, "
        "and rank 8 in 5 blocks: it seems that two thresholds were off by one, and that the output projection was left "
        "out, as the table's LoRA (259.6 K is rank 4 on three matrices) leaves it out too. Its inference memory is the "
        "weights' bytes in float32, in units of 1,048,576, and about a megabyte more.",
    )


def cost_table(costs: Sequence[Mapping[str, Any]]) -> Table:
    """Tables 2 and 3 for the model that was run: what the pruned model costs in inference, beside the dense one."""
    rows: list[tuple[str, ...]] = []
    for cost in costs:
        found = cost["inference"]
        rows.append(
            (
                _run_of(cost),
                f"{found['parameters']:,} of {found['dense_parameters']:,}",
                f"{found['weight_bytes'] / 1e6:.1f} of {found['dense_weight_bytes'] / 1e6:.1f} MB",
                f"{found['macs'] / found['dense_macs']:.3f}",
                f"{found['memory_ratio']['median']:.3f}",
                _ratio(found["latency_ratio"]),
                f"{cost['full']['trainable']:,}",
                f"{cost['lora']['trainable']:,}",
                f"{cost['prune-lora']['trainable']:,}",
            )
        )
    return Table(
        title="Tables 2 and 3 for this model: inference of the pruned model beside the dense one, and what trains",
        columns=(
            *("recipe, task", "parameters", "weights", "operations", "peak memory", "latency (quartiles)"),
            *("trained: full", "LoRA", "Prune-LoRA"),
        ),
        rows=tuple(rows),
        note="Ratios to the dense model, batches of 32. What trains includes the task head. The paper gives a ratio of "
        f"0.935 for memory, and says that inference became slower. {_measured_on(costs)}",
    )


def step_table(costs: Sequence[Mapping[str, Any]]) -> Table:
    """Table 4, and what the paper claims and does not measure: memory of a training step."""
    rows = [
        (
            _run_of(cost),
            *(_ratio(cost[method]["training_time_ratio"]) for method in METHODS),
            *(f"{cost[method]['training_memory_ratio']['median']:.2f}" for method in METHODS),
        )
        for cost in costs
    ]
    paper = (f"{COSTS[method]['time'] / COSTS['lora']['time']:.2f}" for method in METHODS)
    rows.append(("mnli, paper", *paper, "", "", ""))
    return Table(
        title="Table 4: a training step, as a ratio to stock LoRA's",
        columns=("recipe, task", *(f"{what}, {name}" for what in ("time", "peak memory") for name in SHOWN)),
        rows=tuple(rows),
        note="Batches of 32 of the task's median length, each method in turn with stock LoRA, which keeps the model's "
        "own dropout; quartiles in brackets. Prune-LoRA's is the mean step of its whole training, the dense model's "
        "part included. Memory is all that training holds: weights, gradients, optimizer, activations. "
        f"{_measured_on(costs)}",
    )


def time_to_accuracy_table(cells: Sequence[Done], costs: Sequence[Mapping[str, Any]]) -> Table:
    """When a method first comes within a point of LoRA's final accuracy, in the time of one epoch of LoRA."""
    times = {(cost["recipe"], cost["task"]): cost for cost in costs}
    rows: list[tuple[str, ...]] = []
    for recipe, task in _unique((done.cell.recipe, done.cell.task) for done in cells):
        group = [done for done in cells if (done.cell.recipe, done.cell.task) == (recipe, task)]
        final = [_curve(done)[-1][1] for done in group if done.cell.arm == "lora" and _curve(done)]
        rate = _majority_rate(group[0]) or 0.0
        # Where LoRA learns nothing, there is nothing to get to.
        if not final or float(np.mean(final)) <= rate + 0.01 or (recipe, task) not in times:
            continue
        goal, row = float(np.mean(final)) - 0.01, [f"{recipe}, {task}"]
        for arm in ("full", "lora", "prune-lora"):
            # Each was measured beside stock LoRA; the recipe's LoRA may train without dropout.
            of_arm, of_lora = (times[recipe, task][name] for name in (arm, "lora"))
            step = of_lora["training_time_ratio"]["median"]
            reached = [
                next(
                    (_time_until(epoch, curve[-1][0], of_arm) / step for epoch, value in curve if value >= goal),
                    None,
                )
                for curve in (_curve(done) for done in group if done.cell.arm == arm)
            ]
            there = [time for time in reached if time is not None]
            told = f"{np.mean(there):.1f}" if there else "never" if reached else ""
            missing = len(reached) - len(there)
            row.append(f"{told} ({missing} of {len(reached)} never)" if there and missing else told)
        rows.append(tuple(row))
    return Table(
        title="Time to LoRA's final accuracy, less one point",
        columns=("recipe, task", "full", "LoRA", "Prune-LoRA"),
        rows=tuple(rows),
        note="In the time of one epoch of LoRA: epochs (whole ones, for accuracy is measured after each) times the "
        "ratio of a step's time, which for Prune-LoRA is that of the dense model until units go; scoring is not in it. "
        "Mean over the seeds that got there. Tasks that LoRA does not learn are left out.",
    )


def _run_of(cost: Mapping[str, Any]) -> str:
    return f"{cost['recipe']}, {cost['task']} ({cost['length']} tokens)"


def _of(cells: Sequence[Done], task: str, arm: str) -> list[Done]:
    return [done for done in cells if (done.cell.task, done.cell.arm) == (task, arm)]


def _curve(done: Done) -> list[tuple[float, float]]:
    """Epoch and primary metric, after every epoch: where training stopped in the middle to prune, it goes on."""
    key = f"eval_{next(iter(done.quality['metrics']))}"
    told = [(float(entry["epoch"]), float(entry[key])) for entry in done.result["history"] if key in entry]
    # The last epoch may be a part of one.
    return [(epoch, value) for epoch, value in told if abs(epoch - round(epoch)) < 1e-6 or epoch == told[-1][0]]


def _time_until(epoch: float, last: float, cost: Mapping[str, Any]) -> float:
    """Of training until `epoch` of `last`, in epochs of the reference, where its parts take different times."""
    parts: Sequence[Mapping[str, float]] = cost.get("parts", [])
    ends = np.cumsum([0.0, *(part["share"] for part in parts)]) if parts else (0.0, 1.0)
    steps = [part["time"] for part in parts] or [cost["training_time_ratio"]["median"]]
    done = epoch / last
    return last * sum(
        step * max(0.0, min(done, end) - begin) for (begin, end), step in zip(pairwise(ends), steps, strict=True)
    )


def _majority(cells: Sequence[Done], task: str) -> str:
    rate = next((_majority_rate(done) for done in cells if done.cell.task == task), None)
    return "" if rate is None else f"{100 * rate:.1f}"


def _majority_rate(done: Done) -> float | None:
    """What giving every example the same answer reaches, where the primary metric is accuracy."""
    return done.quality["majority_rate"] if next(iter(done.quality["metrics"])) == "accuracy" else None


def _measured_on(costs: Sequence[Mapping[str, Any]]) -> str:
    """Cells may have been run elsewhere."""
    found = {f"{tell_machine(cost['machine'])}, torch {cost['versions']['torch']}" for cost in costs}
    return f"Measured on {'; '.join(sorted(found))}."


def _ratio(ratio: Mapping[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['q1']:.2f} - {ratio['q3']:.2f})"


def _between(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _short(number: float) -> str:
    return f"{number / 1e6:.2f} M" if number >= 1e6 else f"{number / 1e3:.1f} K"


def _unique(values: Any) -> list[Any]:
    return list(dict.fromkeys(values))
