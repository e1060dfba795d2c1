"""A pruned model as ONNX gives torch's logits at any batch size and length, also with 8-bit weights nearly so."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model

import pruning_adapter as pa
from conformance import logits, make_case
from pruning_adapter.checkpoint import onnx_export
from pruning_adapter.checkpoint.onnx_export import export_onnx, open_onnx, quantize_onnx
from pruning_adapter.errors import CheckpointError, OutputError
from tiny import make_batch, make_model, randomize_

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def pruned(family: str, case: str, **options: Any) -> Any:
    model = make_model(family, dtype=torch.float32, attention="sdpa", **options)
    return pa.prune_(model, make_case(model, case))


def make_inputs(batch: int, length: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 50, (batch, length), generator=torch.Generator().manual_seed(length))
    mask = torch.ones_like(ids)
    mask[-1, length // 2 + 1 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("family", ["bert", "distilbert"])
@pytest.mark.parametrize("case", ["heads and neurons", "empty blocks"])
def test_any_batch_size_and_length_gives_torchs_logits(family: str, case: str, tmp_path: Path) -> None:
    model = pruned(family, case)
    difference = export_onnx(model, tmp_path / "model.onnx")
    assert difference <= 1e-4
    for batch, length in ((1, 1), (5, 31)):
        inputs = make_inputs(batch, length)
        torch.testing.assert_close(open_onnx(tmp_path / "model.onnx")(inputs), logits(model, inputs), rtol=0, atol=1e-4)
    quantize_onnx(tmp_path / "model.onnx", tmp_path / "small.onnx")
    inputs = make_inputs(4, 9)
    small, whole = open_onnx(tmp_path / "small.onnx", threads=1)(inputs), logits(model, inputs)
    assert (small - whole).norm() < 0.2 * whole.norm()
    assert (tmp_path / "small.onnx").stat().st_size < (tmp_path / "model.onnx").stat().st_size


def test_pairs_of_texts_are_told_apart(tmp_path: Path) -> None:
    model = pruned("bert", "heads and neurons")
    export_onnx(model, tmp_path / "model.onnx")
    inputs = make_inputs(3, 10)
    types = inputs | {"token_type_ids": (torch.arange(10) >= 4).long().expand(3, -1).contiguous()}
    run = open_onnx(tmp_path / "model.onnx")
    torch.testing.assert_close(run(types), logits(model, types), rtol=0, atol=1e-4)
    torch.testing.assert_close(run(inputs), logits(model, inputs), rtol=0, atol=1e-4)
    assert not torch.allclose(run(types), run(inputs), atol=1e-3)


def test_inputs_that_the_model_does_not_read_are_left_out(tmp_path: Path) -> None:
    model = pruned("distilbert", "heads")
    export_onnx(model, tmp_path / "model.onnx")
    inputs = make_inputs(2, 6)
    more = inputs | {"token_type_ids": torch.zeros_like(inputs["input_ids"])}
    torch.testing.assert_close(open_onnx(tmp_path / "model.onnx")(more), logits(model, inputs), rtol=0, atol=1e-4)


def test_adapters_are_merged_in_a_copy(tmp_path: Path) -> None:
    base = make_model("bert", dtype=torch.float32, attention="sdpa")
    plan = make_case(base, "heads")
    model: Any = get_peft_model(base, pa.PruneLoraConfig(pruning=plan, r=2, task_type="SEQ_CLS")).eval()
    randomize_(model, only_trainable=True)
    inputs = make_inputs(2, 6)
    before = logits(model, inputs)
    export_onnx(model, tmp_path / "model.onnx")
    assert torch.equal(logits(model, inputs), before)
    torch.testing.assert_close(open_onnx(tmp_path / "model.onnx")(inputs), before, rtol=0, atol=1e-4)


def test_images_have_a_dynamic_batch(tmp_path: Path) -> None:
    model = pruned("vit", "heads and neurons")
    export_onnx(model, tmp_path / "model.onnx")
    inputs = {"pixel_values": make_batch("image", size=5)["pixel_values"].float()}
    torch.testing.assert_close(open_onnx(tmp_path / "model.onnx")(inputs), logits(model, inputs), rtol=0, atol=1e-4)


def test_a_model_in_another_type_is_widened_in_a_copy(tmp_path: Path) -> None:
    model = pruned("bert", "heads").bfloat16()
    export_onnx(model, tmp_path / "model.onnx")
    assert next(model.parameters()).dtype == torch.bfloat16


def test_what_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.onnx").write_text("old")
    monkeypatch.setattr(onnx_export, "TOLERANCE", -1.0)
    with pytest.raises(OutputError, match=r"logits of the exported model differ by .*; not written"):
        export_onnx(pruned("bert", "heads"), tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_what_cannot_be_exported_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputError, match="An encoder-decoder is generated with"):
        export_onnx(make_model("t5"), tmp_path / "model.onnx")
    monkeypatch.setattr(onnx_export, "LARGEST", 10)
    with pytest.raises(OutputError, match="most that one ONNX file can hold"):
        export_onnx(make_model("bert"), tmp_path / "model.onnx")
    (tmp_path / "broken.onnx").write_text("{")
    with pytest.raises(CheckpointError, match=r"Cannot read the ONNX model .*broken\.onnx"):
        quantize_onnx(tmp_path / "broken.onnx", tmp_path / "small.onnx")
    monkeypatch.setattr(onnx_export, "NEEDED", ("no_such_package",))
    with pytest.raises(OutputError, match=r"no_such_package is missing: pip install 'pruning-adapter\[onnx\]'"):
        export_onnx(make_model("bert"), tmp_path / "model.onnx")
