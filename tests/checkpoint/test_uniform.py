"""A pruned model whose blocks are alike is an ordinary checkpoint of a smaller config."""

import json
from pathlib import Path

import pytest
import torch

import pruning_adapter as pa
from conformance import TIGHT, logits, make_case, make_plan
from matrix import make_uniform_plan
from pruning_adapter.architectures.identity import count_parameters
from pruning_adapter.checkpoint import save_uniform
from pruning_adapter.errors import OutputError
from tiny import FAMILIES, make_batch, make_model

HEADS_APART = ("llama", "smollm3", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi3")
"""Families whose config has the width of a head beside the hidden size."""


@pytest.mark.parametrize("family", HEADS_APART)
def test_fewer_heads_and_neurons_are_a_smaller_stock_model(family: str, tmp_path: Path) -> None:
    """Other units in every block, of other groups where there are several."""
    model, batch = make_model(family), make_batch("causal")
    pa.prune_(model, make_uniform_plan(model, heads=True))
    save_uniform(model, tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert (fields["num_attention_heads"], fields["head_dim"], fields["intermediate_size"]) == (2, 8, 15)
    assert fields["num_key_value_heads"] == 1
    assert not {"pruning", "pruned_heads"} & set(fields)
    loaded = type(model).from_pretrained(tmp_path, attn_implementation="eager")
    assert count_parameters(loaded) == count_parameters(model)
    torch.testing.assert_close(logits(loaded, batch), logits(model, batch), **TIGHT)


def test_whole_groups_and_even_groups_are_both_told(tmp_path: Path) -> None:
    found: list[tuple[int, int]] = []
    for gone in ({0: [0, 1], 1: [2, 3], 2: [0, 1]}, {0: [0, 2], 1: [1, 3], 2: [0, 3]}):
        model = make_model("llama")
        save_uniform(pa.prune_(model, make_plan(model, gone)), tmp_path)
        fields = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
        found.append((fields["num_attention_heads"], fields["num_key_value_heads"]))
    assert found == [(2, 1), (2, 2)]


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in HEADS_APART])
def test_other_families_say_that_heads_cannot_be_told(family: str, tmp_path: Path) -> None:
    model = make_model(family)
    pa.prune_(model, make_uniform_plan(model, heads=True))
    with pytest.raises(OutputError, match=r"no config of .* describes fewer heads of the same width.*--stock"):
        save_uniform(model, tmp_path / "uniform")
    assert not any(tmp_path.iterdir())


def test_uneven_and_empty_blocks_are_refused_with_the_way_out(tmp_path: Path) -> None:
    model = make_model("llama")
    pa.prune_(model, make_plan(model, {0: [0, 2]}))
    with pytest.raises(
        OutputError, match=r"between 2 and 4 heads, and .*num_attention_heads is one number.*plan\.json"
    ):
        save_uniform(model, tmp_path / "uniform")
    model = make_model("llama")
    pa.prune_(model, make_plan(model, {}, {0: [0, 2]}))
    with pytest.raises(OutputError, match=r"between 22 and 24 neurons, and .*intermediate_size.*Score heads only"):
        save_uniform(model, tmp_path / "uniform")
    model = make_model("llama")
    pa.prune_(model, make_case(model, "empty blocks"))
    with pytest.raises(OutputError, match=r"layers\.0 has no heads left.*allow_empty_blocks.*--stock"):
        save_uniform(model, tmp_path / "uniform")
    model = make_model("llama")
    # One head (of every group) in each block is what the smallest number of heads leaves.
    scores = pa.random_importance(model, seed=0)
    plan = pa.plan_pruning(scores, keep_heads=6)
    save_uniform(pa.prune_(model, plan), tmp_path / "uniform")


def test_a_config_that_the_family_refuses_is_refused_by_name(tmp_path: Path) -> None:
    """Llama wants the hidden size to be a multiple of the number of heads, although it has a width of its own."""
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 4}
    model = make_model("llama", **sizes)
    pa.prune_(model, make_plan(model, {block: [block] for block in range(3)}))
    with pytest.raises(OutputError, match="LlamaForCausalLM cannot be built with these sizes"):
        save_uniform(model, tmp_path / "uniform")
    assert not any(tmp_path.iterdir())
