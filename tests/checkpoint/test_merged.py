"""The merged checkpoint: what is on disk, who can load it, and what is refused."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertGenerationConfig,
    BertGenerationEncoder,
    BertTokenizer,
    pipeline,
)
from transformers.monkey_patching import get_patch_mapping, register_patch_mapping, unregister_patch_mapping

import pruning_adapter as pa
from conformance import logits, make_plan
from pruning_adapter.architectures.sites import find_sites
from pruning_adapter.checkpoint.rebuild import stand_ins_in_place
from pruning_adapter.errors import CheckpointError, OutputError
from tiny import make_batch, make_model, randomize_

PRUNED = {0: [1, 3], 2: [0]}


LOADERS: list[Any] = [pa.load_pruned, AutoModelForSequenceClassification.from_pretrained]


def make_trained() -> Any:
    base = make_model("bert")
    model = get_peft_model(base, pa.PruneLoraConfig(pruning=make_plan(base, PRUNED), task_type="SEQ_CLS")).eval()
    randomize_(model, only_trainable=True)
    return model


def test_the_folder_describes_itself(tmp_path: Path) -> None:
    pa.save_pruned(make_trained(), tmp_path / "merged")
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["pruning"]["kept_heads"] == [[0, 2], [0, 1, 2, 3], [1, 2, 3]]
    assert config["pruned_heads"] == {"0": [1, 3], "2": [0]}
    assert config["model_type"] == "bert"
    assert {path.name for path in (tmp_path / "merged").iterdir()} == {"config.json", "model.safetensors"}
    weights = load_file(tmp_path / "merged" / "model.safetensors")
    assert weights["bert.encoder.layer.0.attention.self.query.weight"].shape == (16, 32)
    assert not any("lora" in name or "modules_to_save" in name for name in weights)


def test_saving_leaves_the_adapted_model_as_it_was(tmp_path: Path) -> None:
    model, batch = make_trained(), make_batch()
    before = logits(model, batch)
    pa.save_pruned(model, tmp_path / "merged")
    assert torch.equal(logits(model, batch), before)
    assert "default" in model.peft_config


def test_a_model_that_was_only_pruned_can_be_saved_too(tmp_path: Path) -> None:
    model, batch = make_model("bert"), make_batch()
    pa.prune_(model, make_plan(model, PRUNED))
    pa.save_pruned(model, tmp_path / "merged")
    torch.testing.assert_close(
        logits(pa.load_pruned(tmp_path / "merged"), batch), logits(model, batch), rtol=0, atol=1e-12
    )


def test_other_auto_classes_rebuild_the_same_trunk(tmp_path: Path) -> None:
    model = make_trained()
    pa.save_pruned(model, tmp_path / "merged")
    for auto in (AutoModel, AutoModelForTokenClassification):
        loaded: Any = auto.from_pretrained(tmp_path / "merged")
        assert [site.units for site in find_sites(loaded)] == [2, 4, 3]
        ours, theirs = loaded.base_model.state_dict(), model.get_base_model().base_model.state_dict()
        name = "encoder.layer.0.attention.self.query.weight"
        assert ours[name].shape == theirs[name.replace("weight", "base_layer.weight")].shape


@pytest.mark.parametrize("fails", [False, True])
def test_our_loading_needs_no_patch_mapping_and_puts_it_back(fails: bool) -> None:
    """With a single entry, Transformers lists the names of all its modules for every model."""
    make_model("bert")
    before = get_patch_mapping()
    theirs = {"^NobodysLayer$": nn.Linear}
    register_patch_mapping(theirs)
    try:
        with suppress(ValueError), stand_ins_in_place():
            assert get_patch_mapping() == theirs
            if fails:
                raise ValueError
        assert get_patch_mapping() == {**before, **theirs}
    finally:
        unregister_patch_mapping([*theirs])
    assert "^BertAttention$" in before or "^BertLayer$" in before


def test_the_pipeline_loads_it(tmp_path: Path) -> None:
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ngood\nbad\n", encoding="utf-8")
    model = make_trained()
    pa.save_pruned(model, tmp_path / "merged", tokenizer=BertTokenizer(vocab=str(vocabulary)))
    classify = pipeline("text-classification", model=str(tmp_path / "merged"), device="cpu", top_k=None)
    found: Any = classify(["good bad"])
    ids = torch.tensor([[2, 5, 6, 3]])
    expected = logits(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}).softmax(-1)[0]
    assert [row["score"] for row in sorted(found[0], key=lambda row: row["label"])] == pytest.approx(expected.tolist())


def test_unpruned_checkpoints_and_namesakes_stay_unaffected(tmp_path: Path) -> None:
    model, batch = make_model("bert"), make_batch()
    model.save_pretrained(tmp_path / "dense")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "dense")
    assert type(loaded.base_model.encoder).__module__ == "transformers.models.bert.modeling_bert"
    torch.testing.assert_close(logits(loaded, batch), logits(model, batch), rtol=0, atol=1e-12)
    # Another architecture has a class of the same name, BertEncoder.
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertGenerationEncoder(BertGenerationConfig(vocab_size=20, **sizes)).save_pretrained(tmp_path / "namesake")
    namesake: Any = AutoModel.from_pretrained(tmp_path / "namesake")
    assert type(namesake.encoder).__module__ == "transformers.models.bert_generation.modeling_bert_generation"


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "merged"
    pa.save_pruned(make_trained(), folder)
    weights, config = (folder / "model.safetensors").read_bytes(), (folder / "config.json").read_text()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(CheckpointError, match=r"Cannot load a model from .*merged"):
        pa.load_pruned(folder)
    tensors = load_file_from(weights, tmp_path)
    del tensors["bert.encoder.layer.1.output.dense.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 weights, the first is 'bert\.encoder\.layer\.1\.output"):
        pa.load_pruned(folder)
    (folder / "model.safetensors").write_bytes(weights)
    for broken, message in (
        (lambda c: c["pruning"]["kept_heads"].__setitem__(0, [0, 9]), "names heads or neurons that"),
        (lambda c: c["pruning"].pop("dense"), r"config\.pruning is damaged: KeyError\('dense'\)"),
        (lambda c: c["pruning"].update(schema=99), "has schema 99; this release reads 2"),
        (lambda c: c.update(architectures=["NoSuchModel"]), "names the class 'NoSuchModel'"),
    ):
        content = json.loads(config)
        broken(content)
        (folder / "config.json").write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match=message):
            pa.load_pruned(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        pa.load_pruned(folder)
    # After all these failures, loading still works.
    (folder / "config.json").write_text(config)
    assert [site.units for site in find_sites(pa.load_pruned(folder))] == [2, 4, 3]


def load_file_from(content: bytes, folder: Path) -> dict[str, torch.Tensor]:
    path = folder / "copy.safetensors"
    path.write_bytes(content)
    return load_file(path)


def test_pickled_weights_are_never_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "merged"
    pa.save_pruned(make_trained(), folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="Cannot load a model"):
        pa.load_pruned(folder)


def test_a_full_disk_costs_nothing_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, batch = tmp_path / "merged", make_batch()
    model = make_trained()
    pa.save_pruned(model, folder)
    expected = logits(pa.load_pruned(folder), batch)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(type(model.get_base_model()), "save_pretrained", fail)
        with pytest.raises(OutputError, match=r"No space left on device\. What was there before is untouched"):
            pa.save_pruned(model, folder)
    assert torch.equal(logits(pa.load_pruned(folder), batch), expected)
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


def test_only_a_saved_model_is_replaced(tmp_path: Path) -> None:
    model, folder = make_trained(), tmp_path / "merged"
    pa.save_pruned(model, folder)
    pa.save_pruned(model, folder)
    (folder / "thesis.odt").write_text("years of work")
    with pytest.raises(OutputError, match=r"holds 'thesis\.odt', so it is no saved model to replace"):
        pa.save_pruned(model, folder)
    assert (folder / "thesis.odt").read_text() == "years of work"


def test_a_failed_load_leaves_transformers_as_it_was(tmp_path: Path) -> None:
    from transformers.models.bert import modeling_bert

    stock = modeling_bert.BertLayer
    pa.save_pruned(make_trained(), tmp_path / "merged")
    path = tmp_path / "merged" / "config.json"
    path.write_text(path.read_text().replace('"schema": 2', '"schema": 7'))
    for load in LOADERS:
        with pytest.raises(OSError, match=r"schema 7|size|mismatch"):
            load(tmp_path / "merged")
        assert modeling_bert.BertLayer is stock
