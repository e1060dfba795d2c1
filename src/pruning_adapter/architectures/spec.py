"""How a family of models is described: where its units live, as data. No algorithm reads a model's name.

A *unit* is what surgery removes: an attention head (later also a feed-forward neuron). Units of one kind live at a
*site*: some projections write them (their weight rows are grouped by unit), one output projection reads them (its
weight columns are grouped by unit). Everything else about a family follows from that.
"""

from dataclasses import dataclass
from enum import StrEnum

from pruning_adapter.errors import ArchitectureError

__all__ = ["ArchitectureSpec", "AttentionSpec", "BlockStack", "Follow", "Fusion", "Projection"]


class Fusion(StrEnum):
    """How the rows of one weight matrix that serves several roles are arranged."""

    BY_ROLE = "by role"
    """All query rows, then all key rows, then all value rows: `(roles, heads, head_size)`."""
    BY_HEAD = "by head"
    """Query, key and value rows of head 0, then of head 1, ...: `(heads, roles, head_size)`."""


@dataclass(frozen=True, kw_only=True)
class Projection:
    """A linear map that writes units; its rows are grouped by unit."""

    path: str
    """Module path, relative to the block."""
    roles: tuple[str, ...]
    """One of "query", "key", "value", or several where the family fuses them."""
    fusion: Fusion = Fusion.BY_ROLE
    """Only read where there are several roles."""


@dataclass(frozen=True, kw_only=True)
class Follow:
    """An attribute that must follow the surgery, so that the module goes on telling the truth about itself."""

    module: str
    """Module path, relative to the block."""
    attribute: str
    counts: str
    """What the attribute counts: "heads", "key_value_heads", "rows" (heads x head size) or "heads_per_group"."""

    def __post_init__(self) -> None:
        allowed = ("heads", "key_value_heads", "rows", "heads_per_group")
        if self.counts not in allowed:
            raise ArchitectureError(f"Follow.counts is {self.counts!r}; it must be one of {', '.join(allowed)}.")


@dataclass(frozen=True, kw_only=True)
class AttentionSpec:
    """Where the heads of one attention live in a block. All paths are relative to the block."""

    core: str
    """The module whose forward computes the heads. When no head is left, a stub takes its place."""
    projections: tuple[Projection, ...]
    """Together they cover the roles query, key and value exactly once."""
    output: str
    """The output projection. It may lie inside `core` (DistilBERT) or beside it (BERT)."""
    head_size: str
    """Attribute of `core` that holds the width of one head."""
    follow: tuple[Follow, ...] = ()
    returns: int = 2
    """Length of the tuple that `core` returns; its first element is the output, the others may be None."""

    def __post_init__(self) -> None:
        roles = sorted(role for projection in self.projections for role in projection.roles)
        if roles != ["key", "query", "value"]:
            raise ArchitectureError(
                f"The projections of {self.core!r} cover the roles {roles}; "
                "query, key and value must each be covered once, separately or fused."
            )

    @property
    def output_in_core(self) -> str | None:
        """Path of the output projection relative to `core`, or None if it lies beside it."""
        prefix = self.core + "."
        return self.output.removeprefix(prefix) if self.output.startswith(prefix) else None


@dataclass(frozen=True, kw_only=True)
class BlockStack:
    """A list of equal blocks; an encoder-decoder has two."""

    path: str
    """Path of the `ModuleList`, relative to the trunk (the model without its task head)."""
    attentions: tuple[AttentionSpec, ...]
    """One a block; a decoder with cross-attention has two."""
    built_by: tuple[str, str]
    """Module and name of the class that builds this stack, where saved models are rebuilt with fewer heads."""
    homonyms: tuple[str, ...] = ()
    """Other Transformers modules with a class of that name, which must stay unaffected."""


@dataclass(frozen=True, kw_only=True)
class ArchitectureSpec:
    """All we need to know about a family of models."""

    family: str
    """As people write it, such as "RoBERTa"."""
    model_types: tuple[str, ...]
    """Values of `config.model_type` that this description serves."""
    stacks: tuple[BlockStack, ...]
    norms: tuple[str, ...]
    """Name endings of the normalisation modules, which train beside LoRA."""
    heads: tuple[str, ...] = ()
    """Names of untrained task-head modules, beyond PEFT's own "classifier" and "score", that must train."""
    legacy_pruned_heads: bool = False
    """Transformers 4 rebuilds this family from `config.pruned_heads`, so the merged checkpoint writes it too."""
    examples: tuple[str, ...] = ()
    """Hub ids of well-known checkpoints, for the table of supported families."""
