"""LoRA in fewer products: exact gradients, fewer activations, and PEFT's own forward where something else is asked."""

import copy
import pickle
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor

import pruning_adapter as pa
from conformance import logits, make_case
from pruning_adapter.adapter import linear
from pruning_adapter.adapter import lora_product as lora_products
from pruning_adapter.adapter.linear import QuickLinear
from pruning_adapter.adapter.lora_product import LoraMap, lora_product, merging_is_cheaper
from tiny import make_batch, make_model, randomize_

torch.set_num_threads(1)


def make_maps(outputs: tuple[int, ...], *, inputs: int = 5, rank: int = 2, bias: bool = True) -> list[LoraMap]:
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return [
        LoraMap(
            noise(number, inputs),
            noise(number) if bias else None,
            noise(rank, inputs).requires_grad_(),
            noise(number, rank).requires_grad_(),
            0.7,
        )
        for number in outputs
    ]


def adapted(family: str = "bert", **options: Any) -> Any:
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    base = make_model(family, dtype=options.pop("dtype", torch.float64), **quiet)
    plan = make_case(base, "heads and neurons")
    ranks = pa.plan_ranks(
        pa.random_importance(base, seed=0, units=("heads", "neurons")), plan, top_blocks=1, target="all-linear"
    )
    model = get_peft_model(
        base, pa.PruneLoraConfig(**{"pruning": plan, "ranks": ranks, "task_type": "SEQ_CLS", **options})
    )
    randomize_(model, only_trainable=True)
    return model


def twins(**options: Any) -> tuple[Any, Any]:
    """Ours, and PEFT's with the same weights."""
    ours, pefts = adapted(**options), adapted(quick_linear=False, **options)
    pefts.load_state_dict(ours.state_dict())
    return ours, pefts


