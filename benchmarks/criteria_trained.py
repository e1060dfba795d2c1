"""What criteria are worth after training: accuracy against what is kept, one line for each way of choosing.

    python benchmarks/criteria_trained.py --model MODEL --model-id NAME --data-dir GLUE \
        --output benchmarks/results/criteria-trained

Every cell is a whole run of the library with settings of its own (a task, a way of choosing, how much is kept, a seed),
and a file; those that are there are skipped, so the study goes on after any interruption. Random choices get five
seeds, each with a draw of its own, the others three. Beside accuracy stand the loss on the validation set and the share
of examples that are answered as the dense LoRA model of the same seed answers them.

Ways of choosing (docs/recipes.md says what came of it):

* "paper": importance by gradients of the untrained model, per block, nothing corrected.
* "20 %, second", "20 %, obs": pruned after a fifth of the training; "+ lstsq": what stays is corrected.
* "0 %", "5 %", "40 %": the same at other times.
* "random", "magnitude": the recipe's way in all but the scores.
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from scipy import stats

from provenance import command_of, heading
from pruning_adapter.architectures.identity import identify
from pruning_adapter.costs.macs import count_model_macs
from pruning_adapter.environment import machine, versions
from pruning_adapter.reproduce.cells import Cell
from pruning_adapter.reproduce.grid import Done, load_cells, run_cells
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
}
PLAIN = {"reconstruct": "none"}
RANKS: Mapping[str, Mapping[str, Any]] = {
    "ranks 4, 8": {"low_rank": 4, "high_rank": 8},
    "ranks 4, 8, spread evenly": {"low_rank": 4, "high_rank": 8, "block_importance": "equal"},
    "rank 8": {"low_rank": 8, "high_rank": 8},
    "ranks 8, 16": {"low_rank": 8, "high_rank": 16},
}
ARMS: Mapping[str, Mapping[str, Any]] = {
    "paper": {"prune_after": 0.0, "scorer": "gradient", "order": "first", "normalization": "block", **PLAIN},
    "0 %, second": {"prune_after": 0.0, "scorer": "gradient", "order": "second", **PLAIN},
    "0 %, obs + lstsq": {"prune_after": 0.0, "scorer": "obs", "reconstruct": "lstsq"},
    "5 %, obs + lstsq": {"prune_after": 0.05, "scorer": "obs", "reconstruct": "lstsq"},
    "20 %, second": {"prune_after": 0.2, "scorer": "gradient", "order": "second", **PLAIN},
    "20 %, second + lstsq": {"prune_after": 0.2, "scorer": "gradient", "order": "second", "reconstruct": "lstsq"},
    "20 %, obs": {"prune_after": 0.2, "scorer": "obs", **PLAIN},
    "20 %, obs + lstsq": {"prune_after": 0.2, "scorer": "obs", "reconstruct": "lstsq"},
    "40 %, obs + lstsq": {"prune_after": 0.4, "scorer": "obs", "reconstruct": "lstsq"},
    "magnitude": {"prune_after": 0.2, "scorer": "magnitude", "reconstruct": "lstsq"},
    "random": {"prune_after": 0.2, "scorer": "random", "reconstruct": "lstsq"},
    "random, plain": {"prune_after": 0.2, "scorer": "random", **PLAIN},
    "random, 0 %, plain": {"prune_after": 0.0, "scorer": "random", **PLAIN},
    **{name: {"prune_after": 0.2, "scorer": "obs", "reconstruct": "lstsq", **ranks} for name, ranks in RANKS.items()},
}
RANDOM_SEEDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or hub id of an encoder")
    parser.add_argument("--model-id", help="name to record instead of a folder")
    parser.add_argument("--data-dir", required=True, help="folder of GLUE data")
    parser.add_argument("--tasks", nargs="+", default=["mrpc", "sst2", "rte", "qnli", "mnli"])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=list(RULES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--train-rows", type=int, default=4000, help="of a task, at the most")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="cells at once")
    parser.add_argument("--threads", type=int, default=1, help="of each cell")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    prepare(options.threads)
    base = Settings(
        model=options.model,
        model_name=options.model_id,
        data_dir=options.data_dir,
        train_rows=options.train_rows,
        epochs=options.epochs,
        bf16=True,
    )
    cells = make_cells(options)
    for progress in run_cells(
        options.output, cells, base, jobs=options.jobs, prepare=partial(prepare, options.threads)
    ):
        cell = progress.done.cell
        print(
            f"{progress.count:3} of {progress.of}  {cell.task} {cell.arm}, seed {cell.seed}: "
            f"{100 * accuracy(progress.done):.1f} (~{progress.seconds_left / 60:.0f} min left)",
            flush=True,
        )
        tell(options, cells)
    tell(options, cells)
    print((options.output / "criteria.md").read_text())


def make_cells(options: argparse.Namespace) -> list[Cell]:
    """Seed by seed, so that a study that is stopped early holds whole comparisons."""
    shares = encoder_shares(options.model)
    cells: list[Cell] = []
    for seed in range(max(RANDOM_SEEDS, max(options.seeds) + 1)):
        for task in options.tasks:
            if seed in options.seeds:
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
                        )
                    )
    return cells


def name_of(arm: str, rule: str) -> str:
    """As a part of a file's name."""
    return f"{arm}, {rule}".replace("%", "pc").replace(", ", "_").replace(" + ", "-").replace(" ", "-")


