"""The paper's importance: the gradient of the loss with respect to a gate on every head.

    I_h = E_x |dL(x) / d(xi_h)|        (Michel et al. 2019, arXiv:1905.10650; arXiv:2303.14704)

One gate per example in the batch gives |dL(x)/d(xi)| for every x exactly, at batch speed: examples do not interact, so
the gradient of the summed loss with respect to example x's own gates is that of x alone. All weights stay frozen, so
autograd keeps only what the gates need and no weight gradient is ever allocated.
"""

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from pruning_adapter.architectures.identity import dense_parameters, identify, pruned_state
from pruning_adapter.architectures.sites import Site, base_of, find_sites
from pruning_adapter.environment import versions
from pruning_adapter.errors import ImportanceError
from pruning_adapter.importance.gates import gated_sites
from pruning_adapter.importance.scores import ImportanceScores

__all__ = ["Reduction", "kept_heads_of", "measure_importance"]

Reduction = Literal["example", "batch", "token", "bertology"]


def measure_importance(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    reduction: Reduction = "example",
    allow_one_class: bool = False,
    progress: bool | None = None,
    task: str | None = None,
    seed: int | None = None,
) -> ImportanceScores:
    """Measure how much each head matters for the task that the labelled batches come from.

    The model is left exactly as it was found (hooks, requires_grad, train/eval mode, gradients), also after an error.
    It is run in eval mode: dropout would make the scores depend on the order of the examples.

    Args:
        model: a supported Transformers model that computes a loss from `labels`; on any device, in any floating type.
        batches: any iterable of mappings of tensors, as a DataLoader yields: model inputs with `labels`, one a row.
            Padding is told by `attention_mask`. Sorted by length (see `LengthSortedBatches`) they cost least.
        reduction: what the absolute value is taken of, before the sum over the sample is divided by its tokens:

            * "example": each example's gradient, as the paper's formula and Michel et al. say. Independent of batch
              size and padding.
            * "token": each token's part of it, as Michel et al.'s released code does.
            * "batch": the gradient of each batch's mean loss, with one gate for all its examples.
            * "bertology": the running sum of such gradients, as computed by the public BERTology script, which never
              sets the mask's gradient back to zero.

        allow_one_class: accept a sample in which all examples carry the same label.
        progress: show a progress bar; by default only on a terminal.
        task: name of the task, for the record.
        seed: seed that chose the sample, for the record.

    Returns:
        Scores per head, averaged over non-padding tokens, in float64 on the CPU.

    Raises:
        ArchitectureError: the family is not supported.
        ImportanceError: no batches, a batch without labels, one class only, a loss or score that is not finite.
    """
    if reduction not in get_args(Reduction):
        raise ImportanceError(f"Reduction {reduction!r} is unknown; use one of {', '.join(get_args(Reduction))}.")
    identity, kept, parameters = identify(model), kept_heads_of(model), dense_parameters(model)
    sites = find_sites(model)
    reference = next(model.parameters())
    totals = [torch.zeros(site.heads, dtype=torch.float64, device=reference.device) for site in sites]
    running = [torch.zeros_like(total) for total in totals]
    classes = int(getattr(cast(Any, base_of(model)).config, "num_labels", 2))
    examples, tokens, seen = 0, 0, set[float]()
    bar = tqdm(
        batches, desc="importance", unit="batch", leave=False, disable=None if progress is None else not progress
    )
    with torch.inference_mode(False), _frozen_in_eval_mode(model), torch.enable_grad():
        for number, raw in enumerate(bar):
            batch = _to_device(raw, reference.device, number, classes)
            labels = batch["labels"]
            gates = _make_gates(sites, reference, labels.shape[0], _length(batch) if reduction == "token" else None)
            gradients = _gate_gradients(model, batch, sites, gates, number)
            for total, past, gradient in zip(totals, running, gradients, strict=True):
                _accumulate(total, past, gradient, reduction)
            examples += labels.shape[0]
            tokens += _count_tokens(batch)
            seen.update(labels.unique().tolist() if labels.dim() == 1 else (0.0, 1.0))
    if examples == 0:
        raise ImportanceError("No batches were given: an empty sample, or an iterator that was used up before.")
    if tokens == 0:
        raise ImportanceError("The batches hold padding only: their attention_mask is all zeros.")
    if len(seen) < 2 and not allow_one_class:
        raise ImportanceError(
            f"All {examples} examples carry the label {next(iter(seen)):g}: what tells classes apart cannot be "
            "measured on one of them. Sample from all classes, or pass allow_one_class=True."
        )
    return ImportanceScores(
        heads=tuple((total / tokens).cpu() for total in totals),
        kept_heads=kept,
        model=identity,
        dense_parameters=parameters,
        scorer="gradient",
        reduction=reduction,
        examples=examples,
        tokens=tokens,
        task=task,
        seed=seed,
        versions=versions(),
    )


