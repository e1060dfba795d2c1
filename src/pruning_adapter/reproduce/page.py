"""`reproduction.md` and `report.html`: the same tables and figure, for reading beside the code and alone."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pruning_adapter.errors import OutputError
from pruning_adapter.importance.figure import draw_side_by_side
from pruning_adapter.reporting.template import write_page
from pruning_adapter.reproduce.tables import Table
from pruning_adapter.storage import write_text

__all__ = ["check_can_write", "write_pages"]

FIGURE = "importance-maps.svg"


def write_pages(
    folder: Path,
    tables: Sequence[Table],
    maps: Mapping[str, Sequence[Sequence[float]]],
    *,
    model: str,
    commands: Sequence[str],
    facts: Sequence[str],
) -> None:
    """Write both pages and the figure into `folder`.

    Args:
        folder: where to.
        tables: in the order of the paper's.
        maps: normalised importance by task; none are drawn if empty.
        model: as people know it.
        commands: that made all this.
        facts: what a reader must know first: machine, versions, what is missing yet.

    Raises:
        OutputError: Jinja2 or matplotlib is missing, or a file cannot be written.
    """
    check_can_write()
    drawing = ""
    if maps:
        draw_side_by_side(maps, folder / FIGURE)
        drawing = (folder / FIGURE).read_text(encoding="utf-8")
        drawing = drawing[drawing.index("<svg") :]
    title = f"Task-oriented Memory-efficient Pruning-Adapter, reproduced with {model}"
    typed = (line for command in commands for line in (f"    {command}", ""))
    lines = [f"# {title}", "", *typed, *(f"{fact}  " for fact in facts), ""]
    for table in tables:
        lines += [f"## {table.title}", "", *_markdown(table), ""]
        if table.note:
            lines += [table.note, ""]
    if drawing:
        lines += ["## Figure 1: importance of every head, by task", "", f"![importance maps]({FIGURE})", ""]
    write_text(folder / "reproduction.md", "\n".join(lines).rstrip() + "\n")
    content = {"title": title, "commands": commands, "facts": facts, "tables": tables, "drawing": drawing}
    write_page(folder / "report.html", "reproduction.html.j2", content)


def check_can_write() -> None:
    """Refuse to begin what could not be written in the end.

    Raises:
        OutputError: Jinja2 or matplotlib is missing.
    """
    for name in ("jinja2", "matplotlib"):
        if find_spec(name) is None:
            raise OutputError(
                f'Cannot write pages: {name} is not installed. Install it with: pip install "pruning-adapter[report]"'
            )


def _markdown(table: Table) -> list[str]:
    rows: list[Any] = [table.columns, ["---"] * len(table.columns), *table.rows]
    return [f"| {' | '.join(row)} |" for row in rows]
