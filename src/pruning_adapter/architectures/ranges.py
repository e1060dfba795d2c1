"""Long ascending lists of unit numbers as short text: "0-3,7,9-12"."""

from collections.abc import Sequence

__all__ = ["MOST_UNITS", "from_ranges", "lists_from_ranges", "to_ranges"]

MOST_UNITS = 2**23
"""Of one kind in one model; a model of 405 billion parameters has 6.7 million neurons. Short text could otherwise stand
for more numbers than fit into memory."""


def to_ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as ranges; both ends belong to them."""
    parts: list[str] = []
    start = 0
    for index, number in enumerate(numbers):
        if index + 1 < len(numbers) and numbers[index + 1] == number + 1:
            continue
        first = numbers[start]
        parts.append(str(first) if first == number else f"{first}-{number}")
        start = index + 1
    return ",".join(parts)


def lists_from_ranges(texts: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Read the lists of all sites of a model; see `from_ranges`.

    Raises:
        TypeError: not text.
        ValueError: something else than numbers and ranges, or more numbers than any model has.
    """
    lists: list[tuple[int, ...]] = []
    left = MOST_UNITS
    for text in texts:
        lists.append(from_ranges(text, most=left))
        left -= len(lists[-1])
    return tuple(lists)


def from_ranges(text: str, *, most: int = MOST_UNITS) -> tuple[int, ...]:
    """Read what `to_ranges` wrote, possibly edited by hand.

    Raises:
        TypeError: not text.
        ValueError: something else than numbers and ranges, or more numbers than `most`.
    """
    if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"{text!r} is not text such as '0-3,7'")
    numbers: list[int] = []
    for part in filter(None, text.replace(" ", "").split(",")):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"{part!r} is neither a number nor a range such as 0-3")
        end = int(last) if dash else int(first)
        if end - int(first) >= most - len(numbers):
            raise ValueError(f"the range {part!r} is too long, or there are too many of them")
        numbers += range(int(first), end + 1)
    return tuple(numbers)
