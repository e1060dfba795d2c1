"""What each method trains, and which base models are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel

from conformance import logits, make_plan
from pruning_adapter.architectures.sites import find_sites
from pruning_adapter.errors import ArchitectureError, CheckpointError, TrainingError
from pruning_adapter.evaluation.cost import count_trainable
from pruning_adapter.training.base_model import load_base
from pruning_adapter.training.methods import apply_method
from pruning_adapter.training.recipes import RECIPES
from tiny import make_batch, make_model, randomize_

LABELS = ("a", "b")


def save_trunk(family: str, folder: Path, **options: Any) -> str:
    make_model(family, dtype=torch.float32, **options).base_model.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("method", ["lora", "prune-lora"])
@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "distilbert"])
def test_an_adapter_on_an_untrained_head_reloads_onto_a_base_of_another_seed(
    family: str, method: Any, tmp_path: Path
) -> None:
    folder, batch = save_trunk(family, tmp_path / "base"), make_batch()
    batch["labels"] = batch["labels"] % 2
    base = load_base(folder, label_names=LABELS, seed=0)
    model: Any = apply_method(base, method, RECIPES["default"], plan=make_plan(base.model, {0: [1]})).eval()
    randomize_(model, only_trainable=True)
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    other: Any = load_base(folder, label_names=LABELS, seed=1).model
    loaded = PeftModel.from_pretrained(other, str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(logits(loaded, batch), logits(model, batch), rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "distilbert"])
def test_untrained_modules_are_found_and_trained(family: str, tmp_path: Path) -> None:
    base = load_base(save_trunk(family, tmp_path), label_names=LABELS, seed=0)
    heads = {
        "bert": ["classifier"],
        "roberta": ["classifier.dense", "classifier.out_proj"],
        "electra": ["classifier.dense", "classifier.out_proj"],
        "distilbert": ["classifier", "pre_classifier"],
    }
    assert sorted(base.fresh) == heads[family]
    for method in ("lora", "prune-lora"):
        again = load_base(str(tmp_path), label_names=LABELS, seed=0)
        plan = make_plan(again.model, {0: [1]})
        model = apply_method(again, method, RECIPES["default"], plan=plan)
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        for head in heads[family]:
            assert any(head.partition(".")[0] in name for name in trained), head


def test_a_pooler_that_the_checkpoint_lacks_trains_too(tmp_path: Path) -> None:
    from transformers import BertModel

    model = BertModel(make_model("bert").config, add_pooling_layer=False).float()
    model.save_pretrained(tmp_path)
    base = load_base(str(tmp_path), label_names=LABELS, seed=0)
    assert sorted(base.fresh) == ["bert.pooler.dense", "classifier"]
    adapted = apply_method(base, "prune-lora", RECIPES["default"], plan=make_plan(base.model, {0: [1]}))
    assert any("pooler" in name and parameter.requires_grad for name, parameter in adapted.named_parameters())


def test_lora_is_stock_peft_of_one_rank_on_the_same_projections(tmp_path: Path) -> None:
    base = load_base(save_trunk("bert", tmp_path), label_names=LABELS, seed=0)
    model: Any = apply_method(base, "lora", RECIPES["default"])
    assert type(model.peft_config["default"]) is LoraConfig
    wrapped = {name for name, module in model.named_modules() if hasattr(module, "lora_A") and "lora" not in name}
    assert len(wrapped) == 3 * 4
    assert not any("intermediate" in name or name.endswith("layer.0.output.dense") for name in wrapped)
    # Rank 8 on 32 x 32 matrices, 7 norms of 64, and the classifier.
    assert count_trainable(model) == 12 * 8 * 64 + 7 * 64 + 2 * 33


def test_adapters_train_without_dropout_and_full_fine_tuning_with_the_models_own(tmp_path: Path) -> None:
    folder = save_trunk("bert", tmp_path)
    for method, expected in (("full", {0.1}), ("lora", {0.0})):
        base = load_base(folder, label_names=LABELS, seed=0)
        model: Any = apply_method(base, method, RECIPES["default"])  # pyright: ignore
        trunk = base.model.base_model
        assert {module.p for module in trunk.modules() if isinstance(module, torch.nn.Dropout)} == expected
        assert model.config.attention_probs_dropout_prob == 0.1
        assert len(find_sites(model)) == 3


def test_the_same_seed_starts_the_head_the_same_way(tmp_path: Path) -> None:
    folder = save_trunk("bert", tmp_path)
    first, second, third = (load_base(folder, label_names=LABELS, seed=seed).model for seed in (0, 0, 1))
    weights = [model.get_parameter("classifier.weight") for model in (first, second, third)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert first.config.id2label == {0: "a", 1: "b"}  # pyright: ignore


def test_a_half_precision_checkpoint_trains_in_float32(tmp_path: Path) -> None:
    make_model("bert", dtype=torch.float16).base_model.save_pretrained(tmp_path)
    assert next(load_base(str(tmp_path), label_names=LABELS, seed=0).model.parameters()).dtype == torch.float32


def test_a_head_of_another_size_starts_anew_but_damaged_blocks_are_refused(tmp_path: Path) -> None:
    make_model("bert", dtype=torch.float32).save_pretrained(tmp_path)
    assert load_base(str(tmp_path), label_names=LABELS, seed=0).fresh == ("classifier",)
    config = json.loads((tmp_path / "config.json").read_text())
    config["intermediate_size"] = 25
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"encoder\.layer\.0.*the checkpoint is damaged"):
        load_base(str(tmp_path), label_names=LABELS, seed=0)


def test_bases_that_cannot_be_used_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError, match=r"'no/such-model' is no folder here, .*while this process is offline"):
        load_base("no/such-model", label_names=LABELS, seed=0)
    pickled = tmp_path / "pickled"
    make_model("bert").config.save_pretrained(pickled)
    (pickled / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match=r"pickled weights \(pytorch_model\.bin\).*never done here"):
        load_base(str(pickled), label_names=LABELS, seed=0)
    unknown = tmp_path / "unknown"
    save_trunk("bert", unknown)
    config = json.loads((unknown / "config.json").read_text())
    (unknown / "config.json").write_text(json.dumps({**config, "model_type": "mamba"}))
    with pytest.raises(ArchitectureError, match=r"'mamba' is not supported.*albert, bart, bert"):
        load_base(str(unknown), label_names=LABELS, seed=0)


def test_methods_are_checked(tmp_path: Path) -> None:
    base = load_base(save_trunk("bert", tmp_path), label_names=LABELS, seed=0)
    with pytest.raises(TrainingError, match=r'"prune-lora" needs a pruning plan'):
        apply_method(base, "prune-lora", RECIPES["default"])
    with pytest.raises(TrainingError, match=r"'adapters' is unknown; there are full, lora, prune-lora"):
        apply_method(base, "adapters", RECIPES["default"])  # pyright: ignore


@pytest.mark.parametrize("method", ["lora", "prune-lora"])
def test_the_pooler_of_deberta_trains_even_where_the_checkpoint_has_it(method: Any, tmp_path: Path) -> None:
    """Most checkpoints lack it, and an adapter has to fit all of them."""
    make_model("deberta-v2", dtype=torch.float32).save_pretrained(tmp_path)
    base = load_base(str(tmp_path), label_names=("a", "b", "c"), seed=0)
    model = apply_method(base, method, RECIPES["default"], plan=make_plan(base.model, {0: [1]}))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert any(".pooler." in name for name in trained)
