"""The adapter as a PEFT method: what PEFT's own roads do with it, and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, EvaConfig, LoraConfig, PeftConfig, PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification

import pruning_adapter as pa
from conformance import logits, make_plan
from pruning_adapter.architectures.identity import pruned_state
from pruning_adapter.architectures.sites import find_sites
from pruning_adapter.errors import AdapterError, CheckpointError, PlanError
from tiny import make_batch, make_model, randomize_

PRUNED = {0: [1, 3], 2: [0]}


@pytest.fixture
def base_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    make_model("bert").save_pretrained(folder)
    return folder


def load(folder: Path) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(folder)


def make_config(model: Any, pruned: dict[int, list[int]] = PRUNED, **options: Any) -> pa.PruneLoraConfig:
    return pa.PruneLoraConfig(pruning=make_plan(model, pruned), task_type="SEQ_CLS", **options)


def make_adapted(folder: Path, **options: Any) -> Any:
    base = load(folder)
    model = get_peft_model(base, make_config(base, **options)).eval()
    randomize_(model, only_trainable=True)
    return model


def test_what_trains_is_lora_norms_and_classifier(base_folder: Path) -> None:
    model = make_adapted(base_folder)
    kinds = {
        next(kind for kind in ("lora_", "LayerNorm", "classifier", "other") if kind in name or kind == "other")
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    assert kinds == {"lora_", "LayerNorm", "classifier"}
    without = make_adapted(base_folder, train_norms=False)
    assert not any("LayerNorm" in name for name, p in without.named_parameters() if p.requires_grad)


def test_ranks_and_scaling_follow_the_plan(base_folder: Path) -> None:
    base = load(base_folder)
    scores = pa.measure_importance(base, [make_batch()])
    plan = make_plan(base, PRUNED)
    ranks = pa.plan_ranks(scores, plan, top_blocks=1, high=6, low=2, roles=("query", "value"))
    config = pa.PruneLoraConfig(pruning=plan, ranks=ranks, task_type="SEQ_CLS", r=4, lora_alpha=8)
    model = get_peft_model(base, config)
    for site, rank in zip(find_sites(model), ranks.ranks, strict=True):
        attention: Any = site.block.get_submodule("attention.self")
        assert attention.query.r["default"] == attention.value.r["default"] == rank
        assert attention.query.scaling["default"] == 2.0
        assert not hasattr(attention.key, "lora_A")
        assert not hasattr(site.output, "lora_A")


def stock_lora_survives_auto_model(base_folder: Path, folder: Path) -> bool:
    """Older Transformers forget the saved classifier of any adapter on that road, whatever its method."""
    config = LoraConfig(target_modules=["query"], task_type="SEQ_CLS")
    model = get_peft_model(load(base_folder), config).eval()
    randomize_(model, only_trainable=True)
    model.save_pretrained(folder, save_embedding_layers=False)
    loaded = AutoModelForSequenceClassification.from_pretrained(folder)
    return torch.allclose(logits(loaded, make_batch()), logits(model, make_batch()))


def test_every_road_to_a_saved_adapter_gives_the_same_model(base_folder: Path, tmp_path: Path) -> None:
    model, batch = make_adapted(base_folder), make_batch()
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    expected = logits(model, batch)
    roads = {
        "PeftModel": PeftModel.from_pretrained(load(base_folder), tmp_path / "adapter"),
        "AutoPeftModel": AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter"),
    }
    if stock_lora_survives_auto_model(base_folder, tmp_path / "stock"):
        roads["AutoModel"] = AutoModelForSequenceClassification.from_pretrained(tmp_path / "adapter")
    second = get_peft_model(load(base_folder), make_config(load(base_folder)))
    second.load_adapter(tmp_path / "adapter", adapter_name="again")
    second.set_adapter("again")
    roads["load_adapter"] = second
    for name, road in roads.items():
        torch.testing.assert_close(
            logits(road.eval(), batch), expected, rtol=0, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_adapters_that_share_a_plan_live_together(base_folder: Path) -> None:
    model, batch = make_adapted(base_folder), make_batch()
    first = logits(model, batch)
    model.add_adapter("second", make_config(load(base_folder)))
    model.set_adapter("second")
    model.eval()
    randomize_(model, only_trainable=True)
    second = logits(model, batch)
    assert not torch.allclose(first, second)
    model.set_adapter("default")
    assert torch.equal(logits(model, batch), first)
    model.delete_adapter("second")
    assert torch.equal(logits(model, batch), first)


def test_an_adapter_of_another_plan_is_refused_and_leaves_nothing(base_folder: Path) -> None:
    model, batch = make_adapted(base_folder), make_batch()
    before = logits(model, batch)
    with pytest.raises(AdapterError, match=r"already pruned otherwise \(block 0 has the heads \[0, 2\]"):
        model.add_adapter("other", make_config(load(base_folder), {0: [1]}))
    assert list(model.peft_config) == ["default"]
    assert torch.equal(logits(model, batch), before)


def test_another_base_is_refused_before_a_weight_moves(base_folder: Path, tmp_path: Path) -> None:
    make_adapted(base_folder).save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    other, batch = make_model("bert", seed=1), make_batch()
    before = logits(other, batch)
    with pytest.raises(PlanError, match=r"other weights"):
        PeftModel.from_pretrained(other, tmp_path / "adapter")
    with pytest.raises(PlanError, match=r"was made for .*bert, 3 blocks x 4 heads of 8; this model has roberta"):
        PeftModel.from_pretrained(make_model("roberta"), tmp_path / "adapter")
    assert torch.equal(logits(other, batch), before)
    assert getattr(other.config, "pruning", None) is None


def test_a_base_that_was_pruned_the_same_way_is_accepted_but_not_one_trained_since(
    base_folder: Path, tmp_path: Path
) -> None:
    model, batch = make_adapted(base_folder), make_batch()
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    base = load(base_folder)
    pa.prune_(base, make_plan(base, PRUNED))
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(loaded, batch), logits(model, batch), rtol=0, atol=1e-12)
    pa.save_pruned(model, tmp_path / "merged")
    with pytest.raises(AdapterError, match=r"trained since \(a merged model\?\)"):
        PeftModel.from_pretrained(pa.load_pruned(tmp_path / "merged"), tmp_path / "adapter")


def test_accepting_other_weights_makes_the_adapter_remember_its_real_base(base_folder: Path, tmp_path: Path) -> None:
    plan, other = make_plan(load(base_folder), PRUNED), make_model("bert", seed=1)
    other.save_pretrained(tmp_path / "other")
    config = pa.PruneLoraConfig(pruning=plan, task_type="SEQ_CLS", allow_other_weights=True)
    model = get_peft_model(other, config).eval()
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    loaded = PeftModel.from_pretrained(load(tmp_path / "other"), tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(loaded, make_batch()), logits(model, make_batch()), rtol=0, atol=1e-12)
    with pytest.raises(PlanError, match=r"other weights"):
        PeftModel.from_pretrained(load(base_folder), tmp_path / "adapter")


def test_a_config_without_a_plan_or_with_ranks_of_another_is_refused(base_folder: Path) -> None:
    with pytest.raises(AdapterError, match=r"needs pruning=PruningPlan.*peft\.LoraConfig"):
        pa.PruneLoraConfig(task_type="SEQ_CLS")
    base = load(base_folder)
    scores = pa.measure_importance(base, [make_batch()])
    ranks = pa.plan_ranks(scores, make_plan(base, {0: [0]}), top_blocks=1)
    with pytest.raises(AdapterError, match=r"made for another pruning plan"):
        pa.PruneLoraConfig(pruning=make_plan(base, PRUNED), ranks=ranks)


def test_a_damaged_adapter_config_is_one_clear_error(base_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    make_adapted(base_folder).save_pretrained(folder, save_embedding_layers=False)
    path = folder / "adapter_config.json"
    content = json.loads(path.read_text())
    content["pruning"]["kept_heads"][0] = [0, 9]
    path.write_text(json.dumps(content))
    with pytest.raises(PlanError, match=r"keeps in block 0 head 9, but .* heads 0-3"):
        PeftConfig.from_pretrained(folder)
    del content["pruning"]["kept_heads"]
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"plan is incomplete or damaged: KeyError\('kept_heads'\)"):
        PeftConfig.from_pretrained(folder)


def test_the_adapter_on_disk_is_small_and_holds_no_base_weights(base_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    make_adapted(base_folder).save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    names = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert all(any(part in name for part in ("lora_A", "lora_B", "LayerNorm", "classifier")) for name in names)


def test_a_model_trained_after_pruning_is_another_model(base_folder: Path, tmp_path: Path) -> None:
    """Neither a plan made on it fits the dense base, nor one made for the dense base fits it."""
    dense, batch = load(base_folder), make_batch()
    pa.save_pruned(make_adapted(base_folder), tmp_path / "merged")
    with pytest.raises(PlanError, match=r"other weights"):
        pa.prune_(pa.load_pruned(tmp_path / "merged"), make_plan(dense, PRUNED))
    further = {**PRUNED, 1: [2]}
    merged = pa.load_pruned(tmp_path / "merged")
    plan = make_plan(merged, further)
    with pytest.raises(PlanError, match=r"other weights"):
        pa.prune_(load(base_folder), plan)
    model = get_peft_model(merged, pa.PruneLoraConfig(pruning=plan, task_type="SEQ_CLS")).eval()
    randomize_(model, only_trainable=True)
    model.save_pretrained(tmp_path / "second", save_embedding_layers=False)
    again = PeftModel.from_pretrained(pa.load_pruned(tmp_path / "merged"), tmp_path / "second").eval()
    torch.testing.assert_close(logits(again, batch), logits(model, batch), rtol=0, atol=1e-12)
    with pytest.raises(PlanError, match=r"other weights"):
        PeftModel.from_pretrained(load(base_folder), tmp_path / "second")


def test_loading_with_little_memory_works_and_leaves_the_base_whole(base_folder: Path, tmp_path: Path) -> None:
    model, batch = make_adapted(base_folder), make_batch()
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    loaded = PeftModel.from_pretrained(load(base_folder), tmp_path / "adapter", low_cpu_mem_usage=True).eval()
    torch.testing.assert_close(logits(loaded, batch), logits(model, batch), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_modules": ["query"]}, r"target_modules was set, but the plans decide it"),
        ({"rank_pattern": {"query": 2}}, r"rank_pattern was set"),
        ({"layers_to_transform": [0]}, r"layers_to_transform was set"),
        ({"r": 0}, r"r is 0; the rank of LoRA"),
    ],
)
def test_what_the_plans_decide_cannot_be_set(base_folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        make_config(load(base_folder), **options)


def test_rank_stabilised_scaling_is_the_same_at_every_rank(base_folder: Path) -> None:
    base = load(base_folder)
    plan = make_plan(base, PRUNED)
    ranks = pa.plan_ranks(pa.measure_importance(base, [make_batch()]), plan, top_blocks=1, high=8, low=2)
    config = pa.PruneLoraConfig(pruning=plan, ranks=ranks, task_type="SEQ_CLS", r=4, lora_alpha=8, use_rslora=True)
    model = get_peft_model(base, config)
    scalings = [site.block.get_submodule("attention.self.query").scaling["default"] for site in find_sites(model)]
    assert scalings == pytest.approx([4.0] * 3)


def test_an_adapter_keeps_to_the_very_weights_that_it_was_trained_on(base_folder: Path, tmp_path: Path) -> None:
    """One plan leaves the same units of three bases: cut here, cut before, and cut and corrected."""
    plan = make_plan(load(base_folder), PRUNED)
    pa.save_pruned(pa.prune_(load(base_folder), plan), tmp_path / "cut")
    corrected = pa.reconstruct_(load(base_folder), replace(plan, reconstruct="lstsq"), [make_batch()])
    pa.save_pruned(corrected, tmp_path / "corrected")
    roads: dict[str, Any] = {
        "dense": lambda: load(base_folder),
        "cut": lambda: pa.load_pruned(tmp_path / "cut"),
        "corrected": lambda: pa.load_pruned(tmp_path / "corrected"),
    }
    for name, road in roads.items():
        adapted: Any = get_peft_model(road(), pa.PruneLoraConfig(pruning=plan, task_type="SEQ_CLS")).eval()
        randomize_(adapted, only_trainable=True)
        adapted.save_pretrained(tmp_path / "adapters" / name)
        for other, to_other in roads.items():
            base = to_other()
            if (name == "corrected") == (other == "corrected"):
                again = PeftModel.from_pretrained(base, tmp_path / "adapters" / name).eval()
                torch.testing.assert_close(logits(again, make_batch()), logits(adapted, make_batch()))
                continue
            before = {key: value.clone() for key, value in base.state_dict().items()}
            with pytest.raises(AdapterError, match="belongs to other weights, which were pruned from"):
                PeftModel.from_pretrained(base, tmp_path / "adapters" / name)
            assert all(torch.equal(value, before[key]) for key, value in base.state_dict().items())


def test_what_was_corrected_once_stays_so(base_folder: Path) -> None:
    plan = make_plan(load(base_folder), PRUNED)
    model = pa.reconstruct_(load(base_folder), replace(plan, reconstruct="lstsq"), [make_batch()])
    pa.prune_(model, make_plan(load(base_folder), {**PRUNED, 1: [2]}))
    assert pruned_state(model).reconstructed == "lstsq"


def test_a_config_can_be_used_for_several_models(base_folder: Path) -> None:
    """What is filled in is of one base, such as the names of its labels."""
    config = make_config(load(base_folder))
    for names in ({0: "a", 1: "b", 2: "c"}, {0: "d", 1: "e", 2: "f"}):
        base = load(base_folder)
        base.config.id2label = names
        adapted: Any = get_peft_model(base, config)
        assert adapted.peft_config["default"].label_names == list(names.values())
    assert config.label_names is None


def test_ranks_that_peft_would_choose_are_refused(base_folder: Path) -> None:
    base = load(base_folder)
    with pytest.raises(AdapterError, match='init_lora_weights is "eva", which gives ranks of its own'):
        get_peft_model(base, make_config(base, init_lora_weights="eva", eva_config=EvaConfig()))
