"""What criteria are worth after training: accuracy against what is kept, one line for each way of choosing.

    python benchmarks/criteria_trained.py --model MODEL --model-id NAME --data-dir GLUE \
        --output benchmarks/results/criteria-trained

Every cell is a whole run of the library with settings of its own (a task, a way of choosing, how much is kept, a seed),
and a file; those that are there are skipped, so the study goes on after any interruption. Random choices get five
seeds, each with a draw of its own, the others three. Beside accuracy stand the loss on the validation set and the share
of examples that are answered as the dense LoRA model of the same seed answers them. With `--grid`, cells that a grid of
`pruning-adapter reproduce` with the same settings holds (dense LoRA, and some arms at 70 % of heads) are taken from
there. `--no-bf16` trains in float32, for processors without bfloat16 products, and `--no-dense` compares the ways of
choosing with each other alone.

Ways of choosing (docs/criterion.md says what came of it):

* "paper": importance by gradients of the untrained model, per block, nothing corrected.
* "20 %, second", "20 %, obs": pruned after a fifth of the training; "+ lstsq": what stays is corrected.
* "0 %", "5 %", "40 %": the same at other times.
* "20 + 40 %": in rounds, which gained nothing and were removed from the library: their cells are told, but run no more.
* "random", "magnitude": the recipe's way in all but the scores. A seed's draw is the same for all tasks.
* "shuffled": the recipe's scores, dealt out anew within each site; every block is as wide and has the same rank.
* "..., taught": learning from dense LoRA's answers beside the labels.
* "rank ...": the recipe's way with other ranks of LoRA; the recipe's own are 8 and 16.
"""

import argparse
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from provenance import command_of, heading
from pruning_adapter.architectures.identity import identify
from pruning_adapter.costs.macs import count_model_macs
from pruning_adapter.environment import machine, tell_machine, versions
from pruning_adapter.importance.figure import figure_file
from pruning_adapter.reproduce.cells import ARMS as ARMS_OF_GRID
from pruning_adapter.reproduce.cells import Cell
from pruning_adapter.reproduce.grid import Done, check_recipes, load_cells, run_cells
from pruning_adapter.reproduce.significance import (
    agreement,
    chance_of_difference,
    chance_of_mean_difference,
    differences,
    half_interval,
    tell_chance,
    tell_difference,
    tell_mean,
)
from pruning_adapter.reproduce.study import begin_study, check_study
from pruning_adapter.settings import Settings
from pruning_adapter.storage import write_text
from pruning_adapter.training.base_model import load_base

