"""Llama and the decoders built like it: rotary positions, grouped-query attention, a gated feed-forward.

Whole key/value groups go without a trace; if every group loses equally many query heads, the ratio must follow.
"""

from pruning_adapter.architectures.registry import register
from pruning_adapter.architectures.spec import (
    ArchitectureSpec,
    AttentionSpec,
    BlockStack,
    ConfigCount,
    FeedForwardSpec,
    Follow,
    Projection,
)

HEADS_IN_CONFIG = (
    ConfigCount(name="num_attention_heads", counts="heads"),
    ConfigCount(name="num_key_value_heads", counts="key_value_heads"),
    ConfigCount(name="head_dim", counts="head_size"),
)
"""Phi-3 has the same."""
ATTENTION = AttentionSpec(
    core="self_attn",
    projections=(
        Projection(path="self_attn.q_proj", roles=("query",)),
        Projection(path="self_attn.k_proj", roles=("key",)),
        Projection(path="self_attn.v_proj", roles=("value",)),
    ),
    output="self_attn.o_proj",
    head_size="head_dim",
    follow=(Follow(module="self_attn", attribute="num_key_value_groups", counts="heads_per_group"),),
    in_config=HEADS_IN_CONFIG,
)
FEED_FORWARD = FeedForwardSpec(
    projections=(
        Projection(path="mlp.gate_proj", roles=("gate",)),
        Projection(path="mlp.up_proj", roles=("up",)),
    ),
    output="mlp.down_proj",
    follow=(Follow(module="mlp", attribute="intermediate_size", counts="neurons"),),
    in_config=(ConfigCount(name="intermediate_size", counts="neurons"),),
)


def describe(family: str, model_type: str, block: str, *examples: str) -> None:
    """Register one of the family's dialects."""
    register(
        ArchitectureSpec(
            family=family,
            model_types=(model_type,),
            stacks=(
                BlockStack(
                    path="layers",
                    attentions=(ATTENTION,),
                    feed_forward=FEED_FORWARD,
                    built_by=(f"transformers.models.{model_type}.modeling_{model_type}", block),
                ),
            ),
            norms=("layernorm", ".norm"),
            examples=examples,
        )
    )


describe(
    "Llama, SmolLM, SmolLM2", "llama", "LlamaDecoderLayer", "meta-llama/Llama-3.2-1B", "HuggingFaceTB/SmolLM2-135M"
)
describe("SmolLM3", "smollm3", "SmolLM3DecoderLayer", "HuggingFaceTB/SmolLM3-3B")
describe("Mistral", "mistral", "MistralDecoderLayer", "mistralai/Mistral-7B-v0.3")
describe("Qwen2", "qwen2", "Qwen2DecoderLayer", "Qwen/Qwen2.5-0.5B")
describe("Qwen3", "qwen3", "Qwen3DecoderLayer", "Qwen/Qwen3-0.6B")
describe("Gemma", "gemma", "GemmaDecoderLayer", "google/gemma-2b")
describe("Gemma2", "gemma2", "Gemma2DecoderLayer", "google/gemma-2-2b")
