"""Equations 1 and 2 of the paper, by hand and as laws."""

from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from pruning_adapter.errors import ImportanceError
from pruning_adapter.importance.normalize import Scope, normalize

SCOPES: list[Scope] = ["block", "model"]
# Scores of a real model lie between 1e-9 and 1; reversed ones are negative.
SCORES = st.lists(st.lists(st.floats(-1e6, 1e6), max_size=5), min_size=1, max_size=5)


def tensors(*blocks: list[float]) -> list[Tensor]:
    return [torch.tensor(block, dtype=torch.float64) for block in blocks]


def test_per_block_by_hand() -> None:
    # Equation 1: the norms are 5 and 13, which gives 3/5, 4/5 and 5/13, 12/13. Equation 2: from 5/13 to 12/13.
    first, second = normalize(tensors([3, 4], [12, 5]), "block")
    assert first.tolist() == pytest.approx([14 / 35, 27 / 35], abs=1e-15)
    assert second.tolist() == pytest.approx([1, 0], abs=1e-15)


def test_over_the_model_by_hand() -> None:
    # One norm for all cancels out: from 3 to 12.
    first, second = normalize(tensors([3, 4], [12, 5]), "model")
    assert first.tolist() == pytest.approx([0, 1 / 9], abs=1e-15)
    assert second.tolist() == pytest.approx([1, 2 / 9], abs=1e-15)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("value", [0.0, 0.25, -3.0])
def test_equal_scores_become_zero(scope: Scope, value: float) -> None:
    normalized = normalize(tensors([value] * 3, [value] * 3), scope)
    assert [block.tolist() for block in normalized] == [[0.0] * 3, [0.0] * 3]


def test_one_unimportant_block_stays_finite() -> None:
    # Its norm is 0; epsilon keeps equation 1 defined.
    normalized = normalize(tensors([0, 0], [3, 4]), "block")
    assert [block.tolist() for block in normalized] == [[0, 0], [pytest.approx(0.75), 1]]


@pytest.mark.parametrize("scope", SCOPES)
def test_blocks_without_heads_stay_empty_and_change_nothing(scope: Scope) -> None:
    with_empty = normalize(tensors([], [3, 4], [], [12, 5]), scope)
    assert [len(block) for block in with_empty] == [0, 2, 0, 2]
    for found, expected in zip(with_empty[1::2], normalize(tensors([3, 4], [12, 5]), scope), strict=True):
        assert torch.equal(found, expected)
    assert [len(block) for block in normalize(tensors([], []), scope)] == [0, 0]


def test_an_unknown_scope_is_refused() -> None:
    with pytest.raises(ImportanceError, match="'layer' is unknown; use one of block, model"):
        normalize(tensors([1, 2]), "layer")  # type: ignore[arg-type]


@given(SCORES, st.sampled_from(SCOPES))
def test_results_keep_their_shapes_and_lie_between_0_and_1(blocks: list[list[float]], scope: Scope) -> None:
    given_blocks = tensors(*blocks)
    before = [block.clone() for block in given_blocks]
    normalized = normalize(given_blocks, scope)
    assert [block.shape for block in normalized] == [block.shape for block in before]
    assert all(bool(((block >= 0) & (block <= 1)).all()) for block in normalized)
    assert all(torch.equal(block, old) for block, old in zip(given_blocks, before, strict=True))
    values = torch.cat(normalized)
    if values.numel() and bool(values.any()):
        assert (values.min(), values.max()) == (0, 1)


@given(SCORES, st.sampled_from(SCOPES))
def test_the_order_within_a_block_is_that_of_the_raw_scores(blocks: list[list[float]], scope: Scope) -> None:
    for raw, normalized in zip(blocks, normalize(tensors(*blocks), scope), strict=True):
        ascending = normalized[torch.tensor(raw, dtype=torch.float64).argsort()].tolist()
        assert all(one <= other for one, other in pairwise(ascending))


@given(SCORES)
def test_over_the_model_the_order_of_all_raw_scores_stays(blocks: list[list[float]]) -> None:
    raw = torch.cat(tensors(*blocks))
    ascending = torch.cat(normalize(tensors(*blocks), "model"))[raw.argsort()].tolist()
    assert all(one <= other for one, other in pairwise(ascending))


@given(SCORES, st.lists(st.integers(-20, 20), min_size=5, max_size=5))
def test_per_block_a_blocks_own_scale_does_not_matter(blocks: list[list[float]], exponents: list[int]) -> None:
    # A power of two scales without rounding; below 1e-3 epsilon could show.
    assume(all(not block or torch.tensor(block, dtype=torch.float64).norm() > 1e-3 for block in blocks))
    # Where all are alike, the last step stretches what is only rounding over the whole of [0, 1].
    shares = [block / block.norm() for block in tensors(*blocks) if block.numel()]
    assume(shares and float(torch.cat(shares).max() - torch.cat(shares).min()) > 1e-6)
    scaled = [[value * 2.0**exponent for value in block] for block, exponent in zip(blocks, exponents, strict=False)]
    for one, other in zip(normalize(tensors(*blocks), "block"), normalize(tensors(*scaled), "block"), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-9)
