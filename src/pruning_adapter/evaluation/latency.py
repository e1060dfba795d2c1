"""Measuring a `LatencyTable`: how a model's time falls with the widths of its sites, on the machine at hand.

Blocks are timed, not models. One block of every kind is copied, one of its sites is cut to a sampled width, and the
copy runs on what the block reads in the dense model, each time right after the whole block. What a width costs is the
difference to the copy whose site is empty.

Why so: the rest of the block stays whole because a sub-layer alone finds caches that it does not have in the model, and
looks faster than it is there; blocks are timed by themselves because the differences between whole models, of which one
block was cut, drown in noise; and every run is paired with one of the same reference because a machine that others use
changes its speed from second to second. How well that predicts:
benchmarks/latency_table.py.
"""

import copy
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from pruning_adapter.architectures.identity import count_parameters, identify, pruned_state
from pruning_adapter.architectures.shapes import ModelIdentity, SiteShape
from pruning_adapter.architectures.sites import base_of, find_all_sites, find_stacks, sites_of_block, trunk_of
from pruning_adapter.architectures.spec import BlockStack
from pruning_adapter.costs.inputs import make_inputs
from pruning_adapter.costs.latency import Curve, LatencyTable
from pruning_adapter.environment import machine, versions
from pruning_adapter.errors import CheckpointError, CostError, OutputError
from pruning_adapter.surgery.prune import cut_sites_

__all__ = ["CACHE", "check_prediction", "measure_latency", "sample_widths"]

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pruning-adapter" / "latency"
"""Where tables are kept, one file for each machine, model size, batch, length and type."""
MULTIPLES = (1, 8, 16, 32, 64)
"""Roundings of a feed-forward's width that are compared."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Block:
    path: str
    """Relative to the trunk."""
    module: nn.Module
    stack: BlockStack
    shapes: tuple[SiteShape, ...]
    sites: tuple[int, ...]
    """Numbers of its sites among `ModelIdentity.all_sites`."""


@dataclass(frozen=True, kw_only=True)
class _Cut:
    """A copy of a block, one of whose sites is narrower; it takes the place of the block."""

    kind: int
    """Number of its kind of block."""
    site: int
    """Which of the block's sites is cut."""
    width: int
    place: str
    """Path of the block."""
    module: nn.Module


def measure_latency(
    model: nn.Module,
    *,
    batch: int = 8,
    length: int = 128,
    widths: int = 8,
    repeats: int = 15,
    cache: str | Path | None = CACHE,
    progress: bool | None = None,
) -> LatencyTable:
    """Measure how the time of a forward pass falls with the widths of the model's attentions and feed-forwards.

    Takes a minute for a small encoder on a CPU, and for any model as long as a few hundred of its forward passes at
    most. A table for the same machine and sizes is read from `cache` instead. The model is left as it was.

    Args:
        model: a dense model of a supported family, on the device and in the type it will run in. Its weights do not
            matter.
        batch: examples in a forward pass.
        length: tokens of an example, unpadded; an encoder-decoder gets as many on both sides.
        widths: how many widths of each site are measured, evenly spaced: heads (whole key/value groups under
            grouped-query attention) or multiples of up to 64 neurons. Between them the table interpolates.
        repeats: rounds; each runs the dense model and every copy once. The table holds medians over them.
        cache: folder for tables; None: measure anew, and keep nothing.
        progress: show a progress bar; by default only on a terminal.

    Raises:
        CostError: the model is pruned already, has adapters in place, has no weights (meta device), or cannot be given
            made-up inputs; or a number is out of range.
        ArchitectureError: unknown family.
    """
    for name, number, least in (
        ("batch", batch, 1),
        ("length", length, 1),
        ("widths", widths, 2),
        ("repeats", repeats, 4),
    ):
        if isinstance(number, bool) or not isinstance(number, int) or number < least:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise CostError(f"{name} is {number!r}; it is a whole number from {least}.")
    _check_dense(model)
    identity = identify(model)
    file = None
    if cache is not None:
        key = _key(model, identity, batch=batch, length=length, widths=widths, repeats=repeats)
        file = Path(cache) / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]}.json"
        known = _read(file, identity)
        if known is not None:
            return known
    table = _measure(model, identity, batch, length, widths, repeats, progress)
    if file is not None:
        try:
            table.save(file)
        except OutputError as error:
            _log.warning("The latency table was measured, but not kept: %s", error)
    return table


