"""What a model costs: parameters, weight bytes, multiply-accumulates, and ratios of time and memory to the dense model.

Times and peak memory are reported as ratios, measured side by side in one interleaved run: absolute times of a CPU say
more about the machine than about the model.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from pruning_adapter.architectures.sites import base_of
from pruning_adapter.costs.inputs import make_inputs
from pruning_adapter.costs.macs import count_macs

__all__ = [
    "compare_inference",
    "compare_training",
    "count_costs",
    "count_trainable",
    "measure_ratios",
    "mix_training",
    "peak_memory",
    "weight_bytes",
]

Ratio = dict[str, float]


def count_trainable(model: nn.Module) -> int:
    """Parameters that training changes."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all weights and buffers, as they lie in memory."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def measure_ratios(
    measured: Callable[[], object], reference: Callable[[], object], *, repeats: int = 15, warmup: int = 3
) -> Ratio:
    """Time of `measured` over time of `reference`, run in turn A B A B: median and quartiles of the paired ratios."""
    for _ in range(warmup):
        measured()
        reference()
    ratios = [_seconds(measured) / _seconds(reference) for _ in range(repeats)]
    q1, median, q3 = statistics.quantiles(ratios, n=4)
    return {"median": median, "q1": q1, "q3": q3}


def peak_memory(run: Callable[[], object], device: torch.device) -> int:
    """Most bytes that `run` held at once beyond what was there before: exact, from the allocator's own events."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    # The raw events: the summarised ones fold allocations into the operator that made them.
    raw = cast(Any, profiler).profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in raw if event.name() == "[memory]")
    held, peak = 0, 0
    for _, size in changes:
        held += size
        peak = max(peak, held)
    return peak


def _seconds(run: Callable[[], object]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def count_costs(model: nn.Module, dense: nn.Module, *, length: int) -> dict[str, int]:
    """What can be counted of `model` beside `dense`: parameters, weight bytes, and MACs of one example of `length`."""
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dense_parameters": sum(parameter.numel() for parameter in dense.parameters()),
        "weight_bytes": weight_bytes(model),
        "dense_weight_bytes": weight_bytes(dense),
        "macs": count_macs(model, length=length),
        "dense_macs": count_macs(dense, length=length),
        "length": length,
    }


def compare_inference(model: nn.Module, dense: nn.Module, *, batch: int, length: int) -> dict[str, Any]:
    """Time and peak memory (weights and activations) of `model` over those of `dense`, in one interleaved run."""
    model.eval()
    dense.eval()
    ours, theirs = _forward(model, batch, length), _forward(dense, batch, length)
    device = next(model.parameters()).device
    held = weight_bytes(model) + peak_memory(ours, device)
    dense_held = weight_bytes(dense) + peak_memory(theirs, device)
    memory = held / dense_held
    return {
        "batch": batch,
        "length": length,
        # Allocations repeat exactly, so there is no spread.
        "memory_ratio": {"median": memory, "q1": memory, "q3": memory},
        "latency_ratio": measure_ratios(ours, theirs),
        "peak_inference_bytes": held,
        "dense_peak_inference_bytes": dense_held,
    }


def compare_training(
    model: nn.Module, reference: nn.Module, *, batch: int, length: int, bf16: bool = False
) -> dict[str, Any]:
    """Time and peak memory of a training step of `model` over those of `reference`, in one interleaved run.

    Memory is all that training holds: weights, the optimizer's state, gradients and activations. The steps are AdamW's
    at a learning rate of zero, so that all weights stay as they are; gradients that are there are lost.

    Args:
        model: a sequence classifier whose trainable parameters require gradients.
        reference: likewise.
        batch: examples a batch.
        length: tokens of each.
        bf16: under autocast to bfloat16. Frozen weights are taken as they are.
    """
    steps = [_TrainingStep(each, batch, length, bf16) for each in (model, reference)]
    # The first step makes the optimizer's state.
    held, other = (step.held_bytes() for step in steps)
    return {
        "training_memory_ratio": {"median": held / other, "q1": held / other, "q3": held / other},
        "training_time_ratio": measure_ratios(*steps, repeats=7, warmup=1),
        "peak_training_bytes": held,
        "reference_peak_training_bytes": other,
    }


def mix_training(parts: Sequence[tuple[float, Mapping[str, Any]]]) -> dict[str, Any]:
    """The cost of a training in several parts: its mean step, and the memory of the part that needs most.

    Args:
        parts: a share of the steps, and what `compare_training` gave for them, with one reference for all.

    Returns:
        As `compare_training`; and "parts", in turn: the share, and the median ratio of its step's time.
    """
    largest = max((measured for _, measured in parts), key=lambda measured: measured["peak_training_bytes"])
    times = {
        name: sum(share * measured["training_time_ratio"][name] for share, measured in parts)
        for name in ("median", "q1", "q3")
    }
    told = [{"share": share, "time": measured["training_time_ratio"]["median"]} for share, measured in parts]
    return {**largest, "training_time_ratio": times, "parts": told}


class _TrainingStep:
    def __init__(self, model: nn.Module, batch: int, length: int, bf16: bool) -> None:
        self._model = model.train()
        self._bf16 = bf16
        model.zero_grad()
        self._inputs = make_inputs(model, batch=batch, length=length)
        config = cast(Any, base_of(model)).config
        labels = torch.arange(batch, device=next(model.parameters()).device) % config.num_labels
        self._inputs["labels"] = labels.float() if config.problem_type == "regression" else labels
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(trainable, lr=0.0, weight_decay=0.0)

    def __call__(self) -> None:
        device = next(iter(self._inputs.values())).device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=self._bf16):
            loss = self._model(**self._inputs).loss
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()

    def held_bytes(self) -> int:
        self()
        states = (value for state in self._optimizer.state.values() for value in state.values())
        kept = sum(value.nbytes for value in states if isinstance(value, Tensor))
        return weight_bytes(self._model) + kept + peak_memory(self, next(self._model.parameters()).device)


def _forward(model: nn.Module, batch: int, length: int) -> Callable[[], object]:
    inputs = make_inputs(model, batch=batch, length=length)

    def run() -> object:
        with torch.no_grad():
            return model(**inputs)

    return run
