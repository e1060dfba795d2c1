"""What was saved is what another process loads, bit for bit, for every family."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import pruning_adapter as pa
from conformance import logits, make_case, one_thread
from tiny import FAMILIES, make_batch, make_model

PROGRAM = """
import json, sys
from pathlib import Path
import torch, transformers
import pruning_adapter as pa
from safetensors.torch import load_file, save_file
torch.set_num_threads(1)
folder, plain = Path(sys.argv[1]), sys.argv[2] == "True"
for family, name in json.loads((folder / "classes.json").read_text()).items():
    batch = load_file(folder / family / "batch.safetensors")
    load = getattr(transformers, name).from_pretrained if plain else pa.load_pruned
    model = load(folder / family / "model", attn_implementation="eager").eval()
    with torch.no_grad():
        found = {"logits": model(**batch).logits}
    found |= {"weight." + name: weight for name, weight in model.named_parameters()}
    save_file({name: value.clone() for name, value in found.items()}, folder / family / "found.safetensors")
"""


@pytest.mark.parametrize("plain", [False, True], ids=["load_pruned", "from_pretrained"])
def test_another_process_finds_what_was_saved(plain: bool, tmp_path: Path) -> None:
    """Plain `from_pretrained` leaves weights where they lie in the file; products may round otherwise."""
    expected = dict[str, dict[str, torch.Tensor]]()
    with one_thread():
        for family, tiny in FAMILIES.items():
            model, batch = make_model(family), make_batch(tiny.task)
            pa.prune_(model, make_case(model, "empty blocks"))
            weights = {f"weight.{name}": weight for name, weight in model.named_parameters()}
            expected[family] = {"logits": logits(model, batch), **weights}
            pa.save_pruned(model, tmp_path / family / "model")
            batch = {name: value.contiguous() for name, value in batch.items()}
            save_file(batch, tmp_path / family / "batch.safetensors")
    classes = {family: tiny.model for family, tiny in FAMILIES.items()}
    (tmp_path / "classes.json").write_text(json.dumps(classes), encoding="utf-8")
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), str(plain)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    for family, saved in expected.items():
        found = load_file(tmp_path / family / "found.safetensors")
        assert set(found) == set(saved)
        for name, value in saved.items():
            tolerance = 1e-12 if plain and name == "logits" else 0
            torch.testing.assert_close(found[name], value, rtol=0, atol=tolerance, msg=f"{family}: {name}")
