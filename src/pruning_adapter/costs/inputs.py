"""Made-up inputs for any supported model: token ids, images or sound features, whatever it reads."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from pruning_adapter.architectures.sites import base_of
from pruning_adapter.errors import CostError

__all__ = ["make_inputs"]


def make_inputs(model: nn.Module, *, batch: int, length: int) -> dict[str, Tensor]:
    """Unpadded made-up inputs for `batch` examples, on the model's device.

    `length` is the number of tokens; an encoder-decoder gets as many on both sides. Images have the size that the
    config says, and sound the length that the model is built for.

    Raises:
        CostError: the model reads something else.
    """
    base = cast(Any, base_of(model))
    config, reference = base.config, next(base.parameters())
    device, dtype = reference.device, reference.dtype
    generator = torch.Generator().manual_seed(0)
    if base.main_input_name == "pixel_values":
        size = config.image_size
        height, width = (size, size) if isinstance(size, int) else size
        return {"pixel_values": _noise((batch, config.num_channels, height, width), generator, device, dtype)}
    inputs: dict[str, Tensor] = {}
    if base.main_input_name == "input_features":
        # Two convolutions, the second of stride two.
        frames = 2 * config.max_source_positions
        inputs["input_features"] = _noise((batch, config.num_mel_bins, frames), generator, device, dtype)
    elif base.main_input_name == "input_ids":
        inputs["input_ids"] = _ids(config, batch, length, generator, device)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    else:
        raise CostError(f"{type(base).__name__} reads {base.main_input_name!r}; no such input can be made up.")
    if config.is_encoder_decoder and hasattr(base, "get_decoder") and _has_decoder(base):
        inputs["decoder_input_ids"] = _ids(config, batch, length, generator, device)
    return inputs


def _has_decoder(base: Any) -> bool:
    return any(name.rpartition(".")[2] == "decoder" for name, _ in base.named_modules())


def _ids(config: Any, batch: int, length: int, generator: torch.Generator, device: torch.device) -> Tensor:
    vocabulary, end = int(config.vocab_size), getattr(config, "eos_token_id", None)
    ids = torch.randint(min(5, vocabulary - 1), vocabulary, (batch, length), generator=generator)
    if isinstance(end, int) and 0 <= end < vocabulary:
        # Some task heads read a sentence off at its end, of which there must be one.
        ids[ids == end] = end - 1 if end else 1
        ids[:, -1] = end
    return ids.to(device)


def _noise(shape: tuple[int, ...], generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=generator).to(device=device, dtype=dtype)
