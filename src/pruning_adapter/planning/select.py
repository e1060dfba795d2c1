"""From scores to a pruning plan."""

import math
from collections.abc import Sequence
from dataclasses import replace
from numbers import Integral, Real
from typing import Any

import numpy as np

from pruning_adapter.architectures.spec import Kind
from pruning_adapter.costs.latency import LatencyTable
from pruning_adapter.errors import PlanError
from pruning_adapter.importance.normalize import Scope
from pruning_adapter.importance.scores import ImportanceScores
from pruning_adapter.planning.budget import (
    Budget,
    bytes_budget,
    latency_budget,
    macs_budget,
    parameters_budget,
)
from pruning_adapter.planning.items import Grouping, SiteItems, make_items
from pruning_adapter.planning.pruning_plan import PruningPlan, Reconstruction

__all__ = ["plan_pruning"]


def plan_pruning(
    scores: ImportanceScores,
    *,
    keep_heads: int | None = None,
    keep_ratio: float | None = None,
    threshold: float | None = None,
    keep_params: float | None = None,
    keep_macs: float | None = None,
    keep_bytes: str | int | None = None,
    keep_latency: float | None = None,
    length: int = 128,
    dtype: str = "float32",
    latency: LatencyTable | None = None,
    normalization: Scope | None = None,
    grouping: Grouping | None = None,
    multiple_of: int | None = None,
    allow_empty_blocks: bool = False,
    reconstruct: Reconstruction = "none",
) -> PruningPlan:
    """Keep the units that matter most (section "importance-oriented pruning" of the paper), under one rule.

    Exactly one of the seven rules is given. The first three compare normalised scores, as the paper does; the budgets
    let all units compete by importance per unit of cost, heads and neurons in one currency. Only kinds of units that
    were scored can go. Of equal ones the earlier block, then the lower number, is kept. Unless `allow_empty_blocks`,
    the best unit of every block stays whatever its score.

    Args:
        scores: of a dense model, or of a pruned one, whose remaining units then compete.
        keep_heads: how many heads of the whole model stay; neurons all stay.
        keep_ratio: share of the dense model's heads that stay, in (0, 1], rounded to the nearest possible number; and
            of its neurons, if they were scored.
        threshold: normalised importance in [0, 1]; units below it go.
        keep_params: share of the dense model's parameters that may stay, embeddings and task head included.
        keep_macs: share of its multiply-accumulates on one example of `length` tokens, attention's quadratic part
            included.
        keep_bytes: bytes of weights stored as `dtype`, as a number or as text such as "60MB".
        keep_latency: share of its time, as the table `latency` predicts it.
        length: tokens of an example, for `keep_macs`.
        dtype: "float32", "bfloat16", "float16", "float64" or "int8", for `keep_bytes`.
        latency: a table measured on this machine; see `measure_latency`.
        normalization: equation 1 over the units of each "block" or of the whole "model". None: "block" for the first
            three rules, and the scores as they are for budgets.
        grouping: under grouped-query attention, whether query heads go "even"ly from every group, or "whole" key/value
            groups, which makes the cache smaller too and costs more accuracy. None: evenly; for `keep_latency` whole
            groups, of which its table speaks. Where all heads share one group (multi-query), single ones go.
        multiple_of: round feed-forward widths to multiples of it. None: for `keep_latency`, to what the table found to
            be fast; else 1.
        allow_empty_blocks: a block may lose all its heads or neurons; the sub-layer then adds only its bias.
        reconstruct: how surgery corrects the kept weights for what is gone: "none", "bias" or "lstsq"; see
            `reconstruct_`.

    Raises:
        PlanError: no rule or several, a number out of range, groups that do not divide, or a budget below the smallest
            possible one, which the message names.
    """
    rules: dict[str, Any] = {
        "keep_heads": keep_heads,
        "keep_ratio": keep_ratio,
        "threshold": threshold,
        "keep_params": keep_params,
        "keep_macs": keep_macs,
        "keep_bytes": keep_bytes,
        "keep_latency": keep_latency,
    }
    given = {name: value for name, value in rules.items() if value is not None}
    if len(given) != 1:
        raise PlanError(f"Give exactly one of {', '.join(rules)}; {', '.join(given) or 'none'} was given.")
    rule = next(iter(given))
    _check_number(rule, given[rule])
    counts = rule in ("keep_heads", "keep_ratio", "threshold")
    scope = normalization or ("block" if counts else None)
    kinds: Sequence[Kind] = ("heads",) if rule == "keep_heads" else scores.kinds
    if rule == "keep_heads" and not scores.heads:
        raise PlanError("keep_heads needs scores of heads; score them too, or use another rule.")
    if grouping is None and keep_latency is not None:
        grouping = "whole"
    if multiple_of is None:
        multiple_of = 1 if keep_latency is None or latency is None else latency.multiple_of
    sites = make_items(scores, kinds=kinds, normalization=scope, grouping=grouping, multiple_of=multiple_of)
    if rule == "threshold":
        taken = _above(sites, float(given[rule]), allow_empty_blocks)
    elif counts:
        taken = _by_number(scores, sites, rule, given[rule], allow_empty_blocks)
    else:
        budget = {
            "keep_params": lambda: parameters_budget(scores, given[rule]),
            "keep_macs": lambda: macs_budget(scores, given[rule], length),
            "keep_bytes": lambda: bytes_budget(scores, given[rule], dtype),
            "keep_latency": lambda: latency_budget(scores, given[rule], latency),
        }[rule]()
        taken = _within(scores, sites, budget, allow_empty_blocks)
    kept = list(scores.kept_heads + scores.kept_neurons)
    for site, count in zip(sites, taken, strict=True):
        kept[site.site] = tuple(sorted(unit for item in site.items[:count] for unit in item))
    said: dict[str, Any] = {rule: int(given[rule]) if rule == "keep_heads" else given[rule]}
    said |= {"length": length} if rule == "keep_macs" else {"dtype": dtype} if rule == "keep_bytes" else {}
    if latency is not None and rule == "keep_latency":
        said["predicted"] = latency.predict([len(units) for units in kept])
    attentions = len(scores.model.sites)
    return PruningPlan(
        model=scores.model,
        kept_heads=tuple(kept[:attentions]),
        kept_neurons=tuple(kept[attentions:]),
        dense_parameters=scores.dense_parameters,
        macs=scores.macs,
        reconstruct=reconstruct,
        # A block that was empty already stays so.
        allow_empty_blocks=allow_empty_blocks or not all(scores.kept_heads + scores.kept_neurons),
        origin={
            "scorer": scores.scorer,
            "reduction": scores.reduction,
            "task": scores.task,
            "rule": said,
            "normalization": scope,
        },
    )


