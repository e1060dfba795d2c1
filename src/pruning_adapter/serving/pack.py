"""What training leaves of a task: plan, LoRA, norms and task head, read into memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftConfig
from safetensors.torch import load_file
from torch import Tensor

from pruning_adapter.adapter.config import PruneLoraConfig
from pruning_adapter.adapter.files import check_folder, check_sizes
from pruning_adapter.architectures.shapes import ModelIdentity
from pruning_adapter.errors import AdapterError, CheckpointError, PruningAdapterError
from pruning_adapter.planning.pruning_plan import PruningPlan

__all__ = ["PREFIX", "TaskPack", "check_pack_fits", "read_pack"]

PREFIX = "base_model.model."
"""What PEFT puts before the names of the base's modules."""


@dataclass(frozen=True, kw_only=True)
class TaskPack:
    """An adapter as it was on disk when it was read."""

    folder: Path
    config: PruneLoraConfig
    plan: PruningPlan
    tensors: Mapping[str, Tensor]
    """By PEFT's names, in memory of their own."""
    noted: Mapping[str, Any] | None = None
    """What surgery writes into the config of the model, once it is known: the weights are looked at for it."""


def read_pack(folder: str | Path) -> TaskPack:
    """Read the folder that `save_pretrained` of an adapted model wrote; nothing is unpickled.

    Raises:
        CheckpointError: no such folder, damaged, or incomplete.
        AdapterError: an adapter of another kind, which has no plan.
    """
    path = Path(folder)
    weights = check_folder(path)
    try:
        config = PeftConfig.from_pretrained(str(path))
        if isinstance(config, PruneLoraConfig):
            check_sizes(config, weights)
        # The file stays mapped into memory as long as what was read from it.
        tensors = {name: tensor.clone() for name, tensor in load_file(weights).items()}
    except PruningAdapterError:
        raise
    except Exception as error:  # PEFT, safetensors and the JSON reader each raise their own kinds
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"The adapter {path} is damaged ({first}). Save it again.") from error
    if not isinstance(config, PruneLoraConfig):
        kind = getattr(config.peft_type, "value", config.peft_type)
        raise AdapterError(
            f"The adapter {path} is of the kind {kind} and has no pruning plan, so it cannot tell which base it "
            "belongs to. Attach it with PeftModel.from_pretrained, or train it with PruneLoraConfig."
        )
    return TaskPack(folder=path, config=config, plan=config.pruning_plan, tensors=tensors)


def check_pack_fits(pack: TaskPack, base: ModelIdentity) -> None:
    """Refuse a pack that was not trained on `base` itself.

    Raises:
        AdapterError: which base it belongs to, and what to do.
    """
    plan, folder = pack.plan, pack.folder
    if not base.same_sizes(plan.model):
        raise AdapterError(
            f"The adapter {folder} belongs to {plan.model}; the base held here is {base}. Give each base PrunedTasks "
            "of its own."
        )
    way_out = "Train it with `--reconstruct none --prune-after 0`, or serve the run's merged/ (load_pruned)."
    if plan.reconstruct != "none":
        raise AdapterError(
            f'The adapter {folder} belongs to a base that was corrected when it was pruned (reconstruct="'
            f"{plan.reconstruct}\"): its run's own, which the dense base held here cannot give. {way_out}"
        )
    if not base.same_weights(plan.model):
        raise AdapterError(
            f"The adapter {folder} belongs to a base of these sizes with other weights (fingerprint "
            f"{_short(plan.model.fingerprint)}, the one held here has {_short(base.fingerprint)}): another model, or "
            f"its run's own, which trained before it was pruned (--prune-after, recipe default). {way_out}"
        )


def _short(fingerprint: str | None) -> str:
    return "unknown" if fingerprint is None else fingerprint[:12]
