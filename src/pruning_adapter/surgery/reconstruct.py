"""Pruning with a closed-form correction: what stays learns, by least squares, to stand in for what goes.

The output of a sub-layer is linear in its units, so the best weights for the kept ones are the solution of a linear
system. Per output (or down) projection, with inputs X_K of the kept units, dense output Y = X W^T + b, and dense
weights W_K of the kept units:

    minimise over W', b':   mean |X_K W'^T + b' - Y|^2  +  lambda |W' - W_K|^2

Least squares for pruned channels: He, Zhang and Sun 2017 (arXiv:1707.06168), who take X_K from the pruned network and
Y from the dense one (here inputs="pruned"). The bias alone: An et al. 2023 (FLAP, arXiv:2312.11983).
"""

import copy
import math
import warnings
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, cast, get_args

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from pruning_adapter.architectures.identity import PrunedState, pruned_state
from pruning_adapter.architectures.limits import limits_of
from pruning_adapter.architectures.sites import Site, features, find_all_sites, stores_inputs_first
from pruning_adapter.architectures.spec import AttentionSpec
from pruning_adapter.architectures.unit_index import columns_of_units
from pruning_adapter.errors import DataError, PlanError
from pruning_adapter.importance.faults import IGNORED, find_fault
from pruning_adapter.planning.pruning_plan import PruningPlan
from pruning_adapter.processes import all_or_none, is_first
from pruning_adapter.processes import alone as without_others
from pruning_adapter.surgery.covariance import Moments
from pruning_adapter.surgery.prune import check_can_be_cut, check_plan_fits, cut_, note_in_config, prune_

__all__ = ["Inputs", "reconstruct_"]

Inputs = Literal["dense", "pruned"]
Model = TypeVar("Model", bound=nn.Module)
_Batches = Sequence[Mapping[str, Tensor]]
_Step = TypeVar("_Step")

_AT_ONCE = 2**30
"""Bytes of sums that are held at once where several projections can be fitted in one pass; one always is."""
_STRONG_RIDGE = 0.1
"""For a covariance of fewer tokens than inputs: it says nothing about most directions."""


def reconstruct_(
    model: Model,
    plan: PruningPlan,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    ridge: float = 1e-2,
    inputs: Inputs = "dense",
    allow_other_weights: bool = False,
    alone: bool = False,
    progress: bool | None = None,
) -> Model:
    """Prune as `prune_` does, and correct what stays for what is gone, in place. The model is returned.

    `plan.reconstruct` says what is corrected, at every attention and feed-forward that loses units; those that lose
    none keep their very bits. No labels and no gradients are needed.

    * "none": nothing; the batches are not read.
    * "bias": the bias of the output (or down) projection takes up the mean of what is lost.
    * "lstsq": its weights too, as the formula above says; where it has no bias, its weights alone. On the calibration
      examples no sub-layer is then further from its dense output than after plain pruning (up to rounding to the
      model's type).

    A sub-layer that loses all its units keeps a bias, if it has one: its mean dense output. Of a model that was pruned
    before, "dense" means as it is now.

    The sums that the least squares need are in float64 and about as large as a projection. The model is run over the
    batches again and again, up to the projections whose turn it is, so that only a few projections' sums are held at
    once. New weights are kept aside until all are known; up to then an error leaves the model as it was.

    Where `torch.distributed` has several processes, all of them call, each with a copy of the model and batches of its
    own, and all get the weights that all batches together give.

    Args:
        model: the model the plan was made for, dense or already pruned; not wrapped by PEFT; on any device, in any
            floating type.
        plan: see `plan_pruning`, which takes `reconstruct`.
        batches: model inputs as a DataLoader yields them, unlabelled ones too. They are read once and held in memory,
            so a generator will do. Padding, told by `attention_mask`, does not count; in a decoder that reads an
            encoder, `decoder_attention_mask` tells it, or else labels of -100.
        ridge: lambda, as a multiple of the mean variance of the inputs X_K: how hard the weights hold on to what they
            were. It is raised, with a warning, where there are fewer tokens than inputs.
        inputs: where X_K is measured:

            * "dense": in the dense model. Several projections share a pass over the batches.
            * "pruned": in the model as pruned and corrected so far, in the order of execution, so that a sub-layer
              corrects for what the earlier ones still lack. One projection a pass, and a second copy of the model.

        allow_other_weights: accept a model of the same sizes with other weights, such as a fine-tuned one.
        alone: take no notice of other processes, so that one of them may call without the rest.
        progress: show a progress bar; by default only on a terminal, and of several processes in the first.

    Raises:
        ProcessError: another process failed.
        PlanError: the plan does not fit, see `prune_`; "bias" where a projection has none; an impossible ridge.
        DataError: no batches, inputs that do not reach some sub-layer, or an example of padding only, with tokens or a
            length that the model does not know, or with numbers that are not finite.
        ArchitectureError: see `prune_`.
    """
    if inputs not in get_args(Inputs):
        raise PlanError(f"inputs is {inputs!r}; use one of {', '.join(get_args(Inputs))}.")
    if not 0 <= ridge < math.inf:
        raise PlanError(f"ridge is {ridge}; it must be 0 or a positive number.")
    if plan.reconstruct == "none":
        return prune_(model, plan, allow_other_weights=allow_other_weights)
    check_can_be_cut(model)
    check_plan_fits(model, plan, allow_other_weights=allow_other_weights)
    losses = _find_losses(model, plan)
    if plan.reconstruct == "bias":
        _check_biases(losses)
    with _in_eval_mode(model), torch.no_grad(), without_others(alone), all_or_none():
        held = _hold(batches, model)
        losses = _in_order_of_execution(model, losses, held[0])
        fits = [_Fit(loss, only_bias=plan.reconstruct == "bias") for loss in losses]
        if inputs == "dense":
            found = _fit_to_dense(model, fits, held, ridge, progress)
        else:
            found = _fit_in_turn(model, cut_(copy.deepcopy(model), plan), fits, held, ridge, progress)
    cut_(model, plan)
    for correction in found:
        _write_(correction.loss.site, correction)
    state = cast(PrunedState, pruned_state(model))
    note_in_config(model, state.dense, state.kept, macs=plan.macs, reconstructed=plan.reconstruct)
    _warn_of_little_data(found, ridge)
    return model