def _check_number(rule: str, value: object) -> None:
    if rule == "keep_bytes" and isinstance(value, str):
        return
    whole = rule == "keep_heads"
    if isinstance(value, bool) or not isinstance(value, Integral if whole else Real):
        raise PlanError(f"{rule} is {value!r}; it must be a {'whole ' if whole else ''}number.")


def _above(sites: Sequence[SiteItems], threshold: float, allow_empty: bool) -> list[int]:
    """How many items of each site have a mean importance that reaches the threshold."""
    if not 0 <= threshold <= 1:
        raise PlanError(f"threshold is {threshold}; normalised importance lies in [0, 1].")
    taken: list[int] = []
    for site in sites:
        means = site.values / np.array([len(item) for item in site.items])
        enough = int((means >= threshold).sum())
        taken.append(max(enough, 0 if allow_empty else min(1, len(site.items))))
    return taken


def _by_number(
    scores: ImportanceScores, sites: Sequence[SiteItems], rule: str, number: float, allow_empty: bool
) -> list[int]:
    """The best items that make up a number, or a share, of the units of each kind."""
    taken = [0] * len(sites)
    for kind in ("heads", "neurons"):
        chosen = [index for index, site in enumerate(sites) if site.kind == kind]
        if not chosen:
            continue
        dense = sum(scores.model.heads if kind == "heads" else scores.model.neurons)
        of_kind = [sites[index] for index in chosen]
        if rule == "keep_ratio":
            if not 0 < number <= 1:
                raise PlanError(f"keep_ratio is {number}; it is the share of {kind} that stays, in (0, 1].")
            count, said = math.floor(number * dense + 0.5), f"keep_ratio={number} keeps"
            count = _nearest(count, of_kind, allow_empty)
        else:
            count, said = int(number), f"{rule} is"
        counts = _take_number(of_kind, count, said, allow_empty, exactly=rule != "keep_ratio")
        for index, items in zip(chosen, counts, strict=True):
            taken[index] = items
    return taken


