"""Files as somebody might damage them, by hand, by accident or on purpose."""

import copy
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

__all__ = ["HOSTILE", "damage_bytes", "damage_json", "replace_everywhere"]

HOSTILE: list[Any] = [
    *(None, True, -1, 0, 2**31, 10**30, -(10**30), 1.5, -0.5, 1e308),
    *("", "0", "x" * 1000, "../../etc/passwd", "/etc/passwd", "0-8388607", "0-99999999999", "1e999999999", "1/0", "٣"),
    *([], {}, [[[]]], [-1], [10**12], [True], ["a"], [0, 0], [1, 0], [0.5], {"a": {"b": []}}, "9" * 5000),
]
"""Values of the wrong type, of impossible size, or of a meaning that should matter nowhere."""


def replace_everywhere(text: str) -> Iterator[str]:
    """The same JSON with one value replaced by one of `HOSTILE`: each by each; of long lists, the first two alone."""
    for path in _places(json.loads(text)):
        for hostile in HOSTILE:
            value = holder = json.loads(text)
            for key in path[:-1]:
                holder = holder[key]
            holder[path[-1]] = hostile
            yield json.dumps(value)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inner = list(value.items()) if isinstance(value, dict) else list(enumerate(value))[:2]
    for key, content in inner:
        yield (*path, key)
        if isinstance(content, dict | list):
            yield from _places(content, (*path, key))


@st.composite
def damage_json(draw: st.DrawFn, text: str) -> str:
    """The same JSON with one to three places replaced, taken out, doubled, or wrapped."""
    value = json.loads(text)
    # Twice the deeper one is more than can be written.
    depths = [3, 900]
    for _ in range(draw(st.integers(1, 3))):
        holder, key = _draw_place(draw, value)
        what = draw(st.sampled_from(["replace", "replace", "remove", "double", "wrap", "deepen"]))
        if what == "replace":
            holder[key] = copy.deepcopy(draw(st.sampled_from(HOSTILE)))
        elif what == "remove":
            del holder[key]
        elif what == "double" and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        elif what == "wrap":
            holder[key] = [holder[key]]
        else:
            deep: Any = holder[key]
            depth = draw(st.sampled_from(depths))
            depths = depths[:1] if depth > 3 else depths
            for _ in range(depth):
                deep = [deep]
            holder[key] = deep
        if not value:
            break
    return json.dumps(value)


def _draw_place(draw: st.DrawFn, value: Any) -> tuple[Any, Any]:
    """A container of the tree and a key in it."""
    while True:
        keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = draw(st.sampled_from(keys))
        inner = value[key]
        if not isinstance(inner, dict | list) or not inner or draw(st.integers(0, 3)) == 0:
            return value, key
        value = inner


@st.composite
def damage_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """The same bytes cut short, with some changed, doubled, or in another encoding."""
    what = draw(st.sampled_from(["cut", "flip", "double key", "swap", "insert", "utf-16", "zero"]))
    place = draw(st.integers(0, max(0, len(content) - 1)))
    if what == "cut":
        return content[:place]
    if what == "flip":
        return content[:place] + bytes([content[place] ^ (1 << draw(st.integers(0, 7)))]) + content[place + 1 :]
    if what == "double key":
        return content.replace(b"{", b'{"kind": "another", "kind": 1, ', 1)
    if what == "swap":
        other = draw(st.integers(0, len(content) - 1))
        first, last = sorted((place, other))
        return content[:first] + content[last:] + content[first:last]
    if what == "insert":
        return (
            content[:place]
            + draw(st.sampled_from([b"NaN", b"[" * 5000, b"\x00", b"\xff\xfe", b"1" * 5000]))
            + content[place:]
        )
    if what == "utf-16":
        return content.decode(errors="replace").encode("utf-16")
    return bytes(len(content))
