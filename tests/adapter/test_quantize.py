"""A quantised base computes what its unpacked weights would, and an adapter trained on it is an ordinary adapter."""

import copy
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig

import pruning_adapter as pa
from conformance import logits, make_case
from pruning_adapter.adapter import quantize
from pruning_adapter.adapter.linear import QuickLinear
from pruning_adapter.adapter.quantize import Bits, PackedLinear, quantize_base_
from pruning_adapter.errors import AdapterError, ArchitectureError, CheckpointError, PruningAdapterError
from tiny import FAMILIES, make_batch, make_model, randomize_

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'pruning-adapter[quantize]'")

torch.set_num_threads(1)
BITS: tuple[Bits, ...] = (8, 4)


def adapted(family: str = "bert", *, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0} if family == "bert" else {}
    base = make_model(family, dtype=dtype, **quiet)
    task = {"task_type": "SEQ_CLS"} if family == "bert" else {}
    config = pa.PruneLoraConfig(**{"pruning": make_case(base, "heads and neurons"), **task, **options})
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = get_peft_model(base, config)
        randomize_(model, only_trainable=True)
    return model


def unpacked(model: Any) -> Any:
    """A copy whose weights are what the packed ones stand for."""
    model = copy.deepcopy(model)
    for holder, name, packed in list(packed_linears(model)):
        linear = nn.Linear(packed.in_features, packed.out_features, bias=False)
        linear.weight, linear.bias = nn.Parameter(packed.unpack(), requires_grad=False), packed.bias
        setattr(holder, name, linear)
    return model


def packed_linears(model: nn.Module) -> Iterator[tuple[nn.Module, str, PackedLinear]]:
    for holder in model.modules():
        for name, module in holder.named_children():
            if isinstance(module, PackedLinear):
                yield holder, name, module


def gradients(model: Any) -> dict[str, Tensor]:
    model.zero_grad()
    model(**make_batch()).loss.backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


# Rows that end within a block of 64, blocks that are not full, and an odd number of weights.
@pytest.mark.parametrize("shape", [(96, 384), (96, 160), (31, 32), (24, 80), (7, 5)])
@pytest.mark.parametrize("bits", BITS)
def test_every_weight_is_within_half_a_step(shape: tuple[int, int], bits: Bits) -> None:
    linear = nn.Linear(shape[1], shape[0])
    nn.init.normal_(linear.weight)
    found = PackedLinear(linear, bits).unpack()
    if bits == 8:
        # Steps of a 127th of the largest in the row, after rounding to float16.
        limits = linear.weight.abs().amax(1, keepdim=True) * (1 / 254 + 2**-11)
    else:
        # The widest step of NF4 goes from -1 to -0.6962 of the largest in the block.
        blocks = nn.functional.pad(linear.weight.abs().flatten(), (0, -linear.weight.numel() % 64)).view(-1, 64)
        largest = blocks.amax(1).repeat_interleave(64)[: linear.weight.numel()]
        limits = largest.view(shape) * (0.1520)
    assert bool(((found - linear.weight).abs() <= limits).all())


# Separate projections, transposed fused ones, gated ones, and a family that asks for the type of a weight.
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "t5"])
@pytest.mark.parametrize("bits", BITS)
def test_logits_are_those_of_the_unpacked_weights(family: str, bits: Bits) -> None:
    model, batch = adapted(family), make_batch(FAMILIES[family].task)
    before = logits(model, batch)
    found = logits(quantize_base_(model, bits=bits), batch)
    torch.testing.assert_close(found, logits(unpacked(model), batch), rtol=0, atol=1e-11)
    assert not torch.allclose(found, before, rtol=0, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"bias": "all"}, {"quick_linear": False}], ids=["lora", "biases", "pefts"])
@pytest.mark.parametrize("bits", BITS)
def test_gradients_are_those_of_the_unpacked_weights(bits: Bits, options: dict[str, Any]) -> None:
    model = quantize_base_(adapted(**options), bits=bits).train()
    found, expected = gradients(model), gradients(unpacked(model))
    assert any("lora_A" in name for name in found)
    assert any("LayerNorm" in name for name in found)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-11, msg=name)