def _take_number(sites: Sequence[SiteItems], count: int, said: str, allow_empty: bool, *, exactly: bool) -> list[int]:
    kind = sites[0].kind
    there_are = sum(site.units[-1] for site in sites)
    if count > there_are:
        raise PlanError(f"{said} {count} {kind}, but the model has {there_are}.")
    live = [site for site in sites if site.items]
    needed = 0 if allow_empty else sum(len(site.items[0]) for site in live)
    if count < max(needed, 1):
        raise PlanError(
            f"{said} {count} {kind}, but each of the {len(live)} blocks needs "
            f"{'one' if needed == len(live) else 'some'}. Keep at least {needed}, or say allow_empty_blocks=True "
            "(--allow-empty-blocks)."
            if needed
            else f"{said} {count} {kind}; keep at least one."
        )
    budget = Budget(limit=count, fixed=0, cost=lambda site: np.array(site.units, dtype=np.float64), unit=kind, say=str)
    taken = _fill(sites, budget, allow_empty)
    got = sum(site.units[items] for site, items in zip(sites, taken, strict=True))
    if got != count and exactly:
        sizes = sorted({len(item) for site in sites for item in site.items})
        raise PlanError(
            f"{said} {count} {kind}, but they go in groups of {', '.join(map(str, sizes))} here. Keep {got} or "
            f"{min(got + sizes[0], there_are)}."
        )
    return taken


def _nearest(count: int, sites: Sequence[SiteItems], allow_empty: bool) -> int:
    """The possible number of units that is nearest to `count`."""
    sizes = {len(item) for site in sites for item in site.items}
    if sizes <= {1}:
        return count
    step = max(sizes)
    least = 0 if allow_empty else sum(len(site.items[0]) for site in sites if site.items)
    return max(min(round(count / step) * step, sum(site.units[-1] for site in sites)), least)


def _within(scores: ImportanceScores, sites: Sequence[SiteItems], budget: Budget, allow_empty: bool) -> list[int]:
    """The items of most importance per cost that fit into the budget."""
    scored = {site.site for site in sites}
    # Kinds that were not scored stay whole.
    whole = [
        SiteItems(site=number, kind=shape.kind, items=(kept,), values=np.zeros(1), groups=(0, _groups(shape, kept)))
        for number, (shape, kept) in enumerate(
            zip(scores.model.all_sites, scores.kept_heads + scores.kept_neurons, strict=True)
        )
        if number not in scored
    ]
    fixed = budget.fixed + sum(float(budget.cost(site)[-1]) for site in whole)
    least = fixed + sum(float(budget.cost(site)[0 if allow_empty or not site.items else 1]) for site in sites)
    if least > budget.limit * (1 + 1e-12):
        way = "" if allow_empty else " With allow_empty_blocks=True (--allow-empty-blocks) it can be smaller."
        raise PlanError(
            f"The budget is {budget.limit:,.4g} {budget.unit}, but the smallest possible plan needs {least:,.4g}: "
            f"{budget.say(least)}.{way}"
        )
    return _fill(sites, replace(budget, fixed=fixed), allow_empty)


def _groups(shape: Any, kept: Sequence[int]) -> int:
    return len({unit // shape.group_size for unit in kept})


def _fill(sites: Sequence[SiteItems], budget: Budget, allow_empty: bool) -> list[int]:
    """How many items of each site to take: best importance per cost first, as long as they fit.

    Items of a site come in their order. Where an item costs less than the one before it, it waits for it: its density
    is capped by that of its forerunner.
    """
    costs = [budget.cost(site) for site in sites]
    taken = [0 if allow_empty else min(1, len(site.items)) for site in sites]
    spent = budget.fixed + sum(float(cost[count]) for cost, count in zip(costs, taken, strict=True))
    numbers, positions, densities, prices = [], [], [], []
    for number, (site, cost, first) in enumerate(zip(sites, costs, taken, strict=True)):
        price = np.diff(cost)
        # A unit that costs nothing is worth keeping before all others.
        with np.errstate(divide="ignore", invalid="ignore"):
            density = np.where(price > 0, site.values / price, np.inf)
        numbers.append(np.full(len(price) - first, number))
        positions.append(np.arange(first, len(price)))
        densities.append(np.minimum.accumulate(density)[first:])
        prices.append(price[first:])
    if not numbers:
        return taken
    number, position = np.concatenate(numbers), np.concatenate(positions)
    density, price = np.concatenate(densities), np.concatenate(prices)
    # Of equal ones the earlier site; items of equal value are in the order of their units already.
    order = np.lexsort((position, number, -density))
    slack = (budget.limit - spent) * (1 + 1e-12) + 1e-9
    running = np.cumsum(price[order])
    fits = int(np.searchsorted(running, slack, side="right"))
    for index in order[:fits].tolist():
        taken[int(number[index])] = int(position[index]) + 1
    left = slack - (float(running[fits - 1]) if fits else 0.0)
    # What is left over goes to the next best that still fits.
    for index in order[fits:].tolist():
        site = int(number[index])
        if price[index] <= left and position[index] == taken[site]:
            taken[site] += 1
            left -= float(price[index])
    return taken
