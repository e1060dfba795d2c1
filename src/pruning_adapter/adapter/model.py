"""`PruneLoraModel`: the tuner behind `PruneLoraConfig`. It prunes, then lets PEFT's LoRA do what it does."""

import copy
import re
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

import torch
from peft import LoraModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from pruning_adapter.adapter.config import PruneLoraConfig
from pruning_adapter.adapter.linear import QuickLinear, read_together_
from pruning_adapter.adapter.norms import remember_inputs_
from pruning_adapter.adapter.quantize import is_packed
from pruning_adapter.adapter.trained_only import refuse_what_does_not_train
from pruning_adapter.architectures.identity import PrunedState, identify, pruned_state
from pruning_adapter.architectures.sites import Site, base_of, find_all_sites, spec_of
from pruning_adapter.errors import AdapterError, PruningAdapterError
from pruning_adapter.planning.pruning_plan import PruningPlan
from pruning_adapter.planning.rank_plan import ROLES
from pruning_adapter.processes import is_spread
from pruning_adapter.surgery.prune import check_plan_fits, fingerprint_of_cut, prune_

__all__ = ["CUT", "PruneLoraModel", "already_fits", "full_match", "rank_patterns", "target_pattern"]

CUT = "cut"
"""In place of a fingerprint: of a base that is the dense one itself, cut by the plan."""
_FITS: ContextVar[nn.Module | None] = ContextVar("_FITS", default=None)


@contextmanager
def already_fits(model: nn.Module) -> Generator[None]:
    """While the context lasts, an adapter is attached to `model` unchecked: the caller pruned it by its plan.

    Looking at every weight again to recognise the model takes longer than all the rest.
    """
    token = _FITS.set(model)
    try:
        yield
    finally:
        _FITS.reset(token)


class PruneLoraModel(LoraModel):
    """A model that was pruned by a plan and carries LoRA of varied rank."""

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Prune, or check that the model is already pruned the same way, then inject. See PEFT's `BaseTuner`.

        Every road to a new adapter leads through here: `get_peft_model`, `PeftModel.from_pretrained`, `add_adapter` and
        `load_adapter`.

        Raises:
            AdapterError: the model is pruned otherwise, or was trained since it was pruned.
            PlanError: the plan was made for another model.
        """
        config = cast(PruneLoraConfig, self.peft_config[adapter_name])
        base = cast(nn.Module, self.model)
        # What is filled in below is of this base, and the caller may use the config for another.
        config = self.peft_config[adapter_name] = copy.copy(config)
        try:
            if _FITS.get() is not base:
                _ensure_pruned_(base, config)
        except Exception:
            # A refused adapter must not stay behind in the list of adapters.
            if len(self.peft_config) > 1:
                del self.peft_config[adapter_name]
            raise
        _fill_in(config, base)
        if is_spread(base) and config.modules_to_save:
            raise AdapterError(
                "The model's weights are spread over the processes (FSDP2), where PEFT cannot copy whole modules to "
                f"train ({', '.join(config.modules_to_save)}). Say train_norms=False, or attach the adapter before the "
                "weights are spread, as Accelerate does."
            )
        try:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        except (PruningAdapterError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # PEFT believes what a config says, and fails wherever it cannot be
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise AdapterError(f"PEFT cannot make an adapter of this config: {first}") from error
        for site in find_all_sites(base):
            if site.units:
                read_together_([site.block.get_submodule(part.path) for part in site.readers_of_one_input])
        if config.quick_linear:
            remember_inputs_(base)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: Any, adapter_name: str, state_dict: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """See PEFT's `BaseTuner`, which asks for the names of the weights in an adapter's file before it loads them.

        A state that somebody loads without PEFT, such as one of the whole model, is theirs.

        Raises:
            AdapterError: the file holds weights that are not the adapter's own.
        """
        state = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        refuse_what_does_not_train(model, adapter_name, config.bias, state)
        return state

    def _check_merge_allowed(self) -> None:
        """See PEFT's `BaseTuner`, which asks before every merge."""
        super()._check_merge_allowed()
        if is_packed(cast(nn.Module, self.model)):
            raise AdapterError(
                "The base was quantised, so a merge would round the adapter away with it. Save the adapter "
                "(save_pretrained), load it onto the base that is not quantised (PeftModel.from_pretrained), and merge "
                "it there."
            )

    @staticmethod
    def _create_new_module(lora_config: Any, adapter_name: str, target: nn.Module, **kwargs: Any) -> nn.Module:
        """See PEFT's `LoraModel`, which calls it for every module that gets LoRA."""
        kind = type(cast(Any, target).get_base_layer() if isinstance(target, BaseTunerLayer) else target)
        if not lora_config.quick_linear or kind not in (nn.Linear, Conv1D) or kwargs.get("parameter_name") is not None:
            return cast(nn.Module, cast(Any, LoraModel)._create_new_module(lora_config, adapter_name, target, **kwargs))
        # Where the weights lie is a fact, so nobody needs to say it.
        lora_config.fan_in_fan_out = kind is Conv1D
        return QuickLinear(target, adapter_name, config=lora_config, is_target_conv_1d_layer=kind is Conv1D, **kwargs)