def test_under_autocast_it_computes_in_its_type() -> None:
    model = quantize_base_(adapted(dtype=torch.float32), bits=4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = logits(model, make_batch()), logits(unpacked(model), make_batch())
        assert all(value.dtype == torch.float32 for value in gradients(model).values())
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


def test_no_unpacked_weight_is_kept_for_the_backward_pass() -> None:
    # No matrix of LoRA has the shape of a weight at this rank.
    model = quantize_base_(adapted(r=3), bits=4)
    shapes = {tuple(packed.weight.shape) for _, _, packed in packed_linears(model)}
    shapes |= {(columns, rows) for rows, columns in shapes}
    kept: list[tuple[int, ...]] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(**make_batch())
    assert kept
    assert not shapes & set(kept)


@pytest.mark.parametrize("bits", BITS)
def test_only_frozen_projections_are_quantised_to_the_bytes_expected(bits: Bits) -> None:
    model = adapted(dtype=torch.float32)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    quantize_base_(model, bits=bits)
    names = {name for name, module in model.named_modules() if isinstance(module, PackedLinear)}
    assert {name.removesuffix(".base_layer").rpartition(".")[2] for name in names} == {"query", "key", "value", "dense"}
    assert all(".encoder.layer." in name for name in names)
    assert len(names) == 3 * 6
    after = dict(model.named_parameters())
    for name, weight in before.items():
        owner, _, kind = name.rpartition(".")
        if owner not in names or kind == "bias":
            assert torch.equal(after[name], weight), name
            continue
        expected = (
            weight.numel() + 4 * len(weight) if bits == 8 else -(weight.numel() // -2) + 4 * -(weight.numel() // -64)
        )
        assert after[f"{owner}.packed"].nbytes + after[f"{owner}.scales"].nbytes == expected, name
        assert name not in after


def test_the_adapter_is_the_one_that_a_base_in_full_gives(tmp_path: Path) -> None:
    model = adapted()
    model.save_pretrained(tmp_path / "whole")
    quantize_base_(model, bits=4).save_pretrained(tmp_path / "quantised")
    one, other = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "quantised"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    configs = [(tmp_path / name / "adapter_config.json").read_text() for name in ("whole", "quantised")]
    assert configs[0] == configs[1]
    back = PeftModel.from_pretrained(make_model("bert"), tmp_path / "quantised")
    assert torch.equal(logits(back, make_batch()), logits(adapted(), make_batch()))


def test_a_loaded_adapter_can_be_quantised_under_too(tmp_path: Path) -> None:
    adapted().save_pretrained(tmp_path)
    loaded = quantize_base_(PeftModel.from_pretrained(make_model("bert"), tmp_path), bits=8)
    assert not any("lora" in name for name, module in loaded.named_modules() if isinstance(module, PackedLinear))
    expected = logits(quantize_base_(adapted(), bits=8), make_batch())
    torch.testing.assert_close(logits(loaded, make_batch()), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("bits", BITS)
def test_the_whole_way_from_scores_to_an_adapter_that_loads_again(bits: Bits, tmp_path: Path) -> None:
    """Scored, pruned, quantised, trained, saved; loaded onto a quantised base it computes the same."""
    base, batch = make_model("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), make_batch()
    plan = pa.plan_pruning(pa.measure_importance(base, [batch], units=("heads", "neurons")), keep_params=0.8)
    torch.manual_seed(1)
    model: Any = get_peft_model(base, pa.PruneLoraConfig(pruning=plan, task_type="SEQ_CLS", r=4))
    quantize_base_(model, bits=bits).train()
    packed = [packed.packed.clone() for _, _, packed in packed_linears(model)]
    losses: list[float] = []
    optimizer = torch.optim.AdamW((weight for weight in model.parameters() if weight.requires_grad), lr=1e-2)
    for _ in range(15):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    # Trained was what is saved, and nothing that is packed.
    assert all(torch.equal(one.packed, old) for (_, _, one), old in zip(packed_linears(model), packed, strict=True))
    model.save_pretrained(tmp_path)
    again = quantize_base_(PeftModel.from_pretrained(make_model("bert"), tmp_path), bits=bits).eval()
    found, expected = (logits(each.eval(), make_batch(seed=9)) for each in (again, model))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    # On the base in full it is near, as rounding has it, and merges there.
    whole = PeftModel.from_pretrained(make_model("bert"), tmp_path).merge_and_unload().eval()
    assert 1e-6 < float((logits(whole, make_batch(seed=9)) - expected).abs().max()) < 1


@pytest.mark.parametrize(
    "way",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), lambda model: model.bfloat16().double()],
    ids=["copy", "pickle", "cast"],
)
@pytest.mark.parametrize("bits", BITS)
def test_copies_and_casts_keep_the_weights(bits: Bits, way: Callable[[Any], Any]) -> None:
    model = quantize_base_(adapted(), bits=bits)
    before = [packed.unpack() for _, _, packed in packed_linears(model)]
    after = [packed.unpack() for _, _, packed in packed_linears(way(model))]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_peft_computes_where_weights_are_of_another_kind() -> None:
    class Wrapped(nn.Parameter):
        """A tensor class as libraries that quantise have them."""

    model = adapted()
    (layer, *_) = [module for module in model.modules() if isinstance(module, QuickLinear)]
    base: Any = layer.get_base_layer()
    assert layer.lora_map() is not None
    base.weight = Wrapped(base.weight.detach(), requires_grad=False)
    assert layer.lora_map() is None


def test_a_quantised_base_is_not_merged(tmp_path: Path) -> None:
    model = quantize_base_(adapted(), bits=8)
    before = logits(model, make_batch())
    for way in (model.merge_and_unload, model.merge_adapter, lambda: pa.save_pruned(model, tmp_path / "merged")):
        with pytest.raises(AdapterError, match="load it onto the base that is not quantised"):
            way()
    # Who goes around the model meets torch's own error.
    with pytest.raises(RuntimeError):
        next(module for module in model.modules() if isinstance(module, QuickLinear)).merge()
    assert torch.equal(logits(model, make_batch()), before)
    plain = model.unload()
    with pytest.raises(AdapterError, match="quantised in memory"):
        pa.save_pruned(plain, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def merged_in() -> Any:
    model = adapted()
    model.merge_adapter()
    return model


@pytest.mark.parametrize(
    ("make", "bits", "message"),
    [
        (adapted, 3, "bits is 3"),
        (lambda: make_model("bert"), 8, "First get_peft_model"),
        (lambda: get_peft_model(make_model("bert"), LoraConfig(target_modules=["query"])), 8, "First get_peft_model"),
        (lambda: quantize_base_(adapted(), bits=4), 8, "quantised already"),
        (merged_in, 8, "unmerge it first"),
        (lambda: adapted(use_dora=True), 8, "DoRA"),
    ],
    ids=["bits", "not pruned", "another adapter", "twice", "merged", "dora"],
)
def test_what_cannot_be_quantised_is_refused_untouched(make: Callable[[], Any], bits: Any, message: str) -> None:
    model = make()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(AdapterError, match=message):
        quantize_base_(model, bits=bits)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_the_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize, "find_spec", lambda name: None)
    with pytest.raises(AdapterError, match=r"pip install 'pruning-adapter\[quantize\]'"):
        quantize_base_(adapted())


def by_bitsandbytes(bits: Bits) -> BitsAndBytesConfig:
    # The head trains, so it must stay as it is.
    kept = {"llm_int8_skip_modules": ["classifier"]}
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, **kept)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", **kept)


def wide() -> tuple[Any, pa.PruningPlan]:
    """A model whose heads have 64 columns, so that bitsandbytes' own 4-bit linears can compute it on a CPU."""
    base = make_model("bert", dtype=torch.float32, hidden_size=128, num_attention_heads=2, intermediate_size=64)
    return base, pa.plan_pruning(pa.random_importance(base, seed=0), keep_heads=4)


@pytest.mark.parametrize("bits", BITS)
def test_a_pruned_checkpoint_is_quantised_while_it_is_loaded(tmp_path: Path, bits: Bits) -> None:
    base, plan = wide()
    pa.save_pruned(pa.prune_(base, plan), tmp_path / "pruned")
    loaded = pa.load_pruned(tmp_path / "pruned", quantization_config=by_bitsandbytes(bits))
    assert loaded.get_memory_footprint() < (0.6 if bits == 8 else 0.5) * base.get_memory_footprint()
    loaded.eval()
    # Rounded weights (and, in bitsandbytes' own linears, activations), not other ones.
    expected, found = logits(base, make_batch()), logits(loaded, make_batch())
    assert float((found - expected).norm() / expected.norm()) < (0.1 if bits == 8 else 0.5)

    model = get_peft_model(loaded, LoraConfig(target_modules=["query", "value"], task_type="SEQ_CLS")).train()
    assert sum("lora_" in name for name in gradients(model)) == 2 * 2 * 3
    with pytest.raises(ArchitectureError, match="Prune first, then quantise"):
        get_peft_model(
            pa.load_pruned(tmp_path / "pruned", quantization_config=by_bitsandbytes(bits)),
            pa.PruneLoraConfig(pruning=plan),
        )
    # What Transformers quantised it saves and loads again, pruned sizes and all.
    pa.save_pruned(
        loaded_again := pa.load_pruned(tmp_path / "pruned", quantization_config=by_bitsandbytes(bits)),
        tmp_path / "quantised",
    )
    assert torch.equal(logits(pa.load_pruned(tmp_path / "quantised"), make_batch()), logits(loaded_again, make_batch()))


def test_widths_that_bitsandbytes_gets_wrong_are_refused(tmp_path: Path) -> None:
    base = make_model("bert", dtype=torch.float32)
    pa.save_pruned(pa.prune_(base, make_case(base, "heads and neurons")), tmp_path / "pruned")
    with pytest.raises(CheckpointError, match="no multiple of 64"):
        pa.load_pruned(tmp_path / "pruned", quantization_config=by_bitsandbytes(4))


@pytest.mark.parametrize("bits", BITS)
def test_a_quantised_model_is_not_pruned(tmp_path: Path, bits: Bits) -> None:
    base, plan = wide()
    base.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, quantization_config=by_bitsandbytes(bits))
    ours = quantize_base_(get_peft_model(base, pa.PruneLoraConfig(pruning=plan)), bits=bits).unload()
    for model in (loaded, ours):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        for way in (
            lambda model=model: pa.prune_(model, plan, allow_other_weights=True),
            lambda model=model: get_peft_model(model, pa.PruneLoraConfig(pruning=plan)),
        ):
            with pytest.raises(PruningAdapterError, match="Prune first, then quantise"):
                way()
        after = model.state_dict()
        assert all(torch.equal(after[name], value) for name, value in before.items())
