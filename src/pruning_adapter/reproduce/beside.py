"""What stands beside the grid, per task: cost measured side by side, and importance on two disjoint samples."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from pruning_adapter.environment import machine, versions
from pruning_adapter.errors import CheckpointError
from pruning_adapter.evaluation.cost import compare_inference, count_costs, count_trainable
from pruning_adapter.importance import measure_importance
from pruning_adapter.importance.batching import LengthSortedBatches
from pruning_adapter.importance.stability import rank_agreement
from pruning_adapter.pipeline import Run
from pruning_adapter.reproduce.cells import Cell
from pruning_adapter.reproduce.work_folder import alike_of, work_in
from pruning_adapter.settings import Settings
from pruning_adapter.storage import read_json, write_json
from pruning_adapter.surgery.prune import prune_
from pruning_adapter.training.methods import apply_method
from pruning_adapter.training.recipes import METHODS, Method
from pruning_adapter.training.tokenize import sample_examples
from pruning_adapter.training.trainer import make_collator

__all__ = ["measure_cost", "measure_maps"]

COST, MAPS = "pruning-adapter grid cost", "pruning-adapter grid maps"
BATCH = 32


def measure_cost(folder: Path, recipe: str, task: str, base: Settings) -> dict[str, Any]:
    """Tables 2, 3 and 4 for one task: counts, memory, and the time of a step and of inference, as ratios.

    Each method takes turns with stock LoRA in training (as people run it, with the model's own dropout), and the pruned
    model with the dense one in inference.

    Raises:
        CheckpointError: it was measured by another recipe of the same name.
    """
    path = folder / "cost" / f"{recipe}-{task}.json"
    settings = Cell(recipe=recipe, task=task, arm="prune-lora", seed=0).settings(base)
    if not path.exists():
        work = folder / "work" / f"cost-{recipe}-{task}"
        with work_in(work, alike_of(settings)):
            # Another process may have been at it.
            if not path.exists():
                write_json(path, _measure_cost(Run(settings, work), recipe, task))
    content = read_json(path, kind=COST)
    followed = settings.followed.to_json()
    if content.get("followed", followed) != followed:
        raise CheckpointError(
            f"{path} was measured by another recipe of the name {recipe!r}. Name another folder, or remove it to "
            "measure again."
        )
    return content


def _measure_cost(run: Run, recipe: str, task: str) -> dict[str, Any]:
    plan, ranks = run.plan()
    length = run.typical_length()

    def beside_stock(method: Method) -> dict[str, Any]:
        pruned = method == "prune-lora"
        model = apply_method(
            run.load_adapted_base() if pruned else run.load_base(), method, run.recipe, plan=plan, ranks=ranks
        )
        compare = run.compare_training_in_parts if pruned else run.compare_training
        measured = compare(model, batch=BATCH, length=length)
        return {"trainable": count_trainable(model), **measured}

    full, lora, pruned = (beside_stock(method) for method in METHODS)
    # Corrected weights cost what plain ones do.
    smaller = prune_(run.load_start().model, replace(plan, reconstruct="none"))
    dense = run.load_base().model
    return {
        "kind": COST,
        "recipe": recipe,
        "task": task,
        "followed": run.recipe.to_json(),
        "length": length,
        "full": full,
        "lora": lora,
        "prune-lora": pruned,
        "inference": {
            **compare_inference(smaller, dense, batch=BATCH, length=length),
            **count_costs(smaller, dense, length=length),
        },
        "machine": machine(),
        "versions": versions(),
    }


def measure_maps(folder: Path, task: str, base: Settings) -> dict[str, Any]:
    """Figure 1 for one task: the heads' importance on two samples that share no example, and how well they agree.

    Importance is the paper's, of the dense model before any training.
    """
    path = folder / "maps" / f"{task}.json"
    if path.exists():
        return read_json(path, kind=MAPS)
    settings = Cell(recipe="default", task=task, arm="prune-lora", seed=base.seed).settings(base)
    run = Run(settings, folder / "work" / f"maps-{task}")
    # Nothing is written there.
    model = run.load_base().model
    both = sample_examples(run.data.train, 2 * settings.examples, settings.seed)
    # Every second one: halves that are alike, however the file is ordered.
    scores = [
        measure_importance(
            model,
            LengthSortedBatches(run.features(both[half::2]), make_collator(run.tokenizer)),
            allow_one_class=True,
            task=task,
        )
        for half in (0, 1)
    ]
    content = {
        "kind": MAPS,
        "task": task,
        "examples": [each.examples for each in scores],
        "heads": [[block.tolist() for block in each.heads] for each in scores],
        "agreement": rank_agreement(scores[0].heads, scores[1].heads),
    }
    write_json(path, content)
    return content