LENGTH = 128
RULES: Mapping[str, Mapping[str, float]] = {
    "70 % of heads": {"keep_ratio": 0.7},
    "50 % of heads": {"keep_ratio": 0.5},
    "33 % of heads": {"keep_ratio": 0.33},
    "50 % of MACs": {"encoder_macs": 0.5},
    "33 % of MACs": {"encoder_macs": 0.33},
    "20 % of MACs": {"encoder_macs": 0.2},
}
PLAIN = {"reconstruct": "none"}
OURS = {"prune_after": 0.2, "scorer": "obs", "reconstruct": "lstsq"}
LOW = {"low_rank": 4, "high_rank": 8}
RANKS: Mapping[str, Mapping[str, Any]] = {
    "ranks 4, 8": LOW,
    "ranks 4, 8, spread evenly": {**LOW, "block_importance": "equal"},
    "rank 8": {"low_rank": 8, "high_rank": 8},
    # The recipe's, by name.
    "ranks 8, 16": {"low_rank": 8, "high_rank": 16},
    "ranks 8, 16, spread evenly": {"low_rank": 8, "high_rank": 16, "block_importance": "equal"},
    "40 %, ranks 4, 8": {**LOW, "prune_after": 0.4},
}
ROUNDS: Mapping[str, Mapping[str, Any]] = {
    "20 + 40 %, obs + lstsq": {"prune_after": 0.4, "rounds": 2, "scorer": "obs", "reconstruct": "lstsq"},
    "20 + 40 %, ranks 4, 8": {**OURS, **LOW, "prune_after": 0.4, "rounds": 2},
}
"""As their cells have it."""
ARMS: Mapping[str, Mapping[str, Any]] = {
    "paper": {"prune_after": 0.0, "scorer": "gradient", "order": "first", "normalization": "block", **PLAIN},
    "0 %, second": {"prune_after": 0.0, "scorer": "gradient", "order": "second", **PLAIN},
    "0 %, obs + lstsq": {"prune_after": 0.0, "scorer": "obs", "reconstruct": "lstsq"},
    "5 %, obs + lstsq": {"prune_after": 0.05, "scorer": "obs", "reconstruct": "lstsq"},
    "20 %, second": {"prune_after": 0.2, "scorer": "gradient", "order": "second", **PLAIN},
    "20 %, second + lstsq": {"prune_after": 0.2, "scorer": "gradient", "order": "second", "reconstruct": "lstsq"},
    "20 %, obs": {"prune_after": 0.2, "scorer": "obs", **PLAIN},
    "20 %, obs + lstsq": OURS,
    "20 %, obs + lstsq, taught": OURS,
    "40 %, obs + lstsq": {"prune_after": 0.4, "scorer": "obs", "reconstruct": "lstsq"},
    "magnitude": {"prune_after": 0.2, "scorer": "magnitude", "reconstruct": "lstsq"},
    "random": {"prune_after": 0.2, "scorer": "random", "reconstruct": "lstsq"},
    "shuffled": {"prune_after": 0.2, "scorer": "shuffled", "reconstruct": "lstsq"},
    "random, plain": {"prune_after": 0.2, "scorer": "random", **PLAIN},
    "random, 0 %, plain": {"prune_after": 0.0, "scorer": "random", **PLAIN},
    **{name: {**OURS, **ranks} for name, ranks in RANKS.items()},
    **ROUNDS,
}
GRID_ARMS = {
    "20 %, obs + lstsq": "prune-lora",
    "ranks 8, 16": "prune-lora",
    "ranks 8, 16, spread evenly": "uniform-rank",
    "random": "random",
    "magnitude": "magnitude",
}
"""What they are called in a grid, at 70 % of heads."""
TAUGHT = ", taught"
RANDOM_SEEDS = 5
MARKERS = "os^vDPX*"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or hub id of an encoder")
    parser.add_argument("--model-id", help="name to record instead of a folder")
    parser.add_argument("--data-dir", required=True, help="folder of GLUE data")
    parser.add_argument("--tasks", nargs="+", default=["mrpc", "sst2", "rte", "qnli", "mnli"])
    parser.add_argument("--arms", nargs="+", default=[arm for arm in ARMS if arm not in ROUNDS], choices=list(ARMS))
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=list(RULES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--train-rows", type=int, default=4000, help="of a task, at the most")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="cells at once")
    parser.add_argument("--threads", type=int, default=1, help="of each cell")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True, help="bfloat16 matrix products")
    parser.add_argument(
        "--dense", action=argparse.BooleanOptionalAction, default=True, help="dense LoRA beside the arms"
    )
    parser.add_argument("--grid", type=Path, help="folder of `pruning-adapter reproduce` with the same settings")
    parser.add_argument(
        "--against", default="random", choices=list(ARMS), help="one of --arms, that the others are tested against"
    )
    parser.add_argument("--only-report", action="store_true", help="run nothing; write what is there")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    for name in ("tasks", "arms", "rules", "seeds"):
        # Each once, or it would count as several runs.
        setattr(options, name, list(dict.fromkeys(getattr(options, name))))
    if options.against not in options.arms:
        parser.error(f"the arms are to be tested against {options.against!r}: name it among --arms, or say --against")
    gone = [arm for arm in options.arms if arm in ROUNDS]
    if gone and not options.only_report:
        parser.error(f"the library prunes in one round: {gone[0]!r} can only be told, by --only-report")
    prepare(options.threads)
    base = Settings(
        model=options.model,
        model_name=options.model_id,
        data_dir=options.data_dir,
        train_rows=options.train_rows,
        epochs=options.epochs,
        bf16=options.bf16,
    )
    cells = make_cells(options)
    begin_study(options.output, base)
    taken = [] if options.grid is None else take_from_grid(options.grid, cells, base)
    there = {done.cell for done in taken}
    todo = [cell for cell in cells if cell not in there]
    if not options.only_report:
        check_versions(options, [*taken, *load_cells(options.output, todo)], versions())
    running = run_cells(options.output, todo, base, jobs=options.jobs, prepare=partial(prepare, options.threads))
    for progress in () if options.only_report else running:
        cell = progress.done.cell
        print(
            f"{progress.count:3} of {progress.of}  {cell.task} {cell.arm}, seed {cell.seed}: "
            f"{100 * progress.done.value:.1f} (~{progress.seconds_left / 60:.0f} min left)",
            flush=True,
        )
        tell(options, [*taken, *load_cells(options.output, todo)])
    tell(options, [*taken, *load_cells(options.output, todo)])
    print((options.output / "criteria.md").read_text())


