"""What is written for Transformers 4, by hand; what 4.57.6 made of it is in tests/witness."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import pruning_adapter as pa
from conformance import make_case, make_plan
from pruning_adapter.checkpoint import save_for_transformers4
from pruning_adapter.errors import OutputError
from tiny import make_model


def test_heads_are_named_and_an_even_width_is_told(tmp_path: Path) -> None:
    model = make_model("distilbert")
    pa.prune_(model, make_plan(model, {0: [1, 3], 2: [0]}, {block: [block, 9] for block in range(3)}))
    save_for_transformers4(model, tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert fields["pruned_heads"] == {"0": [1, 3], "2": [0]}
    assert (fields["hidden_dim"], fields["n_heads"]) == (22, 4)
    assert "pruning" not in fields
    found, weights = load_file(tmp_path / "model.safetensors"), model.state_dict()
    assert found.keys() == weights.keys()
    assert all(torch.equal(weight, weights[name]) for name, weight in found.items())


def test_what_transformers_4_cannot_say_is_refused_with_the_way_out(tmp_path: Path) -> None:
    folder = tmp_path / "transformers4"
    model = make_model("llama")
    with pytest.raises(OutputError, match=r"prunes no heads of Llama.*only of BERT, .*GPT-2.*--stock"):
        save_for_transformers4(model, folder)
    model = make_model("bert")
    pa.prune_(model, make_case(model, "empty blocks"))
    with pytest.raises(OutputError, match=r"encoder\.layer\.0 has no heads left, which Transformers 4 cannot build"):
        save_for_transformers4(model, folder)
    model = make_model("bert")
    pa.prune_(model, make_plan(model, {}, {0: [0, 2]}))
    with pytest.raises(OutputError, match=r"keep between 22 and 24 neurons.*Prune heads only.*--stock"):
        save_for_transformers4(model, folder)
    assert not any(tmp_path.iterdir())
