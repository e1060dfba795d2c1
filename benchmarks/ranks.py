"""Which blocks should get LoRA's higher ranks? What share of the gradient each way of spreading ranks can follow.

    python benchmarks/ranks.py --model MODEL --data-dir GLUE --work-dir WORK --output benchmarks/results/ranks.json

A matrix that LoRA adapts at rank r moves in r directions. To first order the most that it can follow of the loss's
gradient is what the r largest singular values hold, which is how LoRA-GA (arXiv:2407.05000) chooses a start and what a
rank is worth to it. So this costs a backward pass instead of a training, and bounds what any way of spreading the same
number of parameters could gain over another: if all of them leave about as much of the gradient, where ranks go cannot
matter much.

Per task and seed, the model trains for a fifth of the steps, 30 % of its heads go by "obs" and least squares corrects
the rest, as in the recipe `default`. The ways:

* "two levels": the recipe's ranks, the higher one in the most important third of the blocks, as in the paper.
* "evenly", "in proportion to importance": of blocks; "... within blocks": with scores that are normalised in each.
* "by singular values, blocks" and "..., matrices": each step of one rank goes where it takes in most of the gradient
  per parameter. The latter is the most that can be had.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from scipy import stats
from torch import Tensor

import pruning_adapter as pa
from criteria import Screen
from provenance import command_of, heading
from pruning_adapter.architectures.sites import find_sites
from pruning_adapter.environment import machine, versions
from pruning_adapter.planning.rank_plan import ROLES
from pruning_adapter.settings import KEEP_RATIO, Settings
from pruning_adapter.storage import write_json, write_text

Spectra = list[dict[str, Tensor]]
"""By block and role, the squared singular values of the gradient, largest first."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or hub id of an encoder with query, key and value apart")
    parser.add_argument("--model-id", help="name to record instead of a folder")
    parser.add_argument("--data-dir", required=True, help="folder of GLUE data")
    parser.add_argument("--work-dir", type=Path, required=True, help="where trained models are kept")
    parser.add_argument("--tasks", nargs="+", default=["mrpc", "sst2", "qnli"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--train-rows", type=int, default=4000, help="of a task, at the most")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--examples", type=int, default=512, help="training examples that are scored")
    parser.add_argument("--validation", type=int, default=8, help="not looked at")
    parser.add_argument("--bf16", action="store_true", help="train with bfloat16 matrix products")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    rows: list[dict[str, Any]] = []
    for task in options.tasks:
        for seed in options.seeds:
            rows += [{"task": task, "seed": seed, **row} for row in measure(Screen(options, task, seed))]
            print(rows[-1], flush=True)
    content = {"command": command_of(options), "machine": machine(), "versions": versions(), "rows": rows}
    write_json(options.output, content)
    write_text(options.output.with_suffix(".md"), table(content))
    print(table(content))


def measure(screen: Screen) -> list[dict[str, Any]]:
    """For every way of spreading ranks, its ranks, parameters and share of the gradient."""
    model = screen.model_of("20 %")
    scores = pa.obs_importance(model, screen.batches, progress=False)
    plan = pa.plan_pruning(scores, keep_ratio=KEEP_RATIO, normalization="model", reconstruct="lstsq")
    pa.reconstruct_(model, plan, screen.batches)
    spectra = gradient_spectra(model, screen.batches)
    low, high = Settings().ranks
    blocks = len(plan.kept_heads)
    third = max(1, round(blocks / 3))
    by_importance = pa.plan_ranks(scores, plan, top_blocks=third, high=high, low=low, normalization="model")
    costs = [
        {role: site.lora_parameters(kept, 1, (role,)) for role in ROLES}
        for site, kept in zip(plan.model.sites, plan.kept_heads, strict=True)
    ]
    budget = parameters(of_blocks(by_importance.ranks), costs)

    def spread(how: Any, scope: Any = "model") -> list[dict[str, int]]:
        given = budget + plan.model.norm_parameters
        return of_blocks(pa.plan_ranks(scores, plan, budget=given, block_importance=how, normalization=scope).ranks)

    ways: dict[str, list[dict[str, int]]] = {
        "two levels": of_blocks(by_importance.ranks),
        "evenly": spread("equal"),
        "in proportion to importance": spread("sum"),
        "in proportion to importance within blocks": spread("sum", "block"),
        "by singular values, blocks": greedy(spectra, costs, budget, [[(b, r) for r in ROLES] for b in range(blocks)]),
        "by singular values, matrices": greedy(
            spectra, costs, budget, [[(block, role)] for block in range(blocks) for role in ROLES]
        ),
    }
    importance = [float(sum(block)) for block in kept_scores(scores, plan)]
    energy = [float(sum(values.sum() for values in block.values())) for block in spectra]
    related: Any = stats.spearmanr(importance, energy)
    return [
        {
            "way": name,
            "ranks": ranks,
            "parameters": parameters(ranks, costs),
            "share": share(spectra, ranks),
            "importance_with_gradient": float(related.statistic),
        }
        for name, ranks in ways.items()
    ]


def gradient_spectra(model: Any, batches: Any) -> Spectra:
    """Of the mean loss of all examples, with respect to each adapted matrix."""
    sites = find_sites(model)
    weights = [
        {
            **{p.roles[0]: site.module(p.path).get_parameter("weight") for p in site.projections},
            "output": site.module(site.spec.output).get_parameter("weight"),
        }
        for site in sites
    ]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for block in weights:
        for weight in block.values():
            weight.requires_grad_(True)
    model.eval()
    for batch in batches:
        # The loss is a mean over the batch; batches differ in size.
        (model(**batch).loss * len(batch["labels"])).backward()
    return [
        {role: torch.linalg.svdvals(cast(Tensor, weight.grad).double()).square() for role, weight in block.items()}
        for block in weights
    ]


def kept_scores(scores: Any, plan: Any) -> list[list[float]]:
    normalized = scores.normalized("model")
    return [[float(block[head]) for head in kept] for block, kept in zip(normalized, plan.kept_heads, strict=True)]


def of_blocks(ranks: Sequence[int]) -> list[dict[str, int]]:
    roles: tuple[str, ...] = ROLES
    return [dict.fromkeys(roles, rank) for rank in ranks]


def parameters(ranks: list[dict[str, int]], costs: list[dict[str, int]]) -> int:
    return sum(ranks[block][role] * costs[block][role] for block in range(len(ranks)) for role in ROLES)


def share(spectra: Spectra, ranks: list[dict[str, int]]) -> float:
    taken = sum(float(spectra[b][role][: ranks[b][role]].sum()) for b in range(len(spectra)) for role in ROLES)
    return taken / sum(float(values.sum()) for block in spectra for values in block.values())


def greedy(
    spectra: Spectra, costs: list[dict[str, int]], budget: int, groups: list[list[tuple[int, str]]]
) -> list[dict[str, int]]:
    """One rank at a time to the group of matrices that takes in most for its parameters, as long as one fits."""
    ranks = of_blocks([0] * len(spectra))
    cost: Callable[[list[tuple[int, str]]], int] = lambda group: sum(costs[b][role] for b, role in group)  # noqa: E731

    def gain(group: list[tuple[int, str]]) -> float:
        return sum(float(spectra[b][role][ranks[b][role] :][:1].sum()) for b, role in group) / cost(group)

    left = budget
    while fitting := [group for group in groups if cost(group) <= left and gain(group)]:
        best = max(fitting, key=gain)
        for block, role in best:
            ranks[block][role] += 1
        left -= cost(best)
    return ranks


def table(content: dict[str, Any]) -> str:
    rows = content["rows"]
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    title = "What share of the gradient LoRA can follow, by where its ranks go"
    lines = [
        *heading(title, content["command"], content["machine"], content["versions"]),
        "Per cent of the squared norm of the gradient (query, key, value and output of all blocks, after a fifth of "
        "the training and the pruning of 30 % of the heads), mean over seeds, lowest and highest; all ways within the "
        "same number of parameters.",
        "",
        f"| | {' | '.join(tasks)} |",
        f"| --- | {' | '.join('---' for _ in tasks)} |",
    ]
    for way in dict.fromkeys(row["way"] for row in rows):
        told = [[100 * row["share"] for row in rows if (row["task"], row["way"]) == (task, way)] for task in tasks]
        lines.append(
            f"| {way} | "
            + " | ".join(f"{statistics.mean(each):.1f} ({min(each):.1f} - {max(each):.1f})" for each in told)
            + " |"
        )
    agreements = [
        [row["importance_with_gradient"] for row in rows if (row["task"], row["way"]) == (task, "two levels")]
        for task in tasks
    ]
    told = " | ".join(f"{statistics.mean(each):.2f}" for each in agreements)
    lines.append(f"| rank correlation of blocks' importance and gradient | {told} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
