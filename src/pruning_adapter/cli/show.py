"""What the verbs print."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from pruning_adapter.evaluation.result import Result
    from pruning_adapter.reproduce.grid import Progress
    from pruning_adapter.training.examples import TaskData

__all__ = ["cell", "result", "step", "task", "value", "wrote"]

_CONSOLE = Console(highlight=False)


def step(text: str) -> None:
    """Announce a step."""
    # Not as markup: paths and file names may have brackets.
    _CONSOLE.print(text, style="bold", markup=False, soft_wrap=True)


def value(title: str, content: object) -> None:
    """Print a value (scores, a plan) under its title, as it prints itself."""
    step(title)
    _CONSOLE.print(str(content), markup=False, soft_wrap=True)
    _CONSOLE.print()


def task(data: "TaskData", model: str) -> None:
    """Say what will be worked on."""
    sets = ", ".join(f"{len(examples):,} {name}" for name, examples in data.validation.items())
    step(f"{data.name} with {model}")
    _CONSOLE.print(f"{len(data.train):,} training examples, {sets}\n", markup=False)


def result(found: "Result") -> None:
    """Print quality beside the majority class, and cost beside the dense model."""
    table = Table("validation set", "metric", "value", "95 % interval", "majority class", "examples")
    for name, quality in found.quality.items():
        majority = "" if quality.majority_rate is None else f"{quality.majority_rate:.1%}"
        for metric, measure in quality.metrics.items():
            interval = f"{measure.low:.3f} - {measure.high:.3f}"
            beside = majority if metric == "accuracy" else ""
            table.add_row(name, metric, f"{measure.value:.3f}", interval, beside, f"{quality.examples:,}")
    _CONSOLE.print(table)
    _cost(found.cost)
    for note in found.notes:
        _CONSOLE.print(f"[bold white on red] WARNING [/] [bold red]{escape(note)}[/]", soft_wrap=True)


def cell(progress: "Progress") -> None:
    """Say what a cell of a grid found, and how much is left."""
    done = progress.done
    quality = next(iter(done.result["quality"].values()))
    metric, measure = next(iter(quality["metrics"].items()))
    stuck = ", one answer for all" if quality["at_majority"] else ""
    more = progress.count < progress.of
    left = f"~{progress.seconds_left / 60:.0f} min of cells left" if more else "next: cost and importance maps"
    place = f"{done.cell.recipe} {done.cell.task} {done.cell.arm}, seed {done.cell.seed}"
    _CONSOLE.print(
        f"{progress.count:3} of {progress.of}  {place}: {metric} {measure['value']:.3f}{stuck}  ({left})",
        markup=False,
        soft_wrap=True,
    )


def wrote(path: object) -> None:
    """Name a file that was written."""
    _CONSOLE.print(f"wrote {path}", markup=False, soft_wrap=True)


def _cost(cost: Mapping[str, Any]) -> None:
    share = cost["parameters"] / cost["dense_parameters"]
    lines = [
        f"parameters  {cost['parameters']:,} of {cost['dense_parameters']:,} ({share:.1%})",
        f"trained     {cost['trainable_parameters']:,} ({cost['trainable_parameters'] / cost['parameters']:.2%})",
        f"MACs        {cost['macs'] / cost['dense_macs']:.3f} of the dense model's at length {cost['length']}",
    ]
    for name, key, beside in (
        ("latency", "latency_ratio", "the dense model's"),
        ("memory", "memory_ratio", "the dense model's"),
        ("step time", "training_time_ratio", "LoRA's on the dense model"),
        ("step memory", "training_memory_ratio", "LoRA's on the dense model"),
    ):
        if key in cost:
            ratio = cost[key]
            spread = f"quartiles {ratio['q1']:.3f} - {ratio['q3']:.3f}; " if ratio["q1"] < ratio["q3"] else ""
            shape = f"batch {cost['batch']} x {cost['length']}"
            lines.append(f"{name:11} {ratio['median']:.3f} of {beside} ({spread}{shape})")
    _CONSOLE.print("\n".join(lines), markup=False)
