"""How a family of models is described: where its units live, as data. No algorithm reads a model's name.

A *unit* is what surgery removes: an attention head or a feed-forward neuron. Units of one kind live at a *site*: some
projections write them (their weight rows are grouped by unit), one output projection reads them (its weight columns are
grouped by unit). Everything else about a family follows from that.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from pruning_adapter.errors import ArchitectureError

__all__ = [
    "ATTENTION_ROLES",
    "FEED_FORWARD_ROLES",
    "GROUP_ROLES",
    "ArchitectureSpec",
    "AttentionSpec",
    "BlockStack",
    "ConfigCount",
    "FeedForwardSpec",
    "Follow",
    "Fusion",
    "Kind",
    "PositionBias",
    "Projection",
]

Kind = Literal["heads", "neurons"]

ATTENTION_ROLES = ("query", "key", "value", "position_query", "position_key")
"""What a projection may write for the heads. DeBERTa projects relative positions too, one part per query head."""
FEED_FORWARD_ROLES = ("gate", "up")
"""What a projection may write for the neurons: both are multiplied, unit by unit, in a gated feed-forward."""
GROUP_ROLES = frozenset({"key", "value"})
"""Roles that query heads of one group share under grouped-query attention."""


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
    """One of the roles above, or several where the family fuses them, in the order of their rows."""
    fusion: Fusion = Fusion.BY_ROLE
    """Only read where there are several roles."""
    optional: bool = False
    """Whether some configurations of the family lack it."""

    def __post_init__(self) -> None:
        if self.fusion not in tuple(Fusion):
            raise ArchitectureError(
                f"The rows of {self.path!r} are said to be fused {self.fusion!r}; use Fusion.BY_ROLE or Fusion.BY_HEAD."
                " Another layout cannot be cut: give it projections of its own, or permute its rows first."
            )


@dataclass(frozen=True, kw_only=True)
class Follow:
    """An attribute that must follow the surgery, so that the module goes on telling the truth about itself."""

    module: str
    """Module path, relative to the block."""
    attribute: str
    """Its name; "config.name" where the forward reads a count from the config that all blocks share. The module then
    gets a view of the config of its own."""
    counts: str
    """What the attribute counts: "heads", "key_value_heads", "rows" (heads x head size), "heads_per_group" or
    "neurons"."""

    def __post_init__(self) -> None:
        allowed = ("heads", "key_value_heads", "rows", "heads_per_group", "neurons")
        if self.counts not in allowed:
            raise ArchitectureError(f"Follow.counts is {self.counts!r}; it must be one of {', '.join(allowed)}.")


@dataclass(frozen=True, kw_only=True)
class ConfigCount:
    """A field of the config that sizes such a part of every block alike."""

    name: str
    """The field, as `config.json` has it."""
    counts: str
    """What it counts: "heads", "key_value_heads", "head_size" or "neurons"."""

    def __post_init__(self) -> None:
        allowed = ("heads", "key_value_heads", "head_size", "neurons")
        if self.counts not in allowed:
            raise ArchitectureError(f"ConfigCount.counts is {self.counts!r}; it must be one of {', '.join(allowed)}.")


@dataclass(frozen=True, kw_only=True)
class PositionBias:
    """A bias on the attention scores, `(batch or 1, heads, queries, keys)`, that blocks hand on to one another.

    Blocks that lost different heads need different slices of it, so it is handed on at full width and sliced on its
    way into each attention.
    """

    argument: str
    """Name of the argument of the core's forward that carries it."""
    returned: int | None = None
    """Where in the core's output it is handed on; None where the stack computes it and hands it to every block."""
    owner: str | None = None
    """Name of the core's embedding that it is computed from, in the block that has one."""


@dataclass(frozen=True, kw_only=True)
class AttentionSpec:
    """Where the heads of one attention live in a block. All paths are relative to the block."""

    core: str
    """The module whose forward computes the heads. When no head is left, a stub takes its place."""
    projections: tuple[Projection, ...]
    """Together they cover the roles query, key and value exactly once; positions at most once."""
    output: str
    """The output projection. It may lie inside `core` (DistilBERT) or beside it (BERT)."""
    head_size: str
    """Attribute of `core` that holds the width of one head."""
    follow: tuple[Follow, ...] = ()
    returns: int = 2
    """Length of the tuple that `core` returns; its first element is the output, the others may be None."""
    cross: bool = False
    """Whether keys and values come from another stack's output."""
    position_bias: PositionBias | None = None
    closing_norm: str | None = None
    """Name of a norm in `core` that it applies to the sum of its input and the output projection, if it has one."""
    in_config: tuple[ConfigCount, ...] = ()
    """Fields that size the attention, where the family takes the width of a head from one of them in every version of
    Transformers. Empty where it is the hidden size over the number of heads, so that fewer heads would be wider; and
    where blocks share a position bias, which has a column for every head of the dense model."""

    def __post_init__(self) -> None:
        roles = sorted(role for projection in self.projections for role in projection.roles)
        needed = [role for role in roles if not role.startswith("position_")]
        if needed != ["key", "query", "value"] or len(set(roles)) != len(roles) or set(roles) - set(ATTENTION_ROLES):
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
class FeedForwardSpec:
    """Where the neurons of one feed-forward live in a block. All paths are relative to the block."""

    projections: tuple[Projection, ...]
    """What writes them: "up" alone, or "gate" and "up", separate or fused."""
    output: str
    """The down projection."""
    follow: tuple[Follow, ...] = ()
    in_config: tuple[ConfigCount, ...] = ()
    """The field that holds the number of neurons."""

    def __post_init__(self) -> None:
        roles = {role for projection in self.projections for role in projection.roles}
        if "up" not in roles or roles - set(FEED_FORWARD_ROLES):
            raise ArchitectureError(
                f"The projections before {self.output!r} cover the roles {sorted(roles)}; a feed-forward has the role "
                "up, and gate if it is gated."
            )


@dataclass(frozen=True, kw_only=True)
class BlockStack:
    """A list of equal blocks; an encoder-decoder has two."""

    path: str
    """Path of the `ModuleList`, relative to the trunk (the model without its task head). A `*` stands for every child
    of a module."""
    attentions: tuple[AttentionSpec, ...]
    """One a block; a decoder with cross-attention has two."""
    feed_forward: FeedForwardSpec | None = None
    built_by: tuple[str, str]
    """Module and name of the class of the blocks, where saved models are rebuilt with fewer units."""
    only_if: tuple[str, object] | None = None
    """Name and value of a config attribute that tells this stack from another one made of the same class."""
    homonyms: tuple[str, ...] = ()
    """Other Transformers modules with a class of that name, which must stay unaffected."""
    optional: bool = False
    """Whether some models of the family lack it: an encoder alone, a decoder alone."""
    padding_free: bool = False
    """Whether nothing but Transformers' attention interface mixes tokens, and positions are told by the argument
    "position_embeddings" or not at all: then the tokens of a batch may lie in one row."""


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
