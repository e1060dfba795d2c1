"""Budgets: what may stay, in the currency that the user pays in. Pure arithmetic on what was counted or measured."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np
from numpy.typing import NDArray

from pruning_adapter.architectures.shapes import SiteShape
from pruning_adapter.costs.latency import LatencyTable
from pruning_adapter.errors import PlanError
from pruning_adapter.importance.scores import ImportanceScores
from pruning_adapter.planning.items import SiteItems

__all__ = ["Budget", "bytes_budget", "latency_budget", "macs_budget", "parameters_budget", "parse_bytes"]

BYTES_PER_NUMBER = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The most that may be spent, and what everything costs."""

    limit: float
    """The most that the whole model may cost."""
    fixed: float
    """What stays whatever is chosen."""
    cost: Callable[[SiteItems], Floats]
    """What a site costs once its first 0, 1, 2, ... items are taken."""
    unit: str
    """What costs are counted in, for messages."""
    say: Callable[[float], str]
    """The rule that allows a cost, as the user would write it."""


def parameters_budget(scores: ImportanceScores, share: float) -> Budget:
    """At most this share of the dense model's parameters, embeddings and task head included."""
    dense = scores.dense_parameters
    return Budget(
        limit=_share("keep_params", share) * dense,
        fixed=_fixed_parameters(scores),
        cost=_parameter_cost(scores, 1),
        unit="parameters",
        say=lambda least: f"keep_params={_up(least / dense)}",
    )


def bytes_budget(scores: ImportanceScores, limit: str | int, dtype: str) -> Budget:
    """At most this many bytes of weights stored as `dtype`."""
    if dtype not in BYTES_PER_NUMBER:
        raise PlanError(f"dtype is {dtype!r}; use one of {', '.join(BYTES_PER_NUMBER)}.")
    size = BYTES_PER_NUMBER[dtype]
    return Budget(
        limit=parse_bytes(limit),
        fixed=_fixed_parameters(scores) * size,
        cost=_parameter_cost(scores, size),
        unit=f"bytes of {dtype}",
        say=lambda least: f'keep_bytes="{_up(least / 1e6, 3)}MB"',
    )


def macs_budget(scores: ImportanceScores, share: float, length: int) -> Budget:
    """At most this share of the dense model's multiply-accumulates on one example of `length` tokens."""
    macs = scores.macs
    if macs is None:
        raise PlanError(
            "keep_macs needs the cost of the dense model, which was not counted (scores of an older release, or a "
            "model whose cost cannot be told in advance). Score the dense model anew, or use keep_params."
        )
    if isinstance(length, bool) or not isinstance(length, Integral) or length < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise PlanError(f"length is {length!r}; give the number of tokens at which operations are counted.")
    dense = macs.dense(length)
    of_unit = [float(macs.unit(site, length)) for site in range(len(macs.of_units))]
    of_group = [float(macs.group(site, length)) for site in range(len(macs.of_groups))]
    sites = scores.model.all_sites
    prunable = sum(
        site.units * unit + (site.groups * group if site.kind == "heads" else 0)
        for site, unit, group in zip(sites, of_unit, of_group, strict=True)
    )

    def cost(site: SiteItems) -> Floats:
        groups = np.array(site.groups) if site.kind == "heads" else 0
        return np.array(site.units) * of_unit[site.site] + groups * of_group[site.site]

    return Budget(
        limit=_share("keep_macs", share) * dense,
        fixed=dense - prunable,
        cost=cost,
        unit=f"multiply-accumulates at {length} tokens",
        say=lambda least: f"keep_macs={_up(least / dense)}",
    )


def latency_budget(scores: ImportanceScores, share: float, table: LatencyTable | None) -> Budget:
    """At most this share of the dense model's time, as the table predicts it."""
    if table is None:
        raise PlanError(
            "keep_latency needs a latency table of this model on this machine: latency=measure_latency(model)."
        )
    table.check_fits(scores.model)
    known = table

    def cost(site: SiteItems) -> Floats:
        return np.array([known.of_site(site.site, units) for units in site.units])

    return Budget(
        limit=_share("keep_latency", share),
        fixed=known.rest,
        cost=cost,
        unit="of the dense model's time",
        say=lambda least: f"keep_latency={_up(least)}",
    )


def parse_bytes(text: str | int) -> int:
    """Bytes from a number, or from text such as "60MB" (10^6) or "60MiB" (2^20).

    Raises:
        PlanError: neither.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", str(text))
    if isinstance(text, bool) or not match or match[2].upper() not in UNITS:
        raise PlanError(f'keep_bytes is {text!r}; give bytes, or text such as "60MB" or "60MiB".')
    return int(float(match[1]) * UNITS[match[2].upper()])


def _fixed_parameters(scores: ImportanceScores) -> int:
    return scores.dense_parameters - sum(site.parameters(range(site.units)) for site in scores.model.all_sites)


def _parameter_cost(scores: ImportanceScores, size: int) -> Callable[[SiteItems], Floats]:
    def cost(site: SiteItems) -> Floats:
        shape = scores.model.all_sites[site.site]
        of_unit, of_group = _parameters_of(shape)
        units, groups = np.array(site.units), np.array(site.groups)
        return size * (units * of_unit + groups * of_group + (units > 0) * shape.shared).astype(np.float64)

    return cost


def _parameters_of(shape: SiteShape) -> tuple[int, int]:
    """Parameters that every unit, and every group, brings."""
    of_all = shape.parameters(range(shape.units)) - shape.shared
    if shape.group_size == 1:
        return of_all // shape.units, 0
    # One head of every group: all groups, and as many units.
    of_slice = shape.parameters(range(0, shape.units, shape.group_size)) - shape.shared
    of_unit = (of_all - of_slice) // (shape.units - shape.groups)
    return of_unit, of_slice // shape.groups - of_unit


def _share(name: str, share: object) -> float:
    if isinstance(share, bool) or not isinstance(share, Real) or not 0 < float(share) <= 1:
        raise PlanError(f"{name} is {share!r}; it is the share of the dense model that stays, in (0, 1].")
    return float(share)


def _up(number: float, digits: int = 4) -> float:
    """Rounded up, so that what is said is enough."""
    return np.ceil(number * 10**digits - 1e-9).item() / 10**digits
