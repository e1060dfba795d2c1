"""Least-squares correction: its laws on every family, its numbers by hand and against NumPy, and what it refuses."""

import copy
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

import pruning_adapter as pa
from pruning_adapter.architectures.identity import fingerprint_weights, identify, pruned_state
from pruning_adapter.architectures.sites import Site, features, find_all_sites, stores_inputs_first
from pruning_adapter.errors import ArchitectureError, DataError, PlanError
from pruning_adapter.surgery.covariance import Moments
from pruning_adapter.surgery.linear import BiasOnly
from pruning_adapter.surgery.reconstruct import reconstruct_
from tiny import FAMILIES, make_batch, make_model

Way = Literal["dense", "pruned"]
WAYS: tuple[Way, ...] = ("dense", "pruned")
# Separate and shared blocks, inner and outer projections, transposed weights, flattened tokens, groups, two stacks.
SAMPLE = ("bert", "distilbert", "albert", "gpt2", "opt", "llama", "t5", "bart", "whisper", "vit")
WITHOUT_BIAS = ("llama", "t5")


def plan_for(
    model: Any,
    heads: dict[int, list[int]] | None = None,
    neurons: dict[int, list[int]] | None = None,
    *,
    how: Any = "lstsq",
) -> pa.PruningPlan:
    plan = pa.PruningPlan.from_pruned_heads(
        identify(model), heads or {}, pruned_neurons=neurons, allow_empty_blocks=True
    )
    return replace(plan, reconstruct=how)


