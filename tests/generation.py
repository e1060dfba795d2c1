"""The laws of models that generate: what is pruned generates what the gated dense model generates, token by token."""

from typing import Any, cast

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import pruning_adapter as pa
from conformance import CASES, backends, make_case, make_gates, make_neuron_gates
from tiny import FAMILIES, make_batch, make_model

NEW_TOKENS = 32


def generate(model: PreTrainedModel, inputs: dict[str, Tensor], cache: str) -> Tensor:
    with torch.no_grad():
        return cast(Any, model).generate(
            **inputs, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False, cache_implementation=cache
        )


class Generation:
    """Mix it into a family's conformance class."""

    family: str

    @pytest.mark.parametrize("cache", ["dynamic", "static"])
    @pytest.mark.parametrize("case", CASES)
    def test_greedy_generation_of_the_pruned_model_is_that_of_the_gated_dense_one(self, case: str, cache: str) -> None:
        model = make_model(self.family, attention=backends(self.family)[-1])
        batch = make_batch(FAMILIES[self.family].task, padded=False, size=2)
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        plan = make_case(model, case)
        with pa.gated(model, make_gates(plan), make_neuron_gates(plan)):
            gated = generate(model, inputs, cache)
        assert gated.shape[1] >= NEW_TOKENS
        assert torch.equal(generate(pa.prune_(model, plan), inputs, cache), gated)
