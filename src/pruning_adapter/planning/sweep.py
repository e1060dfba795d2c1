"""What every budget would keep: plans from the smallest possible one to the whole model, side by side."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pruning_adapter.errors import PlanError
from pruning_adapter.importance.normalize import Scope
from pruning_adapter.importance.scores import ImportanceScores
from pruning_adapter.planning.items import Grouping, make_items
from pruning_adapter.planning.pruning_plan import PruningPlan
from pruning_adapter.planning.select import plan_pruning
from pruning_adapter.storage import write_json

__all__ = ["Currency", "Sweep", "SweepPoint", "sweep_budgets"]

Currency = Literal["macs", "params"]


@dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """One budget, and what the plan that it leads to keeps."""

    budget: float
    """Share of the dense model, in (0, 1]."""
    heads: int
    neurons: int
    parameters: int
    macs: int | None
    """Of one example; None if the cost of the dense model was not counted."""
    importance: float
    """Share of the importance of all scored units that the kept ones have."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Budgets from the smallest possible to 1, by ascending budget."""

    by: Currency
    """What the budgets are shares of."""
    length: int
    """Tokens at which multiply-accumulates are counted."""
    dense: SweepPoint
    """What the dense model has; its budget and importance are 1."""
    points: tuple[SweepPoint, ...]

    def __str__(self) -> str:
        unit = f"multiply-accumulates at {self.length} tokens" if self.by == "macs" else "parameters"
        lines = [
            f"budgets: share of the dense model's {unit}",
            f"{'budget':>8}{'heads':>8}{'neurons':>10}{'parameters':>16}{'':>8}"
            f"{'MACs':>18}{'':>8}{'importance kept':>18}",
        ]
        for point in self.points:
            macs = f"{'not counted':>18}{'':>8}"
            if point.macs is not None and self.dense.macs:
                macs = f"{point.macs:>18,}{point.macs / self.dense.macs:>8.1%}"
            lines.append(
                f"{point.budget:>8.3f}{point.heads:>8,}{point.neurons:>10,}{point.parameters:>16,}"
                f"{point.parameters / self.dense.parameters:>8.1%}{macs}{point.importance:>18.1%}"
            )
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": "pruning-adapter sweep",
            "schema": 1,
            "by": self.by,
            "length": self.length,
            "dense": asdict(self.dense),
            "points": [asdict(point) for point in self.points],
        }

    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        write_json(path, self.to_json())


def sweep_budgets(
    scores: ImportanceScores,
    *,
    by: Currency = "macs",
    count: int = 20,
    length: int = 128,
    normalization: Scope | None = None,
    grouping: Grouping | None = None,
    multiple_of: int = 1,
    allow_empty_blocks: bool = False,
) -> Sweep:
    """Plan at `count` budgets, evenly from the smallest possible to the whole model.

    Args:
        scores: see `plan_pruning`, also for the options that are not named here.
        by: whether budgets are shares of "macs" (on one example of `length` tokens) or of "params".
        count: of budgets, 2 or more.

    Raises:
        PlanError: unknown currency, fewer than two budgets, or a cost that was not counted.
    """
    if by not in get_args(Currency):
        raise PlanError(f"Budgets are swept by macs or params, not by {by!r}.")
    if count < 2:
        raise PlanError(f"A sweep has 2 or more budgets; {count} was asked for.")
    if by == "macs" and scores.macs is None:
        raise PlanError("The cost of the dense model was not counted; score it anew, or sweep by params.")
    options: dict[str, Any] = {"normalization": normalization, "grouping": grouping, "multiple_of": multiple_of}
    smallest = _smallest(scores, by, length, options, allow_empty_blocks)
    points: list[SweepPoint] = []
    for step in range(count):
        # What was rounded down to whole numbers must not make the smallest budget too small.
        budget = min(smallest * (1 + 1e-9) + (1 - smallest) * step / (count - 1), 1.0)
        rule: dict[str, Any] = {f"keep_{by}": budget, "length": length}
        plan = plan_pruning(scores, **rule, **options, allow_empty_blocks=allow_empty_blocks)
        points.append(
            SweepPoint(
                budget=budget,
                heads=plan.heads_kept,
                neurons=plan.neurons_kept,
                parameters=plan.parameters,
                macs=None if plan.macs is None else plan.count_macs(length),
                importance=_importance_kept(scores, plan),
            )
        )
    dense = SweepPoint(
        budget=1.0,
        heads=sum(scores.model.heads),
        neurons=sum(scores.model.neurons),
        parameters=scores.dense_parameters,
        macs=None if scores.macs is None else scores.macs.dense(length),
        importance=1.0,
    )
    return Sweep(by=by, length=length, dense=dense, points=tuple(points))


def _smallest(scores: ImportanceScores, by: Currency, length: int, options: dict[str, Any], allow_empty: bool) -> float:
    """Cost of the plan that keeps the least, as a share of the dense model's."""
    kept = list(scores.kept_heads + scores.kept_neurons)
    for site in make_items(scores, kinds=scores.kinds, **options):
        kept[site.site] = () if allow_empty or not site.items else tuple(sorted(site.items[0]))
    attentions = len(scores.model.sites)
    plan = PruningPlan(
        model=scores.model,
        kept_heads=tuple(kept[:attentions]),
        kept_neurons=tuple(kept[attentions:]),
        dense_parameters=scores.dense_parameters,
        macs=scores.macs,
        allow_empty_blocks=True,
    )
    if by == "params":
        return plan.parameters / plan.dense_parameters
    return plan.count_macs(length) / plan.count_dense_macs(length)


def _importance_kept(scores: ImportanceScores, plan: PruningPlan) -> float:
    total, stays = 0.0, 0.0
    for kind in scores.kinds:
        keeps = plan.kept_heads if kind == "heads" else plan.kept_neurons
        for values, there, keep in zip(scores.scores_of(kind), scores.kept_of(kind), keeps, strict=True):
            total += float(values.sum())
            stays += sum(_chosen(values.tolist(), there, keep))
    return stays / total if total else 1.0


def _chosen(values: Sequence[float], units: Sequence[int], keep: Sequence[int]) -> list[float]:
    wanted = set(keep)
    return [value for value, unit in zip(values, units, strict=True) if unit in wanted]
