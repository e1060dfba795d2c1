"""Between our adapters and plain LoRA of PEFT: the same product B A, with fewer or more rows and columns."""

import copy
from collections.abc import Iterator
from typing import Any, cast

from peft import LoraConfig, get_peft_model
from peft.utils import ModulesToSaveWrapper
from torch import nn

from pruning_adapter.adapter.carried import check_can_be_carried
from pruning_adapter.adapter.carry import ADAPTER, carry_, lift_
from pruning_adapter.adapter.config import PruneLoraConfig
from pruning_adapter.adapter.model import full_match, rank_patterns
from pruning_adapter.architectures.identity import identify, pruned_state
from pruning_adapter.architectures.sites import Site, find_all_sites, spec_of, stores_inputs_first
from pruning_adapter.architectures.spec import AttentionSpec
from pruning_adapter.errors import AdapterError
from pruning_adapter.planning.pruning_plan import PruningPlan
from pruning_adapter.planning.rank_plan import ALL_ROLES, RankPlan
from pruning_adapter.surgery.prune import check_plan_fits

__all__ = ["lift_adapter", "plain_lora_config", "slice_adapter"]


def plain_lora_config(model: nn.Module, ranks: RankPlan, *, scaling: float = 1.0, **options: Any) -> LoraConfig:
    """PEFT's own `LoraConfig` for the ranks of a plan, for those who do not prune, or who pruned before.

    Args:
        model: the model that it is for, dense or pruned as `ranks` says; it is only looked at.
        ranks: see `plan_ranks`.
        scaling: lora_alpha / r, the same for all ranks.
        options: of `LoraConfig`, but for those that the plan decides.

    Raises:
        AdapterError: the plan is for another model, or an option is decided by the plan.
    """
    decided = {"r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern"} & options.keys()
    if decided:
        raise AdapterError(f"{min(decided)} was given, but the plan of ranks decides it; leave it out.")
    sites = find_all_sites(model)
    units = tuple(len(kept) for kept in ranks.kept_heads + ranks.kept_neurons)
    if not identify(model).same_sizes(ranks.model) or tuple(site.units for site in sites) != units:
        raise AdapterError(f"The ranks were planned for {ranks.model} with other units left than this model has.")
    patterns = rank_patterns(sites, ranks.all_ranks, ranks.roles)
    highest = max(patterns.values())
    power = 0.5 if options.get("use_rslora") else 1.0
    alphas = {pattern: scaling * highest * (rank / highest) ** power for pattern, rank in patterns.items()}
    # PEFT would find it out by itself, with a warning for every matrix.
    options.setdefault("fan_in_fan_out", any(stores_inputs_first(site.module(site.spec.output)) for site in sites))
    return LoraConfig(
        r=highest,
        lora_alpha=cast(int, scaling * highest),
        target_modules=full_match(patterns),
        rank_pattern=patterns,
        alpha_pattern=cast("dict[str, int]", alphas),
        **options,
    )


def slice_adapter(model: nn.Module, plan: PruningPlan, *, allow_other_weights: bool = False) -> nn.Module:
    """What is left of a dense model with LoRA when both are pruned: rows of B and columns of A go with their weights.

    It computes what pruning the merged model would compute. `model` stays as it is.

    Args:
        model: a PEFT model with one LoRA adapter, "default", on a dense base: plain LoRA or ours.
        plan: made for the base, or (with `allow_other_weights`) for one of its size, such as the merged model, which
            knows more of the task.
        allow_other_weights: accept such a plan.

    Returns:
        A PEFT model with a `PruneLoraConfig`, which saves and loads like any other.

    Raises:
        AdapterError: LoRA on other modules than the linear maps of blocks, or of kinds that cannot be cut (DoRA, a bias
            of its own); an adapter that changed the base (`bias`, PiSSA and its like) or trained what is cut as a whole
            module; several ranks or scalings within one attention or feed-forward.
        PlanError: the plan does not fit.
    """
    check_can_be_carried(model)
    dense = _base_below(copy.deepcopy(model))
    if pruned_state(dense) is not None:
        raise AdapterError("The base is pruned already; slice the adapter of the dense model.")
    check_plan_fits(dense, plan, allow_other_weights=allow_other_weights)
    if plan.reconstruct != "none":
        raise AdapterError(
            f'The plan asks for reconstruct="{plan.reconstruct}", which corrects weights that an adapter shares. '
            "Merge the adapter and correct the merged model: reconstruct_(model, plan, batches)."
        )
    ranks, scaling = _read_ranks(model, plan)
    old = cast(Any, model).peft_config[ADAPTER]
    highest = max(ranks.all_ranks)
    config = PruneLoraConfig(
        pruning=plan,
        ranks=ranks,
        r=highest,
        lora_alpha=cast(int, scaling * highest),
        lora_dropout=old.lora_dropout,
        task_type=old.task_type,
        modules_to_save=list(old.modules_to_save or ()) or None,
        trainable_token_indices=old.trainable_token_indices,
        ensure_weight_tying=old.ensure_weight_tying,
        # Norms that train are among the modules to save.
        train_norms=False,
        allow_other_weights=allow_other_weights,
    )
    pruned = cast(nn.Module, get_peft_model(cast(Any, dense), config))
    carry_(model, pruned, plan)
    return pruned.train(model.training)


