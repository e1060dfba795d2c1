"""What every gradient score is made of: a frozen model, its loss on a batch, and the gates' gradients."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from pruning_adapter.architectures.limits import Limits
from pruning_adapter.architectures.sites import Site, base_of
from pruning_adapter.errors import ImportanceError
from pruning_adapter.importance.faults import IGNORED, find_fault
from pruning_adapter.importance.gates import Gate, gated_sites
from pruning_adapter.processes import is_spread

__all__ = ["check_seen", "count_tokens", "frozen_in_eval_mode", "gate_gradients", "labels_seen", "loss_of", "to_device"]


@contextmanager
def frozen_in_eval_mode(model: nn.Module) -> Generator[None]:
    """No weight requires a gradient and nothing drops out, while the context lasts."""
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


def to_device(raw: object, device: torch.device, number: int, limits: Limits) -> dict[str, Tensor]:
    """A batch on `device`, once it is known that the model can read it.

    Raises:
        ImportanceError: no mapping, no labels, or what the model cannot read or learn from; see `find_fault`.
    """
    if not isinstance(raw, Mapping):
        raise ImportanceError(f"Batch {number} is a {type(raw).__name__}; a mapping of tensors is needed.")
    batch = cast("dict[str, Tensor]", dict(raw))
    labels = batch.get("labels", batch.get("start_positions"))
    if labels is None:
        raise ImportanceError(
            f"Batch {number} has no 'labels' (it has {', '.join(batch)}); importance is the gradient of the loss, so "
            "every batch needs them."
        )
    if labels.dim() not in (1, 2):
        raise ImportanceError(
            f"Batch {number} has labels of shape {tuple(labels.shape)} and type {labels.dtype}; one label per example, "
            "one per token, or a row of floats per example for multi-label tasks is supported."
        )
    if labels.shape[0] == 0:
        raise ImportanceError(f"Batch {number} is empty.")
    fault = find_fault(batch, number, limits)
    if fault is not None:
        raise ImportanceError(fault)
    if "labels" in batch and not labels.is_floating_point():
        batch["labels"] = labels.long()
    return {
        name: value.to(device) if isinstance(cast(object, value), Tensor) else value for name, value in batch.items()
    }


def loss_of(
    model: nn.Module, batch: Mapping[str, Tensor], sites: Sequence[Site], gates: list[Gate], number: int
) -> Any:
    """What `model` gives for a batch while gates of ones stand at `sites`.

    Raises:
        ImportanceError: its loss is missing or not finite.
    """
    with gated_sites(sites, gates):
        outputs = model(**batch)
    loss = outputs.loss
    if loss is None or not bool(torch.isfinite(loss)):
        raise ImportanceError(
            f"The loss of batch {number} is {'missing' if loss is None else loss.item()}"
            f"{'' if loss is None else _whose(model, batch)}. Look for NaN in the weights or inputs, or overflow "
            "(score in float32 or bfloat16, not float16)."
        )
    return outputs


@torch.no_grad()
def _whose(model: nn.Module, batch: Mapping[str, Any]) -> str:
    """By which examples, as the end of a sentence: each is run by itself."""
    if is_spread(model):
        return ""
    rows, guilty = len(batch["labels"] if "labels" in batch else batch["start_positions"]), list[str]()
    for row in range(rows):
        one = {
            name: value[row : row + 1] if isinstance(value, Tensor) and value.shape[:1] == (rows,) else value
            for name, value in batch.items()
        }
        # The mean over no label is no number either.
        nothing = "labels" in one and bool((one["labels"] == IGNORED).all())
        if not nothing and not bool(torch.isfinite(model(**one).loss)):
            guilty.append(str(row))
    if len(guilty) in (0, rows):
        return f", for all of its {rows} examples"
    return f", by its example{'s' if len(guilty) > 1 else ''} {', '.join(guilty)} (counted from 0)"


def gate_gradients(loss: Tensor, gates: Sequence[Gate], factors: Tensor) -> list[Tensor]:
    """dL(x)/dgate for every example x of the batch, in float64: `(batch, units)` or `(batch, tokens, units)`.

    Zero for sites without units, and for those that the batch does not reach.

    Args:
        loss: the batch's mean loss.
        gates: what stood in its way.
        factors: `(batch,)`, from the batch's loss to each example's own; see `LossShares`.
    """
    reached = [gate.value for gate in gates if gate.value is not None]
    found = iter(torch.autograd.grad(loss, reached, allow_unused=True) if reached else ())
    gradients: list[Tensor] = []
    for gate in gates:
        gradient = None if gate.value is None else next(found)
        if gradient is None:
            gradients.append(torch.zeros(gate.batch, gate.units, dtype=torch.float64, device=loss.device))
        else:
            shape = (-1, *(1 for _ in gradient.shape[1:]))
            gradients.append(gradient.double() * factors.to(gradient.device).view(shape))
    return gradients


def count_tokens(batch: Mapping[str, Tensor], size: int, positions: int) -> int:
    """Tokens that are not padding; image patches and frames of sound where there are no tokens."""
    mask = batch.get("attention_mask")
    if mask is not None and mask.dim() == 2:
        return int(mask.sum())
    ids = batch.get("input_ids", batch.get("inputs_embeds"))
    return size * (ids.shape[1] if ids is not None else positions)


def labels_seen(batch: Mapping[str, Tensor]) -> set[float]:
    """The classes in a batch; two made-up ones where one class alone could not be a mistake."""
    labels = batch.get("labels")
    plain = labels is not None and labels.dim() == 1 and not labels.is_floating_point()
    return set(labels.unique().tolist()) if plain and labels is not None else {0.0, 1.0}


def check_seen(examples: int, tokens: int, seen: set[float], *, allow_one_class: bool) -> None:
    """Refuse a sample that tells nothing.

    Raises:
        ImportanceError: no examples, padding only, or one class only.
    """
    if examples == 0:
        raise ImportanceError("No batches were given: an empty sample, or an iterator that was used up before.")
    if tokens == 0:
        raise ImportanceError("The batches hold padding only: their attention_mask is all zeros.")
    if len(seen) < 2 and not allow_one_class:
        raise ImportanceError(
            f"All {examples} examples carry the label {next(iter(seen)):g}: what tells classes apart cannot be "
            "measured on one of them. Sample from all classes, or pass allow_one_class=True."
        )
