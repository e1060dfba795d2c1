"""`ImportanceScores`: how much each head and each neuron matters, and where that number comes from."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from pruning_adapter.architectures.ranges import lists_from_ranges, to_ranges
from pruning_adapter.architectures.shapes import ModelIdentity
from pruning_adapter.architectures.spec import Kind
from pruning_adapter.costs.macs import ModelMacs
from pruning_adapter.errors import CheckpointError, ImportanceError
from pruning_adapter.importance.normalize import Scope, normalize
from pruning_adapter.storage import read_json, write_json

__all__ = ["ImportanceScores"]

KIND = "pruning-adapter importance"
SCHEMA = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class ImportanceScores:
    """Scores of all heads, all neurons, or both, of one model for one task."""

    heads: tuple[Tensor, ...]
    """One float64 tensor `(heads,)` per attention, on the CPU: mean |dL/dgate| per non-padding token. Empty if only
    neurons were scored."""
    kept_heads: tuple[tuple[int, ...], ...]
    """The heads that the scored model has, by their number in the dense model: all, unless it was pruned before."""
    neurons: tuple[Tensor, ...] = ()
    """One float64 tensor `(neurons,)` per feed-forward; empty if only heads were scored."""
    kept_neurons: tuple[tuple[int, ...], ...] = ()
    """The neurons that the scored model has; left out: all."""
    model: ModelIdentity
    dense_parameters: int
    """Parameters of the whole model, task head included, before any pruning."""
    macs: ModelMacs | None = None
    """What the dense model and its units cost; None if it was not counted."""
    scorer: str
    """"gradient", "random", "magnitude", "reversed <scorer>" or "shuffled <scorer>"."""
    reduction: str | None = None
    """What was averaged; None where nothing was measured."""
    order: str | None = None
    """"first" (absolute gradients) or "second" (squared ones); None where nothing was measured."""
    examples: int = 0
    agreement: float | None = None
    """How well two halves of the examples agree on the ranking (see `rank_agreement`); None where that is unknown."""
    tokens: int = 0
    """Non-padding tokens of the examples."""
    task: str | None = None
    seed: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        if not self.kept_neurons:
            object.__setattr__(self, "kept_neurons", tuple(tuple(range(count)) for count in self.model.neurons))
        if not self.heads and not self.neurons:
            raise ImportanceError("No scores were given; score heads, neurons, or both.")
        if self.macs is not None and not self.macs.is_of(self.model.all_sites):
            raise ImportanceError(f"The operations of other blocks than {self.model} has were counted; score anew.")
        for kind in ("heads", "neurons"):
            self._check(kind)
        if self.agreement is not None and not -1 <= self.agreement <= 1:
            raise ImportanceError(f"agreement is {self.agreement}; a rank correlation lies in -1 to 1.")

    def _check(self, kind: Kind) -> None:
        scored = self.scores_of(kind)
        sites = self.model.sites if kind == "heads" else self.model.feed_forwards
        if len(self.kept_of(kind)) != len(sites) or (scored and len(scored) != len(sites)):
            raise ImportanceError(
                f"Scores of {len(scored)} blocks were given for {self.model}; give one tensor a block."
            )
        for block, (kept, site) in enumerate(zip(self.kept_of(kind), sites, strict=True)):
            # Checked without a set of all that there are, which a damaged file may claim to be any number of.
            if any(a >= b for a, b in pairwise(kept)) or (kept and not 0 <= kept[0] <= kept[-1] < site.units):
                raise ImportanceError(
                    f"Block {block} is said to have kept {kind} that it never had, or in another order than from the "
                    f"lowest number to the highest; it had {site.units}."
                )
        for block, (scores, kept) in enumerate(zip(scored, self.kept_of(kind), strict=False)):
            if scores.shape != (len(kept),):
                raise ImportanceError(
                    f"Block {block} has {len(kept)} {kind}, but scores of shape {tuple(scores.shape)}."
                )
            if not bool(torch.isfinite(scores).all()):
                bad = [kept[index] for index in (~torch.isfinite(scores)).nonzero().flatten().tolist()]
                raise ImportanceError(
                    f"The importance of {kind[:-1]} {bad[0]} of block {block} is not a finite number. "
                    "Look for NaN in the model's weights, or score in float32."
                )

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What was scored."""
        return (*(("heads",) if self.heads else ()), *(("neurons",) if self.neurons else ()))

    def scores_of(self, kind: Kind) -> tuple[Tensor, ...]:
        """The scores of one kind of unit; empty if it was not scored."""
        return self.heads if kind == "heads" else self.neurons

    def kept_of(self, kind: Kind) -> tuple[tuple[int, ...], ...]:
        """For every site of a kind, the units that the scored model has."""
        return self.kept_heads if kind == "heads" else self.kept_neurons

    def normalized(self, scope: Scope = "block", kind: Kind = "heads") -> tuple[Tensor, ...]:
        """Equations 1 and 2 of the paper: shapes as `heads` (or `neurons`), in [0, 1]; see `normalize`."""
        return normalize(self.scores_of(kind), scope)

    def __str__(self) -> str:
        parts = [self._headline()]
        if self.heads:
            parts += ["", *self._table(), "", "normalised per block (equations 1 and 2)"]
        if self.neurons:
            parts += ["", *self._summary()]
        return "\n".join(parts)

    def _headline(self) -> str:
        order = ", second order" if self.order == "second" else ""
        sample = f", {self.reduction} reduction{order}, {self.examples} examples, {self.tokens} tokens"
        task = f" for {self.task}" if self.task else ""
        what = " and ".join(self.kinds)
        told = f"importance of {what}{task}: {self.scorer}{sample if self.reduction else ''}\n{self.model}"
        if self.agreement is None:
            return told
        return f"{told}\nrank correlation of two halves of the examples: {self.agreement:.2f}"

    def _table(self) -> list[str]:
        columns = 1 + max((max(kept, default=0) for kept in self.kept_heads), default=0)
        lines = [self._row + "".join(f"{'h' + str(column):>6}" for column in range(columns))]
        for block, (kept, scores) in enumerate(zip(self.kept_heads, self.normalized(), strict=True)):
            by_head = dict(zip(kept, scores.tolist(), strict=True))
            cells = (f"{by_head[head]:6.2f}" if head in by_head else f"{'-':>6}" for head in range(columns))
            lines.append(f"{block:{len(self._row)}}" + "".join(cells))
        return lines

    @property
    def _row(self) -> str:
        """A block has several attentions where a decoder reads what an encoder made."""
        attentions, beside = len(self.model.sites), len(self.model.feed_forwards)
        return "attention" if beside and attentions != beside else "block"

    def _summary(self) -> list[str]:
        """Neurons are too many to list: what each feed-forward holds of the whole, and how unevenly."""
        whole = float(sum(scores.sum() for scores in self.neurons)) or 1.0
        lines = [f"block{'neurons':>9}{'share of all':>14}{'held by the best 10%':>22}"]
        for block, scores in enumerate(self.neurons):
            best = scores.sort(descending=True).values[: -(-len(scores) // 10)].sum()
            total = float(scores.sum())
            held = float(best) / total if total else 0.0
            lines.append(f"{block:5}{len(scores):9}{total / whole:14.1%}{held:22.1%}")
        return lines

    def draw(self, path: str | Path, *, kind: Kind = "heads", scope: Scope = "block") -> None:
        """Draw the scores of one kind of unit, normalised over `scope`, as PNG or SVG by the suffix of `path`.

        Of heads, the block x head map of the paper's Figure 1; of neurons, the sorted profile of every feed-forward.

        Raises:
            ImportanceError: that kind was not scored.
            OutputError: another suffix, or the file cannot be written.
        """
        from pruning_adapter.importance.figure import draw_importance, draw_profiles

        if kind not in self.kinds:
            raise ImportanceError(f"There are no scores of {kind} to draw, only of {' and '.join(self.kinds)}.")
        values = self.normalized(scope, kind)
        if kind == "neurons":
            draw_profiles([scores.tolist() for scores in values], path, title=self.task or "")
            return
        rows = [
            [dict(zip(kept, scores.tolist(), strict=True)).get(head, math.nan) for head in range(site.units)]
            for kept, scores, site in zip(self.kept_heads, values, self.model.sites, strict=True)
        ]
        draw_importance(rows, path, title=self.task or "", row=self._row)

    def save(self, path: str | Path) -> None:
        """Write as JSON. Numbers keep every bit."""
        write_json(
            path,
            {
                "kind": KIND,
                "schema": SCHEMA,
                "task": self.task,
                "scorer": self.scorer,
                "reduction": self.reduction,
                "examples": self.examples,
                "agreement": self.agreement,
                "tokens": self.tokens,
                "seed": self.seed,
                "dense_parameters": self.dense_parameters,
                "order": self.order,
                "heads": [scores.tolist() for scores in self.heads],
                "kept_heads": [list(kept) for kept in self.kept_heads],
                "neurons": [scores.tolist() for scores in self.neurons],
                "kept_neurons": [to_ranges(kept) for kept in self.kept_neurons],
                "macs": None if self.macs is None else self.macs.to_json(),
                "versions": dict(self.versions),
                "model": self.model.to_json(),
            },
        )

    @classmethod
    def load(cls, path: str | Path) -> "ImportanceScores":
        """Read what `save` wrote.

        Raises:
            CheckpointError: not such a file, or a damaged one.
            ImportanceError: its numbers do not fit its model.
        """
        content = read_json(path, kind=KIND)
        if content.get("schema") != SCHEMA:
            raise CheckpointError(f"{path} has schema {content.get('schema')}; this release reads {SCHEMA}.")
        try:
            return cls(
                heads=_tensors(content["heads"]),
                kept_heads=tuple(tuple(int(head) for head in block) for block in content["kept_heads"]),
                neurons=_tensors(content["neurons"]),
                kept_neurons=lists_from_ranges(content["kept_neurons"]),
                macs=ModelMacs.from_json(content["macs"]),
                order=content["order"],
                model=ModelIdentity.from_json(content["model"]),
                dense_parameters=int(content["dense_parameters"]),
                scorer=str(content["scorer"]),
                reduction=content["reduction"],
                examples=int(content["examples"]),
                agreement=_optional_number(content.get("agreement")),
                tokens=int(content["tokens"]),
                task=content["task"],
                seed=content["seed"],
                versions={str(name): str(version) for name, version in content["versions"].items()},
            )
        except (CheckpointError, ImportanceError) as error:
            raise type(error)(f"{path}: {error}") from error
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError, IndexError) as error:
            raise CheckpointError(f"{path} is not a complete importance file: {error!r}.") from error


def _optional_number(value: object) -> float | None:
    return None if value is None else float(cast(Any, value))


def _tensors(rows: Sequence[Sequence[float]]) -> tuple[Tensor, ...]:
    return tuple(torch.tensor([float(number) for number in row], dtype=torch.float64) for row in rows)
