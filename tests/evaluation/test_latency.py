"""Measuring a latency table: its shape, its cache, what it leaves behind. What it predicts is for benchmarks to say."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import pruning_adapter as pa
from conformance import hooks_of, logits, make_case
from pruning_adapter.architectures.identity import identify
from pruning_adapter.errors import ArchitectureError, CostError
from pruning_adapter.evaluation import latency
from pruning_adapter.evaluation.latency import check_prediction, measure_latency, sample_widths
from tiny import FAMILIES, make_batch, make_model

torch.set_num_threads(1)
QUICK: dict[str, Any] = {"batch": 1, "length": 6, "widths": 3, "repeats": 4}


@pytest.mark.parametrize("family", ["bert", "albert", "gpt2", "gemma", "llama", "t5", "bart", "vit", "whisper", "phi3"])
def test_every_site_gets_a_rising_curve_and_the_model_is_left_as_it_was(family: str) -> None:
    model, batch = make_model(family), make_batch(FAMILIES[family].task)
    before, hooks = logits(model, batch), hooks_of(model)
    model.train()
    table = measure_latency(model, cache=None, **QUICK)
    assert model.training
    assert hooks_of(model) == hooks
    assert torch.equal(logits(model.eval(), batch), before)
    table.check_fits(identify(model))
    assert len(table.curves) == len(table.model.all_sites)
    for curve, site in zip(table.curves, table.model.all_sites, strict=True):
        shares = [share for _, share in curve]
        assert curve[-1][0] == site.units
        assert shares == sorted(shares)
    assert 0 <= table.rest < 1
    dense = table.predict([site.units for site in table.model.all_sites])
    assert dense == pytest.approx(1)
    assert table.predict([1] * len(table.curves)) <= dense


def test_a_pruned_model_is_compared_with_its_prediction() -> None:
    dense, model = make_model("bert"), make_model("bert")
    table = measure_latency(dense, cache=None, **QUICK)
    pa.prune_(model, make_case(model, "heads and neurons"))
    found = check_prediction(table, model, dense, repeats=4)
    assert found["q1"] <= found["measured"] <= found["q3"]
    assert found["error"] == pytest.approx(found["predicted"] / found["measured"] - 1)


def test_the_same_machine_and_sizes_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = measure_latency(make_model("bert"), cache=tmp_path, **QUICK)
    monkeypatch.setattr(latency, "_measure", lambda *_: pytest.fail("measured again"))
    other_weights = make_model("bert", seed=1)
    again = measure_latency(other_weights, cache=tmp_path, **QUICK)
    assert again == replace(first, model=identify(other_weights))
    for model, settings in (
        (make_model("bert"), {**QUICK, "length": 7}),
        (make_model("bert", dtype=torch.float32), QUICK),
        (make_model("bert", attention="sdpa"), QUICK),
        (make_model("bert", num_hidden_layers=4), QUICK),
    ):
        with pytest.raises(pytest.fail.Exception, match="measured again"):
            measure_latency(model, cache=tmp_path, **settings)


def test_a_damaged_table_in_the_cache_is_measured_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    measure_latency(make_model("bert"), cache=tmp_path, **QUICK)
    (file,) = tmp_path.iterdir()
    file.write_text("{")
    with caplog.at_level(logging.WARNING):
        table = measure_latency(make_model("bert"), cache=tmp_path, **QUICK)
    assert "Measuring anew" in caplog.text
    assert pa.LatencyTable.load(file) == table


def test_a_cache_that_cannot_be_written_costs_nothing_but_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        table = measure_latency(make_model("bert"), cache=tmp_path / "file" / "folder", **QUICK)
    assert "not kept" in caplog.text
    assert table.curves


def test_widths_that_surgery_can_cut_to_are_sampled() -> None:
    sites = {family: identify(make_model(family)) for family in ("bert", "llama", "gemma")}
    assert sample_widths(sites["bert"].sites[0], 8) == (1, 2, 3, 4)
    assert sample_widths(sites["llama"].sites[0], 8) == (2, 4)
    assert sample_widths(sites["gemma"].sites[0], 2) == (1, 4)
    assert sample_widths(sites["bert"].feed_forwards[0], 3) == (8, 16, 24)
    wide = identify(make_model("bert", intermediate_size=1000)).feed_forwards[0]
    assert sample_widths(wide, 4) == (64, 384, 704, 1000)


def test_roundings_are_compared_where_feed_forwards_are_wide_enough() -> None:
    narrow, wide = (identify(make_model("bert", intermediate_size=size)).feed_forwards[0] for size in (128, 512))
    assert latency._probes(narrow) == {}
    probes = latency._probes(wide)
    assert probes == {1: 257, 8: 264, 16: 272, 32: 288, 64: 320}
    # What each width takes; per neuron, that of 64 is the least.
    points = [(257, 0.257 * 1.5), (264, 0.264 * 1.2), (272, 0.272 * 1.1), (288, 0.288), (320, 0.320)]
    found = dict(latency._roundings(probes, points))
    assert found == pytest.approx({1: 1.5, 8: 1.2, 16: 1.1, 32: 1.0, 64: 1.0})
    assert latency._roundings(probes, [(width, 0.0) for width, _ in points]) == ()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch": 0}, "batch is 0; it is a whole number from 1"),
        ({"length": 1.5}, r"length is 1\.5; it is a whole number from 1"),
        ({"widths": 1}, "widths is 1; it is a whole number from 2"),
        ({"repeats": True}, "repeats is True; it is a whole number from 4"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CostError, match=message):
        measure_latency(make_model("bert"), cache=None, **{**QUICK, **settings})


def test_models_that_cannot_be_measured_are_refused() -> None:
    pruned = make_model("bert")
    pa.prune_(pruned, make_case(pruned, "heads"))
    with pytest.raises(CostError, match="This model is pruned; measure the dense one"):
        measure_latency(pruned, cache=None)
    with pytest.raises(CostError, match="on the meta device"):
        measure_latency(make_model("bert").to("meta"), cache=None)
    with pytest.raises(ArchitectureError, match=r"Linear has no config\.model_type"):
        measure_latency(torch.nn.Linear(2, 2), cache=None)