def check_prediction(table: LatencyTable, model: nn.Module, dense: nn.Module, *, repeats: int = 15) -> dict[str, float]:
    """Measure the pruned `model` beside `dense`, run in turn, next to what the table predicted for its widths.

    Returns:
        Shares of the dense model's time: "predicted"; "measured", the median of the paired ratios, with its quartiles
        "q1" and "q3"; and "error", predicted over measured, less one.
    """
    inputs = make_inputs(dense, batch=table.batch, length=table.length)
    with _evaluating(model), _evaluating(dense), torch.no_grad():
        pairs = [
            (_time_blocks(dense, inputs, {}).whole, _time_blocks(model, inputs, {}).whole) for _ in range(repeats + 1)
        ]
    # The first pair warms up.
    q1, median, q3 = np.percentile([after / before for before, after in pairs[1:]], [25, 50, 75]).tolist()
    predicted = table.predict([site.units for site in find_all_sites(model)])
    return {"predicted": predicted, "measured": median, "q1": q1, "q3": q3, "error": predicted / median - 1}


def sample_widths(shape: SiteShape, count: int) -> tuple[int, ...]:
    """At most `count` widths of a site, ascending and evenly spaced, that surgery can cut to; the last is all of it."""
    if shape.kind == "neurons":
        step = 1 << (min(64, max(shape.units // count, 1)).bit_length() - 1)
    else:
        # With one key/value head for all, any number of query heads may be left.
        step = 1 if shape.groups == 1 else shape.group_size
    possible = [*range(step, shape.units, step), shape.units]
    chosen = np.linspace(0, len(possible) - 1, min(count, len(possible))).round().astype(int)
    return tuple(possible[index] for index in chosen.tolist())


def _check_dense(model: nn.Module) -> None:
    if base_of(model) is not model or any(hasattr(module, "base_layer") for module in model.modules()):
        raise CostError("This model has adapters in place; merge or unload them, then measure.")
    if next(model.parameters()).is_meta:
        raise CostError("This model is on the meta device, so it cannot run; load its weights, or random ones.")
    if pruned_state(model) is not None:
        raise CostError("This model is pruned; measure the dense one. Its table tells the time of every pruning of it.")


def _key(model: nn.Module, identity: ModelIdentity, **settings: int) -> dict[str, Any]:
    """All that a table depends on."""
    reference, there = next(model.parameters()), versions()
    sizes = {
        name: value for name, value in identity.to_json().items() if name not in ("name", "revision", "fingerprint")
    }
    return {
        "machine": machine(),
        "versions": {name: there.get(name) for name in ("pruning-adapter", "torch", "transformers")},
        "sizes": sizes,
        # Task heads and vocabularies differ between models of the same blocks.
        "class": type(model).__name__,
        "parameters": count_parameters(model),
        "attention": getattr(cast(Any, model).config, "_attn_implementation", None),
        "dtype": str(reference.dtype),
        "device": reference.device.type,
        **settings,
    }


def _read(file: Path, identity: ModelIdentity) -> LatencyTable | None:
    if not file.exists():
        return None
    try:
        table = LatencyTable.load(file)
        table.check_fits(identity)
    except (CheckpointError, CostError) as error:
        _log.warning("Measuring anew, because the table in the cache cannot be used: %s", error)
        return None
    return replace(table, model=identity)


def _measure(
    model: nn.Module,
    identity: ModelIdentity,
    batch: int,
    length: int,
    widths: int,
    repeats: int,
    progress: bool | None,
) -> LatencyTable:
    reference = next(model.parameters())
    inputs = make_inputs(model, batch=batch, length=length)
    kinds = _block_kinds(model)
    most = max(range(len(kinds)), key=lambda kind: len(kinds[kind]))
    samples = [[sample_widths(shape, widths) for shape in blocks[0].shapes] for blocks in kinds]
    # Roundings are a matter of the hardware, not of the block.
    probes = [
        [_probes(shape) if kind == most else {} for shape in blocks[0].shapes] for kind, blocks in enumerate(kinds)
    ]
    turns = _take_turns(kinds, [_widths_to_cut(*both) for both in zip(samples, probes, strict=True)])
    bar = tqdm(
        total=repeats, desc="latency", unit="round", leave=False, disable=None if progress is None else not progress
    )
    with bar, _evaluating(model), torch.no_grad():
        shares, calls, ratios = _compare(model, inputs, kinds, turns, repeats, bar.update)
    of_kind = [_share_of_a_call([block.path for block in _places(blocks)], shares, calls) for blocks in kinds]
    times = {cut: of_kind[cut[0]] * float(np.median(found)) for cut, found in ratios.items()}

    def curve(kind: int, site: int, points: Iterable[int]) -> list[tuple[int, float]]:
        whole, empty = kinds[kind][0].shapes[site].units, times[kind, site, 0]
        return [
            (width, max((of_kind[kind] if width == whole else times[kind, site, width]) - empty, 0.0))
            for width in points
        ]

    curves: list[Curve] = [()] * len(identity.all_sites)
    for kind, blocks in enumerate(kinds):
        risen = [_rising(curve(kind, site, sampled)) for site, sampled in enumerate(samples[kind])]
        for block in blocks:
            for number, points in zip(block.sites, risen, strict=True):
                # ALBERT applies a block again and again.
                curves[number] = tuple((units, share * calls[block.path]) for units, share in points)
    probed = next(((site, widths) for site, widths in enumerate(probes[most]) if widths), None)
    return LatencyTable(
        model=identity,
        curves=_at_most_everything(curves),
        spread=float(np.median([_spread(found) for found in ratios.values()])),
        batch=batch,
        length=length,
        dtype=str(reference.dtype).removeprefix("torch."),
        device=reference.device.type,
        roundings=() if probed is None else _roundings(probed[1], curve(most, probed[0], probed[1].values())),
        machine=machine(),
    )


def _spread(ratios: Sequence[float]) -> float:
    q1, median, q3 = np.percentile(ratios, [25, 50, 75]).tolist()
    return (q3 - q1) / 2 / median


def _places(blocks: Sequence[_Block]) -> Sequence[_Block]:
    """Where blocks of a kind are compared. The first may compute what the others are handed, as in T5 the position
    bias."""
    return blocks[1:] or blocks


def _share_of_a_call(places: Sequence[str], shares: Mapping[str, Sequence[float]], calls: Mapping[str, int]) -> float:
    """Share of the dense model's time that one run of a block takes."""
    return sum(float(np.median(shares[path])) for path in places) / sum(calls[path] for path in places)


def _widths_to_cut(samples: Sequence[Sequence[int]], probes: Sequence[Mapping[int, int]]) -> list[tuple[int, int]]:
    """(site, width), none of them whole, all with 0."""
    return [
        (site, width)
        for site, (sampled, probed) in enumerate(zip(samples, probes, strict=True))
        for width in sorted({0, *sampled[:-1], *probed.values()})
    ]


def _take_turns(kinds: Sequence[Sequence[_Block]], widths: Sequence[Sequence[tuple[int, int]]]) -> list[list[_Cut]]:
    """Every kind cut to every width, spread over its places, so that few runs of the model serve all."""
    turns: list[list[_Cut]] = []
    for kind, (blocks, cuts) in enumerate(zip(kinds, widths, strict=True)):
        places = _places(blocks)
        for number, (site, width) in enumerate(cuts):
            turn, block = number // len(places), places[number % len(places)]
            if turn == len(turns):
                turns.append([])
            copied = _cut_copy(block, site, width)
            turns[turn].append(_Cut(kind=kind, site=site, width=width, place=block.path, module=copied))
    return turns


def _compare(
    model: nn.Module,
    inputs: dict[str, Any],
    kinds: Sequence[Sequence[_Block]],
    turns: Sequence[Sequence[_Cut]],
    repeats: int,
    told: Callable[[], object],
) -> tuple[dict[str, list[float]], dict[str, int], dict[tuple[int, int, int], list[float]]]:
    """Run the dense model and the model with cut blocks in turn.

    Returns:
        By path of a block, its shares of the dense model's time; how often a forward pass runs it; and for every
        (kind, site, width), the time of the cut block over that of the whole one in the run before.
    """
    trunk, blocks = trunk_of(model), [block for blocks in kinds for block in blocks]
    shares: dict[str, list[float]] = {block.path: [] for block in blocks}
    ratios: dict[tuple[int, int, int], list[float]] = {}
    calls: dict[str, int] = {}
    # The first round is slower: memory is allocated, kernels are chosen.
    for number in range(repeats + 1):
        for turn in turns:
            dense = _time_blocks(model, inputs, {block.path: block.module for block in blocks})
            with _in_place(trunk, turn):
                cut = _time_blocks(model, inputs, {each.place: each.module for each in turn})
            if not number:
                continue
            for path, seconds in dense.of_blocks.items():
                shares[path].append(seconds / dense.whole)
            for each in turn:
                ratio = cut.of_blocks[each.place] / dense.of_blocks[each.place]
                ratios.setdefault((each.kind, each.site, each.width), []).append(ratio)
            calls = dense.calls
        if number:
            told()
    return shares, calls, ratios


@dataclass(frozen=True, kw_only=True)
class _Times:
    """Of one forward pass, in seconds, which are only ever divided by one another."""

    whole: float
    of_blocks: dict[str, float]
    calls: dict[str, int]


def _time_blocks(model: nn.Module, inputs: dict[str, Any], blocks: Mapping[str, nn.Module]) -> _Times:
    device = next(model.parameters()).device
    spent, calls, started = dict[str, float](), dict[str, int](), dict[str, float]()
    with ExitStack() as stack:
        for path, block in blocks.items():

            def start(*_: Any, path: str = path) -> None:
                started[path] = _now(device)

            def stop(*_: Any, path: str = path) -> None:
                spent[path] = spent.get(path, 0.0) + _now(device) - started[path]
                calls[path] = calls.get(path, 0) + 1

            stack.callback(block.register_forward_pre_hook(start).remove)
            stack.callback(block.register_forward_hook(stop).remove)
        before = _now(device)
        model(**inputs)
        whole = _now(device) - before
    lost = sorted(set(blocks) - set(calls))
    if lost:
        raise CostError(f"The block {lost[0]} did not run on made-up inputs, so its time is unknown.")
    return _Times(whole=whole, of_blocks=spent, calls=calls)


@contextmanager
def _in_place(trunk: nn.Module, cuts: Sequence[_Cut]) -> Generator[None]:
    """Let cut copies take the place of their blocks for a while."""
    blocks = {cut.place: trunk.get_submodule(cut.place) for cut in cuts}
    try:
        for cut in cuts:
            trunk.set_submodule(cut.place, cut.module)
        yield
    finally:
        for path, block in blocks.items():
            trunk.set_submodule(path, block)


def _probes(shape: SiteShape) -> dict[int, int]:
    """For every multiple that is compared, a width that is one, and of no larger power of two."""
    widest = 2 * MULTIPLES[-1]
    base = shape.units // 2 // widest * widest
    return {multiple: base + multiple for multiple in MULTIPLES} if shape.kind == "neurons" and base else {}


def _roundings(probed: Mapping[int, int], points: Sequence[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    per_unit = {width: share / width for width, share in points}
    least = min(per_unit.values())
    return tuple((multiple, per_unit[width] / least) for multiple, width in probed.items()) if least > 0 else ()


def _rising(points: Sequence[tuple[int, float]]) -> Curve:
    """The points without the dips that noise makes: midway between the highest before and the lowest after."""
    shares = np.array([share for _, share in points])
    above = np.maximum.accumulate(shares)
    below = np.minimum.accumulate(shares[::-1])[::-1]
    return tuple(zip((width for width, _ in points), ((above + below) / 2).tolist(), strict=True))


def _at_most_everything(curves: Sequence[Curve]) -> tuple[Curve, ...]:
    """All sites together cannot take longer than the model; where noise says so, they are scaled down."""
    whole = max(sum(curve[-1][1] for curve in curves), 1.0)
    return tuple(tuple((units, share / whole) for units, share in curve) for curve in curves)


def _block_kinds(model: nn.Module) -> list[list[_Block]]:
    """The model's blocks, those of one stack and equal shapes together: they share their curves.

    Not over stacks: a decoder may read fewer tokens than its encoder.
    """
    numbers = {site.name: number for number, site in enumerate(find_all_sites(model))}
    kinds: dict[tuple[BlockStack, tuple[SiteShape, ...]], list[_Block]] = {}
    for path, module, stack in find_stacks(model):
        sites = sites_of_block(path, module, stack)
        shapes = tuple(site.shape() for site in sites)
        block = _Block(
            path=path, module=module, stack=stack, shapes=shapes, sites=tuple(numbers[site.name] for site in sites)
        )
        kinds.setdefault((stack, shapes), []).append(block)
    return list(kinds.values())


def _cut_copy(block: _Block, number: int, width: int) -> nn.Module:
    """A copy of the block, one of whose sites has `width` units left. What is not cut is shared, not copied."""
    shared = {id(tensor): tensor for tensor in (*block.module.parameters(), *block.module.buffers())}
    copied = copy.deepcopy(block.module, cast("dict[int, Any]", shared))
    site = sites_of_block(block.path, copied, block.stack)[number]
    shape = block.shapes[number]
    cut_sites_([site], [shape], left=[range(shape.units)], kept=[range(width)])
    return copied


@contextmanager
def _evaluating(model: nn.Module) -> Generator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _now(device: torch.device) -> float:
    """Seconds on a clock that starts anywhere; what the device was asked to do is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    # A single thread never waits, so the processor time that it used is what it takes on a machine of its own, however
    # many others compute now. Where that clock is coarse (Windows) it is no use.
    elif torch.get_num_threads() == 1 and time.get_clock_info("thread_time").resolution < 1e-6:
        return time.thread_time()
    return time.perf_counter()
