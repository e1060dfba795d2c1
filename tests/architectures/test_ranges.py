"""Lists of units as text that people can read and edit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning_adapter.architectures.ranges import from_ranges, to_ranges


@pytest.mark.parametrize(
    ("numbers", "text"),
    [((), ""), ((4,), "4"), ((0, 1), "0-1"), ((0, 1, 2, 3, 7), "0-3,7"), ((1, 3, 5, 6), "1,3,5-6")],
)
def test_runs_become_ranges(numbers: tuple[int, ...], text: str) -> None:
    assert to_ranges(numbers) == text
    assert from_ranges(text) == numbers


@given(st.sets(st.integers(0, 60)))
def test_what_was_written_is_read(numbers: set[int]) -> None:
    ascending = tuple(sorted(numbers))
    assert from_ranges(to_ranges(ascending)) == ascending


def test_spaces_do_not_matter() -> None:
    assert from_ranges(" 0 - 2, 5 ") == (0, 1, 2, 5)


@pytest.mark.parametrize("text", ["a", "1-", "-1", "1--2", "1.5", "0-99999999999"])
def test_anything_else_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match=r"number|too long"):
        from_ranges(text)
