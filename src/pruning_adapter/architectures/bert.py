"""BERT, RoBERTa, ELECTRA: one post-norm encoder with separate query, key and value.

The three differ in their names only; Transformers generates the latter two from the first.
"""

from pruning_adapter.architectures.registry import register
from pruning_adapter.architectures.spec import ArchitectureSpec, AttentionSpec, BlockStack, Follow, Projection

__all__ = ["ATTENTION"]

ATTENTION = AttentionSpec(
    core="attention.self",
    projections=(
        Projection(path="attention.self.query", roles=("query",)),
        Projection(path="attention.self.key", roles=("key",)),
        Projection(path="attention.self.value", roles=("value",)),
    ),
    output="attention.output.dense",
    head_size="attention_head_size",
    follow=(
        Follow(module="attention.self", attribute="num_attention_heads", counts="heads"),
        Follow(module="attention.self", attribute="all_head_size", counts="rows"),
    ),
)

register(
    ArchitectureSpec(
        family="BERT",
        model_types=("bert",),
        stacks=(
            BlockStack(
                path="encoder.layer",
                attentions=(ATTENTION,),
                built_by=("transformers.models.bert.modeling_bert", "BertEncoder"),
                homonyms=("transformers.models.bert_generation.modeling_bert_generation",),
            ),
        ),
        norms=("LayerNorm",),
        legacy_pruned_heads=True,
        examples=("google-bert/bert-base-uncased", "sentence-transformers/all-MiniLM-L6-v2"),
    )
)

register(
    ArchitectureSpec(
        family="RoBERTa",
        model_types=("roberta",),
        stacks=(
            BlockStack(
                path="encoder.layer",
                attentions=(ATTENTION,),
                built_by=("transformers.models.roberta.modeling_roberta", "RobertaEncoder"),
            ),
        ),
        norms=("LayerNorm",),
        legacy_pruned_heads=True,
        examples=("FacebookAI/roberta-base",),
    )
)

register(
    ArchitectureSpec(
        family="ELECTRA",
        model_types=("electra",),
        stacks=(
            BlockStack(
                path="encoder.layer",
                attentions=(ATTENTION,),
                built_by=("transformers.models.electra.modeling_electra", "ElectraEncoder"),
            ),
        ),
        norms=("LayerNorm",),
        legacy_pruned_heads=True,
        examples=("google/electra-small-discriminator",),
    )
)
