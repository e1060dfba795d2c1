"""DeBERTa-v2 and v3: disentangled attention, whose relative positions have projections of their own unless shared."""

from pruning_adapter.architectures.bert import FEED_FORWARD
from pruning_adapter.architectures.registry import register
from pruning_adapter.architectures.spec import ArchitectureSpec, AttentionSpec, BlockStack, Follow, Projection

register(
    ArchitectureSpec(
        family="DeBERTa-v2 / v3",
        model_types=("deberta-v2",),
        stacks=(
            BlockStack(
                path="encoder.layer",
                attentions=(
                    AttentionSpec(
                        core="attention.self",
                        projections=(
                            Projection(path="attention.self.query_proj", roles=("query",)),
                            Projection(path="attention.self.key_proj", roles=("key",)),
                            Projection(path="attention.self.value_proj", roles=("value",)),
                            Projection(path="attention.self.pos_key_proj", roles=("position_key",), optional=True),
                            Projection(path="attention.self.pos_query_proj", roles=("position_query",), optional=True),
                        ),
                        output="attention.output.dense",
                        head_size="attention_head_size",
                        follow=(
                            Follow(module="attention.self", attribute="num_attention_heads", counts="heads"),
                            Follow(module="attention.self", attribute="all_head_size", counts="rows"),
                        ),
                    ),
                ),
                feed_forward=FEED_FORWARD,
                built_by=("transformers.models.deberta_v2.modeling_deberta_v2", "DebertaV2Layer"),
            ),
        ),
        norms=("LayerNorm",),
        heads=("pooler",),
        examples=("microsoft/deberta-v3-base", "microsoft/deberta-v2-xlarge"),
    )
)
