"""Checkpoints and adapters, damaged or made up: one of our errors, no code run, nothing written, little memory."""

import json
import resource
import shutil
import struct
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

import pruning_adapter as pa
from conformance import make_case, make_plan
from mutate import damage_bytes, damage_json
from pruning_adapter.adapter.config import PruneLoraConfig
from pruning_adapter.errors import AdapterError, CheckpointError, PlanError, PruningAdapterError
from tiny import make_batch, make_model

SLOW = settings(
    max_examples=settings.default.max_examples // 4,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
FOLDER = TemporaryDirectory()


@cache
def saved() -> Path:
    """A pruned model."""
    folder = Path(FOLDER.name) / "saved"
    model = make_model("bert", dtype=torch.float32)
    pa.save_pruned(pa.prune_(model, make_case(model, "heads and neurons")), folder)
    return folder


@cache
def dense() -> tuple[Path, pa.PruningPlan]:
    """A dense checkpoint of several files, and a plan for it."""
    folder = Path(FOLDER.name) / "dense"
    model: Any = make_model("bert", dtype=torch.float32)
    model.save_pretrained(folder, max_shard_size="20KB")
    assert (folder / "model.safetensors.index.json").exists()
    return folder, make_plan(model, {0: [1]}, {1: [0, 2]})


@cache
def adapter() -> Path:
    folder = Path(FOLDER.name) / "adapter"
    base = make_model("bert", dtype=torch.float32)
    config = pa.PruneLoraConfig(pruning=make_plan(base, {0: [1]}), task_type="SEQ_CLS")
    get_peft_model(base, config).save_pretrained(str(folder), save_embedding_layers=False)
    return folder


def copy_with(source: Path, name: str, content: bytes) -> Path:
    target = Path(FOLDER.name) / "damaged"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    (target / name).write_bytes(content)
    return target


def everything() -> dict[str, bytes]:
    """All files, but those that a test damages itself."""
    root = Path(FOLDER.name)
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file() and "damaged" not in str(path)}


def load(folder: Path) -> None:
    before = everything()
    with suppress(PruningAdapterError):
        pa.load_pruned(folder)(**make_batch())
    assert everything() == before


@SLOW
@given(data=st.data())
def test_a_damaged_config_is_our_error(data: st.DataObject) -> None:
    config = json.loads((saved() / "config.json").read_text(encoding="utf-8"))
    # What Transformers makes of its own fields is its business.
    config["pruning"] = json.loads(data.draw(damage_json(json.dumps(config["pruning"]))))
    load(copy_with(saved(), "config.json", json.dumps(config).encode()))


@SLOW
@given(data=st.data())
def test_a_damaged_file_of_weights_is_our_error(data: st.DataObject) -> None:
    content = (saved() / "model.safetensors").read_bytes()
    length = 8 + struct.unpack("<Q", content[:8])[0]
    header = data.draw(damage_bytes(content[:length]))
    load(copy_with(saved(), "model.safetensors", header + content[length:]))


