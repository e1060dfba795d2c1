"""Long ascending lists of unit numbers as short text: "0-3,7,9-12"."""

from collections.abc import Sequence

__all__ = ["from_ranges", "to_ranges"]


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


def from_ranges(text: str) -> tuple[int, ...]:
    """Read what `to_ranges` wrote, possibly edited by hand.

    Raises:
        TypeError: not text.
        ValueError: something else than numbers and ranges, or a range without end.
    """
    if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"{text!r} is not text such as '0-3,7'")
    numbers: list[int] = []
    for part in filter(None, text.replace(" ", "").split(",")):
        first, dash, last = part.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise ValueError(f"{part!r} is neither a number nor a range such as 0-3")
        end = int(last) if dash else int(first)
        if end - int(first) >= 2**24:
            raise ValueError(f"the range {part!r} is too long")
        numbers += range(int(first), end + 1)
    return tuple(numbers)
