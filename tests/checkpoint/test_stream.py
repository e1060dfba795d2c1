"""Pruning a checkpoint on disk: in little memory, and refusing what is no such checkpoint. Exactness is in the laws."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import pruning_adapter as pa
from conformance import logits, make_plan
from pruning_adapter.errors import CheckpointError, PlanError
from tiny import make_batch, make_model

MEGABYTE = 2**20


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    make_model("bert", dtype=torch.float32).save_pretrained(tmp_path / "dense")
    return tmp_path / "dense"


def plan_for(folder: Path) -> pa.PruningPlan:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    return make_plan(model, {0: [1], 1: [0, 2]}, {2: [3, 5, 7]})


MEASURE = """
import sys
import torch
from transformers import LlamaForCausalLM
import pruning_adapter as pa
from pruning_adapter.checkpoint import stream
torch.set_num_threads(1)
plan, dense, out, shard = pa.PruningPlan.load(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
def peak():
    # The most that this process ever had, pages of mapped files among it.
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
before = peak()
pa.prune_checkpoint(dense, plan, out, shard_bytes=shard)
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks the system by /proc")
def test_a_checkpoint_many_times_larger_than_the_memory_it_takes(tmp_path: Path) -> None:
    """700 MB in files of 24 MB, written in files of 24 MB."""
    config = transformers.LlamaConfig(
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=16,
        num_attention_heads=16,
        num_key_value_heads=8,
        vocab_size=1000,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "dense", max_shard_size="24MB")
    size = sum(file.stat().st_size for file in (tmp_path / "dense").glob("*.safetensors"))
    plan = make_plan(
        model, {block: [0, 1, 6, 7] for block in range(16)}, {block: list(range(0, 2816, 2)) for block in range(16)}
    )
    plan.save(tmp_path / "plan.json")
    del model
    command = [sys.executable, "-W", "ignore", "-c", MEASURE, tmp_path / "plan.json", tmp_path / "dense"]
    found = subprocess.run(
        [*map(str, command), str(tmp_path / "out"), str(24 * 10**6)], capture_output=True, text=True, check=True
    )
    took = int(found.stdout)
    assert size > 700 * 10**6
    # One file read, one to be written and its copy while it is, one tensor, and what the last of them were.
    assert took < 5 * 24 * 10**6, f"{took / MEGABYTE:.0f} MiB for {size / MEGABYTE:.0f} MiB"
    written = [file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors")]
    assert len(written) > 10
    assert max(written) < 25 * 10**6


def test_names_of_old_checkpoints_are_todays_in_the_result(dense: Path, tmp_path: Path) -> None:
    """Norms were once called gamma and beta; from_pretrained knows, and so does this."""
    plan, file = plan_for(dense), dense / "model.safetensors"
    expected = pa.prune_(transformers.AutoModelForSequenceClassification.from_pretrained(dense), plan)
    tensors = load_file(file)
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in tensors.items()
    }
    save_file(old, file, metadata={"format": "pt"})
    pa.prune_checkpoint(dense, plan, tmp_path / "out")
    found, batch = pa.load_pruned(tmp_path / "out"), make_batch()
    assert torch.equal(logits(found.eval(), batch), logits(expected.eval(), batch))
    assert not [name for name in load_file(tmp_path / "out" / "model.safetensors") if "gamma" in name]


def test_the_type_of_the_weights_and_the_other_files_stay(dense: Path, tmp_path: Path) -> None:
    plan = plan_for(dense)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(dense, dtype=torch.bfloat16)
    model.save_pretrained(dense)
    (dense / "vocab.txt").write_text("word\n")
    (dense / "training_args.bin").write_bytes(b"a pickle")
    pa.prune_checkpoint(dense, plan, tmp_path / "out")
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
    assert (tmp_path / "out" / "vocab.txt").read_text() == "word\n"
    assert not (tmp_path / "out" / "training_args.bin").exists()


def test_other_weights_are_refused_and_leave_nothing(dense: Path, tmp_path: Path) -> None:
    plan, file = plan_for(dense), dense / "model.safetensors"
    tensors = load_file(file)
    save_file({name: -tensor for name, tensor in tensors.items()}, file, metadata={"format": "pt"})
    with pytest.raises(PlanError, match="with other weights"):
        pa.prune_checkpoint(dense, plan, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense"]
    pa.prune_checkpoint(dense, plan, tmp_path / "out", allow_other_weights=True)
    assert pa.load_pruned(tmp_path / "out")


def test_what_is_no_dense_checkpoint_is_one_clear_error(dense: Path, tmp_path: Path) -> None:
    plan = plan_for(dense)
    pa.prune_checkpoint(dense, plan, tmp_path / "out")
    with pytest.raises(CheckpointError, match="is pruned already"):
        pa.prune_checkpoint(tmp_path / "out", plan, tmp_path / "again")
    with pytest.raises(CheckpointError, match="is no folder here, and no hub id either"):
        pa.prune_checkpoint(tmp_path / "nowhere", plan, tmp_path / "again")
    empty = shutil.copytree(dense, tmp_path / "empty")
    (empty / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has neither model\.safetensors nor"):
        pa.prune_checkpoint(empty, plan, tmp_path / "again")
    broken = shutil.copytree(dense, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes((dense / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="is damaged"):
        pa.prune_checkpoint(broken, plan, tmp_path / "again")
    lacking = shutil.copytree(dense, tmp_path / "lacking")
    tensors = load_file(dense / "model.safetensors")
    tensors.pop("bert.encoder.layer.1.attention.self.key.weight")
    save_file(tensors, lacking / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"has no weight 'bert\.encoder\.layer\.1\.attention\.self\.key\.weight'"):
        pa.prune_checkpoint(lacking, plan, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_an_index_that_points_out_of_its_folder_is_refused(dense: Path, tmp_path: Path) -> None:
    plan = plan_for(dense)
    names = list(load_file(dense / "model.safetensors"))
    (dense / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "../elsewhere.safetensors")}
    (dense / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"names '\.\./elsewhere\.safetensors', which is no safetensors file"):
        pa.prune_checkpoint(dense, plan, tmp_path / "out")


def test_a_plan_with_a_reconstruction_is_refused(dense: Path, tmp_path: Path) -> None:
    plan = replace(plan_for(dense), reconstruct="lstsq")
    with pytest.raises(PlanError, match="which needs the model and examples"):
        pa.prune_checkpoint(dense, plan, tmp_path / "out")
