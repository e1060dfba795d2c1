"""The fixtures are understood: today's Transformers computes with their weights what 4.57 computed."""

import pytest
import torch

from witness.load import FAMILIES, load_witness


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_dense_logits_are_those_of_transformers_4(family: str, attention: str):
    witness = load_witness(family, attention)
    with torch.no_grad():
        output = witness.model(**witness.batch)
    torch.testing.assert_close(output.logits, witness.dense_logits, rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_fixture_is_worth_comparing_with(family: str):
    """Different lengths, uneven pruning that matters, and gradients far above any tolerance."""
    witness = load_witness(family)
    lengths = witness.batch["attention_mask"].sum(dim=1).tolist()
    assert len(set(lengths)) == len(lengths) == 6
    blocks, heads = witness.batch_gradient.shape
    lost = [len(witness.pruned_heads.get(block, [])) for block in range(blocks)]
    assert len(set(lost)) > 1
    assert max(lost) < heads
    assert witness.pruned_parameters < witness.model.num_parameters()
    assert (witness.pruned_logits - witness.dense_logits).abs().max() > 0.1
    assert witness.per_example.shape == (6, blocks, heads)
    assert witness.bertology.shape == (blocks, heads)
    assert min(t.min() for t in (witness.per_example, witness.batch_gradient, witness.bertology)) > 1e-5


def test_every_call_gives_a_model_of_its_own():
    first, second = load_witness("bert").model, load_witness("bert").model
    with torch.no_grad():
        next(first.parameters()).zero_()
    assert next(second.parameters()).any()
