"""Rows and columns of heads: every arrangement by hand on 4 query heads of width 2, then as laws."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning_adapter.architectures.spec import Fusion
from pruning_adapter.architectures.unit_index import columns_of_units, kept_groups, rows_of_units
from pruning_adapter.errors import PlanError

QKV = ("query", "key", "value")


@pytest.mark.parametrize(
    ("roles", "kept", "key_value_heads", "fusion", "rows"),
    [
        pytest.param(("query",), [1, 3], 4, Fusion.BY_ROLE, [2, 3, 6, 7], id="separate query"),
        pytest.param(("key",), [1, 3], 4, Fusion.BY_ROLE, [2, 3, 6, 7], id="separate key, multi-head"),
        # Query heads 0 and 1 read key/value head 0, query heads 2 and 3 read key/value head 1.
        pytest.param(("query",), [2, 3], 2, Fusion.BY_ROLE, [4, 5, 6, 7], id="separate query, grouped, a group goes"),
        pytest.param(("key",), [2, 3], 2, Fusion.BY_ROLE, [2, 3], id="separate key, grouped, a group goes"),
        pytest.param(("value",), [1, 2], 2, Fusion.BY_ROLE, [0, 1, 2, 3], id="separate value, grouped, one head each"),
        pytest.param(("value",), [2], 1, Fusion.BY_ROLE, [0, 1], id="separate value, multi-query"),
        # 8 query rows, then 8 key rows, then 8 value rows.
        pytest.param(QKV, [1], 4, Fusion.BY_ROLE, [2, 3, 10, 11, 18, 19], id="fused by role, multi-head"),
        # 8 query rows, then 4 key rows, then 4 value rows.
        pytest.param(QKV, [2, 3], 2, Fusion.BY_ROLE, [4, 5, 6, 7, 10, 11, 14, 15], id="fused by role, grouped"),
        pytest.param(QKV, [0, 2], 2, Fusion.BY_ROLE, [0, 1, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15], id="one of each"),
        pytest.param(("key", "value"), [0, 1], 2, Fusion.BY_ROLE, [0, 1, 4, 5], id="key and value fused, grouped"),
        # 6 rows a head: its query, its key, its value.
        pytest.param(QKV, [0, 2], 4, Fusion.BY_HEAD, [0, 1, 2, 3, 4, 5, 12, 13, 14, 15, 16, 17], id="fused by head"),
        pytest.param(QKV, [], 2, Fusion.BY_ROLE, [], id="nothing kept"),
    ],
)
def test_rows_by_hand(
    roles: tuple[str, ...], kept: list[int], key_value_heads: int, fusion: Fusion, rows: list[int]
) -> None:
    found = rows_of_units(roles, kept, units=4, groups=key_value_heads, unit_size=2, fusion=fusion)
    assert found == rows


def test_columns_by_hand() -> None:
    assert columns_of_units([0, 3], 2) == [0, 1, 6, 7]
    assert columns_of_units([2, 1], 1) == [2, 1]
    assert columns_of_units([], 8) == []


@pytest.mark.parametrize(
    ("kept", "key_value_heads", "groups"),
    [([0, 1], 2, (0,)), ([1, 3], 2, (0, 1)), ([3], 2, (1,)), ([0, 2], 4, (0, 2)), ([1, 2, 3], 1, (0,)), ([], 2, ())],
)
def test_key_value_heads_that_are_still_read(kept: list[int], key_value_heads: int, groups: tuple[int, ...]) -> None:
    assert kept_groups(kept, 4, key_value_heads) == groups


def test_groups_that_lose_unequally_are_refused() -> None:
    message = r"between 1 and 2 query heads per key/value group of 2; .* Remove whole groups, or the same number"
    with pytest.raises(PlanError, match=message):
        kept_groups([0, 1, 2], 4, 2)
    with pytest.raises(PlanError, match=message):
        rows_of_units(("query",), [0, 1, 2], units=4, groups=2, unit_size=2)


def test_by_head_with_shared_key_value_heads_is_refused() -> None:
    with pytest.raises(PlanError, match="fused by head have as many key/value heads as query heads"):
        rows_of_units(QKV, [0, 1], units=4, groups=2, unit_size=2, fusion=Fusion.BY_HEAD)


@st.composite
def arrangements(draw: st.DrawFn) -> tuple[int, int, int, list[int]]:
    """Query heads, key/value heads, head size, and kept query heads, equally many of every group that stays."""
    groups, group, head_size = draw(st.integers(1, 5)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    number = draw(st.integers(1, group))
    kept: list[int] = []
    for index in draw(st.sets(st.integers(0, groups - 1))):
        members = range(index * group, (index + 1) * group)
        kept += draw(st.lists(st.sampled_from(members), min_size=number, max_size=number, unique=True))
    return groups * group, groups, head_size, sorted(kept)


@given(arrangements(), st.sampled_from([("query",), ("key",), ("key", "value"), QKV]))
def test_rows_are_unique_in_range_and_ascending_in_every_role(
    arrangement: tuple[int, int, int, list[int]], roles: tuple[str, ...]
) -> None:
    heads, groups, head_size, kept = arrangement
    rows = rows_of_units(roles, kept, units=heads, groups=groups, unit_size=head_size)
    sizes = [head_size * (heads if role == "query" else groups) for role in roles]
    assert len(set(rows)) == len(rows)
    assert all(0 <= row < sum(sizes) for row in rows)
    # Roles lie one after the other, so ascending as a whole is ascending in every role.
    assert rows == sorted(rows)
    served = kept_groups(kept, heads, groups)
    assert len(rows) == head_size * sum(len(kept if role == "query" else served) for role in roles)


@given(arrangements(), st.permutations(QKV))
def test_fused_by_role_is_the_separate_projections_one_below_the_other(
    arrangement: tuple[int, int, int, list[int]], roles: list[str]
) -> None:
    heads, groups, head_size, kept = arrangement
    expected, offset = list[int](), 0
    for role in roles:
        separate = rows_of_units((role,), kept, units=heads, groups=groups, unit_size=head_size)
        expected += [offset + row for row in separate]
        offset += head_size * (heads if role == "query" else groups)
    assert rows_of_units(roles, kept, units=heads, groups=groups, unit_size=head_size) == expected


@given(st.integers(1, 6), st.integers(1, 4), st.data())
def test_fused_by_head_is_a_head_as_wide_as_its_roles(heads: int, head_size: int, data: st.DataObject) -> None:
    kept = sorted(data.draw(st.sets(st.integers(0, heads - 1))))
    rows = rows_of_units(QKV, kept, units=heads, groups=heads, unit_size=head_size, fusion=Fusion.BY_HEAD)
    assert rows == columns_of_units(kept, 3 * head_size)


@given(arrangements(), st.sampled_from([Fusion.BY_ROLE, Fusion.BY_HEAD]))
def test_keeping_every_head_keeps_every_row(arrangement: tuple[int, int, int, list[int]], fusion: Fusion) -> None:
    heads, groups, head_size, _ = arrangement
    groups = heads if fusion is Fusion.BY_HEAD else groups
    rows = rows_of_units(QKV, range(heads), units=heads, groups=groups, unit_size=head_size, fusion=fusion)
    assert rows == list(range(head_size * (heads + 2 * groups)))
    assert columns_of_units(range(heads), head_size) == list(range(heads * head_size))
