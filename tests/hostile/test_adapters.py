"""Adapters, damaged or made up: one of our errors, no pickle read, little memory, and the base stays the base."""

import json
import resource
import shutil
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

import pruning_adapter as pa
from conformance import make_plan
from mutate import damage_bytes, damage_json
from pruning_adapter.adapter.config import PruneLoraConfig
from pruning_adapter.errors import AdapterError, CheckpointError, PruningAdapterError
from pruning_adapter.pipeline.start import Start
from tiny import VOCABULARY, make_batch, make_model

SLOW = settings(
    max_examples=settings.default.max_examples // 2,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
FOLDER = TemporaryDirectory()
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
TOO_MUCH = 500_000
"""Kilobytes that a test may need beyond what was needed before."""


def make_base(**changes: Any) -> Any:
    return make_model("bert", dtype=torch.float32, **changes)


@cache
def adapter() -> Path:
    folder = Path(FOLDER.name) / "adapter"
    base = make_base()
    config = PruneLoraConfig(pruning=make_plan(base, {0: [1]}), task_type="SEQ_CLS")
    get_peft_model(base, config).save_pretrained(str(folder), save_embedding_layers=False)
    return folder


@cache
def tasks() -> pa.PrunedTasks:
    return pa.PrunedTasks(make_base())


def copy() -> Path:
    source = adapter()
    target = Path(FOLDER.name) / "damaged"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    return target


def change(**fields: Any) -> Path:
    folder = copy()
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    (folder / CONFIG).write_text(json.dumps({**config, **fields}), encoding="utf-8")
    return folder


def save(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS, {"format": "pt"})


def serve(folder: Path) -> None:
    """As `PrunedTasks` reads and builds it."""
    if "task" in tasks().names:
        tasks().remove("task")
    tasks().add("task", folder)
    tasks().model("task")(**make_batch())


def attach(folder: Path) -> None:
    """As a run attaches it."""
    Start._attach(None, make_base(), folder)(**make_batch())  # type: ignore[arg-type]


WAYS = {"serve": serve, "attach": attach}


@pytest.mark.parametrize("way", WAYS)
@SLOW
@given(data=st.data())
def test_wrong_values_in_the_config_are_our_errors(way: str, data: st.DataObject) -> None:
    config = json.loads((adapter() / CONFIG).read_text(encoding="utf-8"))
    field = data.draw(st.sampled_from(sorted(config)))
    config = json.loads(data.draw(damage_json(json.dumps({field: config[field]})))) | {
        name: value for name, value in config.items() if name != field
    }
    folder = copy()
    (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with suppress(PruningAdapterError):
        WAYS[way](folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < TOO_MUCH, "kilobytes"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
@SLOW
@given(data=st.data())
def test_broken_files_are_our_errors(way: str, name: str, data: st.DataObject) -> None:
    content, folder = (adapter() / name).read_bytes(), copy()
    (folder / name).write_bytes(data.draw(damage_bytes(content)))
    with suppress(PruningAdapterError):
        WAYS[way](folder)


WRONG: list[dict[str, Any]] = [
    *({"lora_alpha": "x"}, {"lora_alpha": None}, {"lora_alpha": 10**30}, {"lora_dropout": "0"}, {"lora_dropout": 7}),
    *({"bias": "some"}, {"bias": []}, {"modules_to_save": "pooler"}, {"modules_to_save": [3]}, {"label_names": 3}),
    *({"label_names": [1]}, {"init_lora_weights": "nope"}, {"init_lora_weights": []}, {"r": 0}, {"r": "8"}),
    *({"r": True}, {"trainable_token_indices": [-1]}, {"trainable_token_indices": {"a": "b"}}),
    *({"trainable_token_indices": list(range(99))}, {"megatron_config": {}}, {"train_norms": "yes"}, {"pruning": []}),
    *({"ranks": "all"}, {"problem_type": 1}, {"task_type": "NOPE"}, {"peft_type": "NOPE"}, {"peft_type": [1]}),
    *({"layer_replication": [[0, 9]]}, {"target_parameters": "weight"}, {"modules_to_save": ["x["]}),
    *({"trainable_token_indices": {"nope": [1]}}, {"trainable_token_indices": {"word_embeddings": [10**6]}}),
    *({"exclude_modules": "x["}, {"alora_invocation_tokens": True}),
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("fields", WRONG, ids=str)
def test_fields_that_cannot_be_are_refused(way: str, fields: dict[str, Any]) -> None:
    with pytest.raises(PruningAdapterError):
        WAYS[way](change(**fields))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("content", ["[]", "", "[" * 100_000, '{"peft_type": "PRUNE_LORA", "peft_type": "LORA"}'])
def test_what_is_no_config_is_refused(way: str, content: str) -> None:
    folder = copy()
    (folder / CONFIG).write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError):
        WAYS[way](folder)


@pytest.mark.parametrize("way", WAYS)
def test_a_rank_that_the_weights_do_not_have_takes_no_memory(way: str) -> None:
    folder = change(r=2_000_000, lora_alpha=2_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match=r"claims the rank 2000000, and the highest in .* is 8"):
        WAYS[way](folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "kilobytes"


def test_planned_ranks_that_the_weights_do_not_have_take_no_memory() -> None:
    base = make_base()
    plan = make_plan(base, {0: [1]})
    ranks = pa.plan_ranks(pa.measure_importance(base, [make_batch()]), plan, top_blocks=1, high=8, low=4).to_json()
    wide = json.loads(json.dumps(ranks).replace('"ranks": [8', '"ranks": [60000').replace(", 8", ", 60000"))
    with pytest.raises(CheckpointError, match="claims the rank 60000"):
        serve(change(ranks=wide))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("classifier.weight", ()),
        ("classifier.bias", ()),
        ("classifier.bias", (5,)),
        ("classifier.weight", (5, 32)),
        ("classifier.weight", (3, 32, 1)),
        ("classifier.weight", (0, 32)),
    ],
)
def test_heads_that_cannot_be_are_refused(way: str, name: str, shape: tuple[int, ...]) -> None:
    folder = copy()
    save(folder, {**load_file(folder / WEIGHTS), f"base_model.model.{name}": torch.zeros(shape)})
    with pytest.raises(PruningAdapterError):
        WAYS[way](folder)


@pytest.mark.parametrize("way", [*WAYS, "PEFT"])
def test_pickled_weights_are_refused_unread(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copy()
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()
    read = list[Any]()
    monkeypatch.setattr(torch, "load", lambda *args, **_: read.append(args))
    with pytest.raises(CheckpointError, match=r"only adapter_model\.bin, and pickled weights are never read"):
        {**WAYS, "PEFT": lambda path: PeftModel.from_pretrained(make_base(), str(path))}[way](folder)
    assert not read


def weights_of_the_base() -> dict[str, torch.Tensor]:
    """All that no adapter's file holds, changed."""
    whole = PeftModel.from_pretrained(make_base(), str(adapter()))
    return {
        name: tensor + 1
        for name, tensor in whole.state_dict().items()
        if "lora_" not in name and ".modules_to_save." not in name and tensor.is_floating_point()
    }


GROUPS = {
    "one": lambda names: names[:1],
    "blocks": lambda names: [name for name in names if ".encoder." in name],
    "base layers": lambda names: [name for name in names if "base_layer" in name],
    "originals of what trains": lambda names: [name for name in names if "original_module" in name],
    "embeddings": lambda names: [name for name in names if ".embeddings." in name],
    "pooler": lambda names: [name for name in names if ".pooler." in name],
    "all": lambda names: names,
}


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("road", ["from_pretrained", "load_adapter", "set_peft_model_state_dict"])
def test_an_adapter_that_carries_weights_of_the_base_is_refused(group: str, road: str) -> None:
    carried = weights_of_the_base()
    names = GROUPS[group](sorted(carried))
    assert names
    folder = copy()
    save(folder, {**load_file(folder / WEIGHTS), **{name: carried[name] for name in names}})
    base = make_base()
    before = {name: weight.clone() for name, weight in base.state_dict().items()}
    adapted: Any = None if road == "from_pretrained" else PeftModel.from_pretrained(base, str(adapter()))
    roads = {
        "from_pretrained": lambda: PeftModel.from_pretrained(base, str(folder)),
        "load_adapter": lambda: adapted.load_adapter(str(folder), "default"),
        "set_peft_model_state_dict": lambda: set_peft_model_state_dict(adapted, load_file(folder / WEIGHTS)),
    }
    with pytest.raises(AdapterError, match=rf"carries weights of the base itself .*, {len(names)} in all"):
        roads[road]()
    after = base.state_dict()
    for name, weight in before.items():
        # Of pruned matrices there is less now; they are wrapped in layers and in copies that train.
        path, _, leaf = name.rpartition(".")
        inner = [f"{path}.{inner}.{leaf}" for inner in ("base_layer", "original_module")]
        now = next(after[each] for each in (name, *inner) if each in after)
        assert now.shape != weight.shape or torch.equal(now, weight)


def test_an_adapter_cannot_reach_another(tmp_path: Path) -> None:
    """Its file may name what another one trains."""
    adapted: Any = PeftModel.from_pretrained(make_base(), str(adapter()))
    name = next(name for name in adapted.state_dict() if ".modules_to_save.default." in name)
    folder = copy()
    save(folder, {**load_file(folder / WEIGHTS), name: adapted.state_dict()[name] + 1})
    with pytest.raises(AdapterError, match="carries weights of the base itself"):
        adapted.load_adapter(str(folder), "second")


def test_embeddings_of_an_extended_vocabulary_come_along(tmp_path: Path) -> None:
    """PEFT saves them where the vocabulary is another than that of the model's own files."""
    make_base().save_pretrained(tmp_path / "base")

    def load() -> Any:
        base: Any = type(make_base()).from_pretrained(tmp_path / "base")
        base.resize_token_embeddings(VOCABULARY + 2, mean_resizing=False)
        return base

    base = load()
    config = PruneLoraConfig(pruning=make_plan(base, {0: [1]}), task_type="SEQ_CLS")
    adapted: Any = get_peft_model(base, config)
    embeddings = adapted.get_input_embeddings().weight
    embeddings.data.add_(1)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    again: Any = PeftModel.from_pretrained(load(), str(tmp_path / "adapter"))
    assert torch.equal(again.get_input_embeddings().weight, embeddings)


def test_an_adapter_that_is_whole_is_taken_on_every_road() -> None:
    for way in WAYS.values():
        way(copy())
