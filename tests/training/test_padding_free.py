"""When padding is left out, and what goes on working then."""

import copy
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import pruning_adapter as pa
from pruning_adapter.errors import ImportanceError, TrainingError
from pruning_adapter.training import padding_free
from pruning_adapter.training.padding_free import leave_out_padding_
from tiny import make_batch, make_model


def tokens_of_feed_forward(model: Any, batch: dict[str, Tensor]) -> tuple[int, ...]:
    seen: list[tuple[int, ...]] = []
    up = model.base_model.encoder.layer[0].intermediate.dense
    handle = up.register_forward_hook(lambda _, inputs, __: seen.append(tuple(inputs[0].shape[:2])))
    with torch.no_grad():
        model(**batch)
    handle.remove()
    return seen[0]


def gradients(model: Any, batch: dict[str, Tensor]) -> list[Tensor]:
    model.zero_grad()
    model(**batch).loss.backward()
    return [weight.grad for weight in model.parameters() if weight.grad is not None]


def test_only_real_tokens_are_computed() -> None:
    model, batch = leave_out_padding_(make_model("bert")), make_batch()
    assert tokens_of_feed_forward(model, batch) == (1, int(batch["attention_mask"].sum()))


def test_full_batches_and_those_without_a_mask_stay_as_they_are() -> None:
    model, batch = leave_out_padding_(make_model("bert")), make_batch(padded=False)
    assert tokens_of_feed_forward(model, batch) == (6, 12)
    del batch["attention_mask"]
    assert tokens_of_feed_forward(model, batch) == (6, 12)
    nothing = make_batch() | {"attention_mask": torch.zeros(6, 12, dtype=torch.long)}
    assert tokens_of_feed_forward(model, nothing) == (6, 12)


def test_padding_that_the_task_head_reads_is_computed() -> None:
    plain, packed = make_model("bert"), leave_out_padding_(make_model("bert"))
    batch = {name: value.flip(1) if value.dim() == 2 else value for name, value in make_batch().items()}
    assert tokens_of_feed_forward(packed, batch) == (6, 12)
    torch.testing.assert_close(packed(**batch).logits, plain(**batch).logits, rtol=1e-10, atol=1e-12)


def test_gradient_checkpointing_gives_the_same() -> None:
    options = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    plain, packed = make_model("bert", **options).train(), leave_out_padding_(make_model("bert", **options)).train()
    batch = make_batch()
    cast(Any, packed).gradient_checkpointing_enable({"use_reentrant": False})
    for one, other in zip(gradients(plain, batch), gradients(packed, batch), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-10, atol=1e-12)


def test_nothing_of_a_batch_outlives_its_forward() -> None:
    """A block that is called alone, also after a forward that broke off, computes all it is given."""
    model: Any = leave_out_padding_(make_model("bert"))
    hidden = torch.randn(6, 12, 32, dtype=torch.float64)
    for broken in (False, True):
        if broken:
            handle = model.base_model.encoder.layer[1].register_forward_pre_hook(lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                model(**make_batch())
            handle.remove()
        else:
            model(**make_batch())
        alone = make_model("bert").base_model.encoder.layer[0](hidden)
        torch.testing.assert_close(model.base_model.encoder.layer[0](hidden), alone, rtol=1e-10, atol=1e-12)


def test_two_forwards_before_one_backward_with_checkpointing() -> None:
    options = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    plain, packed = make_model("bert", **options).train(), leave_out_padding_(make_model("bert", **options)).train()
    cast(Any, packed).gradient_checkpointing_enable({"use_reentrant": False})
    for model in (plain, packed):
        losses = [cast(Any, model)(**make_batch(seed=seed)).loss for seed in range(2)]
        sum(losses).backward()
    for one, other in zip(plain.parameters(), packed.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(other.grad, one.grad, rtol=1e-10, atol=1e-12)


def test_threads_pack_their_own_batches() -> None:
    plain, packed = make_model("bert"), leave_out_padding_(make_model("bert"))
    batches = [make_batch(seed=seed, size=4 + seed) for seed in range(4)]
    expected = [cast(Any, plain)(**batch).logits for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda number: cast(Any, packed)(**batches[number % 4]).logits, range(80)))
    for number, logits in enumerate(found):
        torch.testing.assert_close(logits, expected[number % 4], rtol=1e-10, atol=1e-12)


def test_another_model_with_the_same_config_is_not_taken_for_this_one() -> None:
    model: Any = leave_out_padding_(make_model("bert"))
    other: Any = type(model)(model.config).double().eval()
    batch = make_batch()
    before = other(**batch).logits
    leave_out_padding_(other)
    assert tokens_of_feed_forward(other, batch)[0] == 1
    torch.testing.assert_close(other(**batch).logits, before, rtol=1e-10, atol=1e-12)


def test_hidden_states_keep_their_padded_shape() -> None:
    plain, packed, batch = make_model("bert"), leave_out_padding_(make_model("bert")), make_batch()
    real = batch["attention_mask"].bool()
    for one, other in zip(
        plain(**batch, output_hidden_states=True).hidden_states,
        packed(**batch, output_hidden_states=True).hidden_states,
        strict=True,
    ):
        torch.testing.assert_close(other[real], one[real], rtol=1e-10, atol=1e-12)


def test_a_copy_packs_its_own_batches() -> None:
    model = leave_out_padding_(make_model("bert"))
    twin = copy.deepcopy(model)
    gradients(twin, make_batch(seed=1))
    alone = leave_out_padding_(make_model("bert"))
    for one, other in zip(gradients(alone, make_batch()), gradients(twin, make_batch()), strict=True):
        assert torch.equal(one, other)
    assert twin.base_model.encoder.layer[0].attention.self._packer is not model.base_model.encoder.layer[0]


def test_nothing_of_it_is_saved(tmp_path: Path) -> None:
    model = leave_out_padding_(make_model("bert"))
    pa.save_pruned(model, tmp_path / "model")
    assert "padding_free" not in json.loads((tmp_path / "model" / "config.json").read_text())
    assert padding_free.ATTENTION not in (tmp_path / "model" / "config.json").read_text()
    again = pa.load_pruned(tmp_path / "model", dtype="auto")
    torch.testing.assert_close(
        again(**make_batch()).logits, make_model("bert")(**make_batch()).logits, rtol=1e-10, atol=1e-12
    )


def test_examples_cannot_be_scored_once_they_are_packed() -> None:
    model = leave_out_padding_(make_model("bert"))
    with pytest.raises(ImportanceError, match="score it before leave_out_padding_"):
        pa.measure_importance(model, [make_batch()])


def test_an_attention_that_cannot_is_refused_before_anything_changes() -> None:
    model: Any = make_model("bert")
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(TrainingError, match=r"flex_attention.*sdpa"):
        leave_out_padding_(model)
    assert not model.base_model._forward_pre_hooks


def test_a_compiled_model_gives_the_same() -> None:
    model = leave_out_padding_(make_model("bert"))
    compiled: Any = torch.compile(model, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(
            compiled(**make_batch()).logits, model(**make_batch()).logits, rtol=1e-10, atol=1e-12
        )


def test_twice_is_once() -> None:
    model: nn.Module = leave_out_padding_(leave_out_padding_(make_model("bert")))
    for one, other in zip(gradients(make_model("bert"), make_batch()), gradients(model, make_batch()), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-10, atol=1e-12)