@pytest.mark.parametrize(
    "length", [2**63, 2**40, 100_000_001], ids=["eight exabytes", "a terabyte", "over the format's limit"]
)
def test_a_header_that_claims_to_be_huge_is_refused_without_the_memory(length: int) -> None:
    content = (saved() / "model.safetensors").read_bytes()
    folder = copy_with(saved(), "model.safetensors", struct.pack("<Q", length) + content[8:])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match="Cannot load a model from"):
        pa.load_pruned(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "kilobytes"


def test_lengths_in_the_wrong_byte_order_are_refused() -> None:
    content = (saved() / "model.safetensors").read_bytes()
    folder = copy_with(saved(), "model.safetensors", content[:8][::-1] + content[8:])
    with pytest.raises(CheckpointError, match="Cannot load a model from"):
        pa.load_pruned(folder)


def test_weights_of_another_shape_are_refused() -> None:
    tensors = load_file(saved() / "model.safetensors")
    name = next(name for name in tensors if name.endswith("query.weight"))
    folder = copy_with(saved(), "unused", b"")
    save_file(
        {**tensors, name: tensors[name][1:].contiguous()}, folder / "model.safetensors", metadata={"format": "pt"}
    )
    with pytest.raises(CheckpointError):
        pa.load_pruned(folder)


def test_code_beside_a_checkpoint_is_not_run() -> None:
    ran = Path(FOLDER.name) / "ran"
    config = json.loads((saved() / "config.json").read_text(encoding="utf-8"))
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForSequenceClassification": "evil.Model"}
    config["model_type"] = "unheard-of"
    folder = copy_with(saved(), "config.json", json.dumps(config).encode())
    (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w')\n", encoding="utf-8")
    with pytest.raises(CheckpointError):
        pa.load_pruned(folder)
    assert not ran.exists()


def test_pickled_weights_are_not_read() -> None:
    folder = copy_with(saved(), "unused", b"")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError):
        pa.load_pruned(folder)


@pytest.mark.parametrize("name", ["../saved/model.safetensors", "/etc/passwd", "a/../../saved/model.safetensors"])
@pytest.mark.parametrize("how", ["load", "prune on disk"])
def test_an_index_that_names_files_elsewhere_is_refused(name: str, how: str) -> None:
    saved()
    source, plan = dense()
    index = json.loads((source / "model.safetensors.index.json").read_text(encoding="utf-8"))
    index["weight_map"][next(iter(index["weight_map"]))] = name
    folder = copy_with(source, "model.safetensors.index.json", json.dumps(index).encode())
    out = Path(FOLDER.name) / "out"
    with pytest.raises(CheckpointError, match="which is no safetensors file of that folder"):
        pa.load_pruned(folder) if how == "load" else pa.prune_checkpoint(folder, plan, out)
    assert not out.exists()


@SLOW
@given(data=st.data())
def test_a_damaged_checkpoint_is_not_pruned_on_disk(data: st.DataObject) -> None:
    source, plan = dense()
    name = data.draw(st.sampled_from(sorted(path.name for path in source.iterdir() if path.name != "config.json")))
    content = data.draw(damage_bytes((source / name).read_bytes()))
    out, before = Path(FOLDER.name) / "damaged-out", everything()
    shutil.rmtree(out, ignore_errors=True)
    try:
        pa.prune_checkpoint(copy_with(source, name, content), plan, out)
    except PruningAdapterError:
        assert not out.exists()
    assert everything() == before


@SLOW
@given(data=st.data())
def test_damaged_plans_in_an_adapter_are_our_errors(data: st.DataObject) -> None:
    config = json.loads((adapter() / "adapter_config.json").read_text(encoding="utf-8"))
    field = data.draw(st.sampled_from(["pruning", "ranks"]))
    text = json.dumps(config["pruning"])
    fields = {name: config[name] for name in ("pruning", "ranks", "base_fingerprint", "allow_other_weights")}
    fields[field] = json.loads(data.draw(damage_json(text)))
    base = make_model("bert", dtype=torch.float32)
    try:
        get_peft_model(base, PruneLoraConfig(task_type="SEQ_CLS", **fields))
    except PruningAdapterError:
        return
    base(**make_batch())


@pytest.mark.parametrize("count", [1, 5])
def test_an_adapter_that_carries_weights_of_the_blocks_is_refused(count: int) -> None:
    tensors = load_file(adapter() / "adapter_model.safetensors")
    fresh = make_model("bert", dtype=torch.float32)
    PeftModel.from_pretrained(fresh, str(adapter()))
    names = [name for name, _ in fresh.named_parameters() if name.endswith("intermediate.dense.weight")]
    names += [name for name, _ in fresh.named_parameters() if name.endswith("base_layer.bias")]
    carried = {f"base_model.model.{name}": fresh.get_parameter(name).detach() + 1 for name in names[-count:]}
    folder = copy_with(adapter(), "unused", b"")
    save_file({**tensors, **carried}, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    base = make_model("bert", dtype=torch.float32)
    with pytest.raises(AdapterError, match=rf"carries weights of the base itself .*, {count} in all"):
        PeftModel.from_pretrained(base, str(folder))


def test_biases_that_an_adapter_trains_are_its_own(tmp_path: Path) -> None:
    base = make_model("bert", dtype=torch.float32)
    config = pa.PruneLoraConfig(pruning=make_plan(base, {0: [1]}), task_type="SEQ_CLS", bias="all")
    adapted: Any = get_peft_model(base, config)
    name, bias = next(
        (name, bias) for name, bias in adapted.named_parameters() if name.endswith("intermediate.dense.bias")
    )
    bias.data.add_(1)
    adapted.save_pretrained(str(tmp_path), save_embedding_layers=False)
    again = PeftModel.from_pretrained(make_model("bert", dtype=torch.float32), str(tmp_path))
    assert torch.equal(again.get_parameter(name), bias)


def test_a_state_of_the_whole_model_still_loads() -> None:
    first, second = (PeftModel.from_pretrained(make_model("bert"), str(adapter())) for _ in range(2))
    second.load_state_dict(first.state_dict())


def test_an_adapter_of_another_model_is_refused() -> None:
    with pytest.raises((AdapterError, PlanError)):
        PeftModel.from_pretrained(make_model("bert", num_hidden_layers=2), str(adapter()))
