"""Learning curves, worked out for an SVG: points, axes, ticks and what to read at each step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from pruning_adapter.evaluation.result import Result
from pruning_adapter.reporting.numbers import NBSP, as_number, is_rate, show_percent, show_value

__all__ = ["Chart", "make_charts"]

MAX_POINTS = 240
Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class _Series:
    name: str
    points: tuple[Point, ...]
    """(step, value), by step."""


@dataclass(frozen=True, kw_only=True)
class _Tick:
    place: float
    """In percent of the axis."""
    label: str


@dataclass(frozen=True, kw_only=True)
class _Stop:
    """What the reader sees on pointing at one step."""

    place: float
    left: float
    width: float
    tip: str
    dots: tuple[tuple[int, float], ...]
    """(number of the series, percent from the top)."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    title: str
    names: tuple[str, ...]
    lines: tuple[tuple[Point, ...], ...]
    """Per series, in percent of the plot from its top left."""
    across: tuple[_Tick, ...]
    up: tuple[_Tick, ...]
    stops: tuple[_Stop, ...]
    reference: _Tick | None
    summary: str


def make_charts(result: Result) -> list[Chart]:
    epochs = dict(_read(result.history, "epoch"))
    sets = list(result.quality)
    loss = [_Series(name="training", points=_read(result.history, "loss")), *_evaluations(result.history, "loss", sets)]
    charts = [_chart("loss", [series for series in loss if series.points], epochs, "loss", None)]
    primary = next(iter(result.quality.values()), None)
    for metric in primary.metrics if primary is not None else ():
        series = _evaluations(result.history, metric, sets)
        if primary is not None and series:
            majority = primary.majority_rate if metric.endswith("accuracy") else None
            charts.append(_chart(metric.replace("_", " "), series, epochs, metric, majority))
            break
    return [chart for chart in charts if chart is not None]


def _read(history: Sequence[Mapping[str, float]], key: str) -> tuple[Point, ...]:
    found: dict[float, float] = {}
    for entry in history:
        step, value = as_number(entry.get("step")), as_number(entry.get(key))
        if step is not None and value is not None:
            found[step] = value
    return tuple(sorted(found.items()))


def _evaluations(history: Sequence[Mapping[str, float]], metric: str, sets: Sequence[str]) -> list[_Series]:
    """One line per validation set that was watched while training."""
    named = [("validation", f"eval_{metric}"), *((name, f"eval_{name}_{metric}") for name in sets)]
    series = [_Series(name=name, points=_read(history, key)) for name, key in named]
    return [each for each in series if each.points]


def _chart(
    title: str, series: Sequence[_Series], epochs: Mapping[float, float], metric: str, majority: float | None
) -> Chart | None:
    if not series:
        return None
    values = [value for each in series for _, value in each.points] + ([] if majority is None else [majority])
    rate = is_rate(metric)
    up = _ticks(min(values), max(values), 4)
    if rate and min(values) >= 0 and max(values) <= 1:
        up = [tick for tick in up if 0 <= tick <= 1]
    last = max(step for each in series for step, _ in each.points)
    across = [tick for tick in _ticks(0.0, last, 6) if tick <= last]
    end = max(last, 1.0)

    def x(step: float) -> float:
        return round(100 * step / end, 2)

    def y(value: float) -> float:
        return round(100 * (up[-1] - value) / (up[-1] - up[0]), 2)

    thinned = [_Series(name=each.name, points=_thin(each.points)) for each in series]
    return Chart(
        title=title,
        names=tuple(each.name for each in thinned),
        lines=tuple(tuple((x(step), y(value)) for step, value in each.points) for each in thinned),
        across=tuple(
            _Tick(place=x(tick), label=f"{_rounded(tick / 1e3):g}{NBSP}K" if last >= 1e4 and tick else f"{tick:g}")
            for tick in across
        ),
        up=tuple(
            _Tick(place=y(tick), label=f"{100 * tick:.4g}{NBSP}%" if rate else f"{_rounded(tick):g}") for tick in up
        ),
        stops=_stops(thinned, epochs, metric, x, y),
        reference=None
        if majority is None
        else _Tick(place=y(majority), label=f"largest class {show_percent(majority)}"),
        summary=f"{title} by training step; "
        + "; ".join(f"{each.name} ends at {show_value(metric, each.points[-1][1])}" for each in series),
    )


def _stops(
    series: Sequence[_Series],
    epochs: Mapping[float, float],
    metric: str,
    x: Any,
    y: Any,
) -> tuple[_Stop, ...]:
    lookup = [dict(each.points) for each in series]
    steps = sorted({step for points in lookup for step in points})
    places = [x(step) for step in steps]
    # Each step answers from half-way to the step before until half-way to the next.
    edges = [0.0, *((low + high) / 2 for low, high in pairwise(places)), 100.0]
    stops: list[_Stop] = []
    for number, step in enumerate(steps):
        here = [(line, points[step]) for line, points in enumerate(lookup) if step in points]
        when = f"step {step:g}" + (f", epoch {epochs[step]:.3g}" if step in epochs else "")
        what = ", ".join(f"{series[line].name} {show_value(metric, value)}" for line, value in here)
        left = round(edges[number], 2)
        stops.append(
            _Stop(
                place=places[number],
                left=left,
                width=round(max(edges[number + 1] - left, 0.0), 2),
                tip=f"{when}: {what}",
                dots=tuple((line, y(value)) for line, value in here),
            )
        )
    return tuple(stops)


def _thin(points: tuple[Point, ...]) -> tuple[Point, ...]:
    """At most MAX_POINTS of them, evenly taken, the first and the last among them."""
    if len(points) <= MAX_POINTS:
        return points
    return tuple(points[round(index * (len(points) - 1) / (MAX_POINTS - 1))] for index in range(MAX_POINTS))


def _ticks(low: float, high: float, intervals: int) -> list[float]:
    """Round numbers, 1, 2 or 5 times a power of ten apart, that enclose `low` and `high`; at least two of them."""
    if high - low < 1e-9 * max(abs(high), 1e-9):
        spread = 0.1 * abs(high) or 1.0
        low, high = low - spread, high + spread
    power = 10.0 ** math.floor(math.log10((high - low) / intervals))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * intervals >= (high - low) * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [_rounded(index * step) for index in range(first, last + 1)]


def _rounded(value: float) -> float:
    return float(f"{value:.10g}")
