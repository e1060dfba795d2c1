"""Where heads and neurons live: one small description per family, and the functions that read them."""

from importlib import import_module

from pruning_adapter.architectures.registry import find_spec, register, registered, supported_model_types
from pruning_adapter.architectures.shapes import ModelIdentity, ProjectionShape, SiteShape
from pruning_adapter.architectures.spec import (
    ArchitectureSpec,
    AttentionSpec,
    BlockStack,
    ConfigCount,
    FeedForwardSpec,
    Follow,
    Fusion,
    PositionBias,
    Projection,
)

__all__ = [
    "ArchitectureSpec",
    "AttentionSpec",
    "BlockStack",
    "ConfigCount",
    "FeedForwardSpec",
    "Follow",
    "Fusion",
    "ModelIdentity",
    "PositionBias",
    "Projection",
    "ProjectionShape",
    "SiteShape",
    "find_spec",
    "register",
    "registered",
    "supported_model_types",
]

# Importing a family's module registers it; the order is that of the table in the README.
for _family in (
    "bert",
    "distilbert",
    "albert",
    "deberta",
    "modernbert",
    "mpnet",
    "gpt2",
    "gpt_neox",
    "opt",
    "llama",
    "phi3",
    "t5",
    "bart",
    "vit",
    "whisper",
):
    import_module(f"{__name__}.{_family}")
