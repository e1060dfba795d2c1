"""Scores that two processes measure together are those of one that sees all batches."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributed.fsdp import fully_shard

import pruning_adapter as pa
from conformance import make_plan
from pair import Pair
from tiny import FAMILIES, make_batch, make_model

BOTH = ("heads", "neurons")


def batches_of(family: str, count: int) -> list[dict[str, Tensor]]:
    """Batches of different sizes; the last is the smallest."""
    sizes = [6, 4, 5, 3, 2][:count]
    return [make_batch(FAMILIES[family].task, size=size, seed=seed) for seed, size in enumerate(sizes)]


def model_of(family: str, *, sharded: bool) -> Any:
    model = make_model(family, attention="sdpa")
    if sharded:
        for layer in model.get_submodule({"llama": "model.layers", "bert": "bert.encoder.layer"}[family]):
            fully_shard(layer)
        fully_shard(model)
    return model


def said(scores: pa.ImportanceScores) -> dict[str, Any]:
    return {
        "scores": np.concatenate([each.numpy() for each in (*scores.heads, *scores.neurons)]),
        "examples": scores.examples,
        "tokens": scores.tokens,
        "fingerprint": scores.model.fingerprint,
        "macs": None if scores.macs is None else scores.macs.to_json(),
    }


def measure(
    model: Any, batches: Iterable[Mapping[str, Tensor]], scorer: str = "gradient", **options: Any
) -> dict[str, Any]:
    score: Any = pa.obs_importance if scorer == "obs" else pa.measure_importance
    return said(score(model, batches, units=BOTH, **options))


def measure_share(
    rank: int, family: str, count: int, scorer: str, sharded: bool, options: dict[str, Any]
) -> dict[str, Any]:
    batches = batches_of(family, count)[rank::2]
    return measure(model_of(family, sharded=sharded), batches, scorer, **options)


def assert_same(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    scale = np.abs(expected["scores"]).max()
    np.testing.assert_allclose(found["scores"], expected["scores"], rtol=1e-10, atol=1e-12 * scale)
    assert {**found, "scores": 0} == {**expected, "scores": 0}


@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
@pytest.mark.parametrize("count", [5, 1])
def test_shares_of_any_size_add_up_to_the_whole(pair: Pair, family: str, count: int) -> None:
    """Of five batches one process has three; of one batch the other has none."""
    expected = measure(model_of(family, sharded=False), batches_of(family, count))
    for found in pair.do(measure_share, family, count, "gradient", False, {}):
        assert_same(found, expected)


@pytest.mark.parametrize("options", [{"order": "second"}, {"reduction": "token"}, {"reduction": "batch"}], ids=str)
def test_every_sum_over_examples_is_added_up(pair: Pair, options: dict[str, Any]) -> None:
    expected = measure(model_of("bert", sharded=False), batches_of("bert", 5), **options)
    for found in pair.do(measure_share, "bert", 5, "gradient", False, options):
        assert_same(found, expected)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_the_surgeon_adds_up_its_sums(pair: Pair, family: str) -> None:
    expected = measure(model_of(family, sharded=False), batches_of(family, 5), "obs")
    for found in pair.do(measure_share, family, 5, "obs", False, {}):
        assert_same(found, expected)


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("scorer", ["gradient", "obs"])
def test_a_model_that_is_spread_over_the_processes_scores_the_same(pair: Pair, family: str, scorer: str) -> None:
    expected = measure(model_of(family, sharded=False), batches_of(family, 5), scorer)
    for found in pair.do(measure_share, family, 5, scorer, True, {}):
        assert_same(found, expected)


def test_a_spread_model_needs_a_batch_in_every_process(pair: Pair) -> None:
    for kind, message, _ in pair.fail(measure_share, "bert", 1, "gradient", True, {}):
        assert kind == "ProcessError"
        assert "Process 1 of 2 has no batch" in message


def measure_all(rank: int) -> dict[str, Any]:
    return measure(model_of("bert", sharded=False), batches_of("bert", 3))


def test_the_same_batches_in_all_processes_give_the_same_scores(pair: Pair) -> None:
    expected = measure(model_of("bert", sharded=False), batches_of("bert", 3))
    for found in pair.do(measure_all):
        np.testing.assert_allclose(found["scores"], expected["scores"], rtol=1e-12)
        assert found["examples"] == 2 * expected["examples"]


def measure_alone(rank: int) -> dict[str, Any] | None:
    if rank == 1:
        return None
    return measure(model_of("bert", sharded=False), batches_of("bert", 3), alone=True)


def test_one_process_can_measure_alone(pair: Pair) -> None:
    expected = measure(model_of("bert", sharded=False), batches_of("bert", 3))
    assert_same(pair.do(measure_alone)[0], expected)


def measure_until_stable(rank: int, lengths: tuple[int, int]) -> tuple[int, int, list[float]]:
    read = 0

    def batches() -> Any:
        nonlocal read
        for seed in range(lengths[rank]):
            read += 1
            yield make_batch(size=6, seed=100 * rank + seed)

    scores = pa.measure_importance(model_of("bert", sharded=False), batches(), stop_when_stable=0.5)
    return read, scores.examples, scores.heads[0].tolist()


@pytest.mark.parametrize("lengths", [(40, 40), (40, 3)])
def test_all_stop_at_the_same_moment(pair: Pair, lengths: tuple[int, int]) -> None:
    """Also if one of them has run out of batches before."""
    (read, *first), (other, *second) = pair.do(measure_until_stable, lengths)
    assert first == second
    assert 3 < read < 40
    assert other == min(read, lengths[1])
    assert first[0] == 6 * (read + other)


def measure_a_bad_batch(rank: int) -> Any:
    batches = batches_of("bert", 3)
    if rank == 1:
        del batches[1]["labels"]
    return measure(model_of("bert", sharded=False), batches)


def test_what_fails_in_one_process_ends_all(pair: Pair) -> None:
    (first, told, _), (second, why, _) = pair.fail(measure_a_bad_batch)
    assert (first, second) == ("ProcessError", "ImportanceError")
    assert "Batch 1 has no 'labels'" in why
    assert told == f"Process 1 of 2 failed: {why}"


def test_a_running_sum_is_refused(pair: Pair) -> None:
    for kind, message, _ in pair.fail(measure_share, "bert", 3, "gradient", False, {"reduction": "bertology"}):
        assert kind == "ImportanceError"
        assert "running sum over batches in one order" in message


def correct(rank: int, share: int, of: int, inputs: str) -> dict[str, Any]:
    model = model_of("bert", sharded=False)
    plan = replace(make_plan(model, {0: [1], 2: [0, 3]}, {1: list(range(8))}), reconstruct="lstsq")
    pa.reconstruct_(model, plan, batches_of("bert", 5)[share::of], inputs=inputs)
    return {name: weight.detach().numpy() for name, weight in model.named_parameters()}


def correct_share(rank: int, inputs: str) -> dict[str, Any]:
    return correct(rank, rank, 2, inputs)


@pytest.mark.parametrize("inputs", ["dense", "pruned"])
def test_the_correction_adds_up_what_all_processes_saw(pair: Pair, inputs: str) -> None:
    expected = correct(0, 0, 1, inputs)
    first, second = pair.do(correct_share, inputs)
    for name, weight in expected.items():
        np.testing.assert_allclose(first[name], weight, rtol=1e-9, atol=1e-11)
        # To the bit, or the processes would train different models.
        assert np.array_equal(first[name], second[name])


def test_the_halves_are_told_apart_by_their_own_process() -> None:
    """In one process nothing changes: every other example, whatever the batches."""
    model = model_of("bert", sharded=False)
    whole, parts = (
        make_batch(size=8),
        [{name: value[start : start + 4] for name, value in make_batch(size=8).items()} for start in (0, 4)],
    )
    assert torch.equal(
        torch.tensor(pa.measure_importance(model, [whole]).agreement),
        torch.tensor(pa.measure_importance(model, parts).agreement),
    )
