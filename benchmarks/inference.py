"""Latency of pruned models beside the dense one, and beside the share of multiply-accumulates that they have left.

    python benchmarks/inference.py --model MODEL --output benchmarks/results/inference.json

All models and runtimes take turns in one process, A B C A B C ..., on the same made-up inputs; what is reported is the
ratio to the dense model in eager torch, round by round: median and quartiles. A second dense model shows the noise of
the machine (A/A). "masked" is what the paper did before it removed heads: the dense model, whose pruned heads are
multiplied by zero. Which units go does not change the time, so they are chosen at random, feed-forward widths rounded
to multiples of 8. "fused" computes query, key and value as one product. Compiling needs a C++ compiler, ONNX models
need `pip install "pruning-adapter[onnx]"`.
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import transformers

import pruning_adapter as pa
from provenance import command_of, heading, model_name
from pruning_adapter.architectures.identity import identify
from pruning_adapter.checkpoint.onnx_export import export_onnx, open_onnx, quantize_onnx
from pruning_adapter.costs.inputs import make_inputs
from pruning_adapter.costs.macs import count_macs, count_model_macs
from pruning_adapter.environment import machine, versions
from pruning_adapter.storage import write_json, write_text
from pruning_adapter.surgery import fuse_

LENGTH = 128
RUNTIMES = ("eager", "eager, fused", "compiled", "onnx", "onnx int8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or hub id of an encoder")
    parser.add_argument("--model-id", help="name to record instead of a folder")
    parser.add_argument("--runtimes", nargs="+", default=RUNTIMES, choices=RUNTIMES)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--lengths", nargs="+", type=int, default=[32, 128, 512])
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()

    dense = transformers.AutoModelForSequenceClassification.from_pretrained(options.model).eval()
    rows = measure(dense, options)
    name = model_name(options)
    command = command_of(options)
    content = {"command": command, "model": name, "machine": machine(), "versions": versions(), "rows": rows}
    write_json(options.output, content)
    write_text(options.output.with_suffix(".md"), table(content))
    print(table(content))


def measure(dense: Any, options: argparse.Namespace) -> list[dict[str, Any]]:
    models = make_models(dense)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        calls = make_calls(models, options, Path(folder), stack)
        for batch in options.batches:
            for length in options.lengths:
                # About as much work for every shape.
                repeats = max(3, min(options.repeats, round(options.repeats * 32 * 128 / (batch * length))))
                inputs = make_inputs(dense, batch=batch, length=length)
                seconds = take_turns(calls, inputs, repeats)
                base = seconds["dense", "eager"]
                for (name, runtime), found in seconds.items():
                    q1, median, q3 = statistics.quantiles([a / b for a, b in zip(found, base, strict=True)], n=4)
                    macs = count_macs(models[name][0], length=length) / count_macs(dense, length=length)
                    row = {"batch": batch, "length": length, "model": name, "runtime": runtime, "macs": macs}
                    rows.append({**row, "median": median, "q1": q1, "q3": q3})
                    if inputs["input_ids"].is_cuda:
                        rows[-1]["milliseconds"] = 1000 * statistics.median(found)
                    print(rows[-1], flush=True)
    return rows


def make_models(dense: Any) -> dict[str, tuple[Any, list[torch.Tensor] | None]]:
    """Models by name, and the gates that one of them runs with."""
    heads = pa.random_importance(dense, seed=0)
    both = pa.random_importance(dense, seed=0, units=("heads", "neurons"))
    seventy = pa.plan_pruning(heads, keep_ratio=0.7)
    gates = [
        torch.tensor([float(head in kept) for head in range(site.units)], device=dense.device)
        for site, kept in zip(seventy.model.sites, seventy.kept_heads, strict=True)
    ]
    macs, sites = count_model_macs(dense), identify(dense).all_sites
    fixed, whole = macs.kept(sites, [()] * len(sites), LENGTH), macs.dense(LENGTH)

    def to_share(share: float) -> Any:
        keep = (share * (whole - fixed) + fixed) / whole
        plan = pa.plan_pruning(both, keep_macs=keep, length=LENGTH, multiple_of=8)
        return pa.prune_(copy.deepcopy(dense), plan)

    return {
        "dense": (dense, None),
        "dense again (noise)": (copy.deepcopy(dense), None),
        "70 % of heads, masked": (copy.deepcopy(dense), gates),
        "70 % of heads": (pa.prune_(copy.deepcopy(dense), seventy), None),
        "50 % of encoder MACs": (to_share(0.5), None),
        "33 % of encoder MACs": (to_share(0.33), None),
    }


def make_calls(
    models: Any, options: argparse.Namespace, folder: Path, stack: ExitStack
) -> dict[tuple[str, str], Callable[[Any], Any]]:
    calls: dict[tuple[str, str], Callable[[Any], Any]] = {}
    for number, (name, (model, gates)) in enumerate(models.items()):
        if gates is not None:
            # For as long as is measured: the gates are a part of this model.
            stack.enter_context(pa.gated(model, gates))
        calls[name, "eager"] = lambda inputs, model=model: model(**inputs)
        if gates is not None or "noise" in name:
            continue
        if "eager, fused" in options.runtimes:
            fused = fuse_(copy.deepcopy(model))
            calls[name, "eager, fused"] = lambda inputs, fused=fused: fused(**inputs)
        if "compiled" in options.runtimes:
            compiled = torch.compile(model, dynamic=True)
            calls[name, "compiled"] = lambda inputs, compiled=compiled: compiled(**inputs)
        if {"onnx", "onnx int8"} & set(options.runtimes):
            plain, small = folder / f"{number}.onnx", folder / f"{number}-int8.onnx"
            export_onnx(model, plain)
            quantize_onnx(plain, small)
            for runtime, path in (("onnx", plain), ("onnx int8", small)):
                if runtime in options.runtimes:
                    calls[name, runtime] = open_onnx(path, threads=options.threads)
    return calls


def take_turns(calls: dict[tuple[str, str], Any], inputs: Any, repeats: int) -> dict[tuple[str, str], list[float]]:
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    # Short calls are measured several at a time, because the clock and the scheduler have a grain.
    times = max(1, 2048 // inputs["input_ids"].numel())
    with torch.inference_mode():
        for call in calls.values():
            call(inputs)
        for _ in range(repeats):
            for key, call in calls.items():
                # The threads of the runtime before go on spinning for a while, and the caches hold its weights.
                call(inputs)
                wait()
                start = time.perf_counter()
                for _ in range(times):
                    call(inputs)
                wait()
                seconds[key].append((time.perf_counter() - start) / times)
    return seconds


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def table(content: dict[str, Any]) -> str:
    more = "MACs: the whole model's share at that length; the encoder's is counted at 128 tokens."
    title = f"{content['model']}: latency, as a ratio to the dense model in eager torch"
    lines = [
        *heading(title, content["command"], content["machine"], content["versions"], more),
        "| batch x length | model | runtime | MACs | latency (quartiles) | latency / MACs |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row['batch']} x {row['length']} | {row['model']} | {row['runtime']} | {row['macs']:.3f} "
        f"| {row['median']:.2f} ({row['q1']:.2f} - {row['q3']:.2f}) | {row['median'] / row['macs']:.2f} |"
        for row in content["rows"]
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
