"""From unit numbers to weight rows and columns. Pure integers; every arrangement has its name and its formula.

Legend: U units (query heads, or neurons), G groups that share a key and a value head (G = U for multi-head attention
and for neurons, 1 for multi-query attention), S unit size (width of a head; 1 for a neuron). Unit u belongs to group
u // (U / G).
"""

from collections.abc import Sequence

from pruning_adapter.architectures.spec import GROUP_ROLES, Fusion
from pruning_adapter.errors import PlanError

__all__ = ["columns_of_units", "kept_groups", "rows_of_units"]


def kept_groups(kept: Sequence[int], units: int, groups: int) -> tuple[int, ...]:
    """Groups (key/value heads) that some kept unit (query head) still belongs to, ascending.

    Raises:
        PlanError: kept key/value heads would serve different numbers of query heads, which no kernel supports.
    """
    if groups == units:
        return tuple(kept)
    size = units // groups
    served = [0] * groups
    for unit in kept:
        served[unit // size] += 1
    sizes = sorted({count for count in served if count})
    if len(sizes) > 1:
        raise PlanError(
            f"The plan keeps between {sizes[0]} and {sizes[-1]} query heads per key/value group of {size}; every "
            "kept group must keep equally many. Remove whole groups, or the same number of heads in each."
        )
    return tuple(index for index, count in enumerate(served) if count)


def rows_of_units(
    roles: Sequence[str],
    kept: Sequence[int],
    *,
    units: int,
    groups: int,
    unit_size: int,
    fusion: Fusion = Fusion.BY_ROLE,
) -> list[int]:
    """Rows of a projection's weight (and entries of its bias) that belong to the kept units, in their old order.

    Args:
        roles: what the projection writes, in the order of its rows. Keys and values have G units, all else U.
        kept: units to keep, ascending, in [0, units).
        units: U, units there are.
        groups: G, key and value heads there are.
        unit_size: S.
        fusion: BY_ROLE: offset(role) + unit * S + [0, S); BY_HEAD: (unit * roles + role) * S + [0, S).

    Raises:
        PlanError: see `kept_groups`.
    """
    of_groups = kept_groups(kept, units, groups)
    if fusion is Fusion.BY_HEAD:
        if units != groups:
            raise PlanError("Projections fused by head have as many key/value heads as query heads.")
        starts = [(unit * len(roles) + role) * unit_size for unit in kept for role in range(len(roles))]
    else:
        starts, offset = [], 0
        for role in roles:
            there_are, keep = (groups, of_groups) if role in GROUP_ROLES else (units, kept)
            starts += [offset + unit * unit_size for unit in keep]
            offset += there_are * unit_size
    return [start + row for start in starts for row in range(unit_size)]


def columns_of_units(kept: Sequence[int], unit_size: int) -> list[int]:
    """Columns of the output projection's weight that read the kept units: unit * S + [0, S)."""
    return [unit * unit_size + column for unit in kept for column in range(unit_size)]