def _ensure_pruned_(model: nn.Module, config: PruneLoraConfig) -> None:
    plan, state = config.pruning_plan, pruned_state(model)
    if state is not None and identify(model) == state.dense:
        if state.dense.same_sizes(plan.model) and state.kept != plan.kept:
            raise AdapterError(
                f"This model is already pruned otherwise ({_difference(state.kept, plan)}); attach the adapter "
                "to the dense base it names, or use adapters that share one plan."
            )
    elif state is not None and state.dense.same_weights(plan.model) and not config.allow_other_weights:
        raise AdapterError(
            "This model was pruned from the base that the plan names, but its weights were trained since (a merged "
            "model?), so the adapter would be added to the wrong weights. Attach it to the base it was trained on."
        )
    check_plan_fits(model, plan, allow_other_weights=config.allow_other_weights)
    if plan.reconstruct != "none":
        _check_reconstructed(config, state)
    elif not config.allow_other_weights:
        _check_base(config, model, state)
    base = identify(model)
    if state is None or state.kept != plan.kept:
        prune_(model, plan, allow_other_weights=config.allow_other_weights)
    if config.allow_other_weights:
        config.remember_base(base)


def _check_reconstructed(config: PruneLoraConfig, state: PrunedState | None) -> None:
    """The corrected weights are the base of such an adapter; they cannot be made again from the plan alone."""
    wanted = config.pruning_plan.reconstruct
    if state is None or state.reconstructed != wanted:
        raise AdapterError(
            f'The adapter\'s plan asks for reconstruct="{wanted}", which corrects weights on calibration examples. '
            "First make that base: reconstruct_(model, plan, batches); save it with save_pruned, and attach adapters "
            "to what load_pruned gives."
        )
    if config.base_fingerprint is None:
        config.base_fingerprint = state.fingerprint
    elif config.base_fingerprint != state.fingerprint:
        raise AdapterError(
            "This model was corrected on other calibration examples than the base that the adapter was trained on. "
            "Load that base, which save_pruned saved."
        )


def _check_base(config: PruneLoraConfig, model: nn.Module, state: PrunedState | None) -> None:
    """Two models may have been pruned alike from one, and one of them corrected, or its adapter taken out of it."""
    wanted = config.base_fingerprint
    if state is None and wanted in (None, CUT):
        config.base_fingerprint = CUT
        return
    if state is not None and wanted == CUT:
        fits = state.reconstructed == "none"
    elif state is not None and state.kept == config.pruning_plan.kept:
        config.base_fingerprint = there = wanted or state.fingerprint
        fits = there == state.fingerprint
    else:
        fits = wanted is None or wanted == fingerprint_of_cut(model, config.pruning_plan)
    if not fits:
        raise AdapterError(
            "The adapter belongs to other weights, which were pruned from this model's base too: a run's base/, or one "
            "that was corrected. Attach it to what it was trained on, as load_pruned loads it."
        )


def _fill_in(config: PruneLoraConfig, model: nn.Module) -> None:
    """Say to PEFT's LoRA what the plans decided."""
    sites, ranks, spec = find_all_sites(model), config.rank_plan, spec_of(model)
    roles = ROLES if ranks is None else ranks.roles
    rank_of = [config.r for _ in sites] if ranks is None else ranks.all_ranks
    patterns = rank_patterns(sites, rank_of, roles)
    config.target_modules = full_match(patterns)
    config.rank_pattern = patterns
    # PEFT divides alpha by the rank, or by its root; the same power here makes the scaling one for all ranks. It allows
    # fractional alphas although it declares integers.
    power = 0.5 if config.use_rslora else 1.0
    alphas = {pattern: config.lora_alpha * (rank / config.r) ** power for pattern, rank in patterns.items()}
    config.alpha_pattern = cast("dict[str, int]", alphas)
    wanted = [*(config.modules_to_save or ()), *(spec.norms if config.train_norms else ())]
    if config.task_type == "SEQ_CLS":
        wanted += spec.heads
    if config.task_type == "SEQ_CLS" or {"classifier", "score"}.intersection(wanted):
        _note_labels(config, cast(Any, base_of(model)).config)
    config.modules_to_save = list(dict.fromkeys(wanted)) or None


def _note_labels(config: PruneLoraConfig, of_model: Any) -> None:
    if config.label_names is None:
        config.label_names = [str(name) for _, name in sorted(of_model.id2label.items())]
        config.problem_type = getattr(of_model, "problem_type", None)


def rank_patterns(sites: Sequence[Site], ranks: Sequence[int], roles: Sequence[str]) -> dict[str, int]:
    """For every site with a rank, a pattern for the names of its adapted projections: PEFT's `rank_pattern`."""
    targets = {site: rank for site, rank in zip(sites, ranks, strict=True) if rank and site.units}
    return {pattern: rank for site, rank in targets.items() if (pattern := target_pattern(site, roles))}


def full_match(patterns: Iterable[str]) -> str:
    """A pattern for the whole name of any module that one of `patterns` describes; PEFT matches names in full."""
    return rf"(?:.*\.)?(?:{'|'.join(patterns)})"


def target_pattern(site: Site, roles: Sequence[str]) -> str:
    """A pattern for the end of the names of the projections that play `roles` at `site`; empty if none does."""
    paths = [p.path for p in site.projections if any(role in roles for role in p.roles)]
    if ("output" if site.kind == "heads" else "down") in roles:
        paths.append(site.spec.output)
    return rf"{re.escape(site.path)}\.(?:{'|'.join(re.escape(path) for path in paths)})" if paths else ""


def _difference(kept: Sequence[Sequence[int]], plan: PruningPlan) -> str:
    for shape, number, there, wanted in zip(
        plan.model.all_sites, plan.model.blocks_of_sites, kept, plan.kept, strict=True
    ):
        if tuple(there) != wanted:
            if shape.kind == "heads":
                return f"block {number} has the heads {list(there)}, the plan keeps {list(wanted)}"
            return f"block {number} has {len(there)} neurons, the plan keeps {len(wanted)}, or others"
    return "no difference"