def kept_heads_of(model: nn.Module) -> tuple[tuple[int, ...], ...]:
    """For every block, the heads that `model` still has, by their number in the dense model."""
    state = pruned_state(model)
    return state.kept_heads if state is not None else tuple(tuple(range(site.heads)) for site in find_sites(model))


@contextmanager
def _frozen_in_eval_mode(model: nn.Module) -> Generator[None]:
    config = cast(Any, base_of(model)).config
    # Transformers writes down which loss it chose, as a side effect of computing it.
    problem = getattr(config, "problem_type", None)
    frozen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    training = [module for module in model.modules() if module.training]
    try:
        for parameter in frozen:
            parameter.requires_grad_(False)
        model.eval()
        yield
    finally:
        config.problem_type = problem
        for parameter in frozen:
            parameter.requires_grad_(True)
        for module in training:
            # Not `train()`, which would set children too that were in eval mode on their own.
            module.training = True


def _to_device(raw: object, device: torch.device, number: int, classes: int) -> dict[str, Tensor]:
    if not isinstance(raw, Mapping):
        raise ImportanceError(f"Batch {number} is a {type(raw).__name__}; a mapping of tensors is needed.")
    batch = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in raw.items()}
    labels = batch.get("labels")
    if labels is None:
        raise ImportanceError(
            f"Batch {number} has no 'labels' (it has {', '.join(batch)}); importance is the gradient of the loss, so "
            "every batch needs them."
        )
    if labels.dim() not in (1, 2) or (labels.dim() == 2 and not labels.is_floating_point()):
        raise ImportanceError(
            f"Batch {number} has labels of shape {tuple(labels.shape)} and type {labels.dtype}; one label per example "
            "is supported, or a row of floats per example for multi-label tasks."
        )
    if labels.shape[0] == 0:
        raise ImportanceError(f"Batch {number} is empty.")
    if not labels.is_floating_point():
        batch["labels"] = labels.long()
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= classes:
            wrong = low if low < 0 else high
            raise ImportanceError(
                f"Batch {number} has the label {wrong}, but the model has the classes 0-{classes - 1}."
            )
    return batch


def _make_gates(sites: tuple[Site, ...], reference: Tensor, batch: int, length: int | None) -> list[Tensor]:
    # Half-precision gates would round their gradients; the hook casts them to the activations' type.
    dtype = torch.float64 if reference.dtype == torch.float64 else torch.float32
    rows = (batch,) if length is None else (batch, length)
    return [torch.ones((*rows, site.heads), dtype=dtype, device=reference.device, requires_grad=True) for site in sites]


def _gate_gradients(
    model: nn.Module, batch: dict[str, Tensor], sites: tuple[Site, ...], gates: list[Tensor], number: int
) -> list[Tensor]:
    """dL(x)/dgate for every example x of the batch, in float64: shapes as `gates`; zero for blocks without heads."""
    with gated_sites(sites, gates):
        loss = model(**batch).loss
    if loss is None or not bool(torch.isfinite(loss)):
        raise ImportanceError(
            f"The loss of batch {number} is {'missing' if loss is None else loss.item()}. Look for NaN in the weights "
            "or inputs, labels outside the model's classes, or overflow (score in float32 or bfloat16, not float16)."
        )
    # Transformers' losses are means over the batch; times its size, each example counts as if it came alone.
    wanted = [gate for gate in gates if gate.shape[-1]]
    found = iter(torch.autograd.grad(loss * batch["labels"].shape[0], wanted) if wanted else ())
    return [next(found).double() if gate.shape[-1] else gate.detach().double() for gate in gates]


def _accumulate(total: Tensor, running: Tensor, gradient: Tensor, reduction: Reduction) -> None:
    """Add one batch to `total`. `gradient` is (batch, heads), or (batch, tokens, heads) for "token"."""
    if reduction in ("example", "token"):
        total += gradient.abs().flatten(0, -2).sum(0)
        return
    of_batch = gradient.mean(0)
    if reduction == "batch":
        total += of_batch.abs()
    else:
        running += of_batch
        total += running.abs()


def _length(batch: Mapping[str, Tensor]) -> int:
    ids = batch["input_ids"] if "input_ids" in batch else batch["inputs_embeds"]
    return ids.shape[1]


def _count_tokens(batch: Mapping[str, Tensor]) -> int:
    mask = batch.get("attention_mask")
    if mask is not None:
        return int(mask.sum())
    return batch["labels"].shape[0] * _length(batch)
