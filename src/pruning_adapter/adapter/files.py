"""The two files of an adapter, looked at before PEFT reads them: no pickle, and no memory for what is only claimed."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME

from pruning_adapter.errors import CheckpointError
from pruning_adapter.planning.rank_plan import RankPlan
from pruning_adapter.reading import read_object, read_shapes

if TYPE_CHECKING:
    from pruning_adapter.adapter.config import PruneLoraConfig

__all__ = ["check_folder", "check_sizes", "find_weights"]

HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download", "proxies")


def check_folder(folder: Path) -> Path:
    """Refuse a folder that holds no whole adapter; return its file of weights.

    Raises:
        CheckpointError: the config or the safetensors are not there, or the config cannot be read.
    """
    for name in (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME):
        if not (folder / name).is_file():
            pickled = name != CONFIG_NAME and (folder / WEIGHTS_NAME).is_file()
            instead = f" (only {WEIGHTS_NAME}, and pickled weights are never read)" if pickled else ""
            raise CheckpointError(
                f"{folder} has no {name}{instead}, so it holds no adapter; name the folder that training calls "
                "adapter/, or save it in safetensors where you trust it."
            )
    read_object(folder / CONFIG_NAME, "config of an adapter")
    return folder / SAFETENSORS_WEIGHTS_NAME


def find_weights(name: str | Path, subfolder: str | None, options: Mapping[str, Any]) -> Path:
    """The safetensors of an adapter in a folder, or fetched from the Hub.

    Raises:
        CheckpointError: it has none.
    """
    folder = Path(name) / (subfolder or "")
    if folder.is_dir():
        return check_folder(folder)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    how = {key: options[key] for key in HUB_OPTIONS if options.get(key) is not None}
    try:
        return Path(hf_hub_download(str(name), SAFETENSORS_WEIGHTS_NAME, subfolder=subfolder or None, **how))
    except EntryNotFoundError as error:
        raise CheckpointError(
            f"{str(name)!r} has no {SAFETENSORS_WEIGHTS_NAME} on the Hub, or not in the cache while offline. Pickled "
            "weights are never read; name a revision that holds safetensors."
        ) from error


def check_sizes(config: "PruneLoraConfig", weights: Path) -> None:
    """Refuse ranks and numbers of tokens that are not those of the weights: PEFT would make room for them first.

    Raises:
        CheckpointError: they are others.
    """
    shapes = read_shapes(weights)
    ranks = config.rank_plan
    claimed = config.r if ranks is None or config.target_parameters else _highest(ranks)
    held = max((shape[0] for name, shape in shapes.items() if ".lora_A" in name and len(shape) > 1), default=0)
    if claimed > held:
        raise CheckpointError(
            f"{weights.with_name(CONFIG_NAME)} claims the rank {claimed}, and the highest in {weights.name} is {held}: "
            "the adapter is damaged."
        )
    tokens = config.trainable_token_indices or []
    count = max(map(len, tokens.values()), default=0) if isinstance(tokens, dict) else len(tokens)
    rows = max((shape[0] for name, shape in shapes.items() if "trainable_tokens" in name and shape), default=0)
    if count > rows:
        raise CheckpointError(
            f"{weights.with_name(CONFIG_NAME)} claims {count} tokens that train, and {weights.name} holds {rows}: the "
            "adapter is damaged."
        )


def _highest(ranks: RankPlan) -> int:
    """Of those that are given to anything."""
    sites = zip(ranks.model.all_sites, ranks.kept_heads + ranks.kept_neurons, ranks.all_ranks, strict=True)
    return max((rank for site, kept, rank in sites if site.lora_parameters(kept, 1, ranks.roles)), default=0)
