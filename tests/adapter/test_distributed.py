"""Two processes that share the batch compute the gradients that one computes alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from peft import get_peft_model
from torch.nn.parallel import DistributedDataParallel

import pruning_adapter as pa
from conformance import make_plan
from pruning_adapter.adapter.linear import QuickLinear
from tiny import make_batch, make_model, randomize_


def adapted() -> Any:
    torch.manual_seed(0)
    base = make_model("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = get_peft_model(base, pa.PruneLoraConfig(pruning=make_plan(base, {0: [1]}), r=4, task_type="SEQ_CLS"))
    randomize_(model, only_trainable=True)
    assert any(isinstance(module, QuickLinear) for module in model.modules())
    return model.train()


def train_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model = DistributedDataParallel(adapted())
    batch = {name: value[rank::2] for name, value in make_batch().items()}
    model(**batch).loss.backward()
    found = {name.removeprefix("module."): w.grad for name, w in model.named_parameters() if w.grad is not None}
    torch.save(found, f"{folder}/gradients{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="PyTorch was built without gloo")
def test_two_processes_compute_the_gradients_of_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(train_rank, args=(str(tmp_path),), nprocs=2)
    alone = adapted()
    alone(**make_batch()).loss.backward()
    expected = {name: weight.grad for name, weight in alone.named_parameters() if weight.grad is not None}
    for rank in range(2):
        found = torch.load(tmp_path / f"gradients{rank}.pt", weights_only=True)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
