"""Transformers 4.57, which still had `prune_heads` and `head_mask`, agrees with our surgery and our importance."""

from typing import Any

import pytest
import torch

import pruning_adapter as pa
from pruning_adapter.architectures.identity import count_parameters, identify
from witness.load import FAMILIES, Witness, load_witness


def pairs(witness: Witness) -> list[dict[str, torch.Tensor]]:
    return [{name: value[row : row + 2] for name, value in witness.batch.items()} for row in (0, 2, 4)]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_pruned_logits_and_sizes_are_those_of_prune_heads(family: str, attention: str) -> None:
    witness = load_witness(family, attention)
    plan = pa.PruningPlan.from_pruned_heads(identify(witness.model), witness.pruned_heads)
    model: Any = pa.prune_(witness.model, plan)
    with torch.no_grad():
        torch.testing.assert_close(model(**witness.batch).logits, witness.pruned_logits, rtol=0, atol=1e-10)
    assert count_parameters(model) == witness.pruned_parameters
    assert model.config.pruned_heads == {str(block): heads for block, heads in witness.pruned_heads.items() if heads}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_importance_is_the_mean_of_head_mask_gradients_taken_example_by_example(family: str, attention: str) -> None:
    witness = load_witness(family, attention)
    scores = pa.measure_importance(witness.model, [witness.batch])
    expected = witness.per_example.sum(0) / witness.batch["attention_mask"].sum()
    torch.testing.assert_close(torch.stack(scores.heads), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_examples_own_gradient(family: str) -> None:
    witness = load_witness(family)
    for row in range(6):
        one = {name: value[row : row + 1] for name, value in witness.batch.items()}
        scores = pa.measure_importance(witness.model, [one], allow_one_class=True)
        torch.testing.assert_close(
            torch.stack(scores.heads) * scores.tokens, witness.per_example[row], rtol=0, atol=1e-10
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_reduction_batch_is_the_gradient_of_one_shared_mask(family: str) -> None:
    witness = load_witness(family)
    scores = pa.measure_importance(witness.model, [witness.batch], reduction="batch")
    torch.testing.assert_close(torch.stack(scores.heads) * scores.tokens, witness.batch_gradient, rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_reduction_bertology_is_the_scripts_running_sum(family: str) -> None:
    witness = load_witness(family)
    scores = pa.measure_importance(witness.model, pairs(witness), reduction="bertology")
    torch.testing.assert_close(torch.stack(scores.heads), witness.bertology, rtol=0, atol=1e-10)
