"""Frozen weights in bfloat16."""

from typing import Any

import numpy as np
import pytest
import torch
from peft import get_peft_model

import pruning_adapter as pa
from conformance import make_plan
from pruning_adapter.evaluation.cost import weight_bytes
from pruning_adapter.evaluation.predict import predict
from pruning_adapter.training import precision
from pruning_adapter.training.attention import choose_attention_
from pruning_adapter.training.precision import halve_frozen_, is_mixed, warn_of_slow_bfloat16
from tiny import make_batch, make_model, randomize_

OPTIONS = {"dtype": torch.float32, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def adapted() -> Any:
    torch.manual_seed(0)
    base = make_model("bert", **OPTIONS)
    model = get_peft_model(base, pa.PruneLoraConfig(pruning=make_plan(base, {0: [1]}), r=4, task_type="SEQ_CLS"))
    randomize_(model, only_trainable=True)
    return model


def gradients(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(**make_batch())
    outputs.loss.backward()
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return outputs.logits, found


def test_what_is_frozen_takes_half_the_bytes_and_what_trains_stays() -> None:
    model = adapted()
    frozen = sum(weight.nbytes for weight in model.parameters() if not weight.requires_grad)
    trained = {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}
    before = weight_bytes(model)
    halve_frozen_(model)
    assert before - weight_bytes(model) == frozen // 2
    kept = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    torch.testing.assert_close(kept, trained, rtol=0, atol=0)
    assert is_mixed(model)
    assert not is_mixed(adapted())


def test_under_autocast_it_computes_the_same_within_bfloat16() -> None:
    """Autocast rounds the matrices too; only embeddings, biases and the residual stream are rounded besides."""
    (logits, found), (halved, others) = gradients(adapted()), gradients(halve_frozen_(adapted()))
    torch.testing.assert_close(halved.float(), logits.float(), rtol=0.05, atol=0.05)
    assert found.keys() == others.keys()
    for name, gradient in found.items():
        assert others[name].dtype == torch.float32
        assert torch.cosine_similarity(gradient.flatten(), others[name].flatten(), dim=0) > 0.98, name


def test_predictions_of_such_a_model_run_under_autocast() -> None:
    batch = make_batch(padded=False)
    features = [{name: value[row] for name, value in batch.items()} for row in range(6)]

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    plain, halved = adapted(), halve_frozen_(adapted())
    np.testing.assert_allclose(predict(halved, features, collate), predict(plain, features, collate), atol=0.05)


def test_short_rows_leave_sdpa_and_compute_the_same() -> None:
    model = adapted()
    model.get_base_model().set_attn_implementation("sdpa")
    logits, found = gradients(model)
    model.zero_grad()
    config = model.get_base_model().config
    choose_attention_(model, longest=512)
    assert config._attn_implementation == "sdpa"
    choose_attention_(model, longest=128)
    assert config._attn_implementation == "eager"
    plain, others = gradients(model)
    torch.testing.assert_close(plain, logits, rtol=0.05, atol=0.05)
    for name, gradient in found.items():
        assert torch.cosine_similarity(gradient.flatten(), others[name].flatten(), dim=0) > 0.98, name


@pytest.mark.parametrize(("fast", "warned"), [(True, 0), (False, 1)])
def test_slow_bfloat16_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fast: bool, warned: int
) -> None:
    precision._warn_once.cache_clear()  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(precision, "_has_kernels", lambda: fast)
    for _ in range(2):
        warn_of_slow_bfloat16(make_model("bert"))
    assert caplog.text.count("leave out --bf16") == warned


def test_torch_says_whether_it_multiplies_bfloat16_fast() -> None:
    """As its own name for what the processor can do: from AVX-512 on."""
    if torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2"):
        assert not precision._has_kernels()  # pyright: ignore[reportPrivateUsage]
    elif torch.backends.cpu.get_cpu_capability() == "AVX512":
        assert precision._has_kernels()  # pyright: ignore[reportPrivateUsage]
