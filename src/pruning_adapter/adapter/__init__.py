"""Prune-LoRA as a PEFT method. Importing this package registers it with PEFT."""

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import register_peft_method

from pruning_adapter.adapter.config import PruneLoraConfig
from pruning_adapter.adapter.convert import lift_adapter, plain_lora_config, slice_adapter
from pruning_adapter.adapter.model import PruneLoraModel
from pruning_adapter.adapter.peft_type import PRUNE_LORA
from pruning_adapter.adapter.quantize import quantize_base_

__all__ = [
    "PruneLoraConfig",
    "PruneLoraModel",
    "lift_adapter",
    "plain_lora_config",
    "quantize_base_",
    "slice_adapter",
]

if PRUNE_LORA not in PEFT_TYPE_TO_CONFIG_MAPPING:
    # The prefix is LoRA's: our layers are LoRA layers and our files are LoRA files.
    register_peft_method(name="prune_lora", config_cls=PruneLoraConfig, model_cls=PruneLoraModel, prefix="lora_")
