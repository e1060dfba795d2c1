"""What a unit alone can do: the structured Optimal Brain Surgeon.

The gradient with respect to a gate asks what happens when a unit goes and all others stay as they are. Least squares
(`reconstruct_`) lets the others stand in for it, so the question is what they cannot make up for. For an output
projection with weight W and inputs x, taking out the unit u and correcting the rest in the best way costs

    c_u = tr(G W_u (H_uu)^-1 W_u^T),   H = (X + lambda)^-1,
    X = E[|g|^2 x x^T] / E[|g|^2],     G = E[g g^T],

where g is the gradient of an example's loss with respect to the projection's output at a token, so that G weighs
directions of the output by what the task makes of them, and X weighs tokens by how much they matter. W and H change
with every unit that goes, and the units go one by one, cheapest first. That X and G may be taken apart is the
Kronecker approximation of the Fisher matrix (Martens and Grosse 2015, arXiv:1503.05671); removing units with
correction is Hassibi and Stork's Optimal Brain Surgeon, by whole structures as in ZipLM (Kurtic, Frantar and Alistarh
2023, arXiv:2302.04089), which has neither G nor the weights of tokens.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from pruning_adapter.architectures.identity import dense_parameters, identify
from pruning_adapter.architectures.limits import limits_of
from pruning_adapter.architectures.sites import (
    Site,
    find_feed_forwards,
    find_sites,
    is_plain,
    is_sharded,
    stores_inputs_first,
    whole,
)
from pruning_adapter.architectures.spec import Kind
from pruning_adapter.environment import versions
from pruning_adapter.errors import ImportanceError
from pruning_adapter.importance.backward import (
    count_tokens,
    frozen_in_eval_mode,
    gate_gradients,
    labels_seen,
    loss_of,
    to_device,
)
from pruning_adapter.importance.estimate import check_units, kept_units_of, macs_of
from pruning_adapter.importance.gates import Gate
from pruning_adapter.importance.loss import LossShares, batch_size
from pruning_adapter.importance.scores import ImportanceScores
from pruning_adapter.importance.tally import Tally
from pruning_adapter.processes import add_up_, all_or_none, in_step, is_first, is_spread
from pruning_adapter.processes import alone as without_others

__all__ = ["obs_importance", "removal_costs"]

_AT_ONCE = 2**31
"""Bytes of sums that are held at once; one site always is."""
_EXACT = 256
"""Units among which the cheapest is searched anew after each removal; of more, a sixteenth goes between searches."""
_FLOOR = 1e-12
"""Pivots below this share of the others are rounding, not data."""


def obs_importance(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    units: Sequence[Kind] = ("heads",),
    ridge: float = 1e-2,
    allow_one_class: bool = False,
    alone: bool = False,
    progress: bool | None = None,
    task: str | None = None,
    seed: int | None = None,
) -> ImportanceScores:
    """Measure what is lost for good when units go one by one and least squares corrects what stays.

    For plans that `reconstruct_` carries out with "lstsq". The score of a unit is what its removal costs when its turn
    comes, and never less than that of those before it; scores of all sites and kinds are in one currency, the expected
    change of the loss to second order, so compare them as they are or over the whole model. The model is left as it was
    found.

    Several processes add up their sums as in `measure_importance`; then each does the rest.

    Args:
        model: see `measure_importance`.
        batches: see `measure_importance`. They are held in memory and run over more than once if the sums of all sites
            (two square matrices in float64 for each) do not fit into two gigabytes.
        units: "heads", "neurons", or both.
        ridge: lambda, as a multiple of the mean variance of x; as for `reconstruct_`.
        allow_one_class: accept a sample in which all examples carry the same label.
        alone: see `measure_importance`.
        progress: likewise.
        task: name of the task, for the record.
        seed: seed that chose the sample, for the record.

    Returns:
        Scores per unit and non-padding token, in float64 on the CPU.

    Raises:
        ArchitectureError: the family is not supported.
        ImportanceError: see `measure_importance`; or an impossible ridge.
        ProcessError: another process failed.
    """
    check_units(units)
    if not 0 <= ridge < float("inf"):
        raise ImportanceError(f"ridge is {ridge}; it must be 0 or a positive number.")
    held = list(batches)
    heads = find_sites(model) if "heads" in units else ()
    neurons = find_feed_forwards(model) if "neurons" in units else ()
    sites = (*heads, *neurons)
    weights = [site.output.get_parameter("weight") for site in sites if site.units]
    if not all(is_plain(weight) or is_sharded(weight) for weight in weights):
        raise ImportanceError(
            "This model's weights are packed (quantised); what can stand in for what is told by plain ones. Score it "
            "before it is quantised, or use measure_importance."
        )
    kept_heads, kept_neurons = kept_units_of(model)
    scored: list[Tensor] = []
    examples, tokens = 0, 0
    parts = _parts(sites)
    bar = tqdm(
        total=len(parts) * len(held),
        desc="importance",
        unit="batch",
        leave=False,
        disable=None if progress is None and is_first() else not progress,
    )
    with torch.inference_mode(False), frozen_in_eval_mode(model), bar, without_others(alone):
        for first, after in parts:
            sums = [_Sums(site) for site in sites[first:after]]
            examples, tokens = _run(model, held, sums, allow_one_class, bar)
            for one in sums:
                scored.append(one.costs(ridge) / tokens)
                one.forget()
    return ImportanceScores(
        heads=tuple(scored[: len(heads)]),
        kept_heads=kept_heads,
        neurons=tuple(scored[len(heads) :]),
        kept_neurons=kept_neurons,
        model=identify(model),
        dense_parameters=dense_parameters(model),
        macs=macs_of(model),
        scorer="obs",
        reduction="token",
        order="second",
        examples=examples,
        tokens=tokens,
        task=task,
        seed=seed,
        versions=versions(),
    )


def _parts(sites: Sequence[Site]) -> list[tuple[int, int]]:
    """Runs of sites whose sums fit into memory together."""
    bounds, held = [0], 0
    for number, site in enumerate(sites):
        inputs, outputs = _sizes(site)
        size = 8 * (inputs**2 + outputs**2)
        if held and held + size > _AT_ONCE:
            bounds.append(number)
            held = 0
        held += size
    return list(pairwise([*bounds, len(sites)]))


def _sizes(site: Site) -> tuple[int, int]:
    if not site.units:
        return 0, 0
    rows, columns = site.output.get_parameter("weight").shape
    return (rows, columns) if stores_inputs_first(site.output) else (columns, rows)


class _Sums:
    """X and G of one site, summed over tokens."""

    def __init__(self, site: Site) -> None:
        self.site = site
        inputs, outputs = _sizes(site)
        self.factors: Tensor | None = None
        """`(examples,)` of the batch that is being run; None for one that does not count."""
        where: dict[str, Any] = {"dtype": torch.float64}
        if site.units:
            where["device"] = site.output.get_parameter("weight").device
        self.inputs = torch.zeros(inputs, inputs, **where)
        self.outputs = torch.zeros(outputs, outputs, **where)

    def listen(self) -> Any:
        """Hear what the output projection reads, and what the loss makes of its output."""

        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            # Without gradients the examples of a bad batch are looked at one by one.
            if not torch.is_grad_enabled():
                return
            read = args[0].detach()

            # Each time it runs, where a block is applied several times.
            def add(gradient: Tensor) -> None:
                self._add(read, gradient)

            output.register_hook(add)

        return self.site.output.register_forward_hook(hook)

    def _add(self, read: Tensor, gradient: Tensor) -> None:
        if self.factors is None:
            return
        factors = self.factors.to(gradient.device)
        # Half-precision sums would lose the small ones.
        wide = torch.float64 if gradient.dtype == torch.float64 else torch.float32
        read, gradient = read.flatten(0, -2).to(wide), gradient.flatten(0, -2).to(wide)
        gradient = gradient * factors.to(wide).repeat_interleave(len(gradient) // len(factors)).unsqueeze(1)
        # Padding has no gradient, and so no weight.
        weighted = read * gradient.square().sum(1, keepdim=True)
        self.inputs += (weighted.T @ read).double()
        self.outputs += (gradient.T @ gradient).double()

    def costs(self, ridge: float) -> Tensor:
        """`(units,)`, on the CPU."""
        site, total = self.site, float(self.outputs.diagonal().sum())
        if not site.units or total == 0:
            return torch.zeros(site.units, dtype=torch.float64)
        weight = whole(site.output.get_parameter("weight").detach()).double()
        if stores_inputs_first(site.output):
            weight = weight.T
        costs, order = removal_costs(weight, self.inputs / total, self.outputs, units=site.units, ridge=ridge)
        # Where what stays makes a later removal cheaper than an earlier one, the two belong together.
        rising = torch.zeros_like(costs)
        rising[order] = costs[order].cummax(0).values
        return rising.cpu()

    def forget(self) -> None:
        self.inputs = self.outputs = torch.zeros(0, 0)


def _run(
    model: nn.Module, batches: Sequence[Mapping[str, Tensor]], sums: Sequence[_Sums], allow_one_class: bool, bar: Any
) -> tuple[int, int]:
    """Examples and tokens that were summed over."""
    reference = next(model.parameters())
    limits = limits_of(model)
    sites, shares = [one.site for one in sums], LossShares()
    own = Tally.of_sites([], reference.device)
    dtype = torch.float64 if reference.dtype == torch.float64 else torch.float32
    spread = is_spread(model)
    with all_or_none():
        for number, (raw, counts) in enumerate(in_step(batches, needed=spread, repeat=spread)):
            batch = to_device(raw, reference.device, number, limits)
            size = batch_size(batch)
            gates = [Gate(site.units, batch=size, per_token=False, dtype=dtype) for site in sites]
            handles = [one.listen() for one in sums if one.site.units]
            try:
                with torch.enable_grad():
                    outputs = loss_of(model, batch, sites, gates, number)
                    factors = shares.factors(batch, outputs, number)
                    for one in sums:
                        one.factors = factors if counts else None
                    gate_gradients(outputs.loss, gates, factors)
            finally:
                for handle in handles:
                    handle.remove()
            if counts:
                positions = max((gate.tokens for gate in gates), default=1)
                own.count(size, count_tokens(batch, size, positions), labels_seen(batch))
            bar.update()
    found = own.of_all()
    found.check(allow_one_class=allow_one_class)
    add_up_([tensor for one in sums for tensor in (one.inputs, one.outputs)])
    return found.examples, found.tokens


def removal_costs(
    weight: Tensor, inputs: Tensor, outputs: Tensor, *, units: int, ridge: float
) -> tuple[Tensor, Tensor]:
    """What each unit's removal costs when its turn comes, cheapest first, and the order of the removals.

    The costs of all removals add up to tr(G W (X + lambda) W^T), what the whole projection is worth.

    Args:
        weight: W, `(outputs, columns)`, in float64; the columns of a unit lie side by side.
        inputs: X, `(columns, columns)`.
        outputs: G, `(outputs, outputs)`.
        units: how many; they have equally many columns.
        ridge: lambda, as a multiple of X's mean diagonal; raised tenfold as often as X is not positive definite.

    Returns:
        Costs `(units,)`, and the units' numbers `(units,)` from the first to go to the last.
    """
    values, vectors = torch.linalg.eigh(outputs)
    # Directions that the loss does not see (the next norm takes them out) add nothing.
    seen = values > _FLOOR * values.max()
    root = (vectors[:, seen] * values[seen].sqrt()).T @ weight
    inverse = _inverse(inputs, ridge)
    size = len(inputs) // units
    left = torch.arange(units, device=weight.device)
    costs, order = torch.zeros(units, dtype=torch.float64, device=weight.device), list[Tensor]()
    while len(left):
        now = _costs(root, inverse, len(left))
        few = len(left) <= _EXACT
        wanted = len(left) if few else max(1, len(left) // 16)
        # Twice as many as shall go, so that of two that can stand in for each other one may stay.
        candidates = torch.arange(len(left), device=left.device) if few else now.argsort()[: 2 * wanted]
        columns = _columns(candidates, size)
        chosen, prices = _remove_in_turn(root[:, columns], inverse[columns][:, columns], len(candidates), wanted)
        gone = candidates[chosen]
        costs[left[gone]] = prices
        order.append(left[gone])
        stays = torch.ones(len(left), dtype=torch.bool, device=left.device)
        stays[gone] = False
        left = left[stays]
        if len(left):
            out, rest = _columns(gone, size), _columns(stays.nonzero().flatten(), size)
            taken = torch.linalg.solve(inverse[out][:, out], inverse[out][:, rest])
            root = root[:, rest] - root[:, out] @ taken
            inverse = inverse[rest][:, rest] - inverse[rest][:, out] @ taken
    return costs, torch.cat(order)


def _remove_in_turn(root: Tensor, inverse: Tensor, units: int, wanted: int) -> tuple[Tensor, Tensor]:
    """The first `wanted` units to go, and what each costs when its turn comes."""
    root, inverse, size = root.clone(), inverse.clone(), len(inverse) // units
    gone = torch.zeros(units, dtype=torch.bool, device=root.device)
    chosen, prices = list[Tensor](), list[Tensor]()
    unit_columns = torch.arange(size, device=root.device)
    for _ in range(wanted):
        costs = _costs(root, inverse, units).masked_fill(gone, float("inf"))
        cheapest = costs.argmin()
        chosen.append(cheapest)
        prices.append(costs[cheapest])
        gone[cheapest] = True
        columns = cheapest * size + unit_columns
        taken = torch.linalg.solve(inverse[columns][:, columns], inverse[columns])
        root.addmm_(root[:, columns], taken, alpha=-1)
        inverse.addmm_(inverse[:, columns], taken, alpha=-1)
        # What is gone must stay gone, and invertible.
        root[:, columns] = 0
        inverse[columns] = 0
        inverse[:, columns] = 0
        inverse[columns, columns] = 1
    return torch.stack(chosen), torch.stack(prices)


def _costs(root: Tensor, inverse: Tensor, units: int) -> Tensor:
    """tr(G W_u (H_uu)^-1 W_u^T) of every unit, all others staying."""
    size = len(inverse) // units
    if size == 1:
        return root.square().sum(0) / inverse.diagonal()
    blocks = inverse.view(units, size, units, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    by_unit = root.view(len(root), units, size).permute(1, 2, 0)
    return (by_unit * torch.linalg.solve(blocks, by_unit)).sum((1, 2))


def _columns(units: Tensor, size: int) -> Tensor:
    return (units.unsqueeze(1) * size + torch.arange(size, device=units.device)).flatten()


def _inverse(inputs: Tensor, ridge: float) -> Tensor:
    scale = inputs.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
    while True:
        shifted = inputs.clone()
        shifted.diagonal().add_(ridge * scale)
        factor, failed = torch.linalg.cholesky_ex(shifted)
        if not failed and bool(factor.diagonal().min() ** 2 > _FLOOR * scale):
            return torch.cholesky_inverse(factor)
        ridge = max(10 * ridge, 1e-8)
