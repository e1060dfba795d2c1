"""A task's model out of the base and the task's pack. What is neither cut nor trained stays where it lies."""

import copy
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn

from pruning_adapter.adapter.model import CUT, already_fits
from pruning_adapter.architectures.identity import CONFIG_FIELD, fingerprint_weights
from pruning_adapter.architectures.shapes import ModelIdentity
from pruning_adapter.architectures.sites import find_all_sites
from pruning_adapter.errors import AdapterError, CheckpointError, PruningAdapterError
from pruning_adapter.serving.pack import PREFIX, TaskPack
from pruning_adapter.surgery.prune import cut_sites_, note_in_config

__all__ = ["build", "bytes_of", "prepare"]


def prepare(pack: TaskPack, base: nn.Module, identity: ModelIdentity) -> TaskPack:
    """A pack that is known to fit, with what need not be found out twice.

    Args:
        pack: checked to belong to the base.
        base: the dense base; it stays as it is.
        identity: the base's.

    Raises:
        CheckpointError: the pack lacks weights, or holds some that nobody reads.
        AdapterError: the pack's task head does not fit this class of model.
    """
    with _blamed_on(pack):
        return _prepare(pack, base, identity)


def _prepare(pack: TaskPack, base: nn.Module, identity: ModelIdentity) -> TaskPack:
    model = _pruned(pack, base, identity)
    note_in_config(model, identity, pack.plan.kept, macs=pack.plan.macs, reconstructed="none")
    config = cast(Any, model).config
    noted = {name: getattr(config, name) for name in (CONFIG_FIELD, "pruned_heads") if hasattr(config, name)}
    _check_tensors(pack, _saved(_attach(pack, _pruned(pack, base, identity))), base)
    # Once more, in the types that PEFT gives them: without room it gives none.
    wanted = _saved(_attach(pack, model, allocate=True))
    device = next(base.parameters()).device
    # In the type that PEFT would load them in.
    tensors = {name: tensor.to(device, wanted[name].dtype) for name, tensor in pack.tensors.items()}
    return replace(pack, noted=noted, tensors=tensors)


def _saved(adapted: nn.Module) -> Mapping[str, Tensor]:
    """Exactly what saving this very model would write."""
    return get_peft_model_state_dict(cast(Any, adapted), save_embedding_layers=False)


def _check_tensors(pack: TaskPack, wanted: Mapping[str, Tensor], base: nn.Module) -> None:
    missing, strange = sorted(wanted.keys() - pack.tensors.keys()), sorted(pack.tensors.keys() - wanted.keys())
    strange += [name for name in wanted.keys() - {*missing} if wanted[name].shape != pack.tensors[name].shape]
    if missing or strange:
        what = f"lacks the weight {missing[0]!r}" if missing else f"holds a weight {strange[0]!r} that does not fit"
        raise CheckpointError(
            f"The adapter {pack.folder} {what} ({len(missing) + len(strange)} in all): it is damaged, or belongs to "
            f"another kind of model than {type(base).__name__}."
        )


@torch.no_grad()
def build(pack: TaskPack, base: nn.Module, identity: ModelIdentity, *, merge: bool = True) -> nn.Module:
    """The model of a prepared pack: frozen and in evaluation mode, on the base's device.

    It shares memory with the base (embeddings, matrices that are whole and not adapted, parts of matrices that lie in
    one piece) and with the pack (norms, task head, and LoRA where it is not merged).

    Args:
        pack: see `prepare`.
        base: see `prepare`.
        identity: see `prepare`.
        merge: add LoRA to the weights; otherwise it stays beside them, and the model is PEFT's.

    Raises:
        AdapterError: its config asks for what PEFT cannot do, such as a merge of some kinds of LoRA.
    """
    with _blamed_on(pack):
        return _build(pack, base, identity, merge=merge)


def _build(pack: TaskPack, base: nn.Module, identity: ModelIdentity, *, merge: bool) -> nn.Module:
    model = _pruned(pack, base, identity)
    config = cast(Any, model).config
    for name, value in cast("Mapping[str, Any]", pack.noted).items():
        setattr(config, name, copy.deepcopy(value))
    # PEFT rounds weights that it need not allocate to the type of the base.
    types = {tensor.dtype for tensor in (*base.parameters(), *pack.tensors.values())}
    allocate, quick = len(types) > 1, pack.config.quick_linear and not merge
    adapted = cast(Any, _attach(pack, model, allocate=allocate, quick_linear=quick))
    if pack.config.bias != "none":
        # Biases that trained are loaded over the base's.
        own = [tensor for name, tensor in adapted.named_parameters() if name.endswith("bias")]
        _own_(own, base.parameters())
    set_peft_model_state_dict(adapted, dict(pack.tensors), low_cpu_mem_usage=not allocate)
    if merge:
        # PEFT takes the pack's own tensors where it need not allocate.
        _own_adapted_weights_(adapted, (*base.parameters(), *pack.tensors.values()))
        adapted = adapted.merge_and_unload()
    return cast(nn.Module, adapted).requires_grad_(False).eval()