def lift_adapter(model: nn.Module, dense: nn.Module) -> nn.Module:
    """An adapter that was trained on a pruned model, on the whole base: what was gone is there again and gets zeros.

    The base with the lifted adapter does not compute what the pruned model does, for its heads and neurons are back;
    what `slice_adapter` makes of it does.

    Args:
        model: a PEFT model with a `PruneLoraConfig`; it stays as it is.
        dense: the base that the plan was made for; it is wrapped, as `get_peft_model` does.

    Returns:
        A PEFT model with PEFT's own `LoraConfig`.

    Raises:
        AdapterError: an adapter of which not all can come along, as for `slice_adapter`; another base, or one whose
            weights were corrected when it was pruned.
    """
    check_can_be_carried(model)
    config = cast(Any, model).peft_config[ADAPTER]
    if not isinstance(config, PruneLoraConfig):
        raise AdapterError("This adapter has no plan, so nothing was pruned; use it as it is.")
    plan = config.pruning_plan
    if plan.reconstruct != "none":
        raise AdapterError(
            f'The adapter was trained on a base that was corrected (reconstruct="{plan.reconstruct}"), of which the '
            "dense one knows nothing. Merge it instead: merge_and_unload, then save_pruned."
        )
    if pruned_state(dense) is not None:
        raise AdapterError("This base is pruned; give the whole one.")
    check_plan_fits(dense, plan)
    ranks, scaling = _read_ranks(model, plan)
    spec = spec_of(dense)
    whole = RankPlan(
        model=plan.model,
        kept_heads=tuple(tuple(range(site.units)) for site in plan.model.sites),
        ranks=ranks.ranks,
        feed_forward_ranks=ranks.feed_forward_ranks,
        roles=ranks.roles,
    )
    saved = [*(config.modules_to_save or ()), *(spec.norms if config.train_norms else ())]
    plain = plain_lora_config(
        dense,
        whole,
        scaling=scaling,
        lora_dropout=config.lora_dropout,
        task_type=config.task_type,
        modules_to_save=list(dict.fromkeys(saved)) or None,
        trainable_token_indices=config.trainable_token_indices,
        ensure_weight_tying=config.ensure_weight_tying,
    )
    lifted = cast(nn.Module, get_peft_model(cast(Any, dense), plain))
    lift_(model, lifted, plan)
    return lifted.train(model.training)


def _base_below(model: nn.Module) -> nn.Module:
    """The model without its adapter, taken apart. PEFT's `unload` leaves the trained modules in place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, cast(Any, module).original_module)
    return cast(nn.Module, cast(Any, model).unload())


def _read_ranks(model: nn.Module, plan: PruningPlan) -> tuple[RankPlan, float]:
    """The ranks of live LoRA layers, as a plan for what `plan` keeps, and their one scaling."""
    names = {id(module): name for name, module in model.named_modules() if ADAPTER in getattr(module, "lora_A", ())}
    sites = find_all_sites(model)
    ranks, adapted, scalings = [0] * len(sites), set[str](), set[float]()
    for number, site in enumerate(sites):
        of_site = set[int]()
        for roles, layer in _by_roles(site):
            if names.pop(id(layer), None) is not None:
                of_site.add(int(layer.r[ADAPTER]))
                scalings.add(round(float(layer.scaling[ADAPTER]), 12))
                adapted.update(roles)
        if len(of_site) > 1:
            raise AdapterError(f"{site.name} and its fellows have LoRA of the ranks {sorted(of_site)}; give them one.")
        ranks[number] = max(of_site, default=0)
    if names:
        raise AdapterError(
            f"{min(names.values())} has LoRA and is no linear map of a block's attention or feed-forward, of which "
            "plans speak. Merge the adapter, and prune what that gives."
        )
    if len(scalings) != 1:
        raise AdapterError(f"The adapter has the scalings {sorted(scalings)}; one for all is needed. Merge it.")
    for site, rank in zip(sites, ranks, strict=True):
        for roles, layer in _by_roles(site) if rank else ():
            if adapted.intersection(roles) and ADAPTER not in getattr(layer, "lora_A", ()):
                raise AdapterError(
                    f"{site.path} has LoRA on some of {', '.join(sorted(adapted))} and not on {', '.join(roles)}, as "
                    "other blocks have; a plan of ranks cannot say that. Merge the adapter, and prune what that gives."
                )
    ranks = [rank if kept else 0 for rank, kept in zip(ranks, plan.kept, strict=True)]
    attentions = len(plan.model.sites)
    found = RankPlan(
        model=plan.model,
        kept_heads=plan.kept_heads,
        kept_neurons=plan.kept_neurons,
        ranks=tuple(ranks[:attentions]),
        feed_forward_ranks=tuple(ranks[attentions:]),
        roles=tuple(role for role in ALL_ROLES if role in adapted),
    )
    return found, scalings.pop()


def _by_roles(site: Site) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The linear maps of a site with the roles that they play."""
    if not site.units:
        return
    for projection in site.projections:
        yield projection.roles, site.block.get_submodule(projection.path)
    yield ("output" if isinstance(site.spec, AttentionSpec) else "down",), site.output
