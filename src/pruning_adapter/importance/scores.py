"""`ImportanceScores`: how much each head matters, and where that number comes from."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from pruning_adapter.architectures.shapes import ModelIdentity
from pruning_adapter.errors import CheckpointError, ImportanceError
from pruning_adapter.importance.normalize import Scope, normalize
from pruning_adapter.storage import read_json, write_json

__all__ = ["ImportanceScores"]

KIND = "pruning-adapter importance"
SCHEMA = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class ImportanceScores:
    """Scores of all heads of one model for one task."""

    heads: tuple[Tensor, ...]
    """One float64 tensor `(heads,)` per block, on the CPU: mean |dL/dgate| per non-padding token."""
    kept_heads: tuple[tuple[int, ...], ...]
    """For every score, the head's number in the dense model; all heads, unless a pruned model was scored."""
    model: ModelIdentity
    dense_parameters: int
    """Parameters of the whole model, task head included, before any pruning."""
    scorer: str
    """"gradient", "random", "magnitude" or "reversed <scorer>"."""
    reduction: str | None = None
    """What was averaged; None where nothing was measured."""
    examples: int = 0
    tokens: int = 0
    """Non-padding tokens of the examples."""
    task: str | None = None
    seed: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        if not len(self.heads) == len(self.kept_heads) == len(self.model.sites):
            raise ImportanceError(
                f"Scores of {len(self.heads)} blocks were given for {self.model}; give one tensor a block."
            )
        for block, (scores, kept) in enumerate(zip(self.heads, self.kept_heads, strict=True)):
            if scores.shape != (len(kept),):
                raise ImportanceError(
                    f"Block {block} has {len(kept)} heads, but scores of shape {tuple(scores.shape)}."
                )
            if not bool(torch.isfinite(scores).all()):
                bad = [kept[index] for index in (~torch.isfinite(scores)).nonzero().flatten().tolist()]
                raise ImportanceError(
                    f"The importance of head {bad[0]} of block {block} is not a finite number. "
                    "Look for NaN in the model's weights, or score in float32."
                )

    def normalized(self, scope: Scope = "block") -> tuple[Tensor, ...]:
        """Equations 1 and 2 of the paper: same shapes as `heads`, in [0, 1]; see `normalize`."""
        return normalize(self.heads, scope)

    def __str__(self) -> str:
        return "\n".join([self._headline(), "", *self._table(), "", "normalised per block (equations 1 and 2)"])

    def _headline(self) -> str:
        sample = f", {self.reduction} reduction, {self.examples} examples, {self.tokens} tokens"
        task = f" for {self.task}" if self.task else ""
        return f"importance of heads{task}: {self.scorer}{sample if self.reduction else ''}\n{self.model}"

    def _table(self) -> list[str]:
        columns = 1 + max((max(kept, default=0) for kept in self.kept_heads), default=0)
        lines = ["block" + "".join(f"{'h' + str(column):>6}" for column in range(columns))]
        for block, (kept, scores) in enumerate(zip(self.kept_heads, self.normalized(), strict=True)):
            by_head = dict(zip(kept, scores.tolist(), strict=True))
            cells = (f"{by_head[head]:6.2f}" if head in by_head else f"{'-':>6}" for head in range(columns))
            lines.append(f"{block:5}" + "".join(cells))
        return lines

    def draw(self, path: str | Path, *, scope: Scope = "block") -> None:
        """Draw the block x head map of the paper's Figure 1, as PNG or SVG by the suffix of `path`.

        Raises:
            OutputError: another suffix, or the file cannot be written.
        """
        from pruning_adapter.importance.figure import draw_importance

        rows = [
            [dict(zip(kept, scores.tolist(), strict=True)).get(head, math.nan) for head in range(site.heads)]
            for kept, scores, site in zip(self.kept_heads, self.normalized(scope), self.model.sites, strict=True)
        ]
        draw_importance(rows, path, title=self.task or "")

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
                "tokens": self.tokens,
                "seed": self.seed,
                "dense_parameters": self.dense_parameters,
                "heads": [scores.tolist() for scores in self.heads],
                "kept_heads": [list(kept) for kept in self.kept_heads],
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
                heads=tuple(torch.tensor([float(x) for x in block], dtype=torch.float64) for block in content["heads"]),
                kept_heads=tuple(tuple(int(head) for head in block) for block in content["kept_heads"]),
                model=ModelIdentity.from_json(content["model"]),
                dense_parameters=int(content["dense_parameters"]),
                scorer=str(content["scorer"]),
                reduction=content["reduction"],
                examples=int(content["examples"]),
                tokens=int(content["tokens"]),
                task=content["task"],
                seed=content["seed"],
                versions={str(name): str(version) for name, version in content["versions"].items()},
            )
        except (CheckpointError, ImportanceError) as error:
            raise type(error)(f"{path}: {error}") from error
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError, IndexError) as error:
            raise CheckpointError(f"{path} is not a complete importance file: {error!r}.") from error
