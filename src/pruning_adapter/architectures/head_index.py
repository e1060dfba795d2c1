"""From head numbers to weight rows and columns. Pure integers; every arrangement has its name and its formula.

Legend: H query heads, G key/value heads (G = H for multi-head, 1 for multi-query), S head size. Query head h reads
key/value head h // (H / G).
"""

from collections.abc import Sequence

from pruning_adapter.architectures.spec import Fusion
from pruning_adapter.errors import PlanError

__all__ = ["columns_of_heads", "kept_key_value_heads", "rows_of_heads"]


def kept_key_value_heads(kept: Sequence[int], heads: int, key_value_heads: int) -> tuple[int, ...]:
    """Key/value heads that some kept query head still reads, ascending.

    Raises:
        PlanError: kept key/value heads would serve different numbers of query heads, which no kernel supports.
    """
    group = heads // key_value_heads
    served = [sum(1 for head in kept if head // group == index) for index in range(key_value_heads)]
    sizes = sorted({count for count in served if count})
    if len(sizes) > 1:
        raise PlanError(
            f"The plan keeps between {sizes[0]} and {sizes[-1]} query heads per key/value group of {group}; every "
            "kept group must keep equally many. Remove whole groups, or the same number of heads in each."
        )
    return tuple(index for index, count in enumerate(served) if count)


def rows_of_heads(
    roles: Sequence[str],
    kept: Sequence[int],
    *,
    heads: int,
    key_value_heads: int,
    head_size: int,
    fusion: Fusion = Fusion.BY_ROLE,
) -> list[int]:
    """Rows of a projection's weight (and entries of its bias) that belong to the kept heads, in their old order.

    Args:
        roles: what the projection writes, in the order of its rows.
        kept: query heads to keep, ascending, in [0, heads).
        heads: H, query heads there are.
        key_value_heads: G, key and value heads there are.
        head_size: S.
        fusion: BY_ROLE: offset(role) + head * S + [0, S); BY_HEAD: (head * roles + role) * S + [0, S).

    Raises:
        PlanError: see `kept_key_value_heads`.
    """
    groups = kept_key_value_heads(kept, heads, key_value_heads)
    of_role = {"query": (heads, kept), "key": (key_value_heads, groups), "value": (key_value_heads, groups)}
    if fusion is Fusion.BY_HEAD:
        if heads != key_value_heads:
            raise PlanError("Projections fused by head have as many key/value heads as query heads.")
        starts = [(head * len(roles) + role) * head_size for head in kept for role in range(len(roles))]
    else:
        starts, offset = [], 0
        for role in roles:
            there_are, keep = of_role[role]
            starts += [offset + head * head_size for head in keep]
            offset += there_are * head_size
    return [start + row for start in starts for row in range(head_size)]


def columns_of_heads(kept: Sequence[int], head_size: int) -> list[int]:
    """Columns of the output projection's weight that read the kept heads: head * S + [0, S)."""
    return [head * head_size + column for head in kept for column in range(head_size)]
