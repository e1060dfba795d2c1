"""Models that no process ever holds as a whole: loaded in parts by Transformers, scored, pruned on disk, trained."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed
from peft import PeftModel, get_peft_model
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig

import pruning_adapter as pa
from conformance import make_plan
from pair import Pair
from pruning_adapter.architectures.identity import pruned_state
from pruning_adapter.processes import first_does
from pruning_adapter.training.recipes import RECIPES
from pruning_adapter.training.trainer import train_
from tiny import make_batch, make_model
from tiny_encoder import save_tiny_tokenizer

BOTH = ("heads", "neurons")
PARTS = {"fsdp_size": 2}


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    make_model("llama", dtype=torch.float32).save_pretrained(tmp_path / "dense")
    return tmp_path / "dense"


def load(path: Path, *, in_parts: bool) -> Any:
    parts = {"distributed_config": DistributedConfig(**PARTS)} if in_parts else {}
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64, **parts)


def decide(model: Any, batches: list[dict[str, torch.Tensor]]) -> pa.PruningPlan:
    return pa.plan_pruning(pa.measure_importance(model, batches, units=BOTH), keep_params=0.8)


def examples() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(3, 40, (9, 6), generator=generator).tolist()
    return [{"input_ids": row, "attention_mask": [1] * len(row), "labels": row} for row in rows]


def adapt_and_train(base: Any, plan: pa.PruningPlan, folder: Path) -> Any:
    torch.manual_seed(3)
    model = get_peft_model(base, pa.PruneLoraConfig(pruning=plan, r=2, task_type="CAUSAL_LM", train_norms=False))
    recipe = replace(RECIPES["default"], epochs=2, batch_size=4, learning_rate={"prune-lora": 1e-2})
    how: dict[str, Any] = {"recipe": recipe, "method": "prune-lora", "seed": 5, "folder": folder / "run"}
    train_(model, examples(), tokenizer=save_tiny_tokenizer(folder), **how)
    return model


def trained(model: Any) -> dict[str, Any]:
    return {name: weight.detach().numpy() for name, weight in model.named_parameters() if weight.requires_grad}


@contextmanager
def means_over_gloo() -> Generator[None]:
    """The Trainer takes means of adapters' gradients over processes, which NCCL offers and gloo does not."""
    plain = torch.distributed.all_reduce

    def all_reduce(tensor: Any, op: Any = torch.distributed.ReduceOp.SUM, **options: Any) -> Any:
        if op != torch.distributed.ReduceOp.AVG:
            return plain(tensor, op, **options)
        found = plain(tensor, **options)
        tensor /= torch.distributed.get_world_size()
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.distributed, "all_reduce", all_reduce)
        yield


def go_the_whole_way(rank: int, dense: Path) -> tuple[int, dict[str, Any]]:
    folder = dense.parent
    model = load(dense, in_parts=True)
    held = sum(weight._local_tensor.numel() for weight in model.parameters())
    plan = decide(model, [make_batch("causal", seed=rank)])
    first_does(lambda: pa.prune_checkpoint(dense, plan, folder / "small"))
    with means_over_gloo():
        adapted = adapt_and_train(load(folder / "small", in_parts=True), plan, folder)
    pa.save_adapter(adapted, folder / "adapter")
    return held, trained(adapted)


def test_a_model_is_scored_pruned_and_trained_in_parts(pair: Pair, dense: Path, tmp_path: Path) -> None:
    (held, first), (also, second) = pair.do(go_the_whole_way, dense)
    (tmp_path / "one").mkdir()
    model = load(dense, in_parts=False)
    whole = sum(weight.numel() for weight in model.parameters())
    assert held + also == whole
    assert max(held, also) < 0.6 * whole
    plan = decide(model, [make_batch("causal", seed=seed) for seed in range(2)])
    state = pruned_state(pa.load_pruned(tmp_path / "small"))
    assert state is not None
    assert state.kept == plan.kept
    expected = trained(adapt_and_train(load(tmp_path / "small", in_parts=False), plan, tmp_path / "one"))
    assert list(first) == list(expected)
    for name, weight in expected.items():
        np.testing.assert_allclose(first[name], weight, rtol=1e-6, atol=1e-8, err_msg=name)
        assert np.array_equal(first[name], second[name])
    base = load(dense, in_parts=False)
    loaded = trained(PeftModel.from_pretrained(base, str(tmp_path / "adapter"), is_trainable=True))
    for name, weight in first.items():
        np.testing.assert_array_equal(loaded[name], weight)


def cut(rank: int, how: str) -> None:
    model = make_model("llama")
    plan = make_plan(model, {0: [0, 1]})
    if how == "norms that train":
        pa.prune_(model, plan)
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    if how == "prune_":
        pa.prune_(model, plan)
    elif how == "reconstruct_":
        pa.reconstruct_(model, replace(plan, reconstruct="lstsq"), [make_batch("causal")])
    else:
        get_peft_model(model, pa.PruneLoraConfig(pruning=plan, task_type="CAUSAL_LM"))


@pytest.mark.parametrize(
    ("how", "kind", "why"),
    [
        ("prune_", "ArchitectureError", "Prune the saved model instead"),
        ("reconstruct_", "ArchitectureError", "Prune the saved model instead"),
        ("norms that train", "AdapterError", "train_norms=False"),
    ],
)
def test_what_needs_whole_weights_is_refused(pair: Pair, how: str, kind: str, why: str) -> None:
    for failure in pair.fail(cut, how):
        assert failure.kind == kind, failure.trace
        assert why in failure.message


def wrap_every_map(rank: int) -> list[tuple[str, Any]]:
    """FSDP2 units as small as can be, whose weights are whole in their own forward only."""
    found: list[tuple[str, Any]] = []
    for spread in (False, True):
        model = make_model("bert")
        torch.manual_seed(0)
        model = get_peft_model(model, pa.PruneLoraConfig(pruning=make_plan(model, {0: [1]}), r=2))
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.data.add_(0.1)
        leaves = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
        for leaf in leaves if spread else ():
            if not hasattr(leaf, "base_layer"):
                fully_shard(leaf)
        if spread:
            fully_shard(model)
        model(**make_batch()).loss.backward()
        for name, weight in model.named_parameters():
            if "lora_" in name:
                gradient: Any = weight.grad
                found.append((name, (gradient.full_tensor() if spread else gradient).numpy()))
    return found


def test_maps_that_are_spread_one_by_one_compute_the_same(pair: Pair) -> None:
    for found in pair.do(wrap_every_map):
        half = len(found) // 2
        for (name, gradient), (other, expected) in zip(found[half:], found[:half], strict=True):
            assert name == other
            np.testing.assert_allclose(gradient, expected, rtol=1e-10, atol=1e-12, err_msg=name)
