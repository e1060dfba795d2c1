"""What "full", "lora" and "prune-lora" do to a model before it is trained. One code path serves all three."""

from typing import Any, cast

from peft import LoraConfig, get_peft_model
from torch import nn

from pruning_adapter.adapter.config import PruneLoraConfig
from pruning_adapter.adapter.model import full_match, target_pattern
from pruning_adapter.architectures.sites import find_sites, spec_of, trunk_of
from pruning_adapter.errors import TrainingError
from pruning_adapter.planning.pruning_plan import PruningPlan
from pruning_adapter.planning.rank_plan import ROLES, RankPlan
from pruning_adapter.training.base_model import BaseModel
from pruning_adapter.training.recipes import METHODS, Method, Recipe

__all__ = ["apply_method", "set_dropout_"]


def apply_method(
    base: BaseModel, method: Method, recipe: Recipe, *, plan: PruningPlan | None = None, ranks: RankPlan | None = None
) -> nn.Module:
    """Make `base` trainable by `method`.

    * "full": every weight trains; the model keeps its own dropout.
    * "lora": PEFT's own LoRA of one rank on query, key, value and output; the normalisation layers and the task head
      train too, so that it differs from "prune-lora" in nothing but the pruning and the ranks.
    * "prune-lora": see `PruneLoraConfig`.

    Raises:
        TrainingError: unknown method, or "prune-lora" without a plan.
    """
    model, spec = base.model, spec_of(base.model)
    # PEFT saves whole heads of these names by itself; a part of one must not be wrapped a second time.
    heads = {"classifier", "score", *spec.heads}
    fresh = [name for name in base.fresh if not heads & set(name.split("."))]
    if method == "full":
        return model
    options: dict[str, Any] = {
        "task_type": "SEQ_CLS",
        "r": recipe.lora_rank,
        "lora_alpha": recipe.lora_scaling * recipe.lora_rank,
        "lora_dropout": recipe.lora_dropout,
        "init_lora_weights": "gaussian" if recipe.lora_init == "gaussian" else True,
    }
    if recipe.adapter_dropout is not None:
        set_dropout_(model, recipe.adapter_dropout)
    if method == "lora":
        config = LoraConfig(
            target_modules=full_match(target_pattern(site, ROLES) for site in find_sites(model)),
            modules_to_save=_unique(*spec.norms, *spec.heads, *fresh),
            **options,
        )
    elif method == "prune-lora":
        if plan is None:
            raise TrainingError('The method "prune-lora" needs a pruning plan; make one with plan_pruning.')
        config = PruneLoraConfig(pruning=plan, ranks=ranks, modules_to_save=fresh, **options)
    else:
        raise TrainingError(f"Method {method!r} is unknown; there are {', '.join(METHODS)}.")
    revision = getattr(cast(Any, model).config, "_commit_hash", None)
    return cast(nn.Module, get_peft_model(cast(Any, model), config, revision=revision))


def set_dropout_(model: nn.Module, share: float) -> None:
    """Set all dropout in the trunk, that of attention and of hidden states, to `share` in [0, 1)."""
    for module in trunk_of(model).modules():
        if isinstance(module, nn.Dropout):
            module.p = share


def _unique(*names: str) -> list[str]:
    return list(dict.fromkeys(names))
