"""ModernBERT: query, key and value fused by role, and a gated feed-forward with gate and up fused."""

from pruning_adapter.architectures.registry import register
from pruning_adapter.architectures.spec import (
    ArchitectureSpec,
    AttentionSpec,
    BlockStack,
    ConfigCount,
    FeedForwardSpec,
    Projection,
)

register(
    ArchitectureSpec(
        family="ModernBERT",
        model_types=("modernbert",),
        stacks=(
            BlockStack(
                path="layers",
                attentions=(
                    AttentionSpec(
                        core="attn",
                        projections=(Projection(path="attn.Wqkv", roles=("query", "key", "value")),),
                        output="attn.Wo",
                        head_size="head_dim",
                    ),
                ),
                feed_forward=FeedForwardSpec(
                    projections=(Projection(path="mlp.Wi", roles=("gate", "up")),),
                    output="mlp.Wo",
                    in_config=(ConfigCount(name="intermediate_size", counts="neurons"),),
                ),
                padding_free=True,
                built_by=("transformers.models.modernbert.modeling_modernbert", "ModernBertEncoderLayer"),
            ),
        ),
        norms=("attn_norm", "mlp_norm", "final_norm", "embeddings.norm"),
        heads=("head",),
        examples=("answerdotai/ModernBERT-base",),
    )
)
