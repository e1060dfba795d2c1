"""Taking heads and neurons out of a model: physical, exact, in place. It executes a plan and decides nothing."""

import copy
from collections.abc import Sequence
from typing import Any, TypeVar, cast

from torch import nn

from pruning_adapter.architectures.identity import (
    CONFIG_FIELD,
    PrunedState,
    count_stack_blocks,
    fingerprint_weights,
    identify,
    pruned_state,
)
from pruning_adapter.architectures.shapes import ModelIdentity, SiteShape
from pruning_adapter.architectures.sites import Site, base_of, find_all_sites, spec_of
from pruning_adapter.architectures.unit_index import kept_groups
from pruning_adapter.costs.macs import ModelMacs
from pruning_adapter.errors import ArchitectureError, PlanError
from pruning_adapter.planning.pruning_plan import PruningPlan
from pruning_adapter.processes import is_spread
from pruning_adapter.surgery.counts import set_count_
from pruning_adapter.surgery.cuts import cuts_of_site
from pruning_adapter.surgery.empty import remove_all_units_
from pruning_adapter.surgery.linear import keep_inputs_, keep_outputs_
from pruning_adapter.surgery.position_bias import slice_position_bias_

__all__ = [
    "check_can_be_cut",
    "check_identity_fits",
    "check_nothing_shared",
    "check_plan_fits",
    "cut_",
    "cut_sites_",
    "note_in_config",
    "prune_",
]

Model = TypeVar("Model", bound=nn.Module)


def prune_(model: Model, plan: PruningPlan, *, allow_other_weights: bool = False) -> Model:
    """Remove the heads and neurons that `plan` does not keep, in place, and return the model.

    Their rows leave the projections that write them, their columns the output (or down) projection; nothing is masked.
    What stays keeps its dtype, device and requires_grad. The model's config gets a field `pruning` that tells what was
    removed. Pruning in two steps equals pruning at once: units that are gone already stay gone.

    Args:
        model: the model the plan was made for, dense or already pruned; not wrapped by PEFT.
        plan: see `plan_pruning`.
        allow_other_weights: accept a model of the same sizes with other weights, such as a fine-tuned one.

    Raises:
        PlanError: the plan was made for a model of other sizes or weights, keeps only units that are gone, or asks for
            a reconstruction, which needs examples: see `reconstruct_`.
        ArchitectureError: unknown family, adapters in place, weights shared with another module, or spread over
            processes.
    """
    check_can_be_cut(model)
    check_plan_fits(model, plan, allow_other_weights=allow_other_weights)
    if plan.reconstruct != "none":
        raise PlanError(
            f'The plan asks for reconstruct="{plan.reconstruct}", which needs calibration examples: use '
            "reconstruct_(model, plan, batches), which prunes too."
        )
    return cut_(model, plan)


def fingerprint_of_cut(model: nn.Module, plan: PruningPlan) -> str | None:
    """The fingerprint that `model` would have if it was pruned by `plan`, which is not done."""
    shared: dict[int, Any] = {id(buffer): buffer for buffer in model.buffers()}
    shared |= {id(weight): nn.Parameter(weight.detach(), requires_grad=False) for weight in model.parameters()}
    return fingerprint_weights(cut_(copy.deepcopy(model, shared), plan))


def cut_(model: Model, plan: PruningPlan) -> Model:
    """Remove what `plan` does not keep from a model that it was checked to fit."""
    sites = find_all_sites(model)
    check_nothing_shared(model)
    state, dense = pruned_state(model), identify(model)
    left = state.kept if state is not None else tuple(tuple(range(site.units)) for site in dense.all_sites)
    kept = tuple(_both(there, keep) for there, keep in zip(left, plan.kept, strict=True))
    cut_sites_(sites, dense.all_sites, left=left, kept=kept)
    # What was corrected once stays so.
    before = state.reconstructed if state is not None and plan.reconstruct == "none" else plan.reconstruct
    note_in_config(model, dense, kept, macs=plan.macs, reconstructed=before)
    return model


def _both(there: Sequence[int], keep: Sequence[int]) -> tuple[int, ...]:
    wanted = set(keep)
    return tuple(unit for unit in there if unit in wanted)


def cut_sites_(
    sites: Sequence[Site],
    dense: Sequence[SiteShape],
    *,
    left: Sequence[Sequence[int]],
    kept: Sequence[Sequence[int]],
    views: bool = False,
) -> None:
    """Cut sites that have the units `left` down to the units `kept`; all numbers are those of the dense model.

    Also used to rebuild a pruned model on the meta device, before its weights are loaded. With `views`, weights that
    lie in one piece go on sharing the memory of the whole.
    """
    for site, shape, there, keep in zip(sites, dense, left, kept, strict=True):
        _keep_units_of_site(site, shape, there, keep, views=views)


def check_can_be_cut(model: nn.Module) -> None:
    """Refuse a model that is not by itself, or not whole.

    Raises:
        ArchitectureError: adapters in place, or weights that are spread over processes.
    """
    if base_of(model) is not model or any(hasattr(module, "base_layer") for module in model.modules()):
        raise ArchitectureError("This model has adapters in place; merge or unload them, then prune.")
    if is_spread(model):
        raise ArchitectureError(
            "This model's weights are spread over the processes (FSDP2), and none of them can cut its part. Prune the "
            "saved model instead (prune_checkpoint, in one process), and load what that writes."
        )


