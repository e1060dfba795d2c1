"""`PruneLoraConfig`: PEFT's LoRA config plus the plan of what to prune and the plan of ranks."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from peft import LoraConfig

from pruning_adapter.adapter.fields import check_fields
from pruning_adapter.adapter.files import check_sizes, find_weights
from pruning_adapter.adapter.peft_type import PRUNE_LORA
from pruning_adapter.architectures.shapes import ModelIdentity
from pruning_adapter.errors import AdapterError
from pruning_adapter.planning.pruning_plan import PruningPlan
from pruning_adapter.planning.rank_plan import RankPlan

__all__ = ["PruneLoraConfig"]


@dataclass
class PruneLoraConfig(LoraConfig):
    """LoRA of varied rank on a model that is pruned first (arXiv:2303.14704), as a PEFT method.

    `get_peft_model(base, config)` prunes `base` in place, injects LoRA at the ranks planned, and lets the normalisation
    layers (and for classification the task head) train; all else is frozen. All fields of `LoraConfig` work, except
    those that the plans decide: `target_modules`, `rank_pattern` and `alpha_pattern` are filled in at injection. The
    scaling `lora_alpha / r` holds for every block, whatever its rank.

    Args:
        pruning: which heads and neurons stay; a `PruningPlan` or its JSON object.
        ranks: LoRA rank per block; a `RankPlan` or its JSON object. None: rank `r` on query, key, value and output of
            every block that has heads.
        base_fingerprint: of the base where that was pruned before; "cut" where the plan prunes the dense one. Filled in
            at injection.
        train_norms: whether the normalisation layers train, as in the paper.
        quick_linear: compute LoRA linears in fewer products, to the same result, where nothing stands against it (LoRA
            dropout, several active adapters, variants such as DoRA). Files do not depend on it.
        label_names: what the classes that the saved task head tells apart are called, in the order of their numbers;
            filled in at injection, from the base's config.
        problem_type: Transformers' name for what the task head predicts; filled in likewise.
        allow_other_weights: accept a base of the same sizes with other weights than the plan was made for. The adapter
            then remembers that base instead.

    Raises:
        AdapterError: no plan, fields that the plans decide, or ranks made for another pruning plan.
    """

    pruning: dict[str, Any] | PruningPlan | None = field(default=None, metadata={"help": "Which heads stay."})
    ranks: dict[str, Any] | RankPlan | None = field(default=None, metadata={"help": "LoRA rank per block."})
    train_norms: bool = field(default=True, metadata={"help": "Whether normalisation layers train."})
    quick_linear: bool = field(default=True, metadata={"help": "Whether LoRA is computed in fewer products."})
    base_fingerprint: str | None = field(
        default=None, metadata={"help": "Of a reconstructed base, filled in at injection."}
    )
    label_names: list[str] | None = field(default=None, metadata={"help": "Class names, filled in at injection."})
    problem_type: str | None = field(default=None, metadata={"help": "What the head predicts, filled in likewise."})
    allow_other_weights: bool = field(default=False, metadata={"help": "Accept a base with other weights."})

    def __post_init__(self) -> None:
        self._check_fields(new=isinstance(self.pruning, PruningPlan))
        # Plans are kept as JSON objects, so that PEFT can copy, compare and save the config like any other.
        self.pruning = _as_json("pruning", self.pruning)
        self.ranks = _as_json("ranks", self.ranks)
        try:
            super().__post_init__()
        except Exception as error:  # its parts are built from what the file holds, and each checks in its own way
            raise AdapterError(f"PEFT refuses this config of LoRA: {error}") from error
        self.peft_type = PRUNE_LORA
        if self.pruning is None:
            raise AdapterError(
                "PruneLoraConfig needs pruning=PruningPlan; for LoRA without pruning use peft.LoraConfig."
            )
        ranks, plan = self.rank_plan, self.pruning_plan
        if ranks is None and not any(plan.kept_heads):
            raise AdapterError("The plan leaves no block a head, so there is nothing to adapt.")
        same = ranks is None or (ranks.kept_heads, ranks.kept_neurons) == (plan.kept_heads, plan.kept_neurons)
        if ranks is not None and (not same or not ranks.model.same_sizes(plan.model)):
            raise AdapterError("The rank plan was made for another pruning plan; make it anew with plan_ranks.")

    def _check_fields(self, *, new: bool) -> None:
        """Refuse what the plans decide, before anything is pruned. A saved config holds the fields we filled in."""
        decided = ("layers_to_transform", "layers_pattern", "layer_replication")
        for name in (*decided, *(("target_modules", "rank_pattern", "alpha_pattern") if new else ())):
            if getattr(self, name, None):
                raise AdapterError(f"{name} was set, but the plans decide it; leave it out, or use peft.LoraConfig.")
        check_fields(self)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, subfolder: str | None = None, **kwargs: Any
    ) -> "PruneLoraConfig":
        """See PEFT's `PeftConfig`. Every road on which PEFT reads an adapter's weights asks here first.

        Raises:
            CheckpointError: no adapter there, damaged, or with pickled weights; or it claims ranks that its weights do
                not have.
            AdapterError: fields that cannot be.
        """
        weights = find_weights(pretrained_model_name_or_path, subfolder, kwargs)
        config: Any = super().from_pretrained(str(pretrained_model_name_or_path), subfolder=subfolder, **kwargs)
        if isinstance(config, cls):
            check_sizes(config, weights)
        return config

    @property
    def pruning_plan(self) -> PruningPlan:
        """The plan as a value."""
        return PruningPlan.from_json(cast("dict[str, Any]", self.pruning))

    @property
    def rank_plan(self) -> RankPlan | None:
        """The ranks as a value; None for rank `r` everywhere."""
        return None if self.ranks is None else RankPlan.from_json(cast("dict[str, Any]", self.ranks))

    def remember_base(self, model: ModelIdentity) -> None:
        """Make the plan speak of `model`, the base that was accepted although its weights are others."""
        self.pruning = replace(self.pruning_plan, model=model).to_json()
        self.allow_other_weights = False


def _as_json(name: str, plan: Any) -> dict[str, Any] | None:
    if isinstance(plan, PruningPlan | RankPlan):
        return plan.to_json()
    if plan is None:
        return None
    if not isinstance(plan, Mapping):
        raise AdapterError(f"{name} is {plan!r}; it must be a plan, or the JSON object of one.")
    return dict(cast("Mapping[str, Any]", plan))
