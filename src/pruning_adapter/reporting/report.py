"""A result as one HTML page that holds all it shows: no script, no network, good on paper and on a phone."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pruning_adapter.evaluation.result import Quality, Result
from pruning_adapter.reporting.chart import make_charts
from pruning_adapter.reporting.numbers import (
    NBSP,
    TO,
    as_number,
    is_rate,
    show_grouped,
    show_interval,
    show_percent,
    show_short,
    show_times,
    show_value,
)
from pruning_adapter.reporting.places import without_home
from pruning_adapter.reporting.template import write_page
from pruning_adapter.reporting.wording import CORRECTIONS, METHODS, SCORERS, pruned_kinds, row_name, say_rule

__all__ = ["write_report"]

# Every tenth of viridis, which is perceptually uniform and safe for colour-blind readers.
VIRIDIS = (
    *("#440154", "#482475", "#414487", "#355f8d", "#2a788e", "#21918c"),
    *("#22a884", "#44bf70", "#7ad151", "#bddf26", "#fde725"),
)


def write_report(result: Result, path: Path) -> None:
    """Write `result` as a self-contained HTML page to `path`.

    Raises:
        OutputError: Jinja2 is missing, or the file cannot be written.
    """
    write_page(path, "report.html.j2", _page(result))


def _page(result: Result) -> dict[str, Any]:
    task = without_home(dict(result.task))
    model = without_home(dict(result.model))
    name, primary = next(iter(result.quality.items()), (None, None))
    return {
        "task": str(task.get("name", "task")),
        "model": _model_name(str(model.get("id", "model"))),
        "method": METHODS.get(result.method, result.method),
        "facts": _facts(result, task),
        "notes": [without_home(note) for note in result.notes],
        "headline": None if name is None or primary is None else _headline(name, primary),
        "tiles": _tiles(result.cost),
        "map": None if result.pruning is None else _head_map(result.pruning, result.scorer),
        "planned": None if result.pruning is None else _planned(result.pruning, result.cost),
        "gradient": ", ".join(VIRIDIS),
        "charts": make_charts(result),
        "quality": [_quality_rows(each, quality) for each, quality in result.quality.items()],
        "details": {
            "Recipe": _pairs(without_home(dict(result.recipe))),
            "Task and model": [
                *_pairs({f"task {key}": value for key, value in task.items()}),
                *_pairs({f"model {key.removeprefix('model_')}": value for key, value in model.items()}),
                *_pairs({"method": result.method, "scorer": result.scorer, "seed": result.seed}),
            ],
            "Versions": _pairs(without_home(dict(result.versions))),
            "Machine": _pairs(without_home(dict(result.machine))),
        },
        "command": result.command,
    }


# --- text ---------------------------------------------------------------------------------------------------------


def _model_name(identity: str) -> str:
    """The last folder of a local path; a Hub id as it is."""
    local = identity.startswith(("/", "~", ".")) or "\\" in identity
    return re.split(r"[/\\]", identity.rstrip("/\\"))[-1] if local else identity


def _facts(result: Result, task: Mapping[str, Any]) -> list[str]:
    facts = [METHODS.get(result.method, result.method)]
    if result.pruning is not None and result.scorer is not None:
        what = pruned_kinds(result.pruning)
        facts.append(f"{what} {SCORERS.get(result.scorer, f'chosen by {result.scorer}')}")
    if isinstance(task.get("train_examples"), int):
        facts.append(f"{show_grouped(task['train_examples'])} training examples")
    return [*facts, f"seed {result.seed}"]


def _pairs(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(key.replace("_", " "), _plain(value)) for key, value in values.items() if value not in (None, "", [], {})]


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list) and all(isinstance(each, str) for each in cast("list[Any]", value)):
        return ", ".join(cast("list[str]", value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


# --- quality and cost -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Tile:
    label: str
    value: str
    lines: tuple[str, ...] = ()


def _headline(name: str, quality: Quality) -> dict[str, Any] | None:
    metric, measure = next(iter(quality.metrics.items()), (None, None))
    if metric is None or measure is None:
        return None
    scale: dict[str, float | None] | None = None
    ends = (measure.low, measure.value, measure.high)
    if is_rate(metric) and all(0 <= end <= 1 for end in ends):
        majority = quality.majority_rate if metric.endswith("accuracy") else None
        scale = dict(zip(("low", "value", "high"), (100 * end for end in ends), strict=True))
        scale["majority"] = None if majority is None else 100 * majority
    return {
        "metric": metric.replace("_", " "),
        "set": name,
        "value": show_value(metric, measure.value),
        "interval": show_interval(metric, measure),
        "examples": show_grouped(quality.examples),
        "majority": None if quality.majority_rate is None else show_percent(quality.majority_rate),
        "at_majority": quality.at_majority,
        "scale": scale,
    }


def _quality_rows(name: str, quality: Quality) -> dict[str, Any]:
    return {
        "set": name,
        "metrics": [
            (metric.replace("_", " "), show_value(metric, measure.value), show_interval(metric, measure))
            for metric, measure in quality.metrics.items()
        ],
        "examples": show_grouped(quality.examples),
        "majority": None if quality.majority_rate is None else show_percent(quality.majority_rate),
        "at_majority": quality.at_majority,
    }


def _tiles(cost: Mapping[str, Any]) -> list[_Tile]:
    """What was counted or measured, in the order a reader asks; what is absent is left out."""
    tiles: list[_Tile] = []
    parameters, dense = as_number(cost.get("parameters")), as_number(cost.get("dense_parameters"))
    if parameters is not None:
        lines = (f"{show_percent(parameters / dense)} of {show_short(dense)} dense",) if dense else ()
        tiles.append(_Tile(label="parameters", value=show_short(parameters), lines=lines))
    trainable = as_number(cost.get("trainable_parameters"))
    if trainable is not None:
        lines = (f"{show_percent(trainable / parameters)} of all parameters",) if parameters else ()
        tiles.append(_Tile(label="trained parameters", value=show_short(trainable), lines=lines))
    shape = f"batch {cost['batch']} x {cost['length']} tokens" if "batch" in cost and "length" in cost else None
    tiles += _ratio_tile("latency", "time", cost.get("latency_ratio"), shape)
    tiles += _ratio_tile("memory", "memory", cost.get("memory_ratio"), shape)
    for label, what in (("training step", "time"), ("training memory", "memory")):
        tiles += _ratio_tile(label, what, cost.get(f"training_{what}_ratio"), "than LoRA on the dense model")
    macs, dense_macs = as_number(cost.get("macs")), as_number(cost.get("dense_macs"))
    if macs is not None and dense_macs:
        compared = f"{show_short(macs)} of {show_short(dense_macs)}"
        lines = (compared, "multiply-adds, counted")
        tiles.append(_Tile(label="compute vs dense", value=show_times(macs / dense_macs), lines=lines))
    elif macs is not None:
        tiles.append(_Tile(label="multiply-adds", value=show_short(macs)))
    size = as_number(cost.get("weight_bytes"))
    if size is not None:
        tiles.append(_Tile(label="weights", value=f"{size / 1e6:.1f}{NBSP}MB", lines=("to keep and to load",)))
    return tiles


def _ratio_tile(label: str, what: str, ratio: Any, shape: str | None) -> list[_Tile]:
    if not isinstance(ratio, Mapping):
        return []
    ratio = cast("Mapping[str, Any]", ratio)
    median, q1, q3 = (as_number(ratio.get(key)) for key in ("median", "q1", "q3"))
    if median is None:
        return []
    lines: list[str] = []
    if q1 is not None and q3 is not None:
        if q1 < q3:
            lines.append(f"quartiles {q1:.2f}{TO}{q3:.2f}")
        lines.append(
            "no clear difference"
            if q1 <= 1 <= q3
            else f"{show_percent(abs(1 - median))} {'less' if median < 1 else 'more'} {what}"
        )
    if shape is not None:
        lines.append(shape)
    return [_Tile(label=f"{label} vs dense", value=show_times(median), lines=tuple(lines))]


# --- the plan -------------------------------------------------------------------------------------------------------


def _planned(pruning: Mapping[str, Any], cost: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """What the plan predicted beside what came out and what the dense model has: (what, predicted, found, dense)."""
    predicted = cast("Mapping[str, Any]", pruning.get("predicted") or {})
    rows: list[tuple[str, str, str, str]] = []
    for label, name in (
        ("parameters", "parameters"),
        (f"multiply-adds at {cost.get('length')} tokens", "macs"),
    ):
        numbers = [as_number(value) for value in (predicted.get(name), cost.get(name), cost.get(f"dense_{name}"))]
        if None not in numbers:
            first, second, third = (show_grouped(int(cast(float, number))) for number in numbers)
            rows.append((label, first, second, third))
    time = as_number(predicted.get("latency_ratio"))
    measured = as_number(cast("Mapping[str, Any]", cost.get("latency_ratio") or {}).get("median"))
    if time is not None:
        rows.append(("time", show_times(time), "" if measured is None else show_times(measured), show_times(1.0)))
    return rows


# --- the importance map ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Cell:
    tip: str
    number: str
    color: str
    ink: str
    pruned: bool
    shift: int
    """How far the tip hangs to the left, in percent of its width, so that it never leaves the map."""


@dataclass(frozen=True, kw_only=True)
class _Bar:
    value: int
    of: int
    """What a full bar stands for."""

    @property
    def percent(self) -> int:
        return round(100 * self.value / max(self.of, 1))


@dataclass(frozen=True, kw_only=True)
class _Block:
    number: int
    cells: tuple[_Cell | None, ...]
    """None for a head that the scored model did not have."""
    missing: int
    kept: tuple[int, ...] | None
    heads: _Bar | None
    rank: _Bar | None
    neurons: _Bar | None
    neuron_rank: _Bar | None


def _head_map(pruning: Mapping[str, Any], scorer: str | None) -> dict[str, Any] | None:
    importance = cast("Sequence[Sequence[float | None]]", pruning.get("importance") or ())
    kept = cast("Sequence[Sequence[int]] | None", pruning.get("kept_heads"))
    ranks = cast("Sequence[int]", pruning.get("ranks") or ())
    dense = cast("Sequence[int]", pruning.get("dense_heads") or [len(row) for row in importance])
    neurons = _read_neurons(pruning)
    neuron_ranks = _read_neuron_ranks(pruning)
    width = max((len(row) for row in importance), default=0)
    highest = max([*ranks, *(bar.value for bar in neuron_ranks.values()), 1])
    blocks: list[_Block] = []
    for number in range(max(len(importance), len(kept or ()), len(ranks))):
        row = importance[number] if number < len(importance) else ()
        stay = tuple(sorted(kept[number])) if kept is not None and number < len(kept) else None
        blocks.append(
            _Block(
                number=number,
                cells=tuple(
                    None
                    if value is None
                    else _cell(
                        f"{row_name(pruning)} {number}",
                        head,
                        value,
                        pruned=stay is not None and head not in stay,
                        width=width,
                    )
                    for head, value in enumerate(row)
                ),
                missing=width - len(row),
                kept=stay,
                heads=_Bar(value=len(stay), of=dense[number]) if stay is not None and number < len(dense) else None,
                rank=_Bar(value=ranks[number], of=highest) if number < len(ranks) else None,
                neurons=neurons.get(number),
                neuron_rank=neuron_ranks.get(number),
            )
        )
    if not blocks:
        return None
    cells = [cell for block in blocks for cell in block.cells if cell is not None]
    return {
        "blocks": blocks,
        "width": width,
        "stride": 1 if width <= 12 else 2 if width <= 20 else 4,
        "row": row_name(pruning),
        "what": pruned_kinds(pruning),
        "pruned": sum(cell.pruned for cell in cells),
        "kept": None if kept is None else sum(len(row) for row in kept),
        "heads": len(cells),
        "scorer": SCORERS.get(scorer or "", scorer),
        "largest": {"block": ", the largest of each block 1", "model": ", the largest of all 1"}.get(
            str(pruning.get("shown_within")), ""
        ),
        "roles": without_home(list(pruning.get("rank_roles") or ())),
        "ranks": _rank_summary(ranks),
        "has_ranks": bool(ranks),
        "emptied": [block.number for block in blocks if block.kept == ()],
        "neurons": None if not neurons else _count_neurons(neurons.values()),
        "emptied_neurons": [number for number, bar in sorted(neurons.items()) if bar.value == 0],
        "neuron_ranks": _rank_summary(bar.value for bar in neuron_ranks.values()),
        "rule": say_rule(cast("Mapping[str, Any]", pruning.get("rule") or {})),
        "correction": CORRECTIONS.get(str(pruning.get("reconstruct"))),
    }


def _read_neurons(pruning: Mapping[str, Any]) -> dict[int, _Bar]:
    """By the row they stand in, the neurons of every feed-forward; nothing where none was pruned."""
    kept = cast("Sequence[int]", pruning.get("neurons_kept") or ())
    dense = cast("Sequence[int]", pruning.get("dense_neurons") or ())
    if list(kept) == list(dense):
        return {}
    rows = cast("Sequence[int]", pruning.get("beside") or range(len(kept)))
    return {row: _Bar(value=value, of=of) for row, value, of in zip(rows, kept, dense, strict=False)}


def _read_neuron_ranks(pruning: Mapping[str, Any]) -> dict[int, _Bar]:
    ranks = cast("Sequence[int]", pruning.get("feed_forward_ranks") or ())
    if not any(ranks):
        return {}
    rows = cast("Sequence[int]", pruning.get("beside") or range(len(ranks)))
    highest = max([*ranks, *cast("Sequence[int]", pruning.get("ranks") or ())])
    return {row: _Bar(value=rank, of=highest) for row, rank in zip(rows, ranks, strict=False)}


def _count_neurons(bars: Iterable[_Bar]) -> dict[str, str]:
    pairs = [(bar.value, bar.of) for bar in bars]
    kept, dense = sum(value for value, _ in pairs), sum(of for _, of in pairs)
    return {"pruned": show_grouped(dense - kept), "kept": show_grouped(kept), "dense": show_grouped(dense)}


def _cell(place: str, head: int, value: float, *, pruned: bool, width: int) -> _Cell:
    known = math.isfinite(value)
    color = _color(value) if known else "#808080"
    return _Cell(
        tip=f"{place}, head {head}: {value:.3f}, {'pruned' if pruned else 'kept'}",
        number=f"{value:.2f}".removeprefix("0") if known else "?",
        color=color,
        ink="#fff" if _luminance(color) < 0.179 else "#000",
        pruned=pruned,
        shift=round(100 * head / max(width - 1, 1)),
    )


def _rank_summary(ranks: Iterable[int]) -> list[tuple[int, int]]:
    """(rank, number of blocks), the highest rank first."""
    counts: dict[int, int] = {}
    for rank in ranks:
        counts[rank] = counts.get(rank, 0) + 1
    return sorted(counts.items(), reverse=True)


def _channels(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def _color(value: float) -> str:
    """Between two anchors of viridis, in proportion."""
    place = min(max(value, 0.0), 1.0) * (len(VIRIDIS) - 1)
    index = min(int(place), len(VIRIDIS) - 2)
    mixed = (
        round(low + (high - low) * (place - index))
        for low, high in zip(_channels(VIRIDIS[index]), _channels(VIRIDIS[index + 1]), strict=True)
    )
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def _luminance(color: str) -> float:
    """Relative luminance as WCAG 2 defines it: white text reads best below 0.179, black text above."""
    linear = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (n / 255 for n in _channels(color)))
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
