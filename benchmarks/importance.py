"""What an importance pass costs, in forward passes of the same examples, and how many examples it needs.

    python benchmarks/importance.py --model MODEL --data-dir GLUE --output benchmarks/results/importance.json

In one process the arms take turns on the same examples, A B C A B C ...; what is reported is the ratio to one forward
pass without gradients, round by round: median and quartiles. A second forward pass shows the noise of the machine
(A/A). "one by one" is how the paper's reference measures: batches of one example, gradients of all weights. "all
gradients" takes full batches, but lets autograd compute the gradients of the weights too, which costs what a training
step costs without telling examples apart. Memory is exact: the most that one batch holds above the weights, as a share
of what a training step of stock PEFT LoRA (the model's own dropout on) holds on the same batch.

The second table tells how many examples a ranking needs: the rank correlation (Spearman, within blocks) of the scores
of n examples with those of a large other sample, which shares none with them, over several draws, and what the two
halves of the n examples said about it. All of it is of the untrained model, as in the paper.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

import pruning_adapter as pa
from provenance import command_of, heading
from pruning_adapter.environment import machine, versions
from pruning_adapter.evaluation.cost import peak_memory
from pruning_adapter.importance.batching import LengthSortedBatches
from pruning_adapter.importance.stability import rank_agreement
from pruning_adapter.storage import write_json, write_text
from pruning_adapter.training.base_model import load_base, load_tokenizer
from pruning_adapter.training.methods import apply_method
from pruning_adapter.training.recipes import RECIPES
from pruning_adapter.training.tasks import load_glue
from pruning_adapter.training.tokenize import sample_examples, tokenize
from pruning_adapter.training.trainer import make_collator

STOCK = "forward"
OTHERS = 2048
SCORERS: dict[str, Any] = {"gradient": pa.measure_importance, "obs": pa.obs_importance}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or hub id of an encoder")
    parser.add_argument("--model-id", help="name to record instead of a folder")
    parser.add_argument("--data-dir", required=True, help="folder of GLUE data")
    parser.add_argument("--tasks", nargs="+", default=["sst2", "mrpc"])
    parser.add_argument("--examples", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--sizes", nargs="+", type=int, default=[32, 64, 128, 256, 512])
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()

    costs: list[dict[str, Any]] = []
    needs: list[dict[str, Any]] = []
    for task in options.tasks:
        data, tokenizer = load_glue(task, data_dir=Path(options.data_dir)), load_tokenizer(options.model)
        base = load_base(options.model, label_names=data.label_names, seed=0)

        def batches(examples: Any, data: Any = data, tokenizer: Any = tokenizer) -> LengthSortedBatches:
            features = tokenize(examples, tokenizer, max_length=128, label_names=data.label_names)
            return LengthSortedBatches(features, make_collator(tokenizer), batch_size=options.batch_size)

        costs += measure_costs(task, base, batches(sample_examples(data.train, options.examples, 0)), options)
        needs += measure_needs(task, base.model, data.train, batches, options)
    command = command_of(options)
    content = {"command": command, "machine": machine(), "versions": versions(), "costs": costs, "needs": needs}
    write_json(options.output, content)
    write_text(options.output.with_suffix(".md"), table(content))
    print(table(content))


def measure_costs(task: str, base: Any, batches: Iterable[dict[str, Tensor]], options: Any) -> list[dict[str, Any]]:
    model = base.model.eval()
    device = next(model.parameters()).device
    listed = [{name: value.to(device) for name, value in batch.items()} for batch in batches]
    single = [one for batch in listed for one in split(batch)]
    arms: dict[str, Callable[[list[Any]], object]] = {
        STOCK: partial(forward, model),
        "forward again (noise)": partial(forward, model),
        "ours, heads": lambda given: pa.measure_importance(model, given, progress=False),
        "ours, heads and neurons": lambda given: pa.measure_importance(
            model, given, units=("heads", "neurons"), progress=False
        ),
        "ours, heads, obs": lambda given: pa.obs_importance(model, given, progress=False),
        "ours, heads and neurons, obs": lambda given: pa.obs_importance(
            model, given, units=("heads", "neurons"), progress=False
        ),
        "all gradients": partial(backward, model),
        "one by one": lambda given: backward(model, single),
    }
    seconds = {name: list[float]() for name in arms}
    for number in range(options.repeats + 1):
        for name, arm in arms.items():
            if name == "one by one" and number > max(options.repeats // 3, 3):
                continue
            start = time.perf_counter()
            arm(listed)
            if device.type == "cuda":
                torch.cuda.synchronize()
            # The first warms up.
            if number:
                seconds[name].append(time.perf_counter() - start)
    longest = listed[0]
    peaks = {name: peak_memory(partial(arm, [longest]), device) for name, arm in arms.items() if name != "one by one"}
    lora: Any = apply_method(base, "lora", replace(RECIPES["default"], adapter_dropout=None))
    lora.train()
    step = peak_memory(lambda: lora(**longest).loss.backward(), device)
    rows: list[dict[str, Any]] = []
    for name, found in seconds.items():
        q1, median, q3 = statistics.quantiles([a / b for a, b in zip(found, seconds[STOCK], strict=False)], n=4)
        peak = peaks[name] / step if name in peaks else None
        rows.append({"task": task, "arm": name, "median": median, "q1": q1, "q3": q3, "peak": peak})
        print(rows[-1], flush=True)
    return rows


def forward(model: Any, batches: list[dict[str, Tensor]]) -> None:
    with torch.no_grad():
        for batch in batches:
            model(**batch)


def backward(model: Any, batches: list[dict[str, Tensor]]) -> None:
    for batch in batches:
        model(**batch).loss.backward()
        model.zero_grad()


def split(batch: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """One example each, without its padding."""
    rows: list[dict[str, Tensor]] = []
    for row in range(len(batch["labels"])):
        length = int(batch["attention_mask"][row].sum())
        rows.append(
            {name: v[row : row + 1, :length] if v.dim() == 2 else v[row : row + 1] for name, v in batch.items()}
        )
    return rows


def measure_needs(task: str, model: Any, train: Any, batches: Any, options: Any) -> list[dict[str, Any]]:
    """Half of the task is the large sample at the most, so that the small ones come from as many others."""
    both = sample_examples(train, min(len(train), 2 * OTHERS), 1000)
    others, rest = both[::2], both[1::2]
    rows: list[dict[str, Any]] = []
    for name, measure in SCORERS.items():
        truth = measure(model, batches(others), progress=False)
        for size in options.sizes:
            drawn = [sample_examples(rest, size, seed) for seed in range(1, options.draws + 1)]
            found = [measure(model, batches(examples), progress=False) for examples in drawn]
            rows.append(
                {
                    "task": task,
                    "scorer": name,
                    "examples": size,
                    "others": len(others),
                    "with_other": [rank_agreement(scores.heads, truth.heads) for scores in found],
                    "halves": [scores.agreement for scores in found if scores.agreement is not None],
                }
            )
            print(rows[-1], flush=True)
    return rows


def table(content: dict[str, Any]) -> str:
    title = "What an importance pass costs, and how many examples it needs"
    lines = [
        *heading(title, content["command"], content["machine"], content["versions"]),
        "| task | arm | time, in forward passes (quartiles) | peak memory / a LoRA training step |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row['task']} | {row['arm']} | {row['median']:.2f} ({row['q1']:.2f} - {row['q3']:.2f}) "
        f"| {'' if row['peak'] is None else format(row['peak'], '.2f')} |"
        for row in content["costs"]
    ]
    lines += [
        "",
        "Rank correlation of heads, within blocks: mean (lowest - highest) over the draws.",
        "",
        "| task | scorer | examples | others | with those | of two halves |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in content["needs"]:
        with_other, halves = (
            f"{statistics.mean(found):.2f} ({min(found):.2f} - {max(found):.2f})" if found else ""
            for found in (row["with_other"], row["halves"])
        )
        lines.append(
            f"| {row['task']} | {row['scorer']} | {row['examples']} | {row['others']:,} | {with_other} | {halves} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
