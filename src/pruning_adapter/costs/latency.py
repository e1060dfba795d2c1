"""`LatencyTable`: how a model's time falls with the widths of its sites, measured on one machine."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pruning_adapter.architectures.shapes import ModelIdentity
from pruning_adapter.environment import machine
from pruning_adapter.errors import CheckpointError, PlanError
from pruning_adapter.storage import read_json, write_json

__all__ = ["Curve", "LatencyTable"]

KIND = "pruning-adapter latency"
SCHEMA = 1

Curve = tuple[tuple[int, float], ...]
"""Points (units, share of the dense model's time), by ascending units; straight lines between them."""


@dataclass(frozen=True, kw_only=True)
class LatencyTable:
    """Shares of the dense model's time, measured side by side on one machine. Holds no absolute time."""

    model: ModelIdentity
    """The model whose sizes were measured; its weights do not matter."""
    curves: tuple[Curve, ...]
    """One per site of `model.all_sites`."""
    spread: float
    """Half the interquartile range of the measured ratios, relative: what a prediction may be off by."""
    batch: int
    length: int
    dtype: str
    machine: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What it was measured on; see `environment.machine`."""

    def __post_init__(self) -> None:
        if len(self.curves) != len(self.model.all_sites):
            raise PlanError(f"The latency table has {len(self.curves)} curves, but {self.model} has other sites.")
        for curve in self.curves:
            widths = [units for units, _ in curve]
            if not widths or widths != sorted(set(widths)) or any(share < 0 for _, share in curve):
                raise PlanError("A curve of the latency table is empty, out of order or negative; measure it anew.")

    @property
    def rest(self) -> float:
        """What no site can save: embeddings, norms, task head."""
        return 1.0 - sum(curve[-1][1] for curve in self.curves)

    def of_site(self, site: int, units: int) -> float:
        """Share of the dense model's time that a site takes when `units` are left; nothing when none is."""
        if units == 0:
            return 0.0
        curve = self.curves[site]
        above = bisect_right([width for width, _ in curve], units)
        if above == len(curve):
            return curve[-1][1]
        # Below the smallest sample its time does not fall further.
        if above == 0:
            return curve[0][1]
        (low, before), (high, after) = curve[above - 1], curve[above]
        return before + (after - before) * (units - low) / (high - low)

    def predict(self, widths: Sequence[int]) -> float:
        """Share of the dense model's time when the sites have these widths."""
        return self.rest + sum(self.of_site(site, units) for site, units in enumerate(widths))

    def check_fits(self, model: ModelIdentity, *, here: Mapping[str, Any] | None = None) -> None:
        """Refuse a table of another model's sizes, or of another machine.

        Raises:
            PlanError: it is.
        """
        if not self.model.same_sizes(model):
            raise PlanError(f"The latency table was measured for {self.model}, the scores are of {model}.")
        here = machine() if here is None else here
        for name, value in self.machine.items():
            if here.get(name) != value:
                raise PlanError(
                    f"The latency table was measured on another machine ({name} {value!r}, here {here.get(name)!r}); "
                    "measure it here: measure_latency(model), or `pruning-adapter plan --keep-latency` without "
                    "--latency-table."
                )

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": KIND,
            "schema": SCHEMA,
            "machine": dict(self.machine),
            "batch": self.batch,
            "length": self.length,
            "dtype": self.dtype,
            "spread": self.spread,
            "curves": [[list(point) for point in curve] for curve in self.curves],
            "model": self.model.to_json(),
        }

    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> "LatencyTable":
        """Read what `save` wrote.

        Raises:
            CheckpointError: not a latency table, or a damaged one.
        """
        value = read_json(path, kind=KIND)
        if value.get("schema") != SCHEMA:
            raise CheckpointError(f"{path} has schema {value.get('schema')}; this release reads {SCHEMA}.")
        try:
            return cls(
                model=ModelIdentity.from_json(value["model"]),
                curves=tuple(tuple((int(units), float(share)) for units, share in curve) for curve in value["curves"]),
                spread=float(value["spread"]),
                batch=int(value["batch"]),
                length=int(value["length"]),
                dtype=str(value["dtype"]),
                machine=dict(value["machine"]),
            )
        except (CheckpointError, PlanError) as error:
            raise type(error)(f"{path}: {error}") from error
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{path} is not a complete latency table: {error!r}.") from error
