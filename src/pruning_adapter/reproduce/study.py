"""A grid in its folder, and the pages that it gives.

OUT/settings.json       what all cells share
OUT/commands.json       the calls that measured it
OUT/cells/, cost/, maps/    what was measured
OUT/reproduction.md, report.html, importance-maps.svg
"""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from pruning_adapter.environment import name_places
from pruning_adapter.errors import OutputError
from pruning_adapter.reproduce.accounting import account_for_bert_base
from pruning_adapter.reproduce.beside import measure_cost, measure_maps
from pruning_adapter.reproduce.cells import ARMS, Cell
from pruning_adapter.reproduce.grid import Done, check_recipes, load_cells
from pruning_adapter.reproduce.maps import correlation_table, normalized_maps
from pruning_adapter.reproduce.page import write_pages
from pruning_adapter.reproduce.paper import TASKS
from pruning_adapter.reproduce.tables import (
    Table,
    accounting_table,
    accuracy_tables,
    cost_table,
    difference_tables,
    step_table,
    time_to_accuracy_table,
)
from pruning_adapter.reproduce.work_folder import remove_shared
from pruning_adapter.run_folder import check_links
from pruning_adapter.settings import KEEP_RATIO, Settings
from pruning_adapter.storage import read_json, write_json
from pruning_adapter.training.recipes import RECIPES

__all__ = ["begin_study", "check_study", "measure_beside", "write_study"]

COMMANDS = "pruning-adapter grid commands"


def begin_study(folder: Path, base: Settings) -> None:
    """Write down what all cells share, or check that it is what the grid was begun with.

    Raises:
        OutputError: the folder holds a grid with other settings, or something else, or a link out of it.
    """
    path = folder / "settings.json"
    # Many jobs may begin one grid at once; what begins with a dot is a file that another one is writing.
    there = [] if not folder.is_dir() else [found.name for found in folder.iterdir() if found.name[0] != "."]
    if "settings.json" not in there:
        if there or (folder.exists() and not folder.is_dir()):
            raise OutputError(f"{folder} exists and holds no grid; name another folder.")
        _without_places(base).save(path)
    check_links(folder, ("cells", "cost", "maps", "work"))
    check_study(folder, base)


def check_study(folder: Path, base: Settings) -> None:
    """Refuse a grid that was begun with other settings; where model and data lie does not matter.

    Raises:
        OutputError: the first that differs.
        CheckpointError: the folder holds no grid, or a damaged one.
    """
    known = Settings.load(folder / "settings.json")
    _without_places(base).check_same(known, folder, otherwise="name another folder")


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
    remove_shared(folder / "work")


def write_study(folder: Path, cells: Sequence[Cell], base: Settings, *, command: str) -> Path:
    """Write the pages from all that lies in `folder`, whichever call measured it; returns the path of the Markdown one.

    Args:
        folder: of the grid.
        cells: what this call was asked for: where some of it is missing, the pages say so.
        base: the settings that all cells share.
        command: this call, which the pages name beside those before it.

    Raises:
        CheckpointError: a damaged file, or a cell of another recipe of the same name.
        OutputError: the pages cannot be written.
    """
    of_grid = (each for each in load_cells(folder) if each.cell.arm in ARMS and each.cell.recipe in RECIPES)
    done = sorted(of_grid, key=_place)
    check_recipes(done, base)
    asked = list(dict.fromkeys((cell.recipe, cell.task) for cell in cells))
    pairs = list(dict.fromkeys([*((each.cell.recipe, each.cell.task) for each in done), *asked]))
    tasks = sorted({task for _, task in pairs}, key=_place_of_task)
    costs = {
        (recipe, task): measure_cost(folder, recipe, task, base)
        for recipe, task in pairs
        if (folder / "cost" / f"{recipe}-{task}.json").exists()
    }
    maps = [measure_maps(folder, task, base) for task in tasks if (folder / "maps" / f"{task}.json").exists()]
    tables: list[Table] = [*accuracy_tables(done), *difference_tables(done), accounting_table(account_for_bert_base())]
    if costs:
        of_all = list(costs.values())
        tables += [cost_table(of_all), step_table(of_all), time_to_accuracy_table(done, of_all)]
    if maps:
        tables.append(correlation_table(maps))
    places = {base.model: base.model_id, base.data_dir or "": "GLUE", str(folder): folder.name}
    missing = {cell.name for cell in cells} - {found.cell.name for found in done}
    beside = all(pair in costs for pair in asked) and {task for _, task in asked} <= {each["task"] for each in maps}
    write_pages(
        folder,
        [table for table in tables if table.rows],
        normalized_maps(maps) if maps else {},
        model=base.model_id,
        commands=_commands(folder, name_places(shlex.split(command), places)),
        facts=[*_unfinished(len(missing), len(cells), beside=beside), *_facts(done, base)],
    )
    return folder / "reproduction.md"


def _place(done: Done) -> tuple[int, tuple[int, str], int]:
    """Pages look the same whatever was asked for last, and in which order."""
    return list(RECIPES).index(done.cell.recipe), _place_of_task(done.cell.task), done.cell.seed


def _place_of_task(task: str) -> tuple[int, str]:
    return (TASKS.index(task) if task in TASKS else len(TASKS)), task


def _commands(folder: Path, command: str) -> list[str]:
    """The calls that measured what is there: this one too, unless it only wrote the pages again."""
    path = folder / "commands.json"
    known: list[str] = list(read_json(path, kind=COMMANDS)["commands"]) if path.exists() else []
    measured = command.replace(" --only-report", "")
    if measured not in known and not (known and measured != command):
        known.append(measured)
        write_json(path, {"kind": COMMANDS, "commands": known})
    return known


def _unfinished(missing: int, of: int, *, beside: bool) -> list[str]:
    if missing:
        return [f"Not finished: {of - missing} of {of} cells are done. The last command goes on."]
    return [] if beside else ["Not finished: cost and importance maps of some tasks. The last command goes on."]


def _facts(done: Sequence[Done], base: Settings) -> list[str]:
    kept = base.keep_ratio if base.keep_ratio is not None else KEEP_RATIO
    what = f"at most {base.train_rows:,} training rows" if base.train_rows else "all training rows"
    epochs = "" if base.epochs is None else f", {base.epochs:g} epochs in place of the recipe's own"
    facts = [f"{what}{epochs}, {kept:.0%} of the heads kept, importance from at most {base.examples} examples"]
    if not done:
        return facts
    machines = {str(found.result["machine"].get("gpu", found.result["machine"]["processor"])) for found in done}
    precisions = {str(found.result["recipe"]["precision"]) for found in done}
    facts.append(f"on {', '.join(sorted(machines))}; {', '.join(sorted(precisions))}")
    libraries = {
        name: sorted({str(found.result["versions"][name]) for found in done if name in found.result["versions"]})
        for name in done[0].result["versions"]
    }
    facts.append(", ".join(f"{name} {' and '.join(found)}" for name, found in libraries.items()))
    return facts
