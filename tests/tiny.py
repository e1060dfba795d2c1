"""Tiny random models of every supported family, and batches for them. Offline, and quick enough for every law."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

__all__ = ["FAMILIES", "Tiny", "make_batch", "make_model", "randomize_"]

VOCABULARY, CLASSES, PADDING, START = 50, 3, 1, 2
TOKENS, IMAGE, MELS, FRAMES = 12, 16, 8, 10

Task = Literal["classification", "causal", "sequence to sequence", "image", "sound"]

ENCODER: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "pad_token_id": PADDING,
    "num_labels": CLASSES,
}
SPECIAL: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": None, "pad_token_id": PADDING}
DECODER: dict[str, Any] = {**ENCODER, **SPECIAL}
GROUPED: dict[str, Any] = {**DECODER, "num_key_value_heads": 2, "head_dim": 8}
DISENTANGLED: dict[str, Any] = {
    **ENCODER,
    "relative_attention": True,
    "position_buckets": 8,
    "pos_att_type": ["p2c", "c2p"],
    "norm_rel_ebd": "layer_norm",
}
TWO_STACKS: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "decoder_start_token_id": START,
    "forced_eos_token_id": None,
    **SPECIAL,
}
T5: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 24,
    "num_heads": 4,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "decoder_start_token_id": START,
    **SPECIAL,
}


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """How a tiny model of a family is made: its first three blocks have 4 heads of 8 and 24 neurons."""

    config: str
    """Name of the config class of Transformers."""
    model: str
    """Name of the model class."""
    sizes: dict[str, Any]
    task: Task = "classification"
    blocks: str = "num_hidden_layers"
    """Name of the config's number of blocks (of the encoder)."""
    module: ModuleType = transformers
    """Where both classes are."""

    @property
    def model_class(self) -> Any:
        return getattr(self.module, self.model)