def encoder_shares(model: str) -> dict[float, float]:
    """Shares of the whole model's operations that leave these shares of its blocks'."""
    dense = load_base(model, label_names=("no", "yes"), seed=0).model
    counted, sites = count_model_macs(dense), identify(dense).all_sites
    fixed, whole = counted.kept(sites, [()] * len(sites), LENGTH), counted.dense(LENGTH)
    return {share: round((share * (whole - fixed) + fixed) / whole, 6) for share in (0.5, 0.33)}


def prepare(threads: int) -> None:
    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def accuracy(done: Done) -> float:
    return quality(done)["metrics"]["accuracy"]["value"]


def quality(done: Done) -> Any:
    return next(iter(done.result["quality"].values()))


def tell(options: argparse.Namespace, cells: Sequence[Cell]) -> None:
    """criteria.md: all that is known so far."""
    known = load_cells(options.output, cells)
    lines = [
        *heading("What criteria are worth after training", command_of(options), machine(), versions()),
        "Accuracy on the validation set in per cent, mean over seeds ± half of Student's 95 % interval; then loss; "
        "then agreement with dense LoRA of the same seed. Random choices: five seeds with a draw each.",
    ]
    for task in options.tasks:
        of_task = [done for done in known if done.cell.task == task]
        dense = {done.cell.seed: done for done in of_task if done.cell.arm == "lora"}
        if not dense:
            continue
        lines += ["", f"## {task}: dense LoRA {told(list(dense.values()), dense)}", ""]
        lines += [f"| | {' | '.join(options.rules)} |", f"| --- | {' | '.join('---' for _ in options.rules)} |"]
        for arm in options.arms:
            row = [
                told([done for done in of_task if done.cell.arm == name_of(arm, rule)], dense) for rule in options.rules
            ]
            if any(row):
                lines.append(f"| {arm} | {' | '.join(row)} |")
    write_text(options.output / "criteria.md", "\n".join(lines) + "\n")


def told(found: Sequence[Done], dense: Mapping[int, Done]) -> str:
    if not found:
        return ""
    values = [100 * accuracy(done) for done in found]
    text = f"{np.mean(values):.1f}"
    if len(values) > 1:
        half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
        text += f" ± {half:.1f}"
    text += f"; {statistics.mean(quality(done)['loss'] for done in found):.3f}"
    same = [agreement(done, dense[done.cell.seed]) for done in found if done.cell.seed in dense]
    return f"{text}; {100 * statistics.mean(same):.0f}" if same else text


def agreement(done: Done, other: Done) -> float:
    name = next(iter(done.result["quality"]))
    return float(np.mean(np.asarray(done.predictions[name]) == np.asarray(other.predictions[name])))


if __name__ == "__main__":
    main()
