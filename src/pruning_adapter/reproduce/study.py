"""A grid in its folder, and the pages that it gives.

OUT/settings.json       what all cells share
OUT/cells/, cost/, maps/    what was measured
OUT/reproduction.md, report.html, importance-maps.svg
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from pruning_adapter.errors import OutputError
from pruning_adapter.reproduce.accounting import account_for_bert_base
from pruning_adapter.reproduce.beside import measure_cost, measure_maps
from pruning_adapter.reproduce.cells import Cell
from pruning_adapter.reproduce.grid import Done, load_cells
from pruning_adapter.reproduce.maps import correlation_table, normalized_maps
from pruning_adapter.reproduce.page import write_pages
from pruning_adapter.reproduce.tables import (
    Table,
    accounting_table,
    accuracy_tables,
    cost_table,
    step_table,
    time_to_accuracy_table,
)
from pruning_adapter.run_folder import check_links
from pruning_adapter.settings import KEEP_RATIO, Settings

__all__ = ["begin_study", "measure_beside", "write_study"]


def begin_study(folder: Path, base: Settings) -> None:
    """Write down what all cells share, or check that it is what the grid was begun with.

    Raises:
        OutputError: the folder holds a grid with other settings, or something else, or a link out of it.
    """
    path, named = folder / "settings.json", _without_places(base)
    # Many jobs may begin one grid at once; what begins with a dot is a file that another one is writing.
    there = [] if not folder.is_dir() else [found.name for found in folder.iterdir() if found.name[0] != "."]
    if "settings.json" not in there:
        if there or (folder.exists() and not folder.is_dir()):
            raise OutputError(f"{folder} exists and holds no grid; name another folder.")
        named.save(path)
    check_links(folder, ("cells", "cost", "maps", "work"))
    named.check_same(Settings.load(path), folder, otherwise="name another folder")


def _without_places(base: Settings) -> Settings:
    """As another machine would have it, where the model and the data lie elsewhere: a grid can move."""
    return replace(base, model=base.model_id, data_dir=base.data_dir and Path(base.data_dir).name)


def measure_beside(folder: Path, cells: Sequence[Cell], base: Settings) -> Iterator[str]:
    """Measure cost and importance maps of all tasks, and tell what is about to be measured."""
    for recipe, task in dict.fromkeys((cell.recipe, cell.task) for cell in cells):
        yield f"cost of {task}, recipe {recipe}"
        measure_cost(folder, recipe, task, base)
    for task in dict.fromkeys(cell.task for cell in cells):
        yield f"importance maps of {task}"
        measure_maps(folder, task, base)
    with suppress(OSError):
        # Not if it holds a cell that another call of this grid has begun.
        (folder / "work").rmdir()


def write_study(folder: Path, cells: Sequence[Cell], base: Settings, *, command: str) -> Path:
    """Write the pages from all that was measured so far; returns the path of the Markdown one."""
    done = load_cells(folder, cells)
    tasks = list(dict.fromkeys(cell.task for cell in cells))
    pairs = dict.fromkeys((cell.recipe, cell.task) for cell in cells)
    costs = [
        measure_cost(folder, recipe, task, base)
        for recipe, task in pairs
        if (folder / "cost" / f"{recipe}-{task}.json").exists()
    ]
    maps = [measure_maps(folder, task, base) for task in tasks if (folder / "maps" / f"{task}.json").exists()]
    tables: list[Table] = [*accuracy_tables(done)] if done else []
    tables.append(accounting_table(account_for_bert_base()))
    if costs:
        tables += [cost_table(costs), step_table(costs), time_to_accuracy_table(done, costs)]
    if maps:
        tables.append(correlation_table(maps))
    tables = [table for table in tables if table.rows]
    write_pages(
        folder,
        tables,
        normalized_maps(maps) if maps else {},
        model=base.model_id,
        command=_name_places(command, folder, base),
        facts=_facts(done, cells, base, beside=len(costs) == len(pairs) and len(maps) == len(tasks)),
    )
    return folder / "reproduction.md"


def _name_places(command: str, folder: Path, base: Settings) -> str:
    """Paths of this machine tell nothing to a reader elsewhere."""
    # What made the numbers, not what wrote the page again.
    command = command.replace(" --only-report", "")
    places = ((base.model, base.model_id), (base.data_dir or "", "GLUE"), (str(folder), folder.name))
    for place, name in places:
        command = command.replace(place, name) if place else command
    return command


def _facts(done: Sequence[Done], cells: Sequence[Cell], base: Settings, *, beside: bool) -> list[str]:
    facts: list[str] = []
    if len(done) < len(cells):
        facts.append(f"Not finished: {len(done)} of {len(cells)} cells are done. The command above goes on.")
    elif not beside:
        facts.append("Not finished: cost and importance maps are not measured of all tasks. The command above goes on.")
    kept = base.keep_ratio if base.keep_ratio is not None else KEEP_RATIO
    what = f"at most {base.train_rows:,} training rows" if base.train_rows else "all training rows"
    facts.append(f"{what}, {kept:.0%} of the heads kept, importance from at most {base.examples} examples")
    if not done:
        return facts
    first: dict[str, Any] = done[0].result
    machines = {str(found.result["machine"].get("gpu", found.result["machine"]["processor"])) for found in done}
    facts.append(f"on {', '.join(sorted(machines))}; {first['recipe']['precision']}")
    facts.append(", ".join(f"{name} {version}" for name, version in first["versions"].items()))
    return facts