FAMILIES = {
    "bert": Tiny(config="BertConfig", model="BertForSequenceClassification", sizes=ENCODER),
    "roberta": Tiny(config="RobertaConfig", model="RobertaForSequenceClassification", sizes=ENCODER),
    "xlm-roberta": Tiny(config="XLMRobertaConfig", model="XLMRobertaForSequenceClassification", sizes=ENCODER),
    "camembert": Tiny(config="CamembertConfig", model="CamembertForSequenceClassification", sizes=ENCODER),
    "electra": Tiny(
        config="ElectraConfig", model="ElectraForSequenceClassification", sizes={**ENCODER, "embedding_size": 16}
    ),
    "distilbert": Tiny(
        config="DistilBertConfig",
        model="DistilBertForSequenceClassification",
        sizes={
            "vocab_size": VOCABULARY,
            "dim": 32,
            "n_heads": 4,
            "n_layers": 3,
            "hidden_dim": 24,
            "max_position_embeddings": 40,
            "pad_token_id": PADDING,
            "num_labels": CLASSES,
        },
        blocks="n_layers",
    ),
    "albert": Tiny(
        config="AlbertConfig",
        model="AlbertForSequenceClassification",
        # Five applications of three groups, so not equally many of each.
        sizes={**ENCODER, "embedding_size": 16, "num_hidden_layers": 5, "num_hidden_groups": 3},
        blocks="num_hidden_groups",
    ),
    "deberta-v2": Tiny(
        config="DebertaV2Config",
        model="DebertaV2ForSequenceClassification",
        sizes={**DISENTANGLED, "share_att_key": False},
    ),
    "deberta-v3": Tiny(
        config="DebertaV2Config",
        model="DebertaV2ForSequenceClassification",
        sizes={**DISENTANGLED, "share_att_key": True},
    ),
    "modernbert": Tiny(
        config="ModernBertConfig",
        model="ModernBertForSequenceClassification",
        sizes={
            **ENCODER,
            "global_attn_every_n_layers": 2,
            "local_attention": 20,
            "bos_token_id": 0,
            "cls_token_id": 0,
            "eos_token_id": START,
            "sep_token_id": START,
        },
    ),
    "mpnet": Tiny(config="MPNetConfig", model="MPNetForSequenceClassification", sizes=ENCODER),
    "gpt2": Tiny(
        config="GPT2Config",
        model="GPT2LMHeadModel",
        sizes={
            "vocab_size": VOCABULARY,
            "n_embd": 32,
            "n_head": 4,
            "n_layer": 3,
            "n_inner": 24,
            "n_positions": 64,
            **SPECIAL,
        },
        task="causal",
        blocks="n_layer",
    ),
    "gpt_neox": Tiny(config="GPTNeoXConfig", model="GPTNeoXForCausalLM", sizes=DECODER, task="causal"),
    "opt": Tiny(
        config="OPTConfig",
        model="OPTForCausalLM",
        sizes={**DECODER, "ffn_dim": 24, "word_embed_proj_dim": 32},
        task="causal",
    ),
    "llama": Tiny(config="LlamaConfig", model="LlamaForCausalLM", sizes=GROUPED, task="causal"),
    "smollm3": Tiny(config="SmolLM3Config", model="SmolLM3ForCausalLM", sizes=GROUPED, task="causal"),
    "mistral": Tiny(config="MistralConfig", model="MistralForCausalLM", sizes=GROUPED, task="causal"),
    "qwen2": Tiny(config="Qwen2Config", model="Qwen2ForCausalLM", sizes=GROUPED, task="causal"),
    "qwen3": Tiny(config="Qwen3Config", model="Qwen3ForCausalLM", sizes=GROUPED, task="causal"),
    # Multi-query: all heads read one key and one value.
    "gemma": Tiny(
        config="GemmaConfig", model="GemmaForCausalLM", sizes={**GROUPED, "num_key_value_heads": 1}, task="causal"
    ),
    "gemma2": Tiny(
        config="Gemma2Config", model="Gemma2ForCausalLM", sizes={**GROUPED, "query_pre_attn_scalar": 8}, task="causal"
    ),
    "phi3": Tiny(config="Phi3Config", model="Phi3ForCausalLM", sizes=GROUPED, task="causal"),
    "t5": Tiny(
        config="T5Config",
        model="T5ForConditionalGeneration",
        sizes=T5,
        task="sequence to sequence",
        blocks="num_layers",
    ),
    "flan-t5": Tiny(
        config="T5Config",
        model="T5ForConditionalGeneration",
        sizes={**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        task="sequence to sequence",
        blocks="num_layers",
    ),
    "bart": Tiny(
        config="BartConfig",
        model="BartForConditionalGeneration",
        sizes={**TWO_STACKS, "max_position_embeddings": 64},
        task="sequence to sequence",
        blocks="encoder_layers",
    ),
    "vit": Tiny(
        config="ViTConfig",
        model="ViTForImageClassification",
        sizes={
            "hidden_size": 32,
            "num_attention_heads": 4,
            "num_hidden_layers": 3,
            "intermediate_size": 24,
            "image_size": IMAGE,
            "patch_size": 4,
            "num_labels": CLASSES,
        },
        task="image",
    ),
    "whisper": Tiny(
        config="WhisperConfig",
        model="WhisperForConditionalGeneration",
        sizes={
            **TWO_STACKS,
            "num_mel_bins": MELS,
            "max_source_positions": FRAMES,
            "max_target_positions": 64,
        },
        task="sound",
        blocks="encoder_layers",
    ),
}


def make_model(
    family: str,
    *,
    attention: str = "eager",
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    auto: Any = None,
    **changes: Any,
) -> PreTrainedModel:
    """A random model in evaluation mode: 4 heads of 8 and 24 neurons a block. Biases and norms are random too.

    `auto` is an auto class that makes another model of the family, such as one for token classification.
    """
    tiny = FAMILIES[family]
    config = getattr(tiny.module, tiny.config)(**{**tiny.sizes, **changes})
    config._attn_implementation = attention
    # Built in the precision of the laws, so that constants computed on the way are as good as those of a loaded model.
    with torch.random.fork_rng(), default_dtype(torch.float64):
        torch.manual_seed(seed)
        model = tiny.model_class(config) if auto is None else auto.from_config(config, attn_implementation=attention)
        randomize_(model)
    return model.to(dtype).eval()


@contextmanager
def default_dtype(dtype: torch.dtype) -> Generator[None]:
    """Make parameters in this type while the context lasts."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def randomize_(model: torch.nn.Module, *, only_trainable: bool = False) -> None:
    """Give every parameter, biases and norms included, a random value, so that no bug hides behind zeros and ones."""
    for parameter in model.parameters():
        if parameter.requires_grad or not only_trainable:
            parameter.data.add_(torch.randn_like(parameter) * 0.2)


def make_batch(
    task: Task = "classification", *, padded: bool = True, size: int = 6, seed: int = 0
) -> dict[str, Tensor]:
    """Random examples for a task, with labels of all classes or of different lengths.

    Texts are padded to 12 tokens (or all of 12 tokens).
    """
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (size, TOKENS), generator=generator)
    mask = torch.ones_like(ids)
    if padded:
        for row in range(size):
            mask[row, 4 + (5 * row) % 9 :] = 0
    classes = torch.arange(size) % CLASSES
    if task == "image":
        return {"pixel_values": noise((size, 3, IMAGE, IMAGE), generator), "labels": classes}
    text = {"input_ids": ids.masked_fill(mask == 0, PADDING), "attention_mask": mask}
    if task == "classification":
        return {**text, "labels": classes}
    if task == "causal":
        return {**text, "labels": ids.masked_fill(mask == 0, -100)}
    answers = torch.randint(3, VOCABULARY, (size, 7), generator=generator)
    for row in range(size if padded else 0):
        answers[row, 3 + (2 * row) % 5 :] = -100
    if task == "sound":
        return {"input_features": noise((size, MELS, 2 * FRAMES), generator), "labels": answers}
    return {**text, "labels": answers}


def noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Standard normal numbers, the same in every default type."""
    return torch.randn(shape, generator=generator, dtype=torch.float64)
