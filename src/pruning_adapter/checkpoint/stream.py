"""Pruning a checkpoint on disk, tensor by tensor: the model is never in memory as a whole."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pruning_adapter.architectures.identity import CONFIG_FIELD, Fingerprint, block_parameters, identify
from pruning_adapter.checkpoint.companions import copy_companions
from pruning_adapter.checkpoint.hub import find_model, find_tokenizer
from pruning_adapter.checkpoint.merged import find_class
from pruning_adapter.checkpoint.plausible import build_empty, read_config
from pruning_adapter.checkpoint.replaceable import check_replaceable
from pruning_adapter.checkpoint.shards import INDEX, WHOLE, read_index
from pruning_adapter.errors import CheckpointError, PlanError
from pruning_adapter.planning.pruning_plan import PruningPlan
from pruning_adapter.storage import replace_folder
from pruning_adapter.surgery.cuts import cuts_by_name
from pruning_adapter.surgery.prune import check_identity_fits, cut_

__all__ = ["prune_checkpoint"]


def prune_checkpoint(
    path: str | Path,
    plan: PruningPlan,
    out: str | Path,
    *,
    revision: str | None = None,
    shard_bytes: int = 2 * 10**9,
    allow_other_weights: bool = False,
) -> None:
    """Prune a saved model by a plan without loading it: what `prune_` and `save_pruned` would give.

    At no time is there more in memory than one shard of the result, one of the source as far as the system has read it,
    and one tensor.

    Args:
        path: folder of a dense checkpoint in safetensors, in one file or sharded; or a hub id.
        plan: see `plan_pruning`.
        out: folder to write. One that holds a saved model is replaced as a whole, at the end; any other is refused.
        revision: of the hub id.
        shard_bytes: of a file of the result, at the most, if no single tensor is larger.
        allow_other_weights: see `prune_`.

    Raises:
        PlanError: the plan was made for another model, or asks for a reconstruction.
        CheckpointError: no such checkpoint here nor on the Hub, not in safetensors, damaged, or pruned already.
        OutputError: `out` cannot be written, or holds something else than a saved model.
    """
    if plan.reconstruct != "none":
        raise PlanError(
            f'The plan asks for reconstruct="{plan.reconstruct}", which needs the model and examples: use '
            "reconstruct_(model, plan, batches)."
        )
    check_replaceable(Path(out))
    folder = _fetch(path, revision)
    model = _build_empty(folder)
    source = _Source(folder, model)
    dense = identify(model)
    check_identity_fits(dense, plan, allow_other_weights=True)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    order = [name for _, name, _ in _in_order(model)]
    known = set(order)
    order += [name for name in source.names if name not in known]
    cuts = cuts_by_name(model, plan.model.all_sites, plan.kept)
    blocks_before = {full: local for local, full, _ in _in_order(model)}
    cut_(model, plan)
    left = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    blocks_after = {full: local for local, full, _ in _in_order(model)}
    before, after = Fingerprint(), Fingerprint()
    with replace_folder(out) as aside:
        shards = _Shards(aside, shard_bytes)
        for name in order:
            tensor = source.read(name, shapes.get(name))
            if name in blocks_before:
                before.add(blocks_before[name], tensor)
            if name in shapes and name not in left:
                continue
            if name in left and tuple(tensor.shape) != left[name]:
                tensor = _cut(tensor, cuts.get(name), left[name], name)
            if name in blocks_after:
                after.add(blocks_after[name], tensor)
            shards.add(name, tensor)
        found = replace(dense, fingerprint=before.hexdigest(), name=plan.model.name)
        check_identity_fits(found, plan, allow_other_weights=allow_other_weights)
        shards.close()
        _write_rest(source.folder, aside, model, found, after.hexdigest())


def _fetch(path: str | Path, revision: str | None) -> Path:
    folder = find_model(path, revision=revision).folder
    if not Path(path).is_dir():
        find_tokenizer(path, revision=folder.name)
    return folder


def _build_empty(folder: Path) -> nn.Module:
    """The dense model, without weights."""
    import transformers

    read_config(folder)
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the JSON reader, the Hub's client and each config class raise their own kinds
        raise CheckpointError(f"{folder} has no config that can be read: {error}") from error
    if getattr(config, CONFIG_FIELD, None) is not None:
        raise CheckpointError(f"{folder} holds a model that is pruned already. Start from the dense one.")
    return build_empty(partial(find_class(config, str(folder)), config), folder)


def _in_order(model: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    """The blocks' parameters in the order of the fingerprint: the name that it hears, the model's own, the tensor."""
    names = {id(parameter): name for name, parameter in model.named_parameters(remove_duplicate=False)}
    for local, parameter in block_parameters(model):
        yield local, names[id(parameter)], parameter


def _cut(tensor: Tensor, cut: tuple[int, tuple[int, ...]] | None, shape: tuple[int, ...], name: str) -> Tensor:
    if not all(shape):
        # What is left of a sub-layer without units.
        tensor = tensor.new_empty(shape)
    elif cut is not None:
        tensor = tensor.index_select(cut[0], torch.tensor(cut[1], dtype=torch.long))
    if tuple(tensor.shape) != shape:
        raise CheckpointError(f"{name} should be left with the shape {shape} and has {tuple(tensor.shape)}.")
    return tensor


class _Source:
    """A checkpoint in safetensors, one file open at a time."""

    def __init__(self, folder: Path, model: nn.Module) -> None:
        """Args:
        folder: where it lies.
        model: the model that it is of, for the names.
        """
        self.folder = folder
        self._file_of: dict[str, Path] = {}
        self._open: tuple[Path, Any] | None = None
        try:
            self._file_of = read_index(folder)
            if not self._file_of and (folder / WHOLE).is_file():
                self._file_of = dict.fromkeys(self._keys(folder / WHOLE), folder / WHOLE)
        except (OSError, SafetensorError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{folder} is damaged: {error}") from error
        by_file = sorted(self._file_of, key=lambda key: (str(self._file_of[key]), key))
        self._key_of = dict(zip(_todays_names(model, by_file), by_file, strict=True))

    def _keys(self, file: Path) -> list[str]:
        with safe_open(file, framework="pt") as opened:
            return list(opened.keys())

    @property
    def names(self) -> list[str]:
        """All tensors, under the names that the model has for them, file by file."""
        return list(self._key_of)

    def read(self, name: str, shape: tuple[int, ...] | None) -> Tensor:
        """A tensor of its own, in the type it was saved in."""
        if name not in self._key_of:
            raise CheckpointError(
                f"{self.folder} has no weight {name!r}, which the model's class expects. If from_pretrained loads it, "
                "its weights are arranged otherwise there: load it, prune_ it and save_pruned it."
            )
        key = self._key_of[name]
        path = self._file_of[key]
        try:
            if self._open is None or self._open[0] != path:
                self._open = (path, safe_open(path, framework="pt").__enter__())
            tensor: Tensor = self._open[1].get_tensor(key)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path} is missing or damaged: {error}") from error
        if shape is not None and tuple(tensor.shape) != shape:
            raise CheckpointError(f"{path} holds {key} with the shape {tuple(tensor.shape)}; the config says {shape}.")
        return tensor


def _todays_names(model: nn.Module, keys: Sequence[str]) -> list[str]:
    """What Transformers, which has renamed many a module, calls these tensors of a checkpoint now."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    renamings: list[Any] = [
        rule for rule in get_model_conversion_mapping(cast(Any, model)) if isinstance(rule, WeightRenaming)
    ]
    prefix, state = str(cast(Any, model).base_model_prefix), model.state_dict()
    return [rename_source_key(key, renamings, [], prefix, state)[0] for key in keys]


