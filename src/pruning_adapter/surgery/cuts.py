"""Which rows and columns of which matrices stay, as numbers: what surgery does to weights, adapters and files alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from torch import nn

from pruning_adapter.architectures.shapes import SiteShape
from pruning_adapter.architectures.sites import Site, find_all_sites, stores_inputs_first
from pruning_adapter.architectures.unit_index import columns_of_units, rows_of_units

__all__ = ["Cut", "cuts_by_name", "cuts_of_site"]


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What stays of one linear map."""

    path: str
    """Of the map, relative to the block."""
    rows: tuple[int, ...] | None = None
    """Outputs that stay, by their place in the tensor as it is; None: all."""
    columns: tuple[int, ...] | None = None
    """Inputs that stay, likewise."""


def cuts_of_site(site: Site, shape: SiteShape, there: Sequence[int], keep: Sequence[int]) -> tuple[Cut, ...]:
    """How an attention or a feed-forward is cut from the units `there` to the units `keep`.

    Args:
        site: says which maps there are; its weights are not looked at.
        shape: its sizes in the dense model, by which units are numbered.
        there: units that are there now.
        keep: those of them that stay.
    """
    if list(there) == list(keep):
        return ()
    cuts: list[Cut] = []
    for projection in site.projections:
        rows_of = partial(
            rows_of_units,
            projection.roles,
            units=shape.units,
            groups=shape.groups,
            unit_size=shape.unit_size,
            fusion=projection.fusion,
        )
        # Rows are numbered as in the dense model; the tensor holds those that are still there.
        place = {row: number for number, row in enumerate(rows_of(there))}
        cuts.append(Cut(path=projection.path, rows=tuple(place[row] for row in rows_of(keep))))
    number_of = {unit: number for number, unit in enumerate(there)}
    columns = columns_of_units([number_of[unit] for unit in keep], shape.unit_size)
    return (*cuts, Cut(path=site.spec.output, columns=tuple(columns)))


def cuts_by_name(
    model: nn.Module, shapes: Sequence[SiteShape], kept: Sequence[Sequence[int]]
) -> dict[str, tuple[int, tuple[int, ...]]]:
    """For every tensor of a dense model that loses some: the dimension, and the places that stay.

    Args:
        model: dense; its weights are not looked at.
        shapes: of all its sites.
        kept: units that stay of each.
    """
    names = {id(module): name for name, module in model.named_modules()}
    found: dict[str, tuple[int, tuple[int, ...]]] = {}
    for site, shape, keep in zip(find_all_sites(model), shapes, kept, strict=True):
        for cut in cuts_of_site(site, shape, range(shape.units), keep):
            module = site.module(cut.path)
            turned, name = stores_inputs_first(module), names[id(module)]
            if cut.rows is not None:
                found[f"{name}.weight"] = (1 if turned else 0, cut.rows)
                found[f"{name}.bias"] = (0, cut.rows)
            if cut.columns is not None:
                found[f"{name}.weight"] = (0 if turned else 1, cut.columns)
    return found