def check_plan_fits(model: nn.Module, plan: PruningPlan, *, allow_other_weights: bool = False) -> None:
    """Refuse a plan that was made for another model, before any weight moves.

    Raises:
        PlanError: other sizes, other weights, or heads that are already gone.
        ArchitectureError: the family is not supported.
    """
    check_identity_fits(identify(model), plan, allow_other_weights=allow_other_weights)
    state = pruned_state(model)
    if state is None:
        return
    for site, there, keep in zip(find_all_sites(model), state.kept, plan.kept, strict=True):
        if there and keep and not _both(there, keep) and not plan.allow_empty_blocks:
            raise PlanError(
                f"{site.path} of this model has only the {site.kind} {_some(there)} left and the plan keeps "
                f"{_some(keep)}, so none would stay. Start from the dense model, or plan with allow_empty_blocks=True."
            )


def check_identity_fits(identity: ModelIdentity, plan: PruningPlan, *, allow_other_weights: bool = False) -> None:
    """Refuse a plan that was made for another model than `identity` tells of.

    Raises:
        PlanError: other sizes, or other weights.
    """
    if not identity.same_sizes(plan.model):
        same_heads = identity.model_type == plan.model.model_type and identity.sites == plan.model.sites
        found = "other feed-forward sizes" if same_heads else str(identity)
        raise PlanError(
            f"The plan was made for {plan.model}; this model has {found}. Score this model and plan anew, or load "
            "the model that the plan names."
        )
    if not allow_other_weights and not identity.same_weights(plan.model):
        raise PlanError(
            f"The plan was made for {plan.model} with other weights (fingerprint "
            f"{_short(plan.model.fingerprint)}, this model has {_short(identity.fingerprint)}). Load the model it was "
            "made for, or pass allow_other_weights=True if the difference is meant."
        )


def _some(units: Sequence[int]) -> str:
    shown = ", ".join(str(unit) for unit in units[:8])
    return f"[{shown}{', ...' if len(units) > 8 else ''}]"


def _keep_units_of_site(
    site: Site, shape: SiteShape, there: Sequence[int], keep: Sequence[int], *, views: bool
) -> None:
    slice_position_bias_(site, keep)
    if list(there) == list(keep):
        return
    if not keep:
        remove_all_units_(site)
        return
    for cut in cuts_of_site(site, shape, there, keep):
        if cut.rows is not None:
            keep_outputs_(site.module(cut.path), cut.rows, views=views)
        if cut.columns is not None:
            keep_inputs_(site.module(cut.path), cut.columns, views=views)
    # All counts are the dense model's.
    groups_kept = kept_groups(keep, shape.units, shape.groups)
    counts = {
        "heads": len(keep),
        "neurons": len(keep),
        "key_value_heads": len(groups_kept),
        "rows": len(keep) * shape.unit_size,
        "heads_per_group": len(keep) // len(groups_kept),
    }
    for follow in site.spec.follow:
        set_count_(site.block.get_submodule(follow.module), follow.attribute, counts[follow.counts])


def note_in_config(
    model: nn.Module,
    dense: ModelIdentity,
    kept: tuple[tuple[int, ...], ...],
    *,
    macs: ModelMacs | None,
    reconstructed: str,
) -> None:
    """Write into the model's config what was removed from the dense model."""
    attentions = len(dense.sites)
    state = PrunedState(
        dense=dense,
        kept_heads=kept[:attentions],
        kept_neurons=kept[attentions:],
        stack_blocks=count_stack_blocks(model),
        fingerprint=fingerprint_weights(model),
        reconstructed=reconstructed,
        macs=None if macs is None else macs.to_json(),
    )
    config = cast(Any, base_of(model)).config
    setattr(config, CONFIG_FIELD, state.to_json())
    if spec_of(model).legacy_pruned_heads:
        _note_legacy_pruned_heads(config, dense, state)


def forget_pruning_(model: nn.Module) -> None:
    """Take what `note_in_config` wrote out of the config of a model that lost nothing: it is a dense one."""
    config = cast(Any, base_of(model)).config
    for name in (CONFIG_FIELD, "pruned_heads"):
        if hasattr(config, name):
            delattr(config, name)


def check_nothing_shared(model: nn.Module) -> None:
    """Refuse to cut a tensor that another module reads too.

    Raises:
        ArchitectureError: which two are tied.
    """
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    for site in find_all_sites(model):
        if not site.units:
            continue
        for path in (*(p.path for p in site.projections), site.spec.output):
            for parameter in site.module(path).parameters(recurse=False):
                names = owners.get(id(parameter), [])
                if len(names) > 1:
                    raise ArchitectureError(
                        f"The weights {names[0]!r} and {names[1]!r} are tied: cutting units out of one would cut the "
                        "other. Untie them (give one a copy) before pruning."
                    )


def _note_legacy_pruned_heads(config: Any, dense: ModelIdentity, state: PrunedState) -> None:
    whole = [len(neurons) for neurons in state.kept_neurons] == list(dense.neurons)
    # Transformers 4 can build neither a block without heads nor one with fewer neurons; it then fails on the sizes,
    # rather than silently.
    if all(state.kept_heads) and whole:
        config.pruned_heads = {str(block): heads for block, heads in state.pruned_heads.items()}
    elif hasattr(config, "pruned_heads"):
        delattr(config, "pruned_heads")


def _short(fingerprint: str | None) -> str:
    return "unknown" if fingerprint is None else fingerprint[:12]
