"""Numbers as readers expect them."""

import math
from typing import Any

from pruning_adapter.evaluation.result import Measure

__all__ = [
    "NBSP",
    "TO",
    "as_number",
    "is_rate",
    "show_grouped",
    "show_interval",
    "show_percent",
    "show_short",
    "show_times",
    "show_value",
]

NBSP = "\N{NO-BREAK SPACE}"
# The word joiner forbids the line break that a dash allows.
TO = f"{NBSP}\N{EN DASH}\N{WORD JOINER}{NBSP}"


def show_grouped(count: int) -> str:
    return f"{count:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def show_short(count: float) -> str:
    """1234567 → "1.23 M": three or four digits and the unit."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "K")):
        if count >= size:
            scaled = count / size
            return f"{scaled:.{2 if scaled < 10 else 1}f}{NBSP}{unit}"
    return f"{count:g}"


def show_percent(fraction: float) -> str:
    percent = 100 * fraction
    return f"{percent:.{1 if percent >= 1 else 2}f}{NBSP}%"


def is_rate(metric: str) -> bool:
    return "accuracy" in metric or metric.startswith("f1") or metric.endswith("f1")


def show_value(metric: str, value: float) -> str:
    """Shares in percent; correlations and errors as they are."""
    if not math.isfinite(value):
        return "not a number"
    if is_rate(metric):
        return show_percent(value)
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.4g}"


def show_interval(metric: str, measure: Measure) -> str:
    low, high = show_value(metric, measure.low), show_value(metric, measure.high)
    return f"{low.removesuffix(f'{NBSP}%')}{TO}{high}"


def show_times(ratio: float) -> str:
    return f"{ratio:.2f}{NBSP}\N{MULTIPLICATION SIGN}"


def as_number(value: Any) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return value
    return None
