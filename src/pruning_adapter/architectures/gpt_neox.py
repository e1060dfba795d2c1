"""GPT-NeoX and Pythia: query, key and value fused by head."""

from pruning_adapter.architectures.registry import register
from pruning_adapter.architectures.spec import (
    ArchitectureSpec,
    AttentionSpec,
    BlockStack,
    ConfigCount,
    FeedForwardSpec,
    Fusion,
    Projection,
)

register(
    ArchitectureSpec(
        family="GPT-NeoX / Pythia",
        model_types=("gpt_neox",),
        stacks=(
            BlockStack(
                path="layers",
                attentions=(
                    AttentionSpec(
                        core="attention",
                        projections=(
                            Projection(
                                path="attention.query_key_value",
                                roles=("query", "key", "value"),
                                fusion=Fusion.BY_HEAD,
                            ),
                        ),
                        output="attention.dense",
                        head_size="head_size",
                    ),
                ),
                feed_forward=FeedForwardSpec(
                    projections=(Projection(path="mlp.dense_h_to_4h", roles=("up",)),),
                    output="mlp.dense_4h_to_h",
                    in_config=(ConfigCount(name="intermediate_size", counts="neurons"),),
                ),
                built_by=("transformers.models.gpt_neox.modeling_gpt_neox", "GPTNeoXLayer"),
            ),
        ),
        norms=("layernorm", "layer_norm"),
        examples=("EleutherAI/pythia-160m",),
    )
)
