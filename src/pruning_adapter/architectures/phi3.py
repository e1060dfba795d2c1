"""Phi-3: grouped-query attention fused by role, whose forward reads the head count from the shared config."""

from pruning_adapter.architectures.llama import HEADS_IN_CONFIG
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

register(
    ArchitectureSpec(
        family="Phi-3",
        model_types=("phi3",),
        stacks=(
            BlockStack(
                path="layers",
                attentions=(
                    AttentionSpec(
                        core="self_attn",
                        projections=(Projection(path="self_attn.qkv_proj", roles=("query", "key", "value")),),
                        output="self_attn.o_proj",
                        head_size="head_dim",
                        follow=(
                            Follow(module="self_attn", attribute="config.num_attention_heads", counts="heads"),
                            Follow(module="self_attn", attribute="num_key_value_heads", counts="key_value_heads"),
                            Follow(module="self_attn", attribute="num_key_value_groups", counts="heads_per_group"),
                        ),
                        in_config=HEADS_IN_CONFIG,
                    ),
                ),
                feed_forward=FeedForwardSpec(
                    projections=(Projection(path="mlp.gate_up_proj", roles=("gate", "up")),),
                    output="mlp.down_proj",
                    in_config=(ConfigCount(name="intermediate_size", counts="neurons"),),
                ),
                built_by=("transformers.models.phi3.modeling_phi3", "Phi3DecoderLayer"),
            ),
        ),
        norms=("layernorm", ".norm"),
        examples=("microsoft/Phi-3-mini-4k-instruct",),
    )
)
