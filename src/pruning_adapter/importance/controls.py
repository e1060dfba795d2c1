"""Control scorers. Every claim about importance is compared with them."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from pruning_adapter.architectures.identity import dense_parameters, identify
from pruning_adapter.architectures.sites import (
    Site,
    find_all_sites,
    find_feed_forwards,
    find_sites,
    stores_inputs_first,
)
from pruning_adapter.architectures.spec import Kind
from pruning_adapter.architectures.unit_index import rows_of_units
from pruning_adapter.environment import versions
from pruning_adapter.importance.estimate import kept_units_of, macs_of
from pruning_adapter.importance.scores import ImportanceScores

__all__ = ["magnitude_importance", "random_importance", "reversed_importance", "shuffled_importance"]


def random_importance(model: nn.Module, *, seed: int, units: Sequence[Kind] = ("heads",)) -> ImportanceScores:
    """Uniform random scores in [0, 1): what choosing by chance does.

    Per parameter, that is: a unit's draw is scaled by its size (the largest has 1), so that under a budget of
    parameters neurons have the chances of heads.
    """
    generator = torch.Generator().manual_seed(seed)
    largest = max(_unit_parameters(site) for site in find_all_sites(model) if site.kind in units)

    def draw(site: Site) -> Tensor:
        drawn = torch.rand(site.units, generator=generator, dtype=torch.float64)
        return drawn * _unit_parameters(site) / largest

    return _control(model, draw, units, scorer="random", seed=seed)


def magnitude_importance(model: nn.Module, *, units: Sequence[Kind] = ("heads",)) -> ImportanceScores:
    """The L2 norm of all weights that belong to a unit: its rows in every projection and its output columns."""
    return _control(model, _magnitudes, units, scorer="magnitude", seed=None)


def reversed_importance(scores: ImportanceScores) -> ImportanceScores:
    """The same scores with their sign turned: what mattered most goes first. The order within and across blocks is the
    exact reverse under either normalisation."""
    return replace(
        scores,
        heads=tuple(-block for block in scores.heads),
        neurons=tuple(-block for block in scores.neurons),
        scorer=f"reversed {scores.scorer}",
    )


def shuffled_importance(scores: ImportanceScores, *, seed: int) -> ImportanceScores:
    """The same scores, dealt out anew among the units of each attention and each feed-forward.

    `random_importance` chooses other units and also leaves other blocks wide. Here every block keeps as many units as
    with `scores`, where units go one by one, and gets the same rank of LoRA; what is lost is only which units they are.
    """
    generator = torch.Generator().manual_seed(seed)

    def deal(sites: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(values[torch.randperm(len(values), generator=generator)] for values in sites)

    return replace(
        scores,
        heads=deal(scores.heads),
        neurons=deal(scores.neurons),
        scorer=f"shuffled {scores.scorer}",
        seed=seed,
    )


def _control(
    model: nn.Module, score: Callable[[Site], Tensor], units: Sequence[Kind], *, scorer: str, seed: int | None
) -> ImportanceScores:
    kept_heads, kept_neurons = kept_units_of(model)
    return ImportanceScores(
        heads=tuple(score(site) for site in find_sites(model)) if "heads" in units else (),
        kept_heads=kept_heads,
        neurons=tuple(score(site) for site in find_feed_forwards(model)) if "neurons" in units else (),
        kept_neurons=kept_neurons,
        model=identify(model),
        dense_parameters=dense_parameters(model),
        macs=macs_of(model),
        scorer=scorer,
        seed=seed,
        versions=versions(),
    )


def _unit_parameters(site: Site) -> float:
    return site.shape().parameters(range(site.units)) / site.units if site.units else 0.0


def _magnitudes(site: Site) -> Tensor:
    squares = torch.zeros(site.units, dtype=torch.float64)
    if not site.units:
        return squares
    shape = site.shape()
    for projection in site.projections:
        rows = [
            rows_of_units(
                projection.roles,
                [unit],
                units=shape.units,
                groups=shape.groups,
                unit_size=shape.unit_size,
                fusion=projection.fusion,
            )
            for unit in range(shape.units)
        ]
        squares += _squares(site.module(projection.path), outputs=True)[torch.tensor(rows)].sum(1)
    columns = _squares(site.module(site.spec.output), outputs=False)
    return (squares + columns.view(shape.units, shape.unit_size).sum(1)).sqrt()


def _squares(linear: nn.Module, *, outputs: bool) -> Tensor:
    """Sum of squares of every row (outputs) or column (inputs) of a linear map, in float64 on the CPU."""
    weight = linear.get_parameter("weight").detach()
    along = 1 if outputs != stores_inputs_first(linear) else 0
    return weight.double().square().sum(along).cpu()