@dataclass
class _Shards:
    """The result, written file by file."""

    folder: Path
    limit: int
    held: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    bytes: int = 0
    written: list[list[str]] = field(default_factory=list[list[str]])
    total: int = 0

    def add(self, name: str, tensor: Tensor) -> None:
        size = tensor.numel() * tensor.element_size()
        if self.held and self.bytes + size > self.limit:
            self._flush()
        # A view of the source's file would keep all of it.
        self.held[name] = tensor.clone()
        self.bytes += size
        self.total += size

    def close(self) -> None:
        """Write what is held, and the index where there are several files; one file has the name for one."""
        self._flush()
        count = len(self.written)
        if count == 1:
            self._path(1).rename(self.folder / WHOLE)
            return
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self.written, 1):
            file = f"model-{number:05d}-of-{count:05d}.safetensors"
            self._path(number).rename(self.folder / file)
            weight_map |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": self.total}, "weight_map": dict(sorted(weight_map.items()))}
        (self.folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number}.safetensors"

    def _flush(self) -> None:
        if self.held:
            self.written.append(list(self.held))
            save_file(self.held, self._path(len(self.written)), metadata={"format": "pt"})
            self.held, self.bytes = {}, 0


def _write_rest(source: Path, target: Path, model: nn.Module, dense: Any, fingerprint: str) -> None:
    """The config, which says what was removed, and the tokenizer's files."""
    config = cast(Any, model).config
    state = dict(getattr(config, CONFIG_FIELD))
    setattr(config, CONFIG_FIELD, {**state, "dense": dense.to_json(), "fingerprint": fingerprint})
    config.save_pretrained(target)
    copy_companions(source, target)
