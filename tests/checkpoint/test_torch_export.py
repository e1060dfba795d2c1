"""A pruned model as a program of torch.export: eager torch's logits at any batch size and length, and no pickle."""

import json
import zipfile
from pathlib import Path

import pytest
import torch

import pruning_adapter as pa
from conformance import logits, make_case
from pruning_adapter.checkpoint import torch_export
from pruning_adapter.checkpoint.torch_export import export_program
from pruning_adapter.errors import OutputError
from tiny import make_batch, make_model


def pruned(family: str, case: str, attention: str = "sdpa") -> torch.nn.Module:
    model = make_model(family, dtype=torch.float32, attention=attention)
    return pa.prune_(model, make_case(model, case))


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_any_batch_size_and_length_gives_torchs_logits(family: str, tmp_path: Path) -> None:
    model = pruned(family, "empty blocks")
    assert export_program(model, tmp_path / "model.pt2") <= 1e-4
    run = torch.export.load(tmp_path / "model.pt2").module()
    for batch, length in ((1, 1), (5, 31)):
        ids = torch.randint(3, 50, (batch, length), generator=torch.Generator().manual_seed(length))
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        types = {"token_type_ids": torch.zeros_like(ids)} if family == "bert" else {}
        torch.testing.assert_close(run(*inputs.values(), *types.values()), logits(model, inputs), rtol=0, atol=1e-5)


def test_images_have_a_dynamic_batch(tmp_path: Path) -> None:
    model = pruned("vit", "heads and neurons")
    export_program(model, tmp_path / "model.pt2")
    images = make_batch("image", size=5)["pixel_values"].float()
    found = torch.export.load(tmp_path / "model.pt2").module()(images)
    torch.testing.assert_close(found, logits(model, {"pixel_values": images}), rtol=0, atol=1e-5)


def test_the_file_holds_no_pickle(tmp_path: Path) -> None:
    """Weights are raw bytes; the example inputs, which torch would pickle, are left out."""
    export_program(pruned("distilbert", "heads"), tmp_path / "model.pt2")
    with zipfile.ZipFile(tmp_path / "model.pt2") as archive:
        names = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    assert names["data/sample_inputs/model.pt"] == b""
    configs = [json.loads(text)["config"] for name, text in names.items() if name.endswith("_config.json")]
    payloads = [payload for config in configs for payload in config.values()]
    assert len(payloads) > 30
    assert not any(payload["use_pickle"] for payload in payloads)


def test_what_cannot_be_exported_is_refused_and_the_old_file_survives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.pt2"
    path.write_text("old")
    with pytest.raises(OutputError, match="An encoder-decoder is generated with"):
        export_program(make_model("t5"), path)
    with pytest.raises(OutputError, match=r'does not end in "\.pt2"'):
        export_program(make_model("bert"), tmp_path / "model.onnx")
    monkeypatch.setattr(torch_export, "TOLERANCE", -1.0)
    with pytest.raises(OutputError, match=r"logits of the exported model differ by .*; not written"):
        export_program(pruned("distilbert", "heads"), path)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt2"]
