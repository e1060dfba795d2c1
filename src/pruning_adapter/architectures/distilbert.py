"""DistilBERT: query, key, value and output in one module; its task head has a second, untrained layer."""

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
        family="DistilBERT",
        model_types=("distilbert",),
        stacks=(
            BlockStack(
                path="transformer.layer",
                attentions=(
                    AttentionSpec(
                        core="attention",
                        projections=(
                            Projection(path="attention.q_lin", roles=("query",)),
                            Projection(path="attention.k_lin", roles=("key",)),
                            Projection(path="attention.v_lin", roles=("value",)),
                        ),
                        output="attention.out_lin",
                        head_size="attention_head_size",
                        follow=(Follow(module="attention", attribute="n_heads", counts="heads"),),
                    ),
                ),
                feed_forward=FeedForwardSpec(
                    projections=(Projection(path="ffn.lin1", roles=("up",)),),
                    output="ffn.lin2",
                    in_config=(ConfigCount(name="hidden_dim", counts="neurons"),),
                ),
                padding_free=True,
                built_by=("transformers.models.distilbert.modeling_distilbert", "TransformerBlock"),
            ),
        ),
        norms=("LayerNorm", "sa_layer_norm", "output_layer_norm"),
        heads=("pre_classifier",),
        legacy_pruned_heads=True,
        examples=("distilbert/distilbert-base-uncased",),
    )
)
