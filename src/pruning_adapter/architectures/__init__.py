"""Where heads live: one small description per family, and the functions that read them."""

from pruning_adapter.architectures import bert as _bert
from pruning_adapter.architectures import distilbert as _distilbert
from pruning_adapter.architectures.registry import find_spec, register, registered, supported_model_types
from pruning_adapter.architectures.shapes import ModelIdentity, ProjectionShape, SiteShape
from pruning_adapter.architectures.spec import ArchitectureSpec, AttentionSpec, BlockStack, Follow, Fusion, Projection

__all__ = [
    "ArchitectureSpec",
    "AttentionSpec",
    "BlockStack",
    "Follow",
    "Fusion",
    "ModelIdentity",
    "Projection",
    "ProjectionShape",
    "SiteShape",
    "find_spec",
    "register",
    "registered",
    "supported_model_types",
]

# Importing a family's module registers it.
del _bert, _distilbert
