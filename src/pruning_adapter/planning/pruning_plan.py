"""`PruningPlan`: which heads and neurons go. A frozen value that can be printed, edited by hand and checked, and that
predicts its own cost.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

from pruning_adapter.architectures.ranges import lists_from_ranges, to_ranges
from pruning_adapter.architectures.shapes import ModelIdentity, SiteShape
from pruning_adapter.architectures.unit_index import kept_groups
from pruning_adapter.costs.macs import ModelMacs
from pruning_adapter.errors import CheckpointError, PlanError
from pruning_adapter.storage import read_json, write_json

__all__ = ["PruningPlan", "Reconstruction"]

KIND = "pruning-adapter plan"
SCHEMA = 2

Reconstruction = Literal["none", "bias", "lstsq"]


@dataclass(frozen=True, kw_only=True)
class PruningPlan:
    """Which heads and neurons of one model stay. They are numbered as in the dense model, also after an earlier
    pruning."""

    model: ModelIdentity
    """The model the plan was made for."""
    kept_heads: tuple[tuple[int, ...], ...]
    """Heads that stay, per attention, ascending."""
    kept_neurons: tuple[tuple[int, ...], ...] = ()
    """Neurons that stay, per feed-forward, ascending; left out: all."""
    dense_parameters: int
    """Parameters of the whole dense model, task head included."""
    macs: ModelMacs | None = None
    """What the dense model and its units cost, so that the plan can tell its own; None if it was not counted."""
    reconstruct: Reconstruction = "none"
    """How surgery corrects the kept weights on calibration examples for what is gone; see `reconstruct_`."""
    allow_empty_blocks: bool = False
    origin: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """How the plan was made: scorer, rule, normalisation. For the record."""

    def __post_init__(self) -> None:
        if not self.kept_neurons:
            object.__setattr__(self, "kept_neurons", tuple(tuple(range(count)) for count in self.model.neurons))
        if self.reconstruct not in get_args(Reconstruction):
            raise PlanError(f"reconstruct is {self.reconstruct!r}; use one of {', '.join(get_args(Reconstruction))}.")
        if self.macs is not None and not self.macs.is_of(self.model.all_sites):
            raise PlanError(f"The plan counts the operations of other blocks than {self.model} has; plan anew.")
        for kind, keeps, sites in (
            ("heads", self.kept_heads, self.model.sites),
            ("neurons", self.kept_neurons, self.model.feed_forwards),
        ):
            if len(keeps) != len(sites):
                raise PlanError(f"The plan speaks of {len(keeps)} blocks, but {self.model} has others.")
            for block, (kept, site) in enumerate(zip(keeps, sites, strict=True)):
                _check_units(kept, site, f"keeps in block {block}", self.model)
                if list(kept) != sorted(kept):
                    raise PlanError(
                        f"The plan lists the {kind} of block {block} out of order: {list(kept)}; sort them."
                    )
                if not kept and not self.allow_empty_blocks:
                    raise PlanError(
                        f"The plan leaves block {block} without {kind}. Keep at least one, or say "
                        "allow_empty_blocks=True: the "
                        f"{'attention' if kind == 'heads' else 'feed-forward'} of that block then adds only its bias."
                    )
                kept_groups(kept, site.units, site.groups)

    @classmethod
    def from_pruned_heads(
        cls,
        model: ModelIdentity,
        pruned_heads: Mapping[int, Iterable[int]],
        *,
        pruned_neurons: Mapping[int, Iterable[int]] | None = None,
        dense_parameters: int = 0,
        macs: ModelMacs | None = None,
        allow_empty_blocks: bool = False,
    ) -> "PruningPlan":
        """A plan that removes the units named, `{block: [head, ...]}`, and keeps all others.

        Raises:
            PlanError: a block or unit the model does not have, a unit named twice, or an empty block.
        """
        return cls(
            model=model,
            kept_heads=_complement(model, model.sites, pruned_heads),
            kept_neurons=_complement(model, model.feed_forwards, pruned_neurons or {}),
            dense_parameters=dense_parameters,
            macs=macs,
            allow_empty_blocks=allow_empty_blocks,
            origin={"rule": "named units" if pruned_neurons else "named heads"},
        )

    @property
    def kept(self) -> tuple[tuple[int, ...], ...]:
        """What stays of each of `model.all_sites`: heads of every attention, then neurons of every feed-forward."""
        return self.kept_heads + self.kept_neurons

    @property
    def pruned_heads(self) -> dict[int, list[int]]:
        """Heads that go: `{block: [head, ...]}`, only blocks that lose some."""
        return _gone(self.model.sites, self.kept_heads)

    @property
    def pruned_neurons(self) -> dict[int, list[int]]:
        """Neurons that go: `{block: [neuron, ...]}`, only blocks that lose some."""
        return _gone(self.model.feed_forwards, self.kept_neurons)

    @property
    def heads_kept(self) -> int:
        """Heads that stay in the whole model."""
        return sum(len(kept) for kept in self.kept_heads)

    @property
    def neurons_kept(self) -> int:
        """Neurons that stay in the whole model."""
        return sum(len(kept) for kept in self.kept_neurons)

    @property
    def parameters_removed(self) -> int:
        """Parameters that surgery takes away, exactly."""
        return sum(
            site.parameters(range(site.units)) - site.parameters(kept)
            for kept, site in zip(self.kept, self.model.all_sites, strict=True)
        )

    @property
    def parameters(self) -> int:
        """Parameters of the whole model after surgery, exactly, task head included."""
        return self.dense_parameters - self.parameters_removed

    def count_macs(self, length: int) -> int:
        """Multiply-accumulates of one example of `length` tokens after surgery, exactly, task head included.

        Raises:
            PlanError: the dense model's were not counted when it was scored.
        """
        return self._macs().kept(self.model.all_sites, self.kept, length)

    def count_dense_macs(self, length: int) -> int:
        """The same of the dense model.

        Raises:
            PlanError: see `count_macs`.
        """
        return self._macs().dense(length)

    def _macs(self) -> ModelMacs:
        if self.macs is None:
            raise PlanError("The cost of this plan's model was not counted; score the dense model with this release.")
        return self.macs

    def __str__(self) -> str:
        heads, neurons = sum(self.model.heads), sum(self.model.neurons)
        lines = [f"{self.model}: {self.heads_kept} of {heads} heads stay"]
        if self.neurons_kept < neurons:
            lines[0] += f", {self.neurons_kept:,} of {neurons:,} neurons"
        for block, (kept, site) in enumerate(zip(self.kept_heads, self.model.sites, strict=True)):
            marks = " ".join(f"{head:2}" if head in kept else " ." for head in range(site.units))
            lines.append(f"block {block:2}  {marks}   {len(kept)} of {site.units}")
        if self.neurons_kept < neurons:
            lines += [
                f"feed-forward {block:2}  {_bar(len(kept), site.units)}  {len(kept):,} of {site.units:,}"
                for block, (kept, site) in enumerate(zip(self.kept_neurons, self.model.feed_forwards, strict=True))
            ]
        lines.append(f"parameters: {self.parameters_removed:,} go")
        if self.dense_parameters:
            share = self.parameters / self.dense_parameters
            lines[-1] += f", {self.parameters:,} of {self.dense_parameters:,} stay ({share:.1%})"
        if self.macs is not None:
            now, before = self.count_macs(128), self.count_dense_macs(128)
            lines.append(f"multiply-accumulates at 128 tokens: {now:,} of {before:,} stay ({now / before:.1%})")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object, for files and for the adapter's config."""
        return {
            "kind": KIND,
            "schema": SCHEMA,
            "origin": dict(self.origin),
            "allow_empty_blocks": self.allow_empty_blocks,
            "reconstruct": self.reconstruct,
            "dense_parameters": self.dense_parameters,
            "kept_heads": [list(kept) for kept in self.kept_heads],
            "kept_neurons": [to_ranges(kept) for kept in self.kept_neurons],
            "macs": None if self.macs is None else self.macs.to_json(),
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
                kept_neurons=lists_from_ranges(value["kept_neurons"]),
                macs=ModelMacs.from_json(value["macs"]),
                reconstruct=value["reconstruct"],
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


def _complement(
    model: ModelIdentity, sites: Sequence[SiteShape], pruned: Mapping[int, Iterable[int]]
) -> tuple[tuple[int, ...], ...]:
    for block in pruned:
        if not 0 <= block < len(sites):
            raise PlanError(f"The plan prunes block {block}, but {model} has blocks 0-{len(sites) - 1}.")
    kept: list[tuple[int, ...]] = []
    for block, site in enumerate(sites):
        gone = list(pruned.get(block, ()))
        _check_units(gone, site, f"prunes in block {block}", model)
        lost = set(gone)
        kept.append(tuple(unit for unit in range(site.units) if unit not in lost))
    return tuple(kept)


def _gone(sites: Sequence[SiteShape], kept: Sequence[Sequence[int]]) -> dict[int, list[int]]:
    gone: dict[int, list[int]] = {}
    for block, (site, units) in enumerate(zip(sites, kept, strict=True)):
        if len(units) < site.units:
            stay = set(units)
            gone[block] = [unit for unit in range(site.units) if unit not in stay]
    return gone


def _check_units(units: Sequence[object], site: SiteShape, what: str, model: ModelIdentity) -> None:
    for unit in units:
        if isinstance(unit, bool) or not isinstance(unit, int) or not 0 <= unit < site.units:
            raise PlanError(
                f"The plan {what} {site.kind[:-1]} {unit!r}, but {model} has {site.kind} 0-{site.units - 1} there. "
                "Score this model, or load the one the plan was made for."
            )
    if len(set(units)) < len(units):
        twice = min(unit for unit, count in Counter(cast("Sequence[int]", units)).items() if count > 1)
        raise PlanError(f"The plan {what} {site.kind[:-1]} {twice} twice; name every {site.kind[:-1]} once.")


def _bar(part: int, whole: int) -> str:
    filled = round(20 * part / whole)
    return "#" * filled + "." * (20 - filled)
