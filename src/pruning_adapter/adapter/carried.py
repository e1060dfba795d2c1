"""Which adapters can be cut or lifted at all: those of which all that was trained comes along."""

from dataclasses import fields
from typing import Any, cast

from peft import LoraConfig
from peft.tuners.lora import Linear
from peft.utils import ModulesToSaveWrapper
from torch import nn

from pruning_adapter.adapter.carry import ADAPTER
from pruning_adapter.architectures.sites import find_all_sites
from pruning_adapter.errors import AdapterError

__all__ = ["check_can_be_carried"]

_READ_FROM_LAYERS = (
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
)
_COPIED = ("lora_dropout", "task_type", "modules_to_save", "trainable_token_indices", "ensure_weight_tying")
_NOT_OF_THE_PRODUCT = (
    *("fan_in_fan_out", "runtime_config", "inference_mode", "eva_config", "megatron_config", "megatron_core"),
    *("peft_type", "auto_mapping", "base_model_name_or_path", "revision", "peft_version"),
)
_KNOWN = frozenset((*_READ_FROM_LAYERS, *_COPIED, *_NOT_OF_THE_PRODUCT, "init_lora_weights", "bias"))
_LEAVE_THE_BASE = (True, False, "gaussian", "orthogonal", "eva")
_INSTEAD = "Merge it instead (merge_and_unload), and go on with the merged model."


def check_can_be_carried(model: nn.Module) -> None:
    """Refuse a model whose adapter is more than products B A on linear maps of blocks, and whole modules beside them.

    Options that PEFT may learn in future are refused too: nobody knows what they do.

    Raises:
        AdapterError: what cannot be carried, and where it is.
    """
    adapters = list(getattr(model, "peft_config", {}))
    if adapters != [ADAPTER]:
        found = f"the adapters {adapters}" if adapters else "no adapter"
        raise AdapterError(f"The model has {found}; one with a single adapter named {ADAPTER!r} is needed.")
    _check_options(cast(Any, model).peft_config[ADAPTER])
    for name, module in model.named_modules():
        layer = cast(Any, module)
        if ADAPTER in getattr(module, "lora_embedding_A", ()):
            raise AdapterError(f"{name} is an embedding with LoRA, which no plan speaks of. {_INSTEAD}")
        if ADAPTER not in getattr(module, "lora_A", ()):
            continue
        if not isinstance(module, Linear) or layer.lora_variant or layer.lora_bias[ADAPTER]:
            raise AdapterError(f"{name} has a kind of LoRA that cannot be cut (DoRA, or a bias of its own). {_INSTEAD}")
        if layer.merged:
            raise AdapterError(f"The adapter is merged into {name}; take it out of the weights first: unmerge_adapter.")
    _check_whole_modules(model)


def _check_options(config: Any) -> None:
    if config.bias != "none":
        raise AdapterError(
            f"The adapter was made with bias={config.bias!r}: it trained biases of the base in their place, so that "
            f"the base is no longer the one that plans and adapters know. {_INSTEAD}"
        )
    if config.init_lora_weights not in _LEAVE_THE_BASE:
        raise AdapterError(
            f"The adapter was made with init_lora_weights={config.init_lora_weights!r}, which took a part out of the "
            f"base's weights, so that they are no longer those that plans and adapters know. {_INSTEAD}"
        )
    plain = LoraConfig()
    for option in fields(LoraConfig):
        value = getattr(config, option.name, None)
        if option.name not in _KNOWN and value and value != getattr(plain, option.name):
            raise AdapterError(f"The adapter was made with {option.name}={value!r}, which cannot be cut. {_INSTEAD}")


def _check_whole_modules(model: nn.Module) -> None:
    """Modules that train as a whole must not be such as are cut."""
    maps = {
        id(part): site.name
        for site in find_all_sites(model)
        for part in (
            site.block,
            *(site.block.get_submodule(one.path) for one in (site.projections if site.units else ())),
            site.block.get_submodule(site.spec.output),
        )
    }
    for name, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            cut = next((maps[id(below)] for below in module.modules() if id(below) in maps), None)
            if cut is not None:
                raise AdapterError(
                    f"{name} was trained as a whole (modules_to_save), and {cut} in it is what pruning cuts. {_INSTEAD}"
                )
