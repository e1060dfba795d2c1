"""A training that is left off, loses units, and goes on."""

import json
import resource
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import BertTokenizer, PreTrainedTokenizerBase

import pruning_adapter as pa
from conformance import make_plan, one_thread
from pruning_adapter.adapter.carry import carry_moments
from pruning_adapter.errors import CheckpointError, OutputError
from pruning_adapter.training import trainer
from pruning_adapter.training.continuation import carry_checkpoint
from pruning_adapter.training.recipes import RECIPES
from pruning_adapter.training.trainer import MOMENTS, last_complete_checkpoint, make_trainer, train_
from tiny import make_model, randomize_

RECIPE = replace(
    RECIPES["default"],
    epochs=3,
    batch_size=4,
    learning_rate={"prune-lora": 1e-2},
    warmup_share=0.2,
    adapter_dropout=0.1,
)
STEPS = 12


@pytest.fixture
def tokenizer(tmp_path: Path) -> PreTrainedTokenizerBase:
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nword\n", encoding="utf-8")
    return BertTokenizer(vocab=str(vocabulary))


def how(tokenizer: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    features = [
        {
            "input_ids": torch.randint(3, 40, (4 + row % 7,), generator=generator).tolist(),
            "attention_mask": [1] * (4 + row % 7),
            "labels": row % 3,
        }
        for row in range(16)
    ]
    return {"features": features, "tokenizer": tokenizer, "recipe": RECIPE, "method": "prune-lora", "seed": 5}


def make_adapted(pruned: dict[int, list[int]] | None = None, rank: int = 2) -> tuple[Any, pa.PruningPlan]:
    base = make_model("bert", dtype=torch.float32, attention="sdpa")
    plan = make_plan(base, pruned or {})
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = pa.PruneLoraConfig(pruning=plan, task_type="SEQ_CLS", r=rank, lora_alpha=2 * rank)
        return get_peft_model(base, config), plan


def leave_off(share: float, folder: Path, tokenizer: Any) -> tuple[Any, Path]:
    dense, _ = make_adapted()
    train_(dense, folder=folder, stop_after=share, **how(tokenizer))
    checkpoint = last_complete_checkpoint(folder)
    assert checkpoint is not None
    return dense, checkpoint


def go_on(dense: Any, checkpoint: Path, folder: Path, tokenizer: Any, **other: Any) -> tuple[Any, list[Any]]:
    pruned, plan = make_adapted(**other)
    carry_checkpoint(
        checkpoint,
        folder,
        dense=dense,
        pruned=pruned,
        plan=plan,
        trainer=make_trainer(pruned, folder=folder, **how(tokenizer)),
    )
    return pruned, train_(pruned, folder=folder, resume=True, **how(tokenizer))


@pytest.mark.parametrize("share", [0.05, 0.33, 0.6], ids=["in the warm-up", "after an epoch", "within an epoch"])
def test_where_nothing_goes_it_is_as_if_it_had_never_stopped(share: float, tmp_path: Path, tokenizer: Any) -> None:
    """To the bit: the weights, the optimizer, the learning rate, dropout, and which examples come when."""
    with one_thread():
        whole, _ = make_adapted()
        expected = train_(whole, folder=tmp_path / "whole", **how(tokenizer))
        dense, checkpoint = leave_off(share, tmp_path / "dense", tokenizer)
        found, history = go_on(dense, checkpoint, tmp_path / "pruned", tokenizer)
    ours, theirs = dict(found.named_parameters()), dict(whole.named_parameters())
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert [entry["step"] for entry in history if "loss" in entry] == [
        entry["step"] for entry in expected if "loss" in entry
    ]


def test_it_stops_after_its_share_and_before_the_end(tmp_path: Path, tokenizer: Any) -> None:
    _, checkpoint = leave_off(0.6, tmp_path, tokenizer)
    assert checkpoint.name == f"checkpoint-{round(0.6 * STEPS)}"


def test_what_was_pruned_trains_on_from_the_step_where_it_was(tmp_path: Path, tokenizer: Any) -> None:
    dense, checkpoint = leave_off(0.5, tmp_path / "dense", tokenizer)
    _, history = go_on(
        dense, checkpoint, tmp_path / "pruned", tokenizer, pruned={0: [1], 1: [0, 1, 2, 3], 2: [0, 3]}, rank=3
    )
    state = json.loads((tmp_path / "pruned" / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    assert state["global_step"] == STEPS
    steps = [entry["step"] for entry in history]
    assert (steps[0], steps[-1], steps) == (1, STEPS, sorted(steps))


def test_the_optimizers_state_is_cut_as_the_weights_are() -> None:
    """Head 1 of block 0 of the tiny BERT goes: of its heads' width S, rows S to 2 S of B, and the same columns of A."""
    dense, _ = make_adapted()
    pruned, plan = make_adapted({0: [1]}, rank=3)
    randomize_(dense, only_trainable=True)
    moments = {
        name: {"exp_avg": parameter.detach() * 2, "step": torch.tensor(7.0)}
        for name, parameter in dense.named_parameters()
        if parameter.requires_grad
    }
    found = carry_moments(moments, dense, pruned, plan)
    assert found.keys() == {name for name, parameter in pruned.named_parameters() if parameter.requires_grad}
    assert all(float(state["step"]) == 7 for state in found.values())
    size = plan.model.sites[0].unit_size
    stays = [row for row in range(4 * size) if not size <= row < 2 * size]
    attention = "base_model.model.bert.encoder.layer.0.attention"

    def weight(part: str, factor: str) -> str:
        return f"{attention}.{part}.lora_{factor}.default.weight"

    of_b, was = found[weight("self.query", "B")]["exp_avg"], moments[weight("self.query", "B")]["exp_avg"]
    assert torch.equal(of_b[:, :2], was[stays])
    assert not of_b[:, 2].any()
    of_a, was = found[weight("output.dense", "A")]["exp_avg"], moments[weight("output.dense", "A")]["exp_avg"]
    assert torch.equal(of_a[:2], was[:, stays])
    assert not of_a[2].any()
    head = next(name for name in moments if "classifier" in name)
    assert torch.equal(found[head]["exp_avg"], moments[head]["exp_avg"])


def test_a_product_whose_rank_shrinks_begins_its_optimizer_anew() -> None:
    dense, _ = make_adapted()
    pruned, plan = make_adapted(rank=1)
    moments = {
        name: {"exp_avg": torch.ones_like(parameter), "step": torch.tensor(7.0)}
        for name, parameter in dense.named_parameters()
        if parameter.requires_grad
    }
    found = carry_moments(moments, dense, pruned, plan)
    assert all(state["exp_avg"].any() != ("lora_" in name) for name, state in found.items())


def test_a_damaged_checkpoint_is_one_clear_error(tmp_path: Path, tokenizer: Any) -> None:
    dense, checkpoint = leave_off(0.5, tmp_path / "dense", tokenizer)
    assert load_file(checkpoint / MOMENTS)
    (checkpoint / MOMENTS).write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"checkpoint-6 is damaged or incomplete \(.+\)\. Train again\."):
        go_on(dense, checkpoint, tmp_path / "pruned", tokenizer)
    assert not list((tmp_path / "pruned").glob("checkpoint-*"))


@contextmanager
def disk_for_files_below(size: int) -> Generator[None]:
    """While the context lasts, no file grows beyond `size` bytes, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_clear_error_and_leaves_no_half_checkpoint(tmp_path: Path, tokenizer: Any) -> None:
    dense, checkpoint = leave_off(0.5, tmp_path / "dense", tokenizer)
    # The adapter fits, and the optimizer's state, which is twice as large, does not.
    with (
        disk_for_files_below((checkpoint / "optimizer.pt").stat().st_size // 2 + 10_000),
        pytest.raises(OutputError, match=r"Cannot write .*checkpoint-6: File too large\. What was there before is"),
    ):
        go_on(dense, checkpoint, tmp_path / "pruned", tokenizer)
    assert list((tmp_path / "pruned").iterdir()) == []
    go_on(dense, checkpoint, tmp_path / "pruned", tokenizer)


def test_a_full_disk_at_the_last_file_of_a_checkpoint_is_one_clear_error(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(trainer, "save_file", fail)
    with pytest.raises(OutputError, match=r"Cannot write a checkpoint into .*No space left on device .*--resume"):
        leave_off(0.5, tmp_path / "dense", tokenizer)
