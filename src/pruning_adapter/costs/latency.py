"""`LatencyTable`: how a model's time falls with the widths of its sites, measured on one machine."""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pruning_adapter.architectures.shapes import ModelIdentity
from pruning_adapter.environment import machine
from pruning_adapter.errors import CheckpointError, CostError
from pruning_adapter.storage import read_json, write_json

__all__ = ["Curve", "LatencyTable"]

KIND = "pruning-adapter latency"
SCHEMA = 1
TOLERANCE = 0.05
"""A rounding that costs no more than this beyond the best is as good."""

Curve = tuple[tuple[int, float], ...]
"""Points (units, share of the dense model's time), by ascending units; straight lines between them."""


@dataclass(frozen=True, kw_only=True)
class LatencyTable:
    """Shares of the dense model's time, measured side by side on one machine. Holds no absolute time.

    The shares of sites add up. Which units are kept does not matter, only how many; under grouped-query attention whole
    key/value groups are meant, so plans that thin out groups evenly are a little slower than predicted.
    """

    model: ModelIdentity
    """The model whose sizes were measured; its weights do not matter."""
    curves: tuple[Curve, ...]
    """One per site of `model.all_sites`, up to the units of the dense model."""
    spread: float
    """Half the interquartile range of the measured ratios, relative: what a prediction may be off by."""
    batch: int
    length: int
    dtype: str
    device: str = "cpu"
    """Type of the device that the model ran on."""
    roundings: tuple[tuple[int, float], ...] = ()
    """(multiple, time per neuron over the least of them): of feed-forward widths that are a multiple of it and of no
    larger power of two. Empty where feed-forwards are too narrow to tell."""
    machine: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What it was measured on; see `environment.machine`."""

    def __post_init__(self) -> None:
        if len(self.curves) != len(self.model.all_sites):
            raise CostError(
                f"The latency table has {len(self.curves)} curves for the {len(self.model.all_sites)} attentions and "
                f"feed-forwards of {self.model}; measure it anew."
            )
        for curve, site in zip(self.curves, self.model.all_sites, strict=True):
            widths, shares = [units for units, _ in curve], [share for _, share in curve]
            if not widths or widths != sorted(set(widths)) or widths[0] < 1 or widths[-1] != site.units:
                raise CostError(
                    f"A curve of the latency table has the widths {widths}; they must rise from at least 1 to the "
                    f"{site.units} {site.kind} of the dense model. Measure it anew."
                )
            if not all(0 <= share < math.inf for share in shares):
                raise CostError(f"A curve of the latency table has the shares {shares}; measure it anew.")

    @property
    def rest(self) -> float:
        """What no site can save: embeddings, norms, task head."""
        return 1.0 - sum(curve[-1][1] for curve in self.curves)

    @property
    def multiple_of(self) -> int:
        """What feed-forward widths are best rounded to: the smallest multiple whose time per neuron is as good as the
        best's, give or take the spread or 5 %. 1 if that was not measured."""
        enough = 1 + max(self.spread, TOLERANCE)
        return next((multiple for multiple, cost in sorted(self.roundings) if cost <= enough), 1)

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
        """Share of the dense model's time when the sites have these widths.

        Raises:
            CostError: another number of sites.
        """
        if len(widths) != len(self.curves):
            raise CostError(f"{len(widths)} widths were given for the {len(self.curves)} curves of the latency table.")
        return self.rest + sum(self.of_site(site, units) for site, units in enumerate(widths))

    def check_fits(self, model: ModelIdentity, *, here: Mapping[str, Any] | None = None) -> None:
        """Refuse a table of another model's sizes, or of another machine.

        Args:
            model: the model it is to speak of.
            here: the machine it is to speak of; None: this one. A table that names no machine fits all.

        Raises:
            CostError: it is.
        """
        if not self.model.same_sizes(model):
            raise CostError(
                f"The latency table was measured for {self.model}, the scores are of {model}. Measure that model: "
                "measure_latency(model)."
            )
        here = machine() if here is None else here
        for name in sorted({*self.machine, *here}) if self.machine else ():
            if here.get(name) != self.machine.get(name):
                raise CostError(
                    f"The latency table was measured on another machine ({name} {self.machine.get(name)!r}, here "
                    f"{here.get(name)!r}); measure it here: measure_latency(model)."
                )

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": KIND,
            "schema": SCHEMA,
            "machine": dict(self.machine),
            "device": self.device,
            "batch": self.batch,
            "length": self.length,
            "dtype": self.dtype,
            "spread": self.spread,
            "roundings": [list(rounding) for rounding in self.roundings],
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
            CostError: its curves do not fit its model.
        """
        value = read_json(path, kind=KIND)
        if value.get("schema") != SCHEMA:
            raise CheckpointError(f"{path} has schema {value.get('schema')}; this release reads {SCHEMA}.")
        try:
            return cls(
                model=ModelIdentity.from_json(value["model"]),
                curves=tuple(_points(curve) for curve in value["curves"]),
                spread=float(value["spread"]),
                batch=int(value["batch"]),
                length=int(value["length"]),
                dtype=str(value["dtype"]),
                device=str(value["device"]),
                roundings=_points(value["roundings"]),
                machine=dict(value["machine"]),
            )
        except (CheckpointError, CostError) as error:
            raise type(error)(f"{path}: {error}") from error
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            raise CheckpointError(f"{path} is not a complete latency table: {error!r}.") from error


def _points(pairs: Sequence[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    return tuple((int(number), float(share)) for number, share in pairs)
