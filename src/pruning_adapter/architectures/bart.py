"""BART: an encoder, and a decoder whose blocks attend to themselves and to the encoder's output."""

from pruning_adapter.architectures.opt import feed_forward, self_attention
from pruning_adapter.architectures.registry import register
from pruning_adapter.architectures.spec import ArchitectureSpec, BlockStack

register(
    ArchitectureSpec(
        family="BART",
        model_types=("bart",),
        stacks=(
            BlockStack(
                path="encoder.layers",
                attentions=(self_attention("self_attn"),),
                feed_forward=feed_forward("encoder_ffn_dim"),
                built_by=("transformers.models.bart.modeling_bart", "BartEncoderLayer"),
                optional=True,
            ),
            BlockStack(
                path="decoder.layers",
                attentions=(self_attention("self_attn"), self_attention("encoder_attn", cross=True)),
                feed_forward=feed_forward("decoder_ffn_dim"),
                built_by=("transformers.models.bart.modeling_bart", "BartDecoderLayer"),
                optional=True,
            ),
        ),
        norms=("layer_norm", "layernorm_embedding"),
        heads=("classification_head",),
        examples=("facebook/bart-base",),
    )
)