@dataclass(frozen=True, kw_only=True)
class _Loss:
    """A site that loses units. Columns are those of its output projection as it is before the loss."""

    number: int
    """Its number among all sites of the model."""
    site: Site
    stays: tuple[int, ...]
    """Columns that stay."""
    goes: tuple[int, ...]
    """Columns that go."""
    reads_encoder: bool
    """Whether its tokens are those of the decoder of an encoder-decoder."""
    calls: int = 1
    """How often one forward comes by: more than once where blocks are shared."""


@dataclass(frozen=True, kw_only=True)
class _Correction:
    """New parameters of an output projection, in the model's type; None stays as it is."""

    loss: _Loss
    weight: Tensor | None
    """`(outputs, columns that stay)`."""
    bias: Tensor | None
    """`(outputs,)`."""
    tokens: int
    ridge: float


def _find_losses(model: nn.Module, plan: PruningPlan) -> list[_Loss]:
    state, sites = pruned_state(model), find_all_sites(model)
    left = state.kept if state is not None else tuple(tuple(range(site.units)) for site in sites)
    two_stacks = bool(getattr(cast(Any, model).config, "is_encoder_decoder", False))
    decoders = {site.path for site in sites if isinstance(site.spec, AttentionSpec) and site.spec.cross}
    losses: list[_Loss] = []
    for number, (site, there, keep) in enumerate(zip(sites, left, plan.kept, strict=True)):
        wanted = set(keep)
        stays = [place for place, unit in enumerate(there) if unit in wanted]
        goes = [place for place, unit in enumerate(there) if unit not in wanted]
        if goes:
            losses.append(
                _Loss(
                    number=number,
                    site=site,
                    stays=tuple(columns_of_units(stays, site.unit_size)),
                    goes=tuple(columns_of_units(goes, site.unit_size)),
                    reads_encoder=two_stacks and site.path in decoders,
                )
            )
    return losses


def check_can_be_corrected(model: nn.Module, plan: PruningPlan) -> None:
    """Make sure that what the plan prunes can be corrected as it says.

    Raises:
        PlanError: the plan does not fit, or asks for "bias" where a projection has none.
    """
    if plan.reconstruct == "bias":
        _check_biases(_find_losses(model, plan))


def _check_biases(losses: Sequence[_Loss]) -> None:
    without = [loss.site.name for loss in losses if _bias(loss.site) is None]
    if without:
        raise PlanError(
            f'The plan asks for reconstruct="bias", but {len(without)} of the {len(losses)} projections to correct '
            f'have no bias, the first is {without[0]!r}. Use reconstruct="lstsq", which needs none.'
        )


def _hold(batches: Iterable[Mapping[str, Tensor]], model: nn.Module) -> list[Mapping[str, Tensor]]:
    held, limits = cast("list[Any]", list(batches)), limits_of(model)
    for number, batch in enumerate(held):
        if not isinstance(batch, Mapping):
            raise DataError(f"Batch {number} is a {type(batch).__name__}; a mapping of tensors is needed.")
        fault = find_fault(_given_to(model, cast("Mapping[str, Tensor]", batch)), number, limits)
        if fault is not None:
            raise DataError(fault)
    if not held:
        raise DataError("No batches were given: an empty sample, or an iterator that was used up before.")
    return held


