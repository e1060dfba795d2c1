import builtins
import math
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from pruning_adapter.errors import ImportanceError, OutputError
from pruning_adapter.importance.figure import draw_importance

pytest.importorskip("matplotlib")

ROWS = [[0.0, 0.2, 1.0, 0.4], [0.7, 0.0, 1.0]]
KEPT = [[1, 2], [0, 1, 2]]
PNG_START = b"\x89PNG\r\n\x1a\n"


def strokes(path: Path) -> int:
    """Number of lines that cross out heads: two for each."""
    text = path.read_text(encoding="utf-8")
    return sum(
        group.count("<path") for group in re.findall(r'<g id="LineCollection_\d+">\s*(.*?)</g>', text, re.DOTALL)
    )


@pytest.mark.parametrize("suffix", [".png", ".svg", ".PNG"])
def test_the_same_arguments_give_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    first, second = tmp_path / f"first{suffix}", tmp_path / f"second{suffix}"
    draw_importance(ROWS, first, kept=KEPT, title="mrpc")
    draw_importance(ROWS, second, kept=KEPT, title="mrpc")

    assert first.read_bytes() == second.read_bytes()
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted([first.name, second.name])


def test_png_and_svg_are_what_they_say(tmp_path: Path) -> None:
    draw_importance(ROWS, tmp_path / "map.png")
    draw_importance(ROWS, str(tmp_path / "map.svg"))

    assert (tmp_path / "map.png").read_bytes().startswith(PNG_START)
    root = ElementTree.parse(tmp_path / "map.svg").getroot()
    assert root.tag.endswith("svg")
    assert "date" not in {element.tag.rpartition("}")[2] for element in root.iter()}


def test_each_pruned_head_is_crossed_out(tmp_path: Path) -> None:
    draw_importance(ROWS, tmp_path / "pruned.svg", kept=KEPT)
    draw_importance(ROWS, tmp_path / "dense.svg")

    assert strokes(tmp_path / "pruned.svg") == 2 * 2
    assert strokes(tmp_path / "dense.svg") == 0


def test_large_ragged_and_blank_maps_can_be_drawn(tmp_path: Path) -> None:
    large = [[head / 64 for head in range(64)] for _ in range(80)]
    draw_importance(large, tmp_path / "large.png", kept=[[0]] * 80)
    draw_importance([[], [0.5], [math.nan, 0.1]], tmp_path / "ragged.png", kept=[[], [0], []])

    assert (tmp_path / "large.png").read_bytes().startswith(PNG_START)
    assert (tmp_path / "ragged.png").read_bytes().startswith(PNG_START)


def test_global_state_of_matplotlib_is_left_alone(tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    draw_importance(ROWS, tmp_path / "map.svg")

    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("name", ["map.pdf", "map", "map.png.gz"])
def test_another_suffix_is_refused_by_naming_the_two(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match=r"\.png or a \.svg"):
        draw_importance(ROWS, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rows", [[], [[], []]])
def test_nothing_to_draw_is_refused(tmp_path: Path, rows: list[list[float]]) -> None:
    with pytest.raises(ImportanceError, match="no head"):
        draw_importance(rows, tmp_path / "map.png")


@pytest.mark.parametrize(
    ("kept", "message"), [([[0]], "for 1 blocks, importance for 2"), ([[0], [3, -1]], r"\[-1, 3\].*block 1.*3 heads")]
)
def test_kept_heads_of_another_model_are_refused(tmp_path: Path, kept: list[list[int]], message: str) -> None:
    with pytest.raises(ImportanceError, match=message):
        draw_importance(ROWS, tmp_path / "map.png", kept=kept)


def test_a_figure_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(OutputError, match="Cannot write"):
        draw_importance(ROWS, tmp_path / "file" / "map.png")


def test_missing_matplotlib_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = builtins.__import__

    def missing(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return found(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)

    with pytest.raises(OutputError, match=r'pip install "pruning-adapter\[report\]"'):
        draw_importance(ROWS, tmp_path / "map.png")
