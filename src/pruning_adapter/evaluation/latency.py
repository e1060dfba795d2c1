"""Measuring a `LatencyTable`: how a model's time falls with the widths of its sites, on the machine at hand.

Blocks are timed, not models. One block of every kind is copied, one of its sites is cut to a sampled width, and the
copy runs on what the block reads in the dense model, each time right after the whole block. What a width costs is the
difference to the copy whose site is empty.

Why so: the rest of the block stays whole because a sub-layer alone finds caches that it does not have in the model, and
looks faster than it is there; blocks are timed by themselves because the differences between whole models, of which one
block was cut, drown in noise; and every run is paired with one of the same reference because a machine that others use
changes its speed from second to second. On all-MiniLM-L6-v2 (one CPU thread, uneven plans) sub-layers alone predicted
12 to 19 % too much, whole models with one kind of site cut 5 to 7 % too little, and medians that are not paired erred
by up to 14 % on a busy machine, where this erred by up to 5 %, mostly 2 %.
"""

import copy
import hashlib
import inspect
import json
import logging
import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm.auto import tqdm

from pruning_adapter.architectures.identity import count_parameters, identify, pruned_state
from pruning_adapter.architectures.shapes import ModelIdentity, SiteShape
from pruning_adapter.architectures.sites import Site, base_of, find_all_sites, find_stacks, sites_of_block
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
LEAST_SECONDS = 0.01
"""Shorter runs are repeated until they take this long, so that the clock's own noise does not count."""

Run = Callable[[], object]
Floats = NDArray[np.float64]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Block:
    path: str
    module: nn.Module
    stack: BlockStack
    shapes: tuple[SiteShape, ...]
    sites: tuple[int, ...]
    """Numbers of its sites among `ModelIdentity.all_sites`."""


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """Of one kind of block."""

    curves: tuple[Curve, ...]
    """One per site of the block: (units, share of the dense model's time that one run of the block spends on them)."""
    spreads: tuple[float, ...]
    """Half the interquartile range of every ratio, relative."""
    roundings: tuple[tuple[int, float], ...]
    """See `LatencyTable.roundings`."""


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
    device = next(dense.parameters()).device
    inputs = make_inputs(dense, batch=table.batch, length=table.length)
    with _evaluating(model), _evaluating(dense), torch.no_grad():
        ratios = _compare(lambda: dense(**inputs), [lambda: model(**inputs)], device, repeats, lambda: None)
    q1, median, q3 = np.percentile(ratios, [25, 50, 75]).tolist()
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
    inputs = _without_cache(model, make_inputs(model, batch=batch, length=length))
    kinds = _block_kinds(model)
    bar = tqdm(
        total=repeats * len(kinds),
        desc="latency",
        unit="round",
        leave=False,
        disable=None if progress is None else not progress,
    )
    curves: list[Curve] = [()] * len(identity.all_sites)
    spreads: list[float] = []
    roundings: tuple[tuple[int, float], ...] = ()
    most = max(kinds, key=len)
    with bar, _evaluating(model), torch.no_grad():
        calls, read = _watch_blocks(model, inputs, kinds)
        for blocks in kinds:
            # The last of its kind: the first may compute what all others are handed, such as T5's position bias.
            block = blocks[-1]
            found = _measure_block(
                block,
                lambda: model(**inputs),
                lambda module, path=block.path: _runner(module, *read[path]),
                widths,
                lambda whole, jobs: _compare(whole, jobs, reference.device, repeats, bar.update),
                probe=blocks is most,
            )
            spreads += found.spreads
            roundings = found.roundings or roundings
            for each in blocks:
                for site, curve in zip(each.sites, found.curves, strict=True):
                    # ALBERT applies a block again and again.
                    curves[site] = tuple((units, share * calls[each.path]) for units, share in curve)
    return LatencyTable(
        model=identity,
        curves=_at_most_everything(curves),
        spread=float(np.median(spreads)),
        batch=batch,
        length=length,
        dtype=str(reference.dtype).removeprefix("torch."),
        device=reference.device.type,
        roundings=roundings,
        machine=machine(),
    )