def gradients(model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    model(**batch).loss.backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


# One token takes thin products, forty take a merged one.
@pytest.mark.parametrize("tokens", [1, 40])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("outputs", [(3,), (3, 4, 6)])
def test_derivatives_are_those_of_finite_differences(tokens: int, bias: bool, outputs: tuple[int, ...]) -> None:
    maps = make_maps(outputs, bias=bias)
    x = torch.randn(1, tokens, 5, dtype=torch.float64, requires_grad=True)
    assert merging_is_cheaper(tokens, 5, sum(outputs) // len(outputs)) is (tokens == 40)

    def compute(x: Tensor, *factors: Tensor) -> tuple[Tensor, ...]:
        pairs = zip(factors[::2], factors[1::2], strict=True)
        return lora_product(x, [each._replace(down=a, up=b) for each, (a, b) in zip(maps, pairs, strict=True)])

    assert torch.autograd.gradcheck(compute, (x, *(factor for each in maps for factor in (each.down, each.up))))


def test_the_product_is_the_formula() -> None:
    (each,) = make_maps((3,))
    x = torch.randn(4, 2, 5, dtype=torch.float64)
    assert each.bias is not None
    expected = x @ (each.weight + 0.7 * each.up @ each.down).T + each.bias
    torch.testing.assert_close(lora_product(x, [each])[0], expected)


def test_an_output_that_nobody_uses_costs_no_gradient() -> None:
    maps = make_maps((3, 4))
    x = torch.randn(30, 5, dtype=torch.float64)
    lora_product(x, maps)[1].sum().backward()
    assert maps[0].up.grad is None
    assert maps[1].up.grad is not None


@pytest.mark.parametrize(("tokens", "merge"), [(191, False), (193, True)])
def test_the_cheaper_order_is_chosen_by_counting(tokens: int, merge: bool) -> None:
    rank, size = 8, 384
    forming, thin = size * rank * size, tokens * rank * 2 * size
    assert merging_is_cheaper(tokens, size, size) is merge is (forming < thin)


def test_gradients_equal_pefts() -> None:
    ours, pefts = twins()
    batch = make_batch()
    for (name, one), other in zip(gradients(ours, batch).items(), gradients(pefts, batch).values(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12, msg=name)


def test_under_autocast_gradients_equal_pefts_within_rounding() -> None:
    ours, pefts = twins(dtype=torch.float32)
    batch = make_batch()
    exact = gradients(pefts, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half, peft_half = gradients(ours, batch), gradients(pefts, batch)

    def error(found: dict[str, Tensor]) -> float:
        difference = sum(float((found[name] - exact[name]).square().sum()) for name in exact)
        return (difference / sum(float(value.square().sum()) for value in exact.values())) ** 0.5

    assert all(value.dtype == torch.float32 for value in half.values())
    assert error(half) < 1.5 * error(peft_half) + 1e-3


def test_in_half_precision_small_updates_are_not_rounded_away() -> None:
    """Added to weights of one, an update of a thousandth would be lost: bfloat16 has no number between 1 and 1.0078."""
    ones = torch.ones(3, 5, dtype=torch.bfloat16)
    down, up = torch.full((2, 5), 0.02).bfloat16(), torch.full((3, 2), 0.025).bfloat16()
    assert torch.equal(ones + up @ down, ones)
    x = torch.zeros(50, 5, dtype=torch.bfloat16)
    x[:, 0], x[:, 1] = 1, -1
    down[:, 1] = 0
    found = lora_product(x, [LoraMap(ones, None, down, up, 1.0)])[0]
    torch.testing.assert_close(found, torch.full((50, 3), 0.001).bfloat16(), rtol=1e-2, atol=0)


def test_fewer_activations_are_kept_than_by_peft() -> None:
    def kept(model: Any) -> int:
        sizes: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            if not tensor.requires_grad or tensor.grad_fn is not None:
                sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = model(**make_batch()).loss
        assert loss.requires_grad
        return sum(size for place, size in sizes.items() if place not in weights)

    ours, pefts = twins()
    assert kept(ours) < kept(pefts)


def test_what_a_norm_made_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Query, key and value read the norm of the block before, the feed-forward that of the attention."""
    batch = make_batch(padded=False)

    def kept(model: Any) -> int:
        sizes: dict[int, int] = {}
        alive: list[Tensor] = []

        def note(tensor: Tensor) -> Tensor:
            alive.append(tensor)
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = model(**batch).loss
        weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
        del loss
        return sum(size for place, size in sizes.items() if place not in weights)

    made_again = kept(adapted())
    monkeypatch.setattr(lora_products, "made_by_norm", lambda _: None)
    # Two a block, for the up projection trains here, too; but dropout stands behind the embeddings' norm.
    assert kept(adapted()) - made_again == (3 * 2 - 1) * 6 * 12 * 32 * 8


def test_a_norm_that_changed_before_the_backward_pass_is_noticed() -> None:
    model = adapted()
    loss = model(**make_batch()).loss
    for name, weight in model.named_parameters():
        if weight.requires_grad and "LayerNorm" in name:
            with torch.no_grad():
                weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified"):
        loss.backward()


def test_a_second_adapter_does_not_watch_the_norms_twice() -> None:
    model = adapted()
    model.add_adapter("other", copy.deepcopy(model.peft_config["default"]))
    hooks = [len(module._forward_hooks) for name, module in model.named_modules() if "LayerNorm.modules" in name]
    assert set(hooks) <= {0, 1}
    assert 1 in hooks


def test_nothing_outlives_a_step() -> None:
    model = adapted()
    gradients(model, make_batch())
    shared = {id(module.together): module.together for module in model.modules() if isinstance(module, QuickLinear)}
    shared.pop(id(None), None)
    assert shared
    assert all(together._waiting[0] is None for together in shared.values() if together)


def test_query_key_and_value_are_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted()
    calls: list[int] = []

    def count(x: Tensor, maps: list[LoraMap]) -> tuple[Tensor, ...]:
        calls.append(len(maps))
        return lora_product(x, maps)

    monkeypatch.setattr(linear, "lora_product", count)
    logits(model, make_batch())
    # Query, key and value together, then the output projection, then up and down.
    assert calls == [3, 1, 1, 1] * 3


@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_copies_share_nothing_with_the_original(way: Any) -> None:
    model, batch = adapted(), make_batch()
    before, copied = logits(model, batch), way(model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    assert torch.equal(logits(copied, batch), before)


def test_a_forward_that_failed_half_way_leaves_nothing_that_matters() -> None:
    model, batch = adapted(), make_batch()
    before = logits(model, batch)
    broken = model.base_model.model.bert.encoder.layer[1].attention.self.value
    broken.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        logits(model, batch)
    broken._forward_pre_hooks.clear()
    assert torch.equal(logits(model, batch), before)


def test_gradient_checkpointing_gives_the_same() -> None:
    model, batch = adapted(), make_batch()
    model.train()
    plain = gradients(model, batch)
    model.base_model.model.gradient_checkpointing_enable({"use_reentrant": False})
    again = gradients(model, batch)
    for name, value in plain.items():
        torch.testing.assert_close(again[name], value, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    "options", [{"lora_dropout": 0.1}, {"use_dora": True}, {"lora_bias": True}], ids=["dropout", "dora", "bias"]
)
def test_what_it_does_not_speed_up_is_pefts(options: dict[str, Any]) -> None:
    model = adapted(**options).train()
    quick = [module for module in model.modules() if isinstance(module, QuickLinear)]
    assert quick
    assert all(module.lora_map() is None for module in quick)
    model.eval()
    # Without dropout to apply, dropout stands in nobody's way.
    assert all((module.lora_map() is None) is ("lora_dropout" not in options) for module in quick)


def test_several_adapters_and_switched_off_ones_are_pefts() -> None:
    ours, pefts = twins(task_type=None, train_norms=False)
    batch = make_batch()
    for model in (ours, pefts):
        config = model.peft_config["default"]
        model.add_adapter("second", copy.deepcopy(config))
        model.base_model.set_adapter(["default", "second"])
    pefts.load_state_dict(ours.state_dict())
    torch.testing.assert_close(logits(ours, batch), logits(pefts, batch), rtol=0, atol=1e-12)
    with ours.disable_adapter(), pefts.disable_adapter():
        torch.testing.assert_close(logits(ours, batch), logits(pefts, batch), rtol=0, atol=1e-12)


def test_it_compiles_to_the_same() -> None:
    model, batch = adapted(), make_batch()
    expected = gradients(model, batch)
    compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=False)
    found = gradients(compiled, batch)
    for (name, one), other in zip(expected.items(), found.values(), strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-12, msg=name)
