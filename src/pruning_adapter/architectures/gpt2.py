"""GPT-2: query, key and value fused by role in a `Conv1D`, whose weight is stored (in, out)."""

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
        family="GPT-2",
        model_types=("gpt2",),
        stacks=(
            BlockStack(
                path="h",
                attentions=(
                    AttentionSpec(
                        core="attn",
                        projections=(Projection(path="attn.c_attn", roles=("query", "key", "value")),),
                        output="attn.c_proj",
                        head_size="head_dim",
                        follow=(
                            Follow(module="attn", attribute="num_heads", counts="heads"),
                            Follow(module="attn", attribute="split_size", counts="rows"),
                        ),
                    ),
                ),
                feed_forward=FeedForwardSpec(
                    projections=(Projection(path="mlp.c_fc", roles=("up",)),),
                    output="mlp.c_proj",
                    in_config=(ConfigCount(name="n_inner", counts="neurons"),),
                ),
                built_by=("transformers.models.gpt2.modeling_gpt2", "GPT2Block"),
            ),
        ),
        norms=("ln_1", "ln_2", "ln_f"),
        legacy_pruned_heads=True,
        examples=("openai-community/gpt2", "distilbert/distilgpt2"),
    )
)