def make_cells(options: argparse.Namespace) -> list[Cell]:
    """Seed by seed, so that a study that is stopped early holds whole comparisons."""
    shares = encoder_shares(options.model)
    cells: list[Cell] = []
    for seed in range(max(RANDOM_SEEDS, max(options.seeds) + 1)):
        for task in options.tasks:
            if options.dense and seed in options.seeds:
                cells.append(Cell(recipe="default", task=task, arm="lora", seed=seed))
            for arm in options.arms:
                if seed not in options.seeds and not (arm.startswith("random") and seed < RANDOM_SEEDS):
                    continue
                for rule in options.rules:
                    asked = dict(RULES[rule])
                    if "encoder_macs" in asked:
                        asked = {"keep_macs": shares[asked["encoder_macs"]], "length": LENGTH}
                    cells.append(
                        Cell(
                            recipe="default",
                            task=task,
                            arm=name_of(arm, rule),
                            seed=seed,
                            asked=(*ARMS[arm].items(), *asked.items()),
                            taught=arm.endswith(TAUGHT),
                        )
                    )
    return cells


def take_from_grid(folder: Path, cells: Sequence[Cell], base: Settings) -> list[Done]:
    """Those of `cells` that a grid ran under other names."""
    check_study(folder, base)
    of_grid = load_cells(folder)
    check_recipes([done for done in of_grid if done.cell.recipe == "default" and done.cell.arm in ARMS_OF_GRID], base)
    known: dict[tuple[str, str, str | None, int], Done] = {
        (done.cell.recipe, done.cell.task, done.cell.arm, done.cell.seed): done for done in of_grid
    }
    names = {"lora": "lora", **{name_of(ours, "70 % of heads"): theirs for ours, theirs in GRID_ARMS.items()}}
    places = {cell: ("default", cell.task, names.get(cell.arm), cell.seed) for cell in cells}
    return [replace(known[place], cell=cell) for cell, place in places.items() if place in known]


def name_of(arm: str, rule: str) -> str:
    """As a part of a file's name."""
    return f"{file_name(arm)}_{file_name(rule)}"


def file_name(said: str) -> str:
    return said.replace("%", "pc").replace(", ", "_").replace(" + ", "-").replace(" ", "-")


def encoder_shares(model: str) -> dict[float, float]:
    """Shares of the whole model's operations that leave these shares of its blocks'."""
    dense = load_base(model, label_names=("no", "yes"), seed=0).model
    counted, sites = count_model_macs(dense), identify(dense).all_sites
    fixed, whole = counted.kept(sites, [()] * len(sites), LENGTH), counted.dense(LENGTH)
    asked = {rule["encoder_macs"] for rule in RULES.values() if "encoder_macs" in rule}
    return {share: round((share * (whole - fixed) + fixed) / whole, 6) for share in asked}


