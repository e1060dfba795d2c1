"""What surgery refuses, and what it tells the config."""

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

import pruning_adapter as pa
from pruning_adapter.architectures.identity import identify, pruned_state
from pruning_adapter.architectures.sites import find_sites
from pruning_adapter.errors import ArchitectureError, CheckpointError, ImportanceError, PlanError
from pruning_adapter.surgery.linear import BiasOnly, keep_inputs_, keep_outputs_
from tiny import make_model

GATE = torch.ones(4)


def plan_for(model: Any, pruned: dict[int, list[int]], **options: Any) -> pa.PruningPlan:
    return pa.PruningPlan.from_pruned_heads(identify(model), pruned, **options)


def test_one_matrix_by_hand_in_both_storage_orders() -> None:
    from transformers.pytorch_utils import Conv1D

    linear, conv = torch.nn.Linear(3, 4), Conv1D(4, 3)
    with torch.no_grad():
        linear.weight.copy_(torch.arange(12.0).view(4, 3))
        conv.weight.copy_(linear.weight.T)
        linear.bias.copy_(torch.arange(4.0))
        conv.bias.copy_(linear.bias)
    for module in (linear, conv):
        keep_outputs_(module, [3, 1])
        keep_inputs_(module, [2, 0])
    assert linear.weight.tolist() == [[11.0, 9.0], [5.0, 3.0]]
    assert linear.bias.tolist() == [3.0, 1.0]
    assert torch.equal(conv.weight.T, linear.weight)
    assert (linear.in_features, linear.out_features, conv.nx, conv.nf) == (2, 2, 2, 2)


def test_what_is_left_of_an_empty_projection_adds_its_bias() -> None:
    linear = torch.nn.Linear(7, 2)
    with torch.no_grad():
        linear.bias.copy_(torch.tensor([1.0, 2.0]))
    assert BiasOnly(linear)(torch.rand(3, 5, 7)).tolist() == [[[1.0, 2.0]] * 5] * 3
    assert BiasOnly(torch.nn.Linear(7, 2, bias=False))(torch.rand(1, 1, 7)).tolist() == [[[0.0, 0.0]]]


def test_an_empty_block_computes_no_attention() -> None:
    model = make_model("bert")
    pa.prune_(model, plan_for(model, {1: [0, 1, 2, 3]}, allow_empty_blocks=True))
    names = [name for name, _ in model.named_parameters() if "layer.1.attention" in name]
    assert names == [
        "bert.encoder.layer.1.attention.output.dense.weight",
        "bert.encoder.layer.1.attention.output.dense.bias",
        "bert.encoder.layer.1.attention.output.LayerNorm.weight",
        "bert.encoder.layer.1.attention.output.LayerNorm.bias",
    ]


def test_an_adapted_model_is_refused() -> None:
    base = make_model("bert")
    plan = plan_for(base, {0: [1]})
    adapted = get_peft_model(base, LoraConfig(target_modules=["query"]))
    for model in (adapted, adapted.get_base_model()):
        with pytest.raises(ArchitectureError, match=r"adapters in place; merge or unload"):
            pa.prune_(model, plan)


def test_a_block_that_stands_in_two_places_is_refused_by_name() -> None:
    model = make_model("bert")
    model.base_model.encoder.layer[2] = model.base_model.encoder.layer[0]
    with pytest.raises(ArchitectureError, match=r"'encoder\.layer\.0' and 'encoder\.layer\.2' are one shared module"):
        identify(model)


def test_tied_weights_are_refused_by_name() -> None:
    model = make_model("bert")
    plan = plan_for(model, {0: [1]})
    first, second = (model.base_model.encoder.layer[block].attention.self for block in (0, 1))
    second.query.weight = first.query.weight
    with pytest.raises(ArchitectureError, match=r"layer\.0\.attention\.self\.query\.weight' and .*are tied"):
        pa.prune_(model, plan, allow_other_weights=True)


def test_a_plan_that_would_leave_a_pruned_block_empty_is_refused() -> None:
    model = make_model("bert")
    first, second = plan_for(model, {0: [0, 1]}), plan_for(model, {0: [2, 3]})
    pa.prune_(model, first)
    with pytest.raises(PlanError, match=r"encoder\.layer\.0 of this model has only the heads \[2, 3\] left"):
        pa.prune_(model, second)
    assert find_sites(model)[0].units == 2


def test_a_model_built_from_a_pruned_config_alone_is_recognised() -> None:
    model = make_model("bert")
    pa.prune_(model, plan_for(model, {0: [1]}))
    stale = type(model)(copy.deepcopy(model.config))
    with pytest.raises(CheckpointError, match=r"has 3 heads left, but it has 4.*from_pretrained"):
        pruned_state(stale)


def test_pruning_on_the_meta_device_predicts_without_weights() -> None:
    with torch.device("meta"):
        model = make_model("bert").to("meta")
    plan = plan_for(model, {0: [1]}, dense_parameters=sum(p.numel() for p in model.parameters()))
    assert plan.model.fingerprint is None
    pa.prune_(model, plan, allow_other_weights=True)
    assert sum(p.numel() for p in model.parameters()) == plan.parameters
    with pytest.raises(PlanError, match="fingerprint unknown"):
        pa.prune_(make_model("bert"), plan)


def test_quantised_weights_cannot_be_identified() -> None:
    model = make_model("bert")
    query = model.base_model.encoder.layer[0].attention.self.query
    query.weight = torch.nn.Parameter(torch.zeros(32, 32, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ArchitectureError, match=r"int8: a quantised model.*Prune first"):
        identify(model)


def test_the_config_round_trips_through_json(tmp_path: Any) -> None:
    from transformers import BertConfig

    model = make_model("bert")
    pa.prune_(model, plan_for(model, {0: [1], 2: [0, 3]}))
    model.config.save_pretrained(tmp_path)
    loaded = BertConfig.from_pretrained(tmp_path)
    assert loaded.pruning == model.config.pruning
    assert loaded.pruned_heads == {"0": [1], "2": [0, 3]}


def test_gates_must_fit() -> None:
    model = make_model("bert")
    with pytest.raises(ImportanceError, match="2 gate tensors were given for 3 att"), pa.gated(model, [GATE] * 2):
        pass
    with pytest.raises(ImportanceError, match=r"has 4 heads, but its gate has shape \(5,\)"):
        pa.gated(model, [torch.ones(5)] * 3).__enter__()
