"""Whisper: an encoder of sound and a decoder of text; its keys have no bias."""

from pruning_adapter.architectures.opt import feed_forward, self_attention
from pruning_adapter.architectures.registry import register
from pruning_adapter.architectures.spec import ArchitectureSpec, BlockStack

register(
    ArchitectureSpec(
        family="Whisper",
        model_types=("whisper",),
        stacks=(
            BlockStack(
                path="encoder.layers",
                attentions=(self_attention("self_attn"),),
                feed_forward=feed_forward("encoder_ffn_dim"),
                built_by=("transformers.models.whisper.modeling_whisper", "WhisperEncoderLayer"),
                optional=True,
            ),
            BlockStack(
                path="decoder.layers",
                attentions=(self_attention("self_attn"), self_attention("encoder_attn", cross=True)),
                feed_forward=feed_forward("decoder_ffn_dim"),
                built_by=("transformers.models.whisper.modeling_whisper", "WhisperDecoderLayer"),
                optional=True,
            ),
        ),
        norms=("layer_norm",),
        heads=("projector",),
        examples=("openai/whisper-tiny",),
    )
)