@contextmanager
def _in_eval_mode(model: nn.Module) -> Generator[None]:
    config = cast(Any, model).config
    # Transformers writes down which loss it chose, as a side effect of computing it.
    problem = getattr(config, "problem_type", None)
    training = [module for module in model.modules() if module.training]
    try:
        model.eval()
        yield
    finally:
        config.problem_type = problem
        for module in training:
            # Not `train()`, which would set children too that were in eval mode on their own.
            module.training = True


def _in_order_of_execution(model: nn.Module, losses: Sequence[_Loss], batch: Mapping[str, Tensor]) -> list[_Loss]:
    """The losses in the order in which one forward meets them, with the number of times it does."""
    calls: dict[int, int] = {}

    def count(number: int) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            calls[number] = calls.get(number, 0) + 1

        return hook

    handles = [loss.site.output.register_forward_pre_hook(count(loss.number)) for loss in losses]
    try:
        model(**_to_device(model, batch))
    finally:
        for handle in handles:
            handle.remove()
    by_number = {loss.number: loss for loss in losses}
    unseen = [by_number[number].site.name for number in by_number if number not in calls]
    if unseen:
        raise DataError(
            f"The batches do not reach {len(unseen)} of the {len(losses)} projections to correct, the first is "
            f"{unseen[0]!r}. Give batches that pass through the whole model."
        )
    return [replace(by_number[number], calls=count) for number, count in calls.items()]


class _Fit:
    """The least squares of one projection."""

    def __init__(self, loss: _Loss, *, only_bias: bool) -> None:
        """Args:
        loss: what it loses.
        only_bias: leave its weights.
        """
        output = loss.site.module(loss.site.spec.output)
        self.loss = loss
        self.weight, self.bias = _by_rows(output), _bias(loss.site)
        self.stays, self.goes = (
            torch.tensor(columns, dtype=torch.long, device=self.weight.device) for columns in (loss.stays, loss.goes)
        )
        self.columns = 0 if only_bias else len(loss.stays)
        self.bytes = 8 * (self.columns + 1) * (self.columns + 1 + features(output)[1])
        self._moments: Moments | None = None

    def add(self, whole: Sequence[Tensor], parts: Sequence[Tensor] | None = None) -> None:
        """Add a batch.

        Args:
            whole: what the dense projection reads, `(tokens, columns)` a call.
            parts: what the pruned one reads, `(tokens, columns that stay)` a call; None: the same, as far as it stays.
        """
        if self._moments is None:
            self._moments = Moments(self.columns, len(self.weight), self.weight.device)
        for number, tokens in enumerate(whole):
            staying = tokens[:, self.stays]
            lacking = tokens[:, self.goes].double() @ self.weight[:, self.goes].double().T
            part = staying
            if parts is not None:
                part = parts[number]
                lacking += (staying.double() - part.double()) @ self.weight[:, self.stays].double().T
            self._moments.add(part[:, : self.columns], lacking)

    def solve(self, ridge: float) -> _Correction:
        """The solution. The sums are gone after it."""
        moments, self._moments = cast(Moments, self._moments), None
        moments.add_up_()
        if not moments.tokens:
            raise DataError("The batches hold padding only: no token counts.")
        if not moments.are_finite():
            raise DataError(
                f"What reaches {self.loss.site.name!r} is not finite. Look for NaN in the weights or inputs, or "
                "overflow (use float32 or bfloat16, not float16)."
            )
        few = 0 < self.columns >= moments.tokens
        change = moments.solve(max(ridge, _STRONG_RIDGE) if few else ridge, bias=self.bias is not None)
        weight, bias = self.weight, self.bias
        return _Correction(
            loss=self.loss,
            weight=(weight[:, self.stays].double() + change.weight).to(weight.dtype) if self.columns else None,
            bias=None if bias is None or change.bias is None else (bias.double() + change.bias).to(bias.dtype),
            tokens=moments.tokens,
            ridge=change.ridge,
        )


def _fit_to_dense(
    model: nn.Module, fits: Sequence[_Fit], batches: _Batches, ridge: float, progress: bool | None
) -> list[_Correction]:
    """As many projections in one pass as fit into memory: none depends on another."""
    passes: list[list[_Fit]] = []
    used = math.inf
    for fit in fits:
        if used + fit.bytes > _AT_ONCE:
            passes.append([])
            used = 0
        passes[-1].append(fit)
        used += fit.bytes
    found: list[_Correction] = []
    for together in _bar(passes, progress):
        for batch in batches:
            seen = _inputs_at(model, [(fit.loss, fit.loss.site) for fit in together], batch)
            for fit, whole in zip(together, seen, strict=True):
                fit.add(whole)
        found += [fit.solve(ridge) for fit in together]
    return found


