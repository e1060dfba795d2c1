"""Taking heads out of a model: physical, exact, in place. It executes a plan and decides nothing."""

from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar, cast

from torch import nn

from pruning_adapter.architectures.head_index import columns_of_heads, kept_key_value_heads, rows_of_heads
from pruning_adapter.architectures.identity import (
    CONFIG_FIELD,
    PrunedState,
    fingerprint_weights,
    identify,
    pruned_state,
)
from pruning_adapter.architectures.shapes import ModelIdentity, SiteShape
from pruning_adapter.architectures.sites import Site, base_of, find_sites, spec_of
from pruning_adapter.errors import ArchitectureError, PlanError
from pruning_adapter.planning.pruning_plan import PruningPlan
from pruning_adapter.surgery.empty import remove_all_heads_
from pruning_adapter.surgery.linear import keep_inputs_, keep_outputs_

__all__ = ["check_plan_fits", "cut_sites_", "prune_"]

Model = TypeVar("Model", bound=nn.Module)


def prune_(model: Model, plan: PruningPlan, *, allow_other_weights: bool = False) -> Model:
    """Remove the heads that `plan` does not keep, in place, and return the model.

    Their rows leave the query, key and value projections, their columns the output projection; nothing is masked. What
    stays keeps its dtype, device and requires_grad. The model's config gets a field `pruning` that tells what was
    removed. Pruning in two steps equals pruning at once: heads that are gone already stay gone.

    Args:
        model: the model the plan was made for, dense or already pruned; not wrapped by PEFT.
        plan: see `plan_pruning`.
        allow_other_weights: accept a model of the same sizes with other weights, such as a fine-tuned one.

    Raises:
        PlanError: the plan was made for a model of other sizes or weights, or wants to keep a head that is gone.
        ArchitectureError: unknown family, adapters in place, or weights shared with another module.
    """
    if base_of(model) is not model or any(hasattr(module, "base_layer") for module in model.modules()):
        raise ArchitectureError("This model has adapters in place; merge or unload them, then prune.")
    check_plan_fits(model, plan, allow_other_weights=allow_other_weights)
    sites = find_sites(model)
    _check_nothing_shared(model, sites)
    state, dense = pruned_state(model), identify(model)
    left = state.kept_heads if state is not None else tuple(tuple(range(heads)) for heads in dense.heads)
    kept = tuple(
        tuple(head for head in there if head in keep) for there, keep in zip(left, plan.kept_heads, strict=True)
    )
    cut_sites_(sites, dense.sites, left=left, kept=kept)
    _note_in_config(model, dense, kept)
    return model


def cut_sites_(
    sites: Sequence[Site],
    dense: Sequence[SiteShape],
    *,
    left: Sequence[Sequence[int]],
    kept: Sequence[Sequence[int]],
) -> None:
    """Cut attentions that have the heads `left` down to the heads `kept`; all numbers are those of the dense model.

    Also used to rebuild a pruned model on the meta device, before its weights are loaded.
    """
    for site, shape, there, keep in zip(sites, dense, left, kept, strict=True):
        _keep_heads_of_site(site, shape, there, keep)


def check_plan_fits(model: nn.Module, plan: PruningPlan, *, allow_other_weights: bool = False) -> None:
    """Refuse a plan that was made for another model, before any weight moves.

    Raises:
        PlanError: other sizes, other weights, or heads that are already gone.
        ArchitectureError: the family is not supported.
    """
    identity = identify(model)
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
    state = pruned_state(model)
    if state is None:
        return
    for block, (there, keep) in enumerate(zip(state.kept_heads, plan.kept_heads, strict=True)):
        if there and keep and not set(there) & set(keep) and not plan.allow_empty_blocks:
            raise PlanError(
                f"Block {block} of this model has only the heads {list(there)} left and the plan keeps "
                f"{list(keep)}, so none would stay. Start from the dense model, or plan with allow_empty_blocks=True."
            )


def _keep_heads_of_site(site: Site, shape: SiteShape, there: Sequence[int], keep: Sequence[int]) -> None:
    if list(there) == list(keep):
        return
    if not keep:
        remove_all_heads_(site)
        return
    # All head counts are the dense model's.
    heads, groups, head_size = shape.heads, shape.key_value_heads, shape.head_size
    groups_kept = kept_key_value_heads(keep, heads, groups)
    for projection in site.spec.projections:
        rows_of = partial(
            rows_of_heads,
            projection.roles,
            heads=heads,
            key_value_heads=groups,
            head_size=head_size,
            fusion=projection.fusion,
        )
        # Rows are numbered as in the dense model; the tensor holds those that are still there.
        position = {row: number for number, row in enumerate(rows_of(there))}
        keep_outputs_(site.module(projection.path), [position[row] for row in rows_of(keep)])
    number_of = {head: number for number, head in enumerate(there)}
    columns = columns_of_heads([number_of[head] for head in keep], head_size)
    keep_inputs_(site.module(site.spec.output), columns)
    counts = {
        "heads": len(keep),
        "key_value_heads": len(groups_kept),
        "rows": len(keep) * head_size,
        "heads_per_group": len(keep) // len(groups_kept),
    }
    for follow in site.spec.follow:
        setattr(site.block.get_submodule(follow.module), follow.attribute, counts[follow.counts])


def _note_in_config(model: nn.Module, dense: ModelIdentity, kept: tuple[tuple[int, ...], ...]) -> None:
    state = PrunedState(dense=dense, kept_heads=kept, fingerprint=fingerprint_weights(model))
    config = cast(Any, base_of(model)).config
    setattr(config, CONFIG_FIELD, state.to_json())
    if spec_of(model).legacy_pruned_heads:
        _note_legacy_pruned_heads(config, dense, kept)


def _check_nothing_shared(model: nn.Module, sites: Sequence[Site]) -> None:
    """Refuse to cut a tensor that another module reads too."""
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    for site in sites:
        if not site.heads:
            continue
        for path in (*(p.path for p in site.spec.projections), site.spec.output):
            for parameter in site.module(path).parameters(recurse=False):
                names = owners.get(id(parameter), [])
                if len(names) > 1:
                    raise ArchitectureError(
                        f"The weights {names[0]!r} and {names[1]!r} are tied: cutting heads out of one would cut the "
                        "other. Untie them (give one a copy) before pruning."
                    )


def _note_legacy_pruned_heads(config: Any, dense: ModelIdentity, kept: Sequence[Sequence[int]]) -> None:
    gone = {
        str(block): [head for head in range(heads) if head not in keep]
        for block, (heads, keep) in enumerate(zip(dense.heads, kept, strict=True))
    }
    # Transformers 4 cannot build a block without heads; it then fails on the sizes, rather than silently.
    if all(kept):
        config.pruned_heads = {block: heads for block, heads in gone.items() if heads}
    elif hasattr(config, "pruned_heads"):
        delattr(config, "pruned_heads")


def _short(fingerprint: str | None) -> str:
    return "unknown" if fingerprint is None else fingerprint[:12]