def _measure_block(
    block: _Block,
    model: Run,
    run_of: Callable[[nn.Module], Run],
    widths: int,
    compare: Callable[[Run, Sequence[Run]], Floats],
    *,
    probe: bool,
) -> _Measured:
    """Compare the model, and one block with each of its sites cut to each width, with the whole block."""
    samples = [sample_widths(shape, widths) for shape in block.shapes]
    probes = [_probes(shape) if probe else {} for shape in block.shapes]
    variants = [
        (position, width)
        for position, (sampled, probed) in enumerate(zip(samples, probes, strict=True))
        for width in sorted({0, *sampled[:-1], *probed.values()})
    ]
    jobs = [model, *(run_of(_cut_copy(block, *variant)) for variant in variants)]
    ratios = compare(run_of(block.module), jobs)
    q1, medians, q3 = np.percentile(ratios, [25, 50, 75], axis=0)
    of_model, *of_variants = medians.tolist()
    times = dict(zip(variants, of_variants, strict=True))
    times |= {(position, shape.units): 1.0 for position, shape in enumerate(block.shapes)}

    def share(position: int, width: int) -> float:
        return max(times[position, width] - times[position, 0], 0.0) / of_model

    return _Measured(
        curves=tuple(
            _rising([(width, share(position, width)) for width in sampled]) for position, sampled in enumerate(samples)
        ),
        spreads=tuple(((q3 - q1) / 2 / medians).tolist()),
        roundings=next(
            (
                _roundings({multiple: share(position, width) / width for multiple, width in probed.items()})
                for position, probed in enumerate(probes)
                if probed
            ),
            (),
        ),
    )


def _probes(shape: SiteShape) -> dict[int, int]:
    """For every multiple that is compared, a width that is one, and of no larger power of two."""
    widest = 2 * MULTIPLES[-1]
    base = shape.units // 2 // widest * widest
    return {multiple: base + multiple for multiple in MULTIPLES} if shape.kind == "neurons" and base else {}


def _roundings(per_unit: Mapping[int, float]) -> tuple[tuple[int, float], ...]:
    least = min(per_unit.values())
    return tuple((multiple, seconds / least) for multiple, seconds in per_unit.items()) if least > 0 else ()


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


def _cut_copy(block: _Block, position: int, width: int) -> nn.Module:
    """A copy of the block, one of whose sites has `width` units left. What is not cut is shared, not copied."""
    shared = {id(tensor): tensor for tensor in (*block.module.parameters(), *block.module.buffers())}
    copied = copy.deepcopy(block.module, cast("dict[int, Any]", shared))
    site: Site = sites_of_block(block.path, copied, block.stack)[position]
    shape = block.shapes[position]
    cut_sites_([site], [shape], left=[range(shape.units)], kept=[range(width)])
    return copied


def _watch_blocks(
    model: nn.Module, inputs: dict[str, Any], kinds: Sequence[Sequence[_Block]]
) -> tuple[dict[str, int], dict[str, tuple[Any, Any]]]:
    """How often the model runs each block, and what it hands to the last of each kind."""
    calls: dict[str, int] = {}
    read: dict[str, tuple[Any, Any]] = {}
    with ExitStack() as stack:
        for blocks in kinds:
            for block in blocks:

                def note(
                    module: nn.Module, args: Any, kwargs: Any, path: str = block.path, keep: bool = block is blocks[-1]
                ) -> None:
                    calls[path] = calls.get(path, 0) + 1
                    if keep:
                        read[path] = (args, kwargs)

                stack.callback(block.module.register_forward_pre_hook(note, with_kwargs=True).remove)
        model(**inputs)
    for blocks in kinds:
        for block in blocks:
            if block.path not in calls:
                raise CostError(f"The block {block.path} did not run on made-up inputs, so its time is unknown.")
    return calls, read


def _runner(module: nn.Module, args: Any, kwargs: Any) -> Run:
    return lambda: module(*args, **kwargs)


def _without_cache(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """A cache of keys and values would grow with every run of a block."""
    takes = inspect.signature(model.forward).parameters
    return {**inputs, "use_cache": False} if "use_cache" in takes else inputs


@contextmanager
def _evaluating(model: nn.Module) -> Generator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _compare(
    reference: Run, jobs: Sequence[Run], device: torch.device, repeats: int, told: Callable[[], object]
) -> Floats:
    """Time of every job over that of a run of `reference` right before it, `(repeats, jobs)`.

    Rounds go through the jobs forwards and backwards in turn, so that none is always early or late.
    """
    once = _times(reference, device)
    times = [_times(job, device) for job in jobs]
    ratios = np.empty((repeats, len(jobs)))
    for number in range(repeats):
        for index in range(len(jobs)) if number % 2 == 0 else reversed(range(len(jobs))):
            before = _seconds(reference, once, device) / once
            ratios[number, index] = _seconds(jobs[index], times[index], device) / times[index] / before
        told()
    return ratios


def _times(job: Run, device: torch.device) -> int:
    """How often to run a job for one reading of the clock."""
    # The first run is slower: memory is allocated, kernels are chosen.
    job()
    return max(1, min(100, int(LEAST_SECONDS / _seconds(job, 1, device))))


def _seconds(job: Run, times: int, device: torch.device) -> float:
    clock = time.perf_counter
    # A single thread never waits, so the processor time that it used is what it takes on a machine of its own, however
    # many others compute now. Where that clock is coarse (Windows) it is no use.
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    if alone and time.get_clock_info("thread_time").resolution < 1e-6:
        clock = time.thread_time
    _wait(device)
    start = clock()
    for _ in range(times):
        job()
    _wait(device)
    return max(clock() - start, 1e-9)


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
