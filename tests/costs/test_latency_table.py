"""`LatencyTable`: what it predicts from its curves, which machines and models it speaks of, and its files."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pruning_adapter.architectures.identity import identify
from pruning_adapter.costs import LatencyTable
from pruning_adapter.environment import machine
from pruning_adapter.errors import CheckpointError, CostError
from tiny import make_model

MODEL = identify(make_model("bert"))
# Three attentions of 4 heads, three feed-forwards of 24 neurons.
HEADS = ((1, 0.04), (2, 0.06), (4, 0.10))
NEURONS = ((8, 0.05), (24, 0.13))
TABLE = LatencyTable(
    model=MODEL,
    curves=(HEADS,) * 3 + (NEURONS,) * 3,
    spread=0.01,
    batch=8,
    length=16,
    dtype="float32",
    roundings=((1, 1.3), (8, 1.04), (16, 1.0)),
    machine=machine(),
)


@pytest.mark.parametrize(
    ("site", "units", "share"),
    [(0, 4, 0.10), (0, 3, 0.08), (0, 2, 0.06), (0, 1, 0.04), (0, 0, 0.0), (3, 16, 0.09), (3, 4, 0.05), (3, 24, 0.13)],
)
def test_between_samples_lines_are_straight_and_below_the_smallest_time_stays(
    site: int, units: int, share: float
) -> None:
    assert TABLE.of_site(site, units) == pytest.approx(share)


def test_shares_of_all_sites_and_the_rest_add_up() -> None:
    assert TABLE.rest == pytest.approx(1 - 3 * 0.10 - 3 * 0.13)
    assert TABLE.predict([4, 4, 4, 24, 24, 24]) == pytest.approx(1)
    assert TABLE.predict([4, 3, 0, 24, 16, 0]) == pytest.approx(TABLE.rest + 0.10 + 0.08 + 0.13 + 0.09)
    with pytest.raises(CostError, match="2 widths were given for the 6 curves"):
        TABLE.predict([1, 2])


@pytest.mark.parametrize(
    ("roundings", "multiple"),
    [(((1, 1.3), (8, 1.04), (16, 1.0)), 8), (((1, 1.01), (8, 1.0)), 1), ((), 1), (((1, 2.0), (64, 1.0)), 64)],
)
def test_the_smallest_rounding_that_is_as_good_as_the_best(roundings: Any, multiple: int) -> None:
    assert replace(TABLE, roundings=roundings).multiple_of == multiple


def test_saved_then_loaded_is_the_identity(tmp_path: Path) -> None:
    TABLE.save(tmp_path / "table.json")
    assert LatencyTable.load(tmp_path / "table.json") == TABLE


def test_another_model_or_machine_is_refused() -> None:
    TABLE.check_fits(MODEL)
    TABLE.check_fits(replace(MODEL, fingerprint="f" * 16))
    with pytest.raises(CostError, match=r"was measured for .* Measure that model: measure_latency"):
        TABLE.check_fits(identify(make_model("bert", num_hidden_layers=2)))
    elsewhere = {**TABLE.machine, "processor": "an abacus"}
    with pytest.raises(CostError, match=r"measured on another machine \(processor 'an abacus', here .*measure it here"):
        replace(TABLE, machine=elsewhere).check_fits(MODEL)
    replace(TABLE, machine={}).check_fits(MODEL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"curves": TABLE.curves[:5]}, "has 5 curves for the 6 attentions and feed-forwards"),
        ({"curves": (((1, 0.1), (3, 0.2)), *TABLE.curves[1:])}, r"widths \[1, 3\]; they must rise .* to the 4 heads"),
        ({"curves": (((2, 0.1), (1, 0.1), (4, 0.2)), *TABLE.curves[1:])}, r"widths \[2, 1, 4\]; they must rise"),
        ({"curves": (((1, -0.1), (4, 0.2)), *TABLE.curves[1:])}, r"shares \[-0.1, 0.2\]"),
        ({"curves": (((1, float("nan")), (4, 0.2)), *TABLE.curves[1:])}, r"shares \[nan, 0.2\]"),
    ],
)
def test_impossible_curves_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CostError, match=message):
        replace(TABLE, **change)


@pytest.mark.parametrize(
    "change",
    [{"kind": "pruning-adapter plan"}, {"schema": 99}, {"curves": None}, {"curves": [[["x", 1]]]}, {"spread": "wide"}],
)
def test_a_damaged_file_is_refused_by_name(change: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(json.dumps({**TABLE.to_json(), **change}))
    with pytest.raises((CheckpointError, CostError), match=r"table\.json"):
        LatencyTable.load(path)
