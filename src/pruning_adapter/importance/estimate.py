"""The paper's importance: the gradient of the loss with respect to a gate on every unit.

    I_h = E_x |dL(x) / d(xi_h)|        (Michel et al. 2019, arXiv:1905.10650; arXiv:2303.14704)

One gate per example in the batch gives |dL(x)/d(xi)| for every x exactly, at batch speed: examples do not interact, so
the gradient of the summed loss with respect to example x's own gates is that of x alone. All weights stay frozen, so
autograd keeps only what the gates need and no weight gradient is ever allocated.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from pruning_adapter.architectures.identity import dense_parameters, identify, pruned_state
from pruning_adapter.architectures.limits import limits_of
from pruning_adapter.architectures.sites import find_feed_forwards, find_sites
from pruning_adapter.architectures.spec import Kind
from pruning_adapter.costs.macs import ModelMacs, count_model_macs
from pruning_adapter.environment import versions
from pruning_adapter.errors import CostError, ImportanceError
from pruning_adapter.importance.backward import (
    count_tokens,
    frozen_in_eval_mode,
    gate_gradients,
    labels_seen,
    loss_of,
    to_device,
)
from pruning_adapter.importance.gates import Gate
from pruning_adapter.importance.loss import LossShares, batch_size
from pruning_adapter.importance.scores import ImportanceScores
from pruning_adapter.importance.stability import rank_agreement
from pruning_adapter.importance.tally import Tally
from pruning_adapter.processes import all_or_none, in_step, is_first, is_spread, process_count
from pruning_adapter.processes import alone as without_others

__all__ = ["BY_EXAMPLE", "Order", "Reduction", "check_units", "kept_units_of", "macs_of", "measure_importance"]

Reduction = Literal["example", "batch", "token", "bertology"]
Order = Literal["first", "second"]
BY_EXAMPLE: tuple[Reduction, ...] = ("example", "token")
"""Reductions that keep the examples of a batch apart."""
FEWEST_EXAMPLES = 32
"""Before `stop_when_stable` may stop: two halves of a handful agree by chance."""


def measure_importance(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    units: Sequence[Kind] = ("heads",),
    order: Order = "first",
    reduction: Reduction = "example",
    stop_when_stable: float | None = None,
    allow_one_class: bool = False,
    alone: bool = False,
    progress: bool | None = None,
    task: str | None = None,
    seed: int | None = None,
) -> ImportanceScores:
    """Measure how much each head, and each neuron, matters for the task that the labelled batches come from.

    The model is left exactly as it was found (hooks, requires_grad, train/eval mode, gradients), also after an error.
    It is run in eval mode: dropout would make the scores depend on the order of the examples. Gradients are accumulated
    batch by batch, so memory does not grow with the sample.

    Where `torch.distributed` has several processes, all of them call, each with batches of its own, and get the scores
    of all batches together: sums over examples are added up, so shares need not be even, and the same batches given to
    all change no score. The model may be a copy in each process, or spread over them (FSDP2).

    Args:
        model: a supported Transformers model that computes a loss from `labels`; on any device, in any floating type.
        batches: any iterable of mappings of tensors, as a DataLoader yields: model inputs with `labels` as Transformers
            takes them: one a row for classification, one a token for token classification, causal and
            sequence-to-sequence language models (-100 does not count), start and end positions for question answering.
            Padding is told by `attention_mask`. Sorted by length (see `LengthSortedBatches`) they cost least.
        units: what to score: "heads", "neurons", or both in one pass.
        order: "first": the absolute gradient, which estimates the change of the loss when the unit goes. "second": its
            square, the diagonal of the empirical Fisher information (Kwon et al. 2022, arXiv:2204.09656).
        reduction: what the absolute value (or square) is taken of, before the sum over the sample is divided by its
            tokens:

            * "example": each example's gradient, as the paper's formula and Michel et al. say. Independent of batch
              size and padding.
            * "token": each token's part of it, as Michel et al.'s released code does.
            * "batch": the gradient of each batch's mean loss, with one gate for all its examples.
            * "bertology": the running sum of such gradients, as computed by the public BERTology script, which never
              sets the mask's gradient back to zero.

        stop_when_stable: stop as soon as the rankings of two halves of the examples seen so far agree this well
            (Spearman's correlation, 0 to 1; see `rank_agreement`). The batches should come in random order. None: use
            them all.
        allow_one_class: accept a sample in which all examples carry the same label.
        alone: take no notice of other processes, so that one of them may call without the rest.
        progress: show a progress bar; by default only on a terminal, and of several processes in the first.
        task: name of the task, for the record.
        seed: seed that chose the sample, for the record.

    Returns:
        Scores per unit, averaged over non-padding tokens, in float64 on the CPU. `agreement` tells how well two halves
        of the examples agree (of several processes, halves of what each of them saw), `examples` how many there were.

    Raises:
        ArchitectureError: the family is not supported.
        ImportanceError: no batches, a batch without labels, one class only; an example of padding only, with tokens,
            labels or a length that the model does not know, or with a number that is not finite; a loss or score that
            is not finite; the reduction "bertology" in several processes, because it depends on the order of the
            batches.
        ProcessError: another process failed.
    """
    if reduction not in get_args(Reduction):
        raise ImportanceError(f"Reduction {reduction!r} is unknown; use one of {', '.join(get_args(Reduction))}.")
    if order not in get_args(Order):
        raise ImportanceError(f"Order {order!r} is unknown; use one of {', '.join(get_args(Order))}.")
    check_units(units)
    if stop_when_stable is not None and not (0 < stop_when_stable <= 1 and reduction in BY_EXAMPLE):
        raise ImportanceError(
            f"stop_when_stable is {stop_when_stable}, with reduction {reduction!r}; it must be in (0, 1], and only the "
            f"reductions {' and '.join(BY_EXAMPLE)} tell one example from another."
        )
    if reduction == "bertology" and process_count() > 1 and not alone:
        raise ImportanceError(
            'The reduction "bertology" is a running sum over batches in one order, which several processes do not '
            "have; use another one, or alone=True in one process."
        )
    identity, parameters, macs = identify(model), dense_parameters(model), macs_of(model)
    kept_heads, kept_neurons = kept_units_of(model)
    heads = find_sites(model) if "heads" in units else ()
    neurons = find_feed_forwards(model) if "neurons" in units else ()
    sites = (*heads, *neurons)
    reference = next(model.parameters())
    own = Tally.of_sites([site.units for site in sites], reference.device)
    running = [torch.zeros_like(total) for total in own.halves[0]]
    limits = limits_of(model)
    shares = LossShares()
    # Half-precision gates would round their gradients; the hook casts them to the activations' type.
    dtype = torch.float64 if reference.dtype == torch.float64 else torch.float32
    with torch.inference_mode(False), frozen_in_eval_mode(model), torch.enable_grad(), without_others(alone):
        disable = None if progress is None and is_first() else not progress
        bar = tqdm(batches, desc="importance", unit="batch", leave=False, disable=disable)
        # All processes stop together, and a model that is spread over them runs in all or none.
        repeat = is_spread(model)
        needed = repeat or stop_when_stable is not None
        with all_or_none():
            for number, (raw, counts) in enumerate(in_step(bar, needed=needed, repeat=repeat)):
                if raw is not None:
                    batch = to_device(raw, reference.device, number, limits)
                    size = batch_size(batch)
                    gates = [
                        Gate(site.units, batch=size, per_token=reduction == "token", dtype=dtype) for site in sites
                    ]
                    outputs = loss_of(model, batch, sites, gates, number)
                    # They check the loss, too.
                    factors = shares.factors(batch, outputs, number)
                    if reduction not in BY_EXAMPLE:
                        factors = torch.ones_like(factors)
                    gradients = gate_gradients(outputs.loss, gates, factors)
                    if counts:
                        _add(own, running, gradients, reduction, order)
                        positions = max((gate.tokens for gate in gates), default=1)
                        own.count(size, count_tokens(batch, size, positions), labels_seen(batch))
                if stop_when_stable is not None:
                    known = own.of_all()
                    if known.examples >= FEWEST_EXAMPLES and (len(known.seen) > 1 or allow_one_class):
                        agreement = _agreement(known.halves, len(heads))
                        if agreement is not None and agreement >= stop_when_stable:
                            break
        found = own.of_all()
    found.check(allow_one_class=allow_one_class)
    scored = [((first + second) / found.tokens).cpu() for first, second in zip(*found.halves, strict=True)]
    return ImportanceScores(
        heads=tuple(scored[: len(heads)]),
        kept_heads=kept_heads,
        neurons=tuple(scored[len(heads) :]),
        kept_neurons=kept_neurons,
        model=identity,
        dense_parameters=parameters,
        macs=macs,
        scorer="gradient",
        reduction=reduction,
        order=order,
        examples=found.examples,
        agreement=_agreement(found.halves, len(heads)) if reduction in BY_EXAMPLE else None,
        tokens=found.tokens,
        task=task,
        seed=seed,
        versions=versions(),
    )


def check_units(units: Sequence[Kind]) -> None:
    """Refuse what cannot be scored.

    Raises:
        ImportanceError: no units, unknown ones, or some twice.
    """
    if not units or set(units) - set(get_args(Kind)) or len(set(units)) != len(units):
        raise ImportanceError(f"units is {list(units)!r}; name heads, neurons, or both, each once.")


def kept_units_of(model: nn.Module) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
    """For every attention the heads, and for every feed-forward the neurons, that `model` still has.

    They are numbered as in the dense model.
    """
    state = pruned_state(model)
    if state is not None:
        return state.kept_heads, state.kept_neurons
    heads, neurons = (
        tuple(tuple(range(site.units)) for site in sites) for sites in (find_sites(model), find_feed_forwards(model))
    )
    return heads, neurons


def macs_of(model: nn.Module) -> ModelMacs | None:
    """What the dense model behind `model` costs; None where that cannot be told in advance."""
    state = pruned_state(model)
    try:
        return count_model_macs(model) if state is None else ModelMacs.from_json(state.macs)
    except CostError:
        return None


def _add(
    own: Tally, running: Sequence[Tensor], gradients: Sequence[Tensor], reduction: Reduction, order: Order
) -> None:
    """Add what a batch says to the sums, in place; examples are counted after it."""
    for first, second, past, gradient in zip(*own.halves, running, gradients, strict=True):
        if reduction in BY_EXAMPLE:
            even, odd = (gradient[half::2] for half in (own.examples % 2, 1 - own.examples % 2))
            first += _sum_over_examples(even, order)
            second += _sum_over_examples(odd, order)
        else:
            first += _of_batch(past, gradient, reduction, order)


def _sum_over_examples(gradient: Tensor, order: Order) -> Tensor:
    """`(batch, units)` or `(batch, tokens, units)` → `(units,)`."""
    return _measure(gradient, order).flatten(0, -2).sum(0)


def _of_batch(running: Tensor, gradient: Tensor, reduction: Reduction, order: Order) -> Tensor:
    """`(batch, units)` → `(units,)`, of the mean loss; "bertology" adds it to those of earlier batches first."""
    of_batch = gradient.sum(0)
    if reduction == "bertology":
        running += of_batch
        of_batch = running
    return _measure(of_batch, order)


def _agreement(halves: Sequence[Sequence[Tensor]], heads: int) -> float | None:
    """Of heads or of neurons, whichever agree less: neurons are so many that they would hide the heads."""
    kinds = [[half[part] for half in halves] for part in (slice(heads), slice(heads, None))]
    known = [found for first, second in kinds if (found := rank_agreement(first, second)) is not None]
    return min(known, default=None)


def _measure(gradient: Tensor, order: Order) -> Tensor:
    return gradient.abs() if order == "first" else gradient.square()