def prepare(threads: int) -> None:
    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def tell(options: argparse.Namespace, known: Sequence[Done]) -> None:
    """criteria.md: all that is known so far."""
    processors = Counter(tell_machine(done.result["machine"]) for done in known)
    where = "; ".join(f"{name} ({count} runs)" for name, count in sorted(processors.items()))
    used = [done.result["versions"] for done in known]
    check_versions(options, known, used[0] if used else versions())
    lines = [
        *heading(
            "What criteria are worth after training",
            command_of(options, keep_only_report=any(arm in ROUNDS for arm in options.arms)),
            {"processor": where or tell_machine(machine())},
            used[0] if used else versions(),
        ),
        f"Accuracy on the validation set in per cent, mean over seeds {', '.join(map(str, options.seeds))} unless "
        "their number stands behind it, ± half of Student's 95 % interval, and p, the probability that chance alone "
        f'makes as large a difference to "{options.against}" on the same examples, over the seeds that both have; then '
        "loss; then agreement with dense LoRA of the same seed. A seed's random draw is the same for all tasks. What "
        "is empty was not run.",
        "",
        "![accuracy against what is kept](criteria.svg)",
    ]
    asked = len(options.seeds)
    of_dense = {task: cells_of(known, task, "lora") for task in options.tasks}
    of_arm = {
        (task, arm, rule): cells_of(known, task, name_of(arm, rule))
        for task, arm, rule in product(options.tasks, options.arms, options.rules)
    }
    for task in options.tasks:
        dense = of_dense[task]
        beside = f": dense LoRA {told(dense, dense, (), asked=asked)}" if dense else ""
        rows = {
            arm: [
                told(of_arm[task, arm, rule], dense, of_arm[task, options.against, rule], asked=asked)
                for rule in options.rules
            ]
            for arm in options.arms
        }
        if dense or (not options.dense and any(map(any, rows.values()))):
            lines += ["", f"## {task}{beside}", "", *table(options.rules, rows)]
    against = {
        "dense LoRA": {(task, rule): of_dense[task] for task, rule in product(options.tasks, options.rules)},
        f'"{options.against}"': {(task, rule): of_arm[task, options.against, rule] for task, _, rule in of_arm},
    }
    for name, others in against.items():
        rows = {
            arm: [
                mean_difference([(of_arm[task, arm, rule], others[task, rule]) for task in options.tasks])
                for rule in options.rules
            ]
            for arm in options.arms
        }
        if any(map(any, rows.values())):
            lines += [
                "",
                f"## Mean over the tasks minus {name}, in points [tasks x seeds]",
                "",
                *table(options.rules, rows),
            ]
    write_text(options.output / "criteria.md", "\n".join(lines) + "\n")
    if known:
        draw(options, known)


def check_versions(options: argparse.Namespace, known: Sequence[Done], expected: Mapping[str, str]) -> None:
    if any(done.result["versions"] != expected for done in known):
        raise SystemExit(f"{options.output} holds cells of other versions of the libraries; run those of one anew")


def cells_of(known: Sequence[Done], task: str, arm: str) -> list[Done]:
    return [done for done in known if (done.cell.task, done.cell.arm) == (task, arm)]


def table(rules: Sequence[str], rows: Mapping[str, Sequence[str]]) -> list[str]:
    """In Markdown, without rows that are empty."""
    lines = [f"| | {' | '.join(rules)} |", f"| --- | {' | '.join('---' for _ in rules)} |"]
    return lines + [f"| {arm} | {' | '.join(row)} |" for arm, row in rows.items() if any(row)]


def mean_difference(pairs: Sequence[tuple[Sequence[Done], Sequence[Done]]]) -> str:
    """Over the tasks that have both arms in some seed, and the seeds that all of these have."""
    there = [pair for pair in pairs if differences(*pair)]
    of_tasks = [differences(*pair) for pair in there]
    seeds = sorted(set[int].intersection(*(set(found) for found in of_tasks))) if of_tasks else []
    chance = chance_of_mean_difference(there) if seeds else None
    if chance is None or any(ours == theirs for ours, theirs in there):
        return ""
    told = tell_difference([statistics.mean(found[seed] for found in of_tasks) for seed in seeds])
    return f"{told} [{len(there)} x {len(seeds)}] ({tell_chance(chance)})"


