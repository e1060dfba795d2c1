"""ALBERT: the blocks of a group are applied again and again, so one plan serves every application."""

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
        family="ALBERT",
        model_types=("albert",),
        stacks=(
            BlockStack(
                path="encoder.albert_layer_groups.*.albert_layers",
                attentions=(
                    AttentionSpec(
                        core="attention",
                        projections=(
                            Projection(path="attention.query", roles=("query",)),
                            Projection(path="attention.key", roles=("key",)),
                            Projection(path="attention.value", roles=("value",)),
                        ),
                        output="attention.dense",
                        head_size="attention_head_size",
                        follow=(
                            Follow(module="attention", attribute="num_attention_heads", counts="heads"),
                            Follow(module="attention", attribute="all_head_size", counts="rows"),
                        ),
                        closing_norm="LayerNorm",
                    ),
                ),
                feed_forward=FeedForwardSpec(
                    projections=(Projection(path="ffn", roles=("up",)),),
                    output="ffn_output",
                    in_config=(ConfigCount(name="intermediate_size", counts="neurons"),),
                ),
                padding_free=True,
                built_by=("transformers.models.albert.modeling_albert", "AlbertLayer"),
            ),
        ),
        norms=("LayerNorm", "full_layer_layer_norm"),
        legacy_pruned_heads=True,
        examples=("albert/albert-base-v2",),
    )
)
