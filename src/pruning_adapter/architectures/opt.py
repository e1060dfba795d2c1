"""OPT: a decoder with separate projections; its feed-forward is two linear maps of the block itself."""

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

__all__ = ["feed_forward", "self_attention"]


def feed_forward(field: str) -> FeedForwardSpec:
    """Two linear maps of the block itself, as OPT, BART and Whisper have them; `field` of the config sizes them."""
    return FeedForwardSpec(
        projections=(Projection(path="fc1", roles=("up",)),),
        output="fc2",
        in_config=(ConfigCount(name=field, counts="neurons"),),
    )


def self_attention(path: str, *, cross: bool = False) -> AttentionSpec:
    """The attention at `path` of a block, as OPT, BART and Whisper name its parts."""
    return AttentionSpec(
        core=path,
        projections=(
            Projection(path=f"{path}.q_proj", roles=("query",)),
            Projection(path=f"{path}.k_proj", roles=("key",)),
            Projection(path=f"{path}.v_proj", roles=("value",)),
        ),
        output=f"{path}.out_proj",
        head_size="head_dim",
        follow=(Follow(module=path, attribute="num_heads", counts="heads"),),
        cross=cross,
    )


register(
    ArchitectureSpec(
        family="OPT",
        model_types=("opt",),
        stacks=(
            BlockStack(
                path="decoder.layers",
                attentions=(self_attention("self_attn"),),
                feed_forward=feed_forward("ffn_dim"),
                built_by=("transformers.models.opt.modeling_opt", "OPTDecoderLayer"),
            ),
        ),
        norms=("layer_norm",),
        examples=("facebook/opt-125m",),
    )
)