def everywhere(model: Any, *, how: Any = "lstsq") -> pa.PruningPlan:
    """Half of the heads (whole groups, where there are any) and a third of the neurons of every block go."""
    identity = identify(model)
    return plan_for(
        model,
        {block: list(range(site.units // 2)) for block, site in enumerate(identity.sites)},
        {block: list(range(2, site.units, 3)) for block, site in enumerate(identity.feed_forwards)},
        how=how,
    )


def batches_for(family: str, *, count: int = 6, padded: bool = True) -> list[dict[str, Tensor]]:
    return [make_batch(FAMILIES[family].task, seed=seed, padded=padded) for seed in range(count)]


def outputs(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**batch).logits


def weight_of(site: Site) -> Tensor:
    """`(outputs, inputs)`."""
    output: Any = site.output
    return output.weight.detach().T if stores_inputs_first(output) else output.weight.detach()


def bias_of(site: Site) -> Tensor:
    output: Any = site.output
    return torch.zeros(features(output)[1], dtype=torch.float64) if output.bias is None else output.bias.detach()


def has_bias(site: Site) -> bool:
    return getattr(site.output, "bias", None) is not None


def read_at(model: Any, number: int, batches: Iterable[dict[str, Tensor]]) -> Tensor:
    """What an output projection reads in all batches, `(tokens, inputs)`, padding left out by a rule of the tests' own.

    Only of batches whose padding is told by the length of the activation: see `test_padding_does_not_count`.
    """
    site, found = find_all_sites(model)[number], list[Tensor]()
    for batch in batches:
        seen = list[Tensor]()
        handle = site.output.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        outputs(model, batch)
        handle.remove()
        for context in seen:
            flat = context.reshape(-1, context.shape[-1])
            labels = batch["labels"]
            if "decoder" in site.path and getattr(model.config, "is_encoder_decoder", False):
                found.append(flat[labels.reshape(-1) != -100])
            elif "attention_mask" in batch:
                found.append(flat[batch["attention_mask"].reshape(-1) == 1])
            else:
                found.append(flat)
    return torch.cat(found)


def columns(kept: Iterable[int], size: int) -> list[int]:
    return [unit * size + column for unit in kept for column in range(size)]


# The least squares themselves


def test_two_by_two_by_hand() -> None:
    """x takes the values (1, 0), (0, 1), (-1, 0), (0, -1), so its covariance is half the unit matrix, its mean zero."""
    inputs = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    lacking = inputs @ torch.tensor([[3.0, 0.0], [1.0, 2.0]]).T + torch.tensor([5.0, 7.0])
    moments = Moments(2, 2, torch.device("cpu"))
    moments.add(inputs[:1], lacking[:1])
    moments.add(inputs[1:], lacking[1:])
    exact, half = moments.solve(0.0, bias=True), moments.solve(1.0, bias=True)
    assert moments.tokens == 4
    lost = torch.tensor([[3.0, 0.0], [1.0, 2.0]], dtype=torch.float64)
    torch.testing.assert_close(exact.weight, lost, rtol=0, atol=1e-15)
    # Cov(r, x) (Cov(x, x) + 1 * 1/2)^-1 = D/2 (1/2 + 1/2)^-1 = D / 2.
    torch.testing.assert_close(half.weight, lost / 2, rtol=0, atol=1e-15)
    for change in (exact, half):
        assert change.bias is not None
        assert change.bias.tolist() == [5.0, 7.0]
    assert moments.solve(1.0, bias=False).bias is None


@pytest.mark.parametrize("bias", [True, False])
def test_well_posed_data_give_what_numpy_gives(bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 7, generator=generator, dtype=torch.float64) @ torch.randn(
        7, 7, generator=generator, dtype=torch.float64
    ) + torch.arange(7)
    lacking = torch.randn(200, 3, generator=generator, dtype=torch.float64) + inputs[:, :3].sin()
    moments = Moments(7, 3, inputs.device)
    for part in range(0, 200, 30):
        moments.add(inputs[part : part + 30], lacking[part : part + 30])
    change = moments.solve(0.0, bias=bias)
    wide = np.c_[inputs.numpy(), np.ones(200)] if bias else inputs.numpy()
    solution = np.linalg.lstsq(wide, lacking.numpy(), rcond=None)[0]
    np.testing.assert_allclose(change.weight.numpy(), solution[:7].T, atol=1e-9)
    if change.bias is not None:
        np.testing.assert_allclose(change.bias.numpy(), solution[7], atol=1e-9)


def test_a_singular_covariance_raises_the_ridge_and_stays_sane() -> None:
    one = torch.linspace(-1, 1, 50, dtype=torch.float64)
    moments = Moments(2, 1, one.device)
    moments.add(torch.stack([one, one], dim=1), one[:, None])
    change = moments.solve(0.0, bias=True)
    assert change.ridge > 0
    torch.testing.assert_close(change.weight, torch.full((1, 2), 0.5, dtype=torch.float64), rtol=0, atol=1e-6)


def test_inputs_that_never_vary_change_nothing_but_the_bias() -> None:
    moments = Moments(3, 1, torch.device("cpu"))
    moments.add(torch.full((9, 3), 0.1), torch.ones(9, 1))
    change = moments.solve(1e-3, bias=True)
    assert change.weight.tolist() == [[0.0, 0.0, 0.0]]
    assert change.bias is not None
    assert change.bias.tolist() == [1.0]


# Laws of the whole


@pytest.mark.parametrize("how", ["none", "bias", "lstsq"])
@pytest.mark.parametrize("way", WAYS)
def test_pruning_nothing_changes_no_bit(how: str, way: Way) -> None:
    model = make_model("bert")
    before = copy.deepcopy(model.state_dict())
    assert reconstruct_(model, plan_for(model, how=how), batches_for("bert"), inputs=way) is model
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]), name


@pytest.mark.parametrize("how", ["bias", "lstsq"])
@pytest.mark.parametrize("way", WAYS)
def test_only_output_projections_that_lose_units_change(how: str, way: Way) -> None:
    model = make_model("bert")
    plan = plan_for(model, {1: [0, 2]}, {2: [5]}, how=how)
    plain = pa.prune_(copy.deepcopy(model), replace(plan, reconstruct="none")).state_dict()
    found = reconstruct_(model, plan, batches_for("bert"), inputs=way).state_dict()
    assert plain.keys() == found.keys()
    changed = {name for name in plain if not torch.equal(plain[name], found[name])}
    layers = ("bert.encoder.layer.1.attention.output.dense", "bert.encoder.layer.2.output.dense")
    parts = ("weight", "bias") if how == "lstsq" else ("bias",)
    assert changed == {f"{layer}.{part}" for layer in layers for part in parts}


def test_none_prunes_plainly_and_reads_no_batch() -> None:
    model = make_model("bert")
    plan = everywhere(model, how="none")
    plain = pa.prune_(copy.deepcopy(model), plan).state_dict()
    for name, weight in reconstruct_(model, plan, []).state_dict().items():
        assert torch.equal(weight, plain[name])


@pytest.mark.parametrize("family", SAMPLE)
@pytest.mark.parametrize("way", WAYS)
def test_no_projection_is_further_from_its_dense_output_than_after_plain_pruning(family: str, way: Way) -> None:
    """On the inputs that the correction was made for, and nearer to it by a good deal."""
    model, batches = make_model(family), batches_for(family)
    plan = everywhere(model)
    dense = copy.deepcopy(model)
    found = reconstruct_(model, plan, batches, ridge=1e-3, inputs=way)
    for number, (old, new) in enumerate(zip(find_all_sites(dense), find_all_sites(found), strict=True)):
        whole = read_at(dense, number, batches)
        # The output projections before this one are corrected, this one's inputs do not depend on it. In ALBERT they
        # do: it is applied again to what comes of it, so what it was solved for is not what it now reads.
        if way == "pruned" and family == "albert":
            continue
        kept = columns(plan.kept[number], old.unit_size)
        inputs = whole[:, kept] if way == "dense" else read_at(found, number, batches)
        target = whole @ weight_of(old).T + bias_of(old)
        plain = (inputs @ weight_of(old)[:, kept].T + bias_of(old) - target).square().sum()
        loss = (inputs @ weight_of(new).T + bias_of(new) - target).square().sum()
        assert loss < 0.9 * plain


@pytest.mark.filterwarnings("ignore:The calibration examples do not determine")
@pytest.mark.parametrize("family", SAMPLE)
@pytest.mark.parametrize("way", WAYS)
def test_without_a_ridge_every_projection_is_what_numpy_finds(family: str, way: Way) -> None:
    model, batches = make_model(family), batches_for(family, count=10)
    plan = everywhere(model)
    dense = copy.deepcopy(model)
    found = reconstruct_(model, plan, batches, ridge=0.0, inputs=way)
    for number, (old, new) in enumerate(zip(find_all_sites(dense), find_all_sites(found), strict=True)):
        if way == "pruned" and family == "albert":
            continue
        whole = read_at(dense, number, batches)
        kept = columns(plan.kept[number], old.unit_size)
        inputs = whole[:, kept] if way == "dense" else read_at(found, number, batches)
        target = (whole @ weight_of(old).T + bias_of(old)).numpy()
        wide = np.c_[inputs.numpy(), np.ones(len(inputs))] if has_bias(old) else inputs.numpy()
        # Compared by what they compute: OPT's ReLU kills neurons, whose weights only a trace of a ridge determines.
        best = wide @ np.linalg.lstsq(wide, target, rcond=None)[0]
        np.testing.assert_allclose((inputs @ weight_of(new).T + bias_of(new)).numpy(), best, atol=1e-4)


@pytest.mark.parametrize("family", sorted(set(SAMPLE) - set(WITHOUT_BIAS)))
def test_an_endless_ridge_leaves_the_bias_alone_to_correct(family: str) -> None:
    model, batches = make_model(family), batches_for(family)
    stiff, bias = (
        reconstruct_(copy.deepcopy(model), everywhere(model, how=how), batches, ridge=1e15) for how in ("lstsq", "bias")
    )
    for one, other in zip(stiff.parameters(), bias.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


def test_the_bias_takes_up_the_mean_of_what_is_lost() -> None:
    model, batches = make_model("bert"), batches_for("bert")
    site = find_all_sites(model)[4]
    whole, weight, bias = read_at(model, 4, batches), weight_of(site), bias_of(site).clone()
    reconstruct_(model, plan_for(model, neurons={1: [0, 7]}, how="bias"), batches)
    torch.testing.assert_close(bias_of(site), bias + whole.mean(0)[[0, 7]] @ weight[:, [0, 7]].T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("how", ["bias", "lstsq"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", ["bert", "distilbert", "gpt2"])
def test_what_loses_all_its_units_adds_its_mean_dense_output(how: str, way: Way, family: str) -> None:
    model, batches = make_model(family), batches_for(family)
    means = {}
    for number in (0, 5):
        site = find_all_sites(model)[number]
        means[number] = read_at(model, number, batches).mean(0) @ weight_of(site).T + bias_of(site)
    reconstruct_(model, plan_for(model, {0: [0, 1, 2, 3]}, {2: list(range(24))}, how=how), batches, inputs=way)
    for number, mean in means.items():
        site = find_all_sites(model)[number]
        assert isinstance(site.output, BiasOnly)
        torch.testing.assert_close(bias_of(site), mean, rtol=0, atol=1e-12)


@pytest.mark.parametrize("way", WAYS)
def test_what_loses_all_its_units_and_has_no_bias_adds_nothing(way: Way) -> None:
    model, batches = make_model("llama"), batches_for("llama")
    plan = plan_for(model, {0: [0, 1, 2, 3]}, {1: list(range(24))})
    plain = pa.prune_(copy.deepcopy(model), replace(plan, reconstruct="none"))
    torch.testing.assert_close(
        outputs(reconstruct_(model, plan, batches, inputs=way), batches[0]), outputs(plain, batches[0]), rtol=0, atol=0
    )


@pytest.mark.parametrize("way", WAYS)
def test_units_that_repeat_others_go_without_a_trace(way: Way) -> None:
    """What is gone can be told exactly from what is left, so the corrected model is the dense one."""
    model, batches = make_model("bert"), batches_for("bert")
    for layer in model.base_model.encoder.layer:
        # Neuron 1 is neuron 0 once more.
        layer.intermediate.dense.weight.data[1] = layer.intermediate.dense.weight.data[0]
        layer.intermediate.dense.bias.data[1] = layer.intermediate.dense.bias.data[0]
    before = outputs(model, batches[0])
    plan = plan_for(model, neurons={0: [1], 1: [1], 2: [1]})
    found = reconstruct_(model, plan, batches, ridge=0.0, inputs=way)
    torch.testing.assert_close(outputs(found, batches[0]), before, rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", SAMPLE)
@pytest.mark.parametrize("way", WAYS)
def test_padding_does_not_count(family: str, way: Way) -> None:
    """What stands at padded positions is no data: longer padding gives the same weights."""
    model, batches = make_model(family), batches_for(family)
    longer = [{name: pad(name, value) for name, value in batch.items()} for batch in batches]
    plan = everywhere(model)
    first = reconstruct_(copy.deepcopy(model), plan, batches, inputs=way)
    second = reconstruct_(model, plan, longer, inputs=way)
    for (name, one), other in zip(first.named_parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-8, msg=lambda said, name=name: f"{name}: {said}")


def pad(name: str, value: Tensor) -> Tensor:
    if value.dim() != 2:
        return value
    fill = {"labels": -100, "attention_mask": 0}.get(name, 1)
    return torch.nn.functional.pad(value, (0, 3), value=fill)


@pytest.mark.parametrize("family", ["bert", "opt", "t5"])
@pytest.mark.parametrize("way", WAYS)
def test_the_batch_size_does_not_count(family: str, way: Way) -> None:
    model, batches = make_model(family), batches_for(family)
    single = [{name: value[row : row + 1] for name, value in batch.items()} for batch in batches for row in range(6)]
    plan = everywhere(model)
    first = reconstruct_(copy.deepcopy(model), plan, batches, inputs=way)
    second = reconstruct_(model, plan, single, inputs=way)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-8)


def test_a_decoders_own_mask_comes_before_its_labels() -> None:
    model, batches = make_model("t5"), batches_for("t5")
    told = [
        {
            **{name: value for name, value in batch.items() if name != "labels"},
            "decoder_input_ids": model._shift_right(batch["labels"]),  # type: ignore[operator]
            "decoder_attention_mask": (batch["labels"] != -100).long(),
        }
        for batch in batches
    ]
    plan = everywhere(model)
    first = reconstruct_(copy.deepcopy(model), plan, batches)
    second = reconstruct_(model, plan, told)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_labels_are_not_needed_and_never_read() -> None:
    model, batches = make_model("bert"), batches_for("bert")
    without = [{name: value for name, value in batch.items() if name != "labels"} for batch in batches]
    wrong = [{**batch, "labels": torch.full((6,), 99)} for batch in batches]
    plan = everywhere(model)
    first, second = (reconstruct_(copy.deepcopy(model), plan, given) for given in (without, wrong))
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_generator_of_batches_will_do() -> None:
    model, batches = make_model("bert"), batches_for("bert")
    plan = everywhere(model)
    first = reconstruct_(copy.deepcopy(model), plan, (batch for batch in batches))
    second = reconstruct_(model, plan, batches)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_after_an_earlier_pruning_the_model_as_it_is_is_the_target() -> None:
    model, batches = make_model("bert"), batches_for("bert")
    pa.prune_(model, plan_for(model, {1: [0]}, {1: [3, 4]}, how="none"))
    before, site = copy.deepcopy(model), find_all_sites(model)[4]
    reconstruct_(model, plan_for(model, neurons={1: [3, 9]}), batches, ridge=0.0)
    assert site.units == 21
    whole = read_at(before, 4, batches)
    # Neuron 9 of the dense model is number 7 of those that were left.
    inputs = whole[:, [column for column in range(22) if column != 7]].numpy()
    target = (whole @ weight_of(find_all_sites(before)[4]).T + bias_of(find_all_sites(before)[4])).numpy()
    wide = np.c_[inputs, np.ones(len(inputs))]
    solution = np.linalg.lstsq(wide, target, rcond=None)[0]
    np.testing.assert_allclose(weight_of(site).numpy(), solution[:-1].T, atol=1e-8)


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5"])
def test_saved_and_loaded_it_computes_the_same(family: str, tmp_path: Path) -> None:
    model, batches = make_model(family), batches_for(family)
    identity = identify(model)
    reconstruct_(model, everywhere(model), batches)
    state = pruned_state(model)
    assert state is not None
    assert (state.reconstructed, state.fingerprint) == ("lstsq", fingerprint_weights(model))
    assert identify(model) == identity
    pa.save_pruned(model, tmp_path / "model")
    loaded = pa.load_pruned(tmp_path / "model", dtype=torch.float64)
    torch.testing.assert_close(outputs(loaded, batches[0]), outputs(model, batches[0]), rtol=0, atol=1e-12)
    assert identify(loaded) == identity


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_is_kept_and_nearly_as_good(dtype: torch.dtype) -> None:
    exact = reconstruct_(make_model("bert"), everywhere(make_model("bert")), batches_for("bert"))
    model = make_model("bert", dtype=dtype)
    found = reconstruct_(model, everywhere(model), batches_for("bert"))
    tolerance = 1e-3 if dtype == torch.float32 else 0.3
    for one, other in zip(found.parameters(), exact.parameters(), strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one.double(), other, rtol=0, atol=tolerance)


# What is left behind, and what is refused


@pytest.mark.parametrize("way", WAYS)
def test_hooks_modes_gradients_and_config_are_left_as_they_were(way: Way) -> None:
    model = make_model("bert").train()
    model.base_model.pooler.eval()
    model.base_model.encoder.layer[0].output.dense.weight.requires_grad_(False)
    modes = {name: module.training for name, module in model.named_modules()}
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    reconstruct_(model, everywhere(model), batches_for("bert"), inputs=way)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == wanted
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None and parameter.is_leaf for parameter in model.parameters())
    assert model.config.problem_type is None


@pytest.mark.parametrize(
    ("batches", "said"),
    [
        ([], r"No batches were given: an empty sample, or an iterator that was used up"),
        ([torch.ones(2, 3)], r"Batch 0 is a Tensor; a mapping of tensors is needed"),
        ([{**make_batch(), "attention_mask": torch.zeros(6, 12)}], r"all padding"),
        ([make_batch(), {"input_ids": torch.full((1, 3), 999)}], r"Example 0 of batch 1 .* has the token 999"),
        ([make_batch(), {**make_batch(), "token_type_ids": torch.full((6, 12), 9)}], r"index out of range"),
    ],
    ids=["none", "no mapping", "padding", "a token", "a failing forward"],
)
@pytest.mark.parametrize("way", WAYS)
def test_bad_batches_are_refused_and_the_model_stays_as_it_was(batches: Any, said: str, way: Way) -> None:
    model = make_model("bert").train()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises((DataError, IndexError), match=said):
        reconstruct_(model, everywhere(model), batches, inputs=way)
    assert pruned_state(model) is None
    assert all(module.training and not module._forward_pre_hooks for module in model.modules())
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name])


def test_inputs_that_are_not_finite_are_refused_by_name() -> None:
    model = make_model("bert")
    model.base_model.encoder.layer[1].intermediate.dense.bias.data[0] = torch.nan
    with pytest.raises(DataError, match=r"'encoder\.layer\.1\.output\.dense' is not finite"):
        reconstruct_(model, everywhere(model), batches_for("bert"), inputs="dense")
    assert pruned_state(model) is None


def test_batches_that_reach_only_a_part_are_refused() -> None:
    model = make_model("bert")
    model.base_model.encoder.layer[2].output.forward = lambda _, residual: residual
    with pytest.raises(DataError, match=r"do not reach 1 of the 6 .* 'encoder\.layer\.2\.output\.dense'"):
        reconstruct_(model, everywhere(model), batches_for("bert"))
    assert pruned_state(model) is None


@pytest.mark.parametrize("family", WITHOUT_BIAS)
def test_a_bias_that_is_not_there_cannot_correct(family: str) -> None:
    model = make_model(family)
    with pytest.raises(PlanError, match=r'reconstruct="bias".*have no bias.*Use reconstruct="lstsq"'):
        reconstruct_(model, everywhere(model, how="bias"), batches_for(family))
    assert pruned_state(model) is None


def test_impossible_arguments_are_refused() -> None:
    model, options = make_model("bert"), dict[str, Any]()
    plan, batches = everywhere(model), batches_for("bert")
    for options, said in (
        ({"ridge": -1.0}, "ridge is -1.0; it must be 0 or a positive number"),
        ({"ridge": float("nan")}, "ridge is nan"),
        ({"inputs": "both"}, "inputs is 'both'; use one of dense, pruned"),
    ):
        with pytest.raises(PlanError, match=said):
            reconstruct_(model, plan, batches, **options)
    other = make_model("bert", seed=1)
    with pytest.raises(PlanError, match="with other weights"):
        reconstruct_(other, plan, batches)
    reconstruct_(other, plan, batches, allow_other_weights=True)
    adapted: Any = get_peft_model(copy.deepcopy(model), LoraConfig(target_modules=["query"]))
    with pytest.raises(ArchitectureError, match="adapters in place"):
        reconstruct_(adapted, plan, batches)


@pytest.mark.parametrize("way", WAYS)
def test_too_few_tokens_are_told_in_one_warning(way: Way) -> None:
    model = make_model("bert")
    batch = {name: value[:1, :5] if value.dim() == 2 else value[:1] for name, value in make_batch(padded=False).items()}
    said = r"6 of the 6 corrections, such as '.*' with 16 inputs, of which there were 5 tokens.* 0\.1 in place of 0\.01"
    with pytest.warns(UserWarning, match=said) as warnings:
        reconstruct_(model, everywhere(model), [batch], inputs=way)
    assert len(warnings) == 1
    assert re.search(r"test_reconstruct\.py$", warnings[0].filename)
    assert outputs(model, make_batch()).isfinite().all()


def test_passes_with_room_for_one_projection_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = make_model("t5"), batches_for("t5")
    plan = everywhere(model)
    together = reconstruct_(copy.deepcopy(model), plan, batches, inputs="dense")
    monkeypatch.setattr("pruning_adapter.surgery.reconstruct._AT_ONCE", 0)
    for one, other in zip(
        together.parameters(), reconstruct_(model, plan, batches, inputs="dense").parameters(), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
