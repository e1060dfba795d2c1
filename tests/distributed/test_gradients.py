"""Two processes that share the batch compute the gradients that one computes alone."""

from typing import Any

import torch
from peft import get_peft_model
from torch.nn.parallel import DistributedDataParallel

import pruning_adapter as pa
from conformance import make_plan
from pair import Pair
from pruning_adapter.adapter.linear import QuickLinear
from tiny import make_batch, make_model, randomize_


def adapted() -> Any:
    torch.manual_seed(0)
    base = make_model("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = get_peft_model(base, pa.PruneLoraConfig(pruning=make_plan(base, {0: [1]}), r=4, task_type="SEQ_CLS"))
    randomize_(model, only_trainable=True)
    assert any(isinstance(module, QuickLinear) for module in model.modules())
    return model.train()


def gradients_of(model: Any, batch: dict[str, torch.Tensor]) -> dict[str, Any]:
    """By name, as lists, which cross to another process as they are."""
    model(**batch).loss.backward()
    trained = ((name, weight.grad) for name, weight in model.named_parameters())
    return {name.removeprefix("module."): grad.tolist() for name, grad in trained if grad is not None}


def gradients_of_every_other_row(rank: int) -> dict[str, Any]:
    return gradients_of(
        DistributedDataParallel(adapted()), {name: value[rank::2] for name, value in make_batch().items()}
    )


def test_two_processes_compute_the_gradients_of_one(pair: Pair) -> None:
    expected = gradients_of(adapted(), make_batch())
    assert expected
    for found in pair.do(gradients_of_every_other_row):
        assert set(found) == set(expected)
        for name, gradient in expected.items():
            ours, theirs = (torch.tensor(each, dtype=torch.float64) for each in (found[name], gradient))
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
