"""`PruningPlan`: which heads go. A frozen value that can be printed, edited by hand, checked, and predicted from."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from pruning_adapter.architectures.head_index import kept_key_value_heads
from pruning_adapter.architectures.shapes import ModelIdentity
from pruning_adapter.errors import CheckpointError, PlanError
from pruning_adapter.storage import read_json, write_json

__all__ = ["PruningPlan"]

KIND = "pruning-adapter plan"
SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class PruningPlan:
    """Which heads of one model stay. Heads are numbered as in the dense model, also after an earlier pruning."""

    model: ModelIdentity
    """The model the plan was made for."""
    kept_heads: tuple[tuple[int, ...], ...]
    """Heads that stay, per block, ascending."""
    dense_parameters: int
    """Parameters of the whole dense model, task head included."""
    allow_empty_blocks: bool = False
    origin: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """How the plan was made: scorer, rule, normalisation. For the record."""

    def __post_init__(self) -> None:
        if len(self.kept_heads) != len(self.model.sites):
            raise PlanError(f"The plan speaks of {len(self.kept_heads)} blocks, but {self.model} has others.")
        for block, (kept, site) in enumerate(zip(self.kept_heads, self.model.sites, strict=True)):
            _check_heads(kept, site.heads, f"keeps in block {block}", self.model)
            if list(kept) != sorted(kept):
                raise PlanError(f"The plan lists the heads of block {block} out of order: {list(kept)}; sort them.")
            if not kept and not self.allow_empty_blocks:
                raise PlanError(
                    f"The plan leaves block {block} without heads. Keep at least one, or say allow_empty_blocks=True: "
                    "the attention of that block then adds only its bias."
                )
            kept_key_value_heads(kept, site.heads, site.key_value_heads)

    @classmethod
    def from_pruned_heads(
        cls,
        model: ModelIdentity,
        pruned_heads: Mapping[int, Iterable[int]],
        *,
        dense_parameters: int = 0,
        allow_empty_blocks: bool = False,
    ) -> "PruningPlan":
        """A plan that removes the heads named, `{block: [head, ...]}`, and keeps all others.

        Raises:
            PlanError: a block or head the model does not have, a head named twice, or an empty block.
        """
        for block in pruned_heads:
            if not 0 <= block < len(model.sites):
                raise PlanError(f"The plan prunes block {block}, but {model} has blocks 0-{len(model.sites) - 1}.")
        kept: list[tuple[int, ...]] = []
        for block, site in enumerate(model.sites):
            gone = list(pruned_heads.get(block, ()))
            _check_heads(gone, site.heads, f"prunes in block {block}", model)
            kept.append(tuple(head for head in range(site.heads) if head not in gone))
        return cls(
            model=model,
            kept_heads=tuple(kept),
            dense_parameters=dense_parameters,
            allow_empty_blocks=allow_empty_blocks,
            origin={"rule": "named heads"},
        )

    @property
    def pruned_heads(self) -> dict[int, list[int]]:
        """Heads that go: `{block: [head, ...]}`, only blocks that lose some."""
        gone = {
            block: [head for head in range(site.heads) if head not in kept]
            for block, (kept, site) in enumerate(zip(self.kept_heads, self.model.sites, strict=True))
        }
        return {block: heads for block, heads in gone.items() if heads}

    @property
    def heads_kept(self) -> int:
        """Heads that stay in the whole model."""
        return sum(len(kept) for kept in self.kept_heads)

    @property
    def parameters_removed(self) -> int:
        """Parameters that surgery takes away, exactly."""
        return sum(
            site.parameters(range(site.heads)) - site.parameters(kept)
            for kept, site in zip(self.kept_heads, self.model.sites, strict=True)
        )

    @property
    def parameters(self) -> int:
        """Parameters of the whole model after surgery, exactly, task head included."""
        return self.dense_parameters - self.parameters_removed

    def __str__(self) -> str:
        heads = sum(self.model.heads)
        lines = [f"{self.model}: {self.heads_kept} of {heads} heads stay"]
        for block, (kept, site) in enumerate(zip(self.kept_heads, self.model.sites, strict=True)):
            marks = " ".join(f"{head:2}" if head in kept else " ." for head in range(site.heads))
            lines.append(f"block {block:2}  {marks}   {len(kept)} of {site.heads}")
        lines.append(f"parameters: {self.parameters_removed:,} go")
        if self.dense_parameters:
            share = self.parameters / self.dense_parameters
            lines[-1] += f", {self.parameters:,} of {self.dense_parameters:,} stay ({share:.1%})"
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object, for files and for the adapter's config."""
        return {
            "kind": KIND,
            "schema": SCHEMA,
            "origin": dict(self.origin),
            "allow_empty_blocks": self.allow_empty_blocks,
            "dense_parameters": self.dense_parameters,
            "kept_heads": [list(kept) for kept in self.kept_heads],
            "model": self.model.to_json(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "PruningPlan":
        """Read what `to_json` wrote.

        Raises:
            CheckpointError: damaged, or of another schema.
            PlanError: it names heads that its model does not have.
        """
        if value.get("schema") != SCHEMA:
            raise CheckpointError(f"The plan has schema {value.get('schema')!r}; this release reads {SCHEMA}.")
        try:
            kept = value["kept_heads"]
            if not isinstance(kept, Sequence) or not all(
                isinstance(block, Sequence) for block in cast("list[Any]", kept)
            ):
                raise TypeError("kept_heads is not a list of lists")
            return cls(
                model=ModelIdentity.from_json(value["model"]),
                kept_heads=tuple(tuple(block) for block in cast("list[list[int]]", kept)),
                dense_parameters=int(value["dense_parameters"]),
                allow_empty_blocks=_read_bool(value["allow_empty_blocks"]),
                origin=dict(value["origin"]),
            )
        except PlanError:
            raise
        except (LookupError, TypeError, ValueError, ArithmeticError) as error:
            raise CheckpointError(f"The plan is incomplete or damaged: {error!r}.") from error

    def save(self, path: str | Path) -> None:
        """Write as JSON, made to be read and edited by people."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> "PruningPlan":
        """Read what `save` wrote, possibly edited by hand.

        Raises:
            CheckpointError: not a plan, or a damaged one.
            PlanError: it names heads that its model does not have.
        """
        content = read_json(path, kind=KIND)
        try:
            return cls.from_json(content)
        except (CheckpointError, PlanError) as error:
            raise type(error)(f"{path}: {error}") from error


def _read_bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"allow_empty_blocks is {value!r}, not true or false")
    return value


def _check_heads(heads: Sequence[object], there_are: int, what: str, model: ModelIdentity) -> None:
    for head in heads:
        if isinstance(head, bool) or not isinstance(head, int) or not 0 <= head < there_are:
            raise PlanError(
                f"The plan {what} head {head!r}, but {model} has heads 0-{there_are - 1} there. "
                "Score this model, or load the one the plan was made for."
            )
    twice = sorted({head for head in cast("list[int]", heads) if heads.count(head) > 1})
    if twice:
        raise PlanError(f"The plan {what} head {twice[0]} twice; name every head once.")
