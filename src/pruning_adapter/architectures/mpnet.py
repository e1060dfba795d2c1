"""MPNet: BERT-like, with a relative position bias that the stack hands to every block at full width."""

from pruning_adapter.architectures.bert import FEED_FORWARD
from pruning_adapter.architectures.registry import register
from pruning_adapter.architectures.spec import (
    ArchitectureSpec,
    AttentionSpec,
    BlockStack,
    Follow,
    PositionBias,
    Projection,
)

register(
    ArchitectureSpec(
        family="MPNet",
        model_types=("mpnet",),
        stacks=(
            BlockStack(
                path="encoder.layer",
                attentions=(
                    AttentionSpec(
                        core="attention.attn",
                        projections=(
                            Projection(path="attention.attn.q", roles=("query",)),
                            Projection(path="attention.attn.k", roles=("key",)),
                            Projection(path="attention.attn.v", roles=("value",)),
                        ),
                        output="attention.attn.o",
                        head_size="attention_head_size",
                        follow=(
                            Follow(module="attention.attn", attribute="num_attention_heads", counts="heads"),
                            Follow(module="attention.attn", attribute="all_head_size", counts="rows"),
                        ),
                        position_bias=PositionBias(argument="position_bias"),
                    ),
                ),
                feed_forward=FEED_FORWARD,
                built_by=("transformers.models.mpnet.modeling_mpnet", "MPNetLayer"),
            ),
        ),
        norms=("LayerNorm",),
        examples=("sentence-transformers/all-mpnet-base-v2",),
    )
)
