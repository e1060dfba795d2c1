"""One product for query, key and value: when it is taken, and that it follows whatever happens to the weights."""

import copy
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pruning_adapter as pa
from pruning_adapter.architectures.identity import identify
from pruning_adapter.surgery import fuse, fuse_
from pruning_adapter.surgery.fuse import FusedLinear
from pruning_adapter.surgery.one_input import OneInput
from tiny import make_batch, make_model, randomize_


@pytest.fixture(autouse=True)
def no_batch_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuse, "FEWEST_TOKENS", {})


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of output features of every linear map that is computed, in order."""
    found: list[int] = []
    plain = nn.functional.linear

    def count(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        found.append(len(weight))
        return plain(inputs, weight, bias)

    monkeypatch.setattr(nn.functional, "linear", count)
    return found


def logits(model: Any, batch: Any) -> Tensor:
    with torch.no_grad():
        return model(**batch).logits


def plan_for(model: Any) -> pa.PruningPlan:
    return pa.PruningPlan.from_pruned_heads(identify(model), {0: [0, 1], 1: [2]})


def frozen(family: str = "bert") -> Any:
    return make_model(family).requires_grad_(False)


def test_query_key_and_value_are_one_product(products: list[int]) -> None:
    model = fuse_(frozen())
    hidden = model.config.hidden_size
    logits(model, make_batch())
    assert products[:4] == [3 * hidden, hidden, 24, hidden]


def test_small_batches_take_three_products(products: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuse, "FEWEST_TOKENS", {"cpu": 10_000})
    model = fuse_(frozen())
    logits(model, make_batch())
    assert products[:3] == [model.config.hidden_size] * 3


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.float().double(),
        lambda model: randomize_(model),
        lambda model: pa.prune_(model, plan_for(model)),
        lambda model: model.load_state_dict({k: v + 1 for k, v in model.state_dict().items()}),
        lambda model: model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True),
        lambda model: setattr(
            model.bert.encoder.layer[0].attention.self.key, "weight", nn.Parameter(torch.ones(32, 32).double())
        ),
    ],
    ids=["moved", "changed in place", "pruned", "loaded", "assigned", "replaced"],
)
def test_it_follows_the_weights(change: Any) -> None:
    plain, fused = frozen(), fuse_(frozen())
    logits(fused, make_batch())
    for model in (plain, fused):
        torch.manual_seed(0)
        change(model)
    torch.testing.assert_close(logits(fused, make_batch()), logits(plain, make_batch()), rtol=1e-12, atol=1e-12)


def test_copies_are_on_their_own() -> None:
    model = fuse_(frozen())
    before = logits(model, make_batch())
    twin = copy.deepcopy(model)
    randomize_(twin)
    assert torch.equal(logits(model, make_batch()), before)
    plain = frozen()
    plain.load_state_dict(twin.state_dict())
    torch.testing.assert_close(logits(twin, make_batch()), logits(plain, make_batch()), rtol=1e-12, atol=1e-12)


def test_weights_that_train_get_their_gradients() -> None:
    plain, fused = make_model("bert"), fuse_(make_model("bert"))
    logits(fused, make_batch())
    for model in (plain, fused):
        model(**make_batch()).loss.backward()
    found = dict(fused.named_parameters())
    for name, weight in plain.named_parameters():
        torch.testing.assert_close(found[name].grad, weight.grad, rtol=1e-12, atol=1e-12)


def test_inference_mode_does_not_spoil_the_weights_for_training() -> None:
    model = fuse_(make_model("bert"))
    with torch.inference_mode():
        model(**make_batch())
    model(**make_batch()).loss.backward()
    assert all(weight.grad is not None for name, weight in model.named_parameters() if "query" in name)


def test_a_pruned_model_loads_fused(tmp_path: Path) -> None:
    model = make_model("bert")
    pa.prune_(model, plan_for(model))
    pa.save_pruned(model, tmp_path / "model")
    fused = pa.load_pruned(tmp_path / "model", fuse=True, dtype="auto")
    assert sum(isinstance(module, FusedLinear) for module in fused.modules()) == 9
    torch.testing.assert_close(logits(fused, make_batch()), logits(model, make_batch()), rtol=1e-12, atol=1e-12)
    pa.save_pruned(fused, tmp_path / "again")
    again = pa.load_pruned(tmp_path / "again", dtype="auto")
    torch.testing.assert_close(dict(again.state_dict()), dict(model.state_dict()), rtol=0, atol=0)


def test_maps_that_somebody_listens_to_stay() -> None:
    model = frozen()
    seen: list[object] = []
    model.bert.encoder.layer[0].attention.self.key.register_forward_hook(lambda *_: seen.append(1))
    fuse_(model)
    logits(model, make_batch())
    assert seen == [1]
    assert sum(isinstance(module, FusedLinear) for module in model.modules()) == 6


def test_offloaded_weights_stay_where_they_are() -> None:
    from accelerate import cpu_offload

    model = cpu_offload(frozen(), execution_device="cpu")
    fuse_(model)
    torch.testing.assert_close(logits(model, make_batch()), logits(frozen(), make_batch()), rtol=1e-12, atol=1e-12)


def test_a_moved_model_does_not_hold_the_memory_it_left() -> None:
    model = fuse_(frozen())
    logits(model, make_batch())
    wholes = [weakref.ref(module.whole.weight) for module in model.modules() if getattr(module, "whole", None)]
    assert len(wholes) == 3
    model.float()
    assert all(whole() is None for whole in wholes)


def test_a_lost_race_is_noticed() -> None:
    """Two threads join at once: the one whose parts were replaced must not believe in its own tensor."""
    model = fuse_(frozen())
    attention = model.bert.encoder.layer[0].attention.self
    own = [(linear.weight, linear.bias) for linear in (attention.query, attention.key, attention.value)]
    first = fuse._join_(own)
    fuse._join_(own)
    assert first is not None
    assert first.places != [(weight.data_ptr(), bias.data_ptr()) for weight, bias in own]


def test_a_compiled_model_gives_the_same() -> None:
    model = fuse_(frozen())
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(logits(compiled, make_batch()), logits(model, make_batch()), rtol=1e-12, atol=1e-12)


def test_threads_do_not_get_each_others_outputs() -> None:
    model = fuse_(frozen())
    batches = [make_batch(seed=seed) for seed in range(4)]
    expected = [logits(model, batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda number: logits(model, batches[number % 4]), range(200)))
    for number, each in enumerate(found):
        assert torch.equal(each, expected[number % 4])


def test_an_input_that_changed_in_place_is_another_one() -> None:
    members = [nn.Identity(), nn.Identity()]
    together = OneInput(members, lambda _, inputs: [inputs + 1, inputs + 2])
    inputs = torch.tensor(10.0)
    together.ask(members[0], inputs)
    inputs.zero_()
    found = together.ask(members[1], inputs)
    assert found is not None
    assert float(found) == 2.0


def test_what_was_made_without_gradients_is_not_handed_to_those_who_want_them() -> None:
    members = [nn.Identity(), nn.Identity()]
    together = OneInput(members, lambda _, inputs: [inputs * 1, inputs * 2])
    inputs = torch.tensor(10.0, requires_grad=True)
    with torch.no_grad():
        together.ask(members[0], inputs)
    found = together.ask(members[1], inputs)
    assert found is not None
    assert found.requires_grad


def test_what_waits_belongs_to_one_input() -> None:
    members = [nn.Identity(), nn.Identity()]
    asked: list[float] = []

    def compute(_: Any, inputs: Tensor) -> list[Tensor]:
        asked.append(float(inputs))
        return [inputs + 1, inputs + 2]

    together = OneInput(members, compute)
    one, two = torch.tensor(10.0), torch.tensor(20.0)
    found = [together.ask(members[0], one), together.ask(members[1], two), together.ask(members[0], two)]
    assert [float(each) for each in found if each is not None] == [11.0, 22.0, 21.0]
    assert asked == [10.0, 20.0]
    assert together.ask(nn.Identity(), one) is None
