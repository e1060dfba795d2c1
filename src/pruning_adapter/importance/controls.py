"""Control scorers. Every claim about importance is compared with them."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from pruning_adapter.architectures.head_index import columns_of_heads, rows_of_heads
from pruning_adapter.architectures.identity import dense_parameters, identify
from pruning_adapter.architectures.sites import Site, find_sites, stores_inputs_first
from pruning_adapter.environment import versions
from pruning_adapter.importance.estimate import kept_heads_of
from pruning_adapter.importance.scores import ImportanceScores

__all__ = ["magnitude_importance", "random_importance", "reversed_importance"]


def random_importance(model: nn.Module, *, seed: int) -> ImportanceScores:
    """Uniform random scores in [0, 1): what choosing heads by chance does."""
    generator = torch.Generator().manual_seed(seed)
    heads = [torch.rand(site.heads, generator=generator, dtype=torch.float64) for site in find_sites(model)]
    return _control(model, heads, scorer="random", seed=seed)


def magnitude_importance(model: nn.Module) -> ImportanceScores:
    """The L2 norm of all weights that belong to a head: its query, key and value rows and its output columns."""
    return _control(model, [_magnitudes(site) for site in find_sites(model)], scorer="magnitude", seed=None)


def reversed_importance(scores: ImportanceScores) -> ImportanceScores:
    """The same scores with their sign turned: what mattered most goes first. The order within and across blocks is the
    exact reverse under either normalisation."""
    return replace(scores, heads=tuple(-block for block in scores.heads), scorer=f"reversed {scores.scorer}")


def _control(model: nn.Module, heads: list[Tensor], *, scorer: str, seed: int | None) -> ImportanceScores:
    return ImportanceScores(
        heads=tuple(heads),
        kept_heads=kept_heads_of(model),
        model=identify(model),
        dense_parameters=dense_parameters(model),
        scorer=scorer,
        seed=seed,
        versions=versions(),
    )


def _magnitudes(site: Site) -> Tensor:
    squares = torch.zeros(site.heads, dtype=torch.float64)
    if not site.heads:
        return squares
    shape = site.shape()
    for head in range(site.heads):
        for projection in site.spec.projections:
            module = site.module(projection.path)
            rows = rows_of_heads(
                projection.roles,
                [head],
                heads=shape.heads,
                key_value_heads=shape.key_value_heads,
                head_size=shape.head_size,
                fusion=projection.fusion,
            )
            squares[head] += _sum_of_squares(module, rows, outputs=True)
        output = site.module(site.spec.output)
        squares[head] += _sum_of_squares(output, columns_of_heads([head], shape.head_size), outputs=False)
    return squares.sqrt()


def _sum_of_squares(linear: nn.Module, index: list[int], *, outputs: bool) -> Tensor:
    weight = linear.get_parameter("weight").detach()
    dimension = 0 if outputs != stores_inputs_first(linear) else 1
    chosen = weight.index_select(dimension, torch.tensor(index, device=weight.device))
    return chosen.double().square().sum().cpu()
