"""ViT: an encoder of image patches."""

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
        family="ViT",
        model_types=("vit",),
        stacks=(
            BlockStack(
                path="layers",
                attentions=(
                    AttentionSpec(
                        core="attention",
                        projections=(
                            Projection(path="attention.q_proj", roles=("query",)),
                            Projection(path="attention.k_proj", roles=("key",)),
                            Projection(path="attention.v_proj", roles=("value",)),
                        ),
                        output="attention.o_proj",
                        head_size="head_dim",
                        follow=(Follow(module="attention", attribute="num_attention_heads", counts="heads"),),
                    ),
                ),
                feed_forward=FeedForwardSpec(
                    projections=(Projection(path="mlp.fc1", roles=("up",)),),
                    output="mlp.fc2",
                    in_config=(ConfigCount(name="intermediate_size", counts="neurons"),),
                ),
                built_by=("transformers.models.vit.modeling_vit", "ViTLayer"),
            ),
        ),
        norms=("layernorm", "layernorm_before", "layernorm_after"),
        legacy_pruned_heads=True,
        examples=("google/vit-base-patch16-224",),
    )
)
