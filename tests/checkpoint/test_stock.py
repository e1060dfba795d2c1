"""Zeros where units were: by hand, and what the folder says. That logits stay is a law of tests/conformance.py."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import get_peft_model
from safetensors.torch import load_file

import pruning_adapter as pa
from conformance import logits, make_case, make_plan
from pruning_adapter.checkpoint import plain_folder, save_stock
from pruning_adapter.errors import AdapterError, OutputError
from tiny import make_batch, make_model, randomize_


def test_what_is_gone_is_zero_and_what_stayed_stands_where_it_stood(tmp_path: Path) -> None:
    dense, model = make_model("bert"), make_model("bert")
    save_stock(pa.prune_(model, make_plan(model, {1: [2]}, {0: [5, 7]})), tmp_path)
    expected = {name: weight.clone() for name, weight in dense.state_dict().items()}
    for name in ("query", "key", "value"):
        expected[f"bert.encoder.layer.1.attention.self.{name}.weight"][16:24] = 0
        expected[f"bert.encoder.layer.1.attention.self.{name}.bias"][16:24] = 0
    expected["bert.encoder.layer.1.attention.output.dense.weight"][:, 16:24] = 0
    expected["bert.encoder.layer.0.intermediate.dense.weight"][[5, 7]] = 0
    expected["bert.encoder.layer.0.intermediate.dense.bias"][[5, 7]] = 0
    expected["bert.encoder.layer.0.output.dense.weight"][:, [5, 7]] = 0
    found = load_file(tmp_path / "model.safetensors")
    assert set(found) == set(expected)
    assert all(torch.equal(weight, expected[name]) for name, weight in found.items())


def test_nothing_of_ours_is_in_the_config_and_the_note_says_that_nothing_is_saved(tmp_path: Path) -> None:
    model = make_model("bert")
    pa.save_pruned(pa.prune_(model, make_case(model, "heads")), tmp_path / "merged")
    texts = ("vocab.txt", "bpe.codes")
    for name in texts:
        (tmp_path / "merged" / name).write_text("[PAD]", encoding="utf-8")
    save_stock(pa.load_pruned(tmp_path / "merged"), tmp_path / "stock", files_from=tmp_path / "merged")
    fields = json.loads((tmp_path / "stock" / "config.json").read_text(encoding="utf-8"))
    dense = json.loads(make_model("bert").config.to_json_string())
    assert not {"pruning", "pruned_heads"} & set(fields)
    assert {name: fields[name] for name in dense if name in fields} | {"dtype": None, "architectures": None} == {
        name: dense[name] for name in dense if name in fields
    } | {"dtype": None, "architectures": None}
    assert [(tmp_path / "stock" / name).read_text(encoding="utf-8") for name in texts] == ["[PAD]", "[PAD]"]
    assert "**It saves nothing**" in (tmp_path / "stock" / "README.md").read_text(encoding="utf-8")


def test_adapters_are_merged_in_a_copy(tmp_path: Path) -> None:
    base = make_model("bert")
    config = pa.PruneLoraConfig(pruning=make_case(base, "heads and neurons"), r=2, task_type="SEQ_CLS")
    model: Any = get_peft_model(base, config).eval()
    randomize_(model, only_trainable=True)
    before = logits(model, make_batch())
    save_stock(model, tmp_path)
    assert torch.equal(logits(model, make_batch()), before)
    loaded = type(base).from_pretrained(tmp_path, attn_implementation="eager")
    torch.testing.assert_close(logits(loaded, make_batch()), before, rtol=1e-11, atol=1e-11)


def test_weights_keep_their_type(tmp_path: Path) -> None:
    model = make_model("gpt2", dtype=torch.bfloat16)
    assert save_stock(pa.prune_(model, make_case(model, "empty blocks")), tmp_path) < 1e-4
    assert {weight.dtype for weight in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("auto", [transformers.AutoModelForQuestionAnswering, transformers.AutoModel])
def test_models_without_logits_are_checked_too(auto: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = make_model("bert", auto=auto, num_labels=2)
    batch = {name: value for name, value in make_batch().items() if name != "labels"}
    pa.prune_(model, make_case(model, "heads and neurons"))
    save_stock(model, tmp_path / "stock")
    loaded = type(model).from_pretrained(tmp_path / "stock", attn_implementation="eager")
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch)[0], model(**batch)[0], rtol=1e-11, atol=1e-11)
    monkeypatch.setattr(plain_folder, "TOLERANCE", -1.0)
    with pytest.raises(OutputError, match="not written"):
        save_stock(model, tmp_path / "other")


def test_what_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_stock(make_model("bert", seed=1), tmp_path / "stock")
    before = (tmp_path / "stock" / "model.safetensors").read_bytes()
    monkeypatch.setattr(plain_folder, "TOLERANCE", -1.0)
    with pytest.raises(OutputError, match=r"logits of the exported model differ by .*; not written"):
        save_stock(make_model("bert"), tmp_path / "stock")
    assert (tmp_path / "stock" / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["stock"]


def test_logits_that_are_no_numbers_are_a_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, stock = make_model("bert"), type(make_model("bert")).from_pretrained

    def broken(*args: Any, **kwargs: Any) -> Any:
        loaded = stock(*args, **kwargs)
        loaded.classifier.bias.data.fill_(float("nan"))
        return loaded

    monkeypatch.setattr(type(model), "from_pretrained", broken)
    with pytest.raises(OutputError, match="differ by nan"):
        save_stock(model, tmp_path / "stock")


def test_a_folder_of_something_else_and_packed_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("")
    with pytest.raises(OutputError, match=r"holds 'mine\.py', so it is no saved model to replace"):
        save_stock(make_model("bert"), tmp_path)
    base = make_model("bert", dtype=torch.float32)
    config = pa.PruneLoraConfig(pruning=make_case(base, "heads"), r=2, task_type="SEQ_CLS")
    pytest.importorskip("bitsandbytes")
    model = pa.quantize_base_(get_peft_model(base, config), bits=8)
    with pytest.raises(AdapterError, match="quantised"):
        save_stock(model, tmp_path / "stock")
