"""T5 and Flan-T5: encoder and decoder share one class of block; all self-attentions of a stack share one position bias.

The bias is computed in the first block and handed on. The feed-forward is plain (T5) or gated (T5 1.1, Flan-T5).
"""

from pruning_adapter.architectures.registry import register
from pruning_adapter.architectures.spec import (
    ArchitectureSpec,
    AttentionSpec,
    BlockStack,
    ConfigCount,
    FeedForwardSpec,
    Follow,
    PositionBias,
    Projection,
)

BUILT_BY = ("transformers.models.t5.modeling_t5", "T5Block")


def attention(path: str, *, cross: bool = False) -> AttentionSpec:
    """The attention at `path` of a block."""
    return AttentionSpec(
        core=path,
        projections=(
            Projection(path=f"{path}.q", roles=("query",)),
            Projection(path=f"{path}.k", roles=("key",)),
            Projection(path=f"{path}.v", roles=("value",)),
        ),
        output=f"{path}.o",
        head_size="key_value_proj_dim",
        follow=(
            Follow(module=path, attribute="n_heads", counts="heads"),
            Follow(module=path, attribute="inner_dim", counts="rows"),
        ),
        returns=3,
        cross=cross,
        position_bias=PositionBias(
            argument="position_bias", returned=1, owner=None if cross else "relative_attention_bias"
        ),
    )


def feed_forward(path: str) -> FeedForwardSpec:
    """The feed-forward at `path` of a block, plain or gated."""
    return FeedForwardSpec(
        projections=(
            Projection(path=f"{path}.wi", roles=("up",), optional=True),
            Projection(path=f"{path}.wi_0", roles=("gate",), optional=True),
            Projection(path=f"{path}.wi_1", roles=("up",), optional=True),
        ),
        output=f"{path}.wo",
        in_config=(ConfigCount(name="d_ff", counts="neurons"),),
    )


register(
    ArchitectureSpec(
        family="T5 / Flan-T5",
        model_types=("t5",),
        stacks=(
            BlockStack(
                path="encoder.block",
                attentions=(attention("layer.0.SelfAttention"),),
                feed_forward=feed_forward("layer.1.DenseReluDense"),
                built_by=BUILT_BY,
                only_if=("is_decoder", False),
                optional=True,
            ),
            BlockStack(
                path="decoder.block",
                attentions=(
                    attention("layer.0.SelfAttention"),
                    attention("layer.1.EncDecAttention", cross=True),
                ),
                feed_forward=feed_forward("layer.2.DenseReluDense"),
                built_by=BUILT_BY,
                only_if=("is_decoder", True),
                optional=True,
            ),
        ),
        norms=("layer_norm",),
        heads=("classification_head",),
        examples=("google-t5/t5-small", "google/flan-t5-small"),
    )
)
