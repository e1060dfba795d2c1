"""What a unit's removal costs when least squares corrects the rest."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pruning_adapter as pa
from pruning_adapter.architectures.sites import find_all_sites
from pruning_adapter.errors import ImportanceError
from pruning_adapter.importance import surgeon
from pruning_adapter.importance.surgeon import obs_importance, removal_costs
from tiny import FAMILIES, make_batch, make_model

TIGHT = {"rtol": 1e-9, "atol": 1e-12}


def make_problem(columns: int, outputs: int = 5, tokens: int = 200) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(columns)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    read, gradients = draw(tokens, columns) @ draw(columns, columns), draw(tokens, outputs)
    return draw(outputs, columns), read.T @ read / tokens, gradients.T @ gradients / tokens


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("exact", [4, 256])
def test_all_costs_add_up_to_what_the_projection_is_worth(
    size: int, exact: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surgeon, "_EXACT", exact)
    weight, inputs, outputs = make_problem(32 * size)
    costs, order = removal_costs(weight, inputs, outputs, units=32, ridge=0.1)
    shifted = inputs + 0.1 * inputs.diagonal().mean() * torch.eye(len(inputs), dtype=torch.float64)
    torch.testing.assert_close(costs.sum(), (outputs * (weight @ shifted @ weight.T)).sum(), **TIGHT)
    assert sorted(order.tolist()) == list(range(32))


@pytest.mark.parametrize("size", [1, 2])
def test_what_went_cost_what_least_squares_cannot_bring_back(size: int) -> None:
    weight, inputs, outputs = make_problem(6 * size)
    costs, order = removal_costs(weight, inputs, outputs, units=6, ridge=0.0)
    root = np.linalg.cholesky(inputs.numpy()).T
    for count in (1, 3, 5):
        gone = sorted(order[:count].tolist())
        columns = [unit * size + place for unit in gone for place in range(size)]
        rest = [column for column in range(6 * size) if column not in columns]
        dense = root @ weight.T.numpy()
        corrected = np.linalg.lstsq(root[:, rest], dense, rcond=None)[0]
        left = dense - root[:, rest] @ corrected
        torch.testing.assert_close(
            costs[gone].sum(), torch.tensor(np.trace(outputs.numpy() @ left.T @ left)), rtol=1e-8, atol=1e-10
        )


def test_without_correlation_a_unit_costs_its_own_part() -> None:
    """x1, x2 independent with variances 1 and 4, one output of weight (3, 1): 9 * 1 and 1 * 4."""
    weight = torch.tensor([[3.0, 1.0]], dtype=torch.float64)
    inputs = torch.diag(torch.tensor([1.0, 4.0], dtype=torch.float64))
    costs, order = removal_costs(weight, inputs, torch.ones(1, 1, dtype=torch.float64), units=2, ridge=0.0)
    torch.testing.assert_close(costs, torch.tensor([9.0, 4.0], dtype=torch.float64))
    assert order.tolist() == [1, 0]


@pytest.mark.parametrize("exact", [4, 256])
def test_of_two_that_do_the_same_one_may_go_and_the_other_must_stay(
    exact: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where many go between two searches."""
    monkeypatch.setattr(surgeon, "_EXACT", exact)
    weight, inputs, outputs = make_problem(48)
    # Input 1 is input 0 again.
    inputs[1], inputs[:, 1] = inputs[0].clone(), inputs[:, 0].clone()
    inputs[1, 1] = inputs[0, 0]
    costs, order = removal_costs(weight, inputs, outputs, units=48, ridge=1e-9)
    first, second = sorted(costs[:2].tolist())
    assert order[0] in (0, 1)
    assert first < 1e-6 * second
    assert second > costs.median() / 10


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_one_token_is_the_squared_gradient(family: str) -> None:
    """With one token X and G are exact, and what goes uncorrected is (g . W_u x_u)^2."""
    model: Any = make_model(family)
    # A language model learns from the token before the last.
    length = 1 if family == "bert" else 2
    batch = {
        name: value[:1, :length] if value.dim() == 2 else value[:1]
        for name, value in make_batch(FAMILIES[family].task, padded=False).items()
    }
    expected = pa.measure_importance(
        model, [batch], units=("heads", "neurons"), reduction="token", order="second", allow_one_class=True
    )
    sites = find_all_sites(model)
    sums = [surgeon._Sums(site) for site in sites]
    with surgeon.frozen_in_eval_mode(model):
        surgeon._run(model, [batch], sums, True, _Silent())
    for one, site, told in zip(sums, sites, (*expected.heads, *expected.neurons), strict=True):
        weight = site.output.get_parameter("weight").detach()
        weight = weight.T if family == "gpt2" else weight
        inputs = one.inputs / one.outputs.diagonal().sum()
        size = len(inputs) // site.units
        for unit in range(site.units):
            columns = slice(unit * size, (unit + 1) * size)
            cost = (one.outputs * (weight[:, columns] @ inputs[columns, columns] @ weight[:, columns].T)).sum()
            torch.testing.assert_close(cost / expected.tokens, told[unit], rtol=1e-6, atol=1e-14)


class _Silent:
    def update(self) -> None: ...


def test_later_removals_never_look_cheaper() -> None:
    scores = obs_importance(make_model("bert"), [make_batch()], units=("heads", "neurons"))
    assert (scores.scorer, scores.examples) == ("obs", 6)
    assert all(bool((block >= 0).all()) for block in (*scores.heads, *scores.neurons))


def test_sites_that_do_not_fit_together_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = make_model("bert"), make_batch()
    together = obs_importance(model, [batch], units=("heads", "neurons"))
    monkeypatch.setattr(surgeon, "_AT_ONCE", 1)
    apart = obs_importance(model, (each for each in [batch]), units=("heads", "neurons"))
    for a, b in zip((*together.heads, *together.neurons), (*apart.heads, *apart.neurons), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=0)


def test_impossible_input_is_refused() -> None:
    with pytest.raises(ImportanceError, match="ridge is -1"):
        obs_importance(make_model("bert"), [make_batch()], ridge=-1)
    with pytest.raises(ImportanceError, match="No batches"):
        obs_importance(make_model("bert"), [])
    with pytest.raises(ImportanceError, match="name heads, neurons"):
        obs_importance(make_model("bert"), [make_batch()], units=())
