"""Accelerate's FSDP2 on processors, which it offers on GPUs only."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pytest
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

__all__ = ["spread"]

FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}
"""What `accelerate launch` sets for the configuration in docs/many-machines.md."""


@contextmanager
def spread(family: str) -> Generator[None]:
    """FSDP2 as `accelerate launch` asks for it.

    Accelerate 1.15 hears its variables on GPUs only: on CPUs its state says MULTI_CPU and it wraps in DDP. So its state
    is told otherwise; all that follows is its own code.
    """
    begin = AcceleratorState.__init__

    def told(self: Any, *arguments: Any, **options: Any) -> None:
        begin(self, *arguments, **options)
        plugin = options.get("fsdp_plugin") or self.__dict__.get("fsdp_plugin")
        if plugin is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, plugin
            if self._mixed_precision != "no":
                plugin.set_mixed_precision(self._mixed_precision)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AcceleratorState, "__init__", told)
        for name, value in FSDP2.items():
            patch.setenv(name, value)
        # Of its own accord Accelerate takes BertEmbeddings too, then the embedding inside, which torch refuses.
        block = {"bert": "BertLayer", "llama": "LlamaDecoderLayer"}[family]
        patch.setenv("FSDP_TRANSFORMER_CLS_TO_WRAP", block)
        yield
    AcceleratorState._reset_state(reset_partial_state=True)
