"""BERT, RoBERTa, XLM-R, CamemBERT, ELECTRA: one post-norm encoder with separate query, key and value.

They differ in their names only; Transformers generates the others from the first.
"""

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
FEED_FORWARD = FeedForwardSpec(
    projections=(Projection(path="intermediate.dense", roles=("up",)),),
    output="output.dense",
    in_config=(ConfigCount(name="intermediate_size", counts="neurons"),),
)


def describe(family: str, model_type: str, block: str, *examples: str) -> None:
    """Register one of the family's dialects."""
    module = model_type.replace("-", "_")
    register(
        ArchitectureSpec(
            family=family,
            model_types=(model_type,),
            stacks=(
                BlockStack(
                    path="encoder.layer",
                    attentions=(ATTENTION,),
                    feed_forward=FEED_FORWARD,
                    padding_free=True,
                    built_by=(f"transformers.models.{module}.modeling_{module}", block),
                ),
            ),
            norms=("LayerNorm",),
            legacy_pruned_heads=True,
            examples=examples,
        )
    )


describe("BERT", "bert", "BertLayer", "google-bert/bert-base-uncased", "sentence-transformers/all-MiniLM-L6-v2")
describe("RoBERTa", "roberta", "RobertaLayer", "FacebookAI/roberta-base")
describe("XLM-R", "xlm-roberta", "XLMRobertaLayer", "FacebookAI/xlm-roberta-base")
describe("CamemBERT", "camembert", "CamembertLayer", "almanach/camembert-base")
describe("ELECTRA", "electra", "ElectraLayer", "google/electra-small-discriminator")