def told(found: Sequence[Done], dense: Sequence[Done], against: Sequence[Done], *, asked: int) -> str:
    if not found:
        return ""
    text = tell_mean([100 * done.value for done in found])
    if len(found) != asked:
        text += f" [{len(found)}]"
    chance = None if found == against else chance_of_difference(found, against)
    if chance is not None:
        text += f" ({tell_chance(chance)})"
    text += f"; {statistics.mean(done.quality['loss'] for done in found):.3f}"
    of_seed = {done.cell.seed: done for done in dense}
    same = [agreement(done, of_seed[done.cell.seed]) for done in found if done.cell.seed in of_seed]
    return f"{text}; {100 * statistics.mean(same):.0f}" if same else text


def draw(options: argparse.Namespace, known: Sequence[Done]) -> None:
    """criteria.svg: accuracy against what is kept; a panel for each task and kind of rule, a line for each choice."""
    tasks = [task for task in options.tasks if any(done.cell.task == task for done in known)]
    kinds = [kind for kind in ("of heads", "of MACs") if any(rule.endswith(kind) for rule in options.rules)]
    size = (3.2 * len(tasks) + 1.6, 2.9 * len(kinds) + 0.6)
    with figure_file(options.output / "criteria.svg", size=size) as figure:
        panels = figure.subplots(len(kinds), len(tasks), squeeze=False)
        for (row, kind), (column, task) in product(enumerate(kinds), enumerate(tasks)):
            of_task = [done for done in known if done.cell.task == task]
            draw_panel(panels[row, column], options, of_task, kind)
            panels[row, column].set_title(f"{task}, per cent {kind} kept", fontsize=9)
        for panel in panels[:, 0]:
            panel.set_ylabel("accuracy, per cent", fontsize=9)
        handles = {
            label: handle
            for panel in panels.flat
            for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=8, frameon=False)


def draw_panel(panel: Any, options: argparse.Namespace, of_task: Sequence[Done], kind: str) -> None:
    rules = [rule for rule in options.rules if rule.endswith(kind)]
    dense = [100 * done.value for done in of_task if done.cell.arm == "lora"]
    if dense:
        mean, half = float(np.mean(dense)), half_interval(dense) or 0.0
        panel.axhline(mean, color="black", linewidth=1, label="dense LoRA")
        panel.axhspan(mean - half, mean + half, color="black", alpha=0.08, linewidth=0)
    if all(done.cell.arm == "lora" or not done.cell.arm.endswith(tuple(map(file_name, rules))) for done in of_task):
        panel.set_visible(False)
    for number, arm in enumerate(options.arms):
        found = {
            float(rule.split()[0]): [100 * done.value for done in of_task if done.cell.arm == name_of(arm, rule)]
            for rule in rules
        }
        points = {kept: values for kept, values in found.items() if values}
        if points:
            panel.errorbar(
                # Beside each other, so that intervals can be told apart.
                [kept + 0.8 * (number - (len(options.arms) - 1) / 2) for kept in points],
                [float(np.mean(values)) for values in points.values()],
                yerr=[half_interval(values) or 0.0 for values in points.values()],
                label=arm,
                marker=MARKERS[number % len(MARKERS)],
                markersize=4,
                capsize=2,
                linewidth=1,
                color=f"C{number}",
            )
    kept = [float(rule.split()[0]) for rule in rules]
    panel.set_xticks(kept)
    panel.set_xlim(max(kept) + 8, min(kept) - 8)
    panel.tick_params(labelsize=8)
    panel.grid(color="#dddddd", linewidth=0.6)


if __name__ == "__main__":
    main()