def _fit_in_turn(
    model: nn.Module, pruned: nn.Module, fits: Sequence[_Fit], batches: _Batches, ridge: float, progress: bool | None
) -> list[_Correction]:
    """One projection after the other, in the order of execution; `pruned` is corrected on the way."""
    twins, found = find_all_sites(pruned), list[_Correction]()
    for fit in _bar(fits, progress):
        loss, twin = fit.loss, twins[fit.loss.number]
        for batch in batches:
            (whole,) = _inputs_at(model, [(loss, loss.site)], batch)
            # Without units there is nothing to read in the pruned model.
            fit.add(whole, _inputs_at(pruned, [(loss, twin)], batch)[0] if loss.stays else None)
        found.append(fit.solve(ridge))
        _write_(twin, found[-1])
    return found


def _bar(steps: Sequence[_Step], progress: bool | None) -> Iterable[_Step]:
    disable = None if progress is None and is_first() else not progress
    return tqdm(steps, desc="reconstruct", unit="pass", leave=False, disable=disable)


class _ReachedError(Exception):
    """Ends a forward that has come as far as is needed."""


def _inputs_at(
    model: nn.Module, sites: Sequence[tuple[_Loss, Site]], batch: Mapping[str, Tensor]
) -> list[list[Tensor]]:
    """What the output projections of some sites read, `(tokens that count, columns)` each time that one is called."""
    found: list[list[Tensor]] = [[] for _ in sites]
    calls = sum(loss.calls for loss, _ in sites)

    def listen(loss: _Loss, into: list[Tensor]) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            context = cast(Tensor, inputs[0]).flatten(0, -2)
            counts = _counts(batch, len(context), loss.reads_encoder)
            into.append(context if counts is None else context[counts.to(context.device)])
            if sum(len(seen) for seen in found) == calls:
                raise _ReachedError

        return hook

    handles = [
        site.output.register_forward_pre_hook(listen(loss, into))
        for (loss, site), into in zip(sites, found, strict=True)
    ]
    try:
        with suppress(_ReachedError):
            model(**_to_device(model, batch))
    finally:
        for handle in handles:
            handle.remove()
    return found


def _counts(batch: Mapping[str, Tensor], rows: int, reads_encoder: bool) -> Tensor | None:
    """Which of the rows of an activation, batch and tokens in one, count: `(rows,)`; None if all do.

    What has another number of elements speaks of other positions (sound frames before a convolution, a decoder's
    tokens), or the model has left the padding out itself.
    """
    candidates = [batch.get("attention_mask")]
    if reads_encoder:
        labels = batch.get("labels")
        candidates = [
            batch.get("decoder_attention_mask"),
            None if labels is None or labels.is_floating_point() else labels != IGNORED,
        ]
        # The decoder then reads the encoder's tokens, too (BART's classification).
        candidates += [] if "decoder_input_ids" in batch else [batch.get("attention_mask")]
    for mask in candidates:
        if mask is not None and mask.numel() == rows:
            return mask.reshape(-1).bool()
    return None


def _to_device(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Any]:
    """What of the batch is given to the model, where it is."""
    device = next(model.parameters()).device
    return {
        name: value.to(device) if isinstance(cast(object, value), Tensor) else value
        for name, value in _given_to(model, batch).items()
    }


def _given_to(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Labels go only where a decoder's inputs are made of them: no loss is needed."""
    with_labels = bool(getattr(cast(Any, model).config, "is_encoder_decoder", False))
    return {name: value for name, value in batch.items() if with_labels or name != "labels"}


def _bias(site: Site) -> Tensor | None:
    return getattr(site.module(site.spec.output), "bias", None)


def _by_rows(linear: nn.Module) -> Tensor:
    """The weight as `(outputs, inputs)`, whichever way it is stored."""
    weight = cast(Tensor, linear.weight).detach()
    return weight.T if stores_inputs_first(linear) else weight


@torch.no_grad()
def _write_(site: Site, correction: _Correction) -> None:
    output = site.module(site.spec.output)
    if correction.weight is not None:
        _by_rows(output).copy_(correction.weight)
    if correction.bias is not None:
        cast(Tensor, output.bias).copy_(correction.bias)


def _warn_of_little_data(found: Sequence[_Correction], ridge: float) -> None:
    raised = [correction for correction in found if correction.ridge > ridge]
    if not raised:
        return
    worst = max(raised, key=lambda correction: correction.ridge)
    warnings.warn(
        f"The calibration examples do not determine {len(raised)} of the {len(found)} corrections, such as "
        f"{worst.loss.site.name!r} with {len(worst.loss.stays):,} inputs, of which there were {worst.tokens:,} tokens: "
        f"they were found with ridges up to {worst.ridge:g} in place of {ridge:g}. Give more examples.",
        stacklevel=3,
    )