@contextmanager
def _blamed_on(pack: TaskPack) -> Generator[None]:
    """PEFT believes what a config says, and fails wherever it cannot be."""
    try:
        yield
    except (PruningAdapterError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise AdapterError(f"PEFT cannot make a model of the adapter {pack.folder}: {first}") from error


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Memory that tensors lie in, in bytes; what several share counts once."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _pruned(pack: TaskPack, base: nn.Module, identity: ModelIdentity) -> nn.Module:
    """The base's modules once more around the same memory, cut by the plan, with room for the pack's task head."""
    model = _share(base)
    whole = [range(site.units) for site in identity.all_sites]
    cut_sites_(find_all_sites(model), identity.all_sites, left=whole, kept=pack.plan.kept, views=True)
    wanted = pack.config.base_fingerprint
    if wanted not in (None, CUT) and not pack.config.allow_other_weights and fingerprint_weights(model) != wanted:
        raise AdapterError(
            f"The adapter {pack.folder} belongs to other weights, which were pruned from the base held here: its run's "
            "base/. Serve the run's merged/ (load_pruned)."
        )
    _make_room_for_head_(model, pack)
    return model


def _share(base: nn.Module) -> nn.Module:
    memo: dict[int, Any] = {id(buffer): buffer for buffer in base.buffers()}
    # Parameters of its own, so that freezing, moving or casting the copy does not reach the base.
    memo |= {id(weight): nn.Parameter(weight.detach(), requires_grad=False) for weight in base.parameters()}
    return copy.deepcopy(base, memo).eval()


def _attach(pack: TaskPack, model: nn.Module, *, allocate: bool = False, **changes: Any) -> nn.Module:
    """A PEFT model whose LoRA has no weights yet, or with `allocate` random ones."""
    config = copy.copy(pack.config)
    config.inference_mode = True
    for name, value in changes.items():
        setattr(config, name, value)
    with already_fits(model), torch.random.fork_rng(devices=()):
        return cast(nn.Module, get_peft_model(cast(Any, model), config, low_cpu_mem_usage=not allocate))


def _own_adapted_weights_(adapted: nn.Module, others: Iterable[Tensor]) -> None:
    """Copy what the merge will add to, as far as it is still the memory of others."""
    tensors: list[Tensor] = []
    for module in adapted.modules():
        if hasattr(module, "lora_A"):
            layer = cast(Any, module).get_base_layer()
            tensors += [layer.weight, *([layer.bias] if any(cast(Any, module).lora_bias.values()) else [])]
    _own_(tensors, others)


def _own_(tensors: Iterable[Tensor], others: Iterable[Tensor]) -> None:
    theirs = {tensor.untyped_storage().data_ptr() for tensor in others}
    for tensor in tensors:
        if tensor.untyped_storage().data_ptr() in theirs:
            tensor.data = tensor.data.clone()


def _make_room_for_head_(model: nn.Module, pack: TaskPack) -> None:
    """Give the task head the size and the labels that it has in the pack."""
    trunk, config = f"{cast(Any, model).base_model_prefix}.", cast(Any, model).config
    names = [name.removeprefix(PREFIX) for name in pack.tensors if "lora_" not in name]
    head = [name for name in names if not name.startswith(trunk)]
    sized = {name for name, tensor in pack.tensors.items() if tensor.dim()}
    count, grown = getattr(config, "num_labels", 0), False
    for name in head:
        path, _, leaf = name.rpartition(".")
        tensor = pack.tensors[PREFIX + name]
        try:
            linear: Any = model.get_submodule(path)
            old = linear.get_parameter(leaf)
        except AttributeError:
            # Reported with all else that does not fit.
            continue
        if old.shape == tensor.shape:
            continue
        same = tensor.dim() == old.dim() and old.shape[1:] == tensor.shape[1:] and tensor.numel() > 0
        rows = {len(pack.tensors[each]) for each in (f"{PREFIX}{path}.weight", f"{PREFIX}{path}.bias") if each in sized}
        if not isinstance(linear, nn.Linear) or not same or len(rows) > 1:
            raise AdapterError(
                f"The adapter {pack.folder} holds {name} as {_size(tensor)}, and this {type(model).__name__} has "
                f"{_size(old)}. Give a base of the class that the adapter was trained on."
            )
        linear.register_parameter(leaf, nn.Parameter(old.new_empty(tensor.shape), requires_grad=False))
        count, grown = len(tensor), True
        linear.out_features = count
    noted = pack.config.label_names
    if not head or (noted is None and not grown and pack.config.task_type != "SEQ_CLS"):
        return
    labels = noted if noted is not None and len(noted) == count else [f"LABEL_{number}" for number in range(count)]
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}
    config.problem_type = pack.config.problem_type
    if hasattr(model, "num_labels"):
        cast(Any, model).num_labels = count


def _size(tensor: Tensor) -> str:
    return " x ".join(str(size) for size in tensor.shape)
