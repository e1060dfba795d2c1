"""Only what is replaced by its like may go: folders that hold anything else are refused before any work."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import get_peft_model

import pruning_adapter as pa
from conformance import make_plan
from pruning_adapter.checkpoint.replaceable import check_adapter_replaceable, check_replaceable
from pruning_adapter.errors import OutputError
from tiny import make_model

CHAPTER = "years of work"


def write(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(CHAPTER)
    return folder


def make_adapted(rank: int = 2) -> torch.nn.Module:
    base = make_model("bert", dtype=torch.float32)
    plan = make_plan(base, {0: [1]})
    return get_peft_model(base, pa.PruneLoraConfig(pruning=plan, task_type="SEQ_CLS", r=rank))


@pytest.mark.parametrize(
    "names",
    [
        (),
        ("adapter_config.json", "adapter_model.safetensors", "README.md"),
        ("adapter_config.json", "adapter_model.bin"),
        ("adapter_config.json", "adapter_model.safetensors", "vocab.txt", "tokenizer.json", "pruning.png", "x.jinja"),
        ("first/adapter_config.json", "second/adapter_config.json", "README.md"),
        ("adapter_config.json", "second/adapter_config.json", "second/adapter_model.safetensors"),
    ],
    ids=str,
)
def test_what_peft_and_this_library_save_as_an_adapter_may_be_replaced(tmp_path: Path, names: tuple[str, ...]) -> None:
    check_adapter_replaceable(write(tmp_path, *names))
    check_adapter_replaceable(tmp_path / "nowhere")
    (tmp_path / "chapter1.tex").write_text(CHAPTER)
    with pytest.raises(OutputError, match=r"holds 'chapter1\.tex', so it is no saved adapter to replace; name another"):
        check_adapter_replaceable(tmp_path)


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (("notes.txt",), r"notes\.txt"),
        (("config.json", "model.safetensors"), r"model\.safetensors"),
        (("adapter_config.json", "model.safetensors"), r"model\.safetensors"),
        (("adapter_config.json", "optimizer.pt"), r"optimizer\.pt"),
        (("adapter_config.json", "photos/cat.jpg"), "photos"),
        (("adapter_config.json", "second/adapter_config.json", "second/cat.jpg"), r"second.cat\.jpg"),
        (("adapter_config.json", "vocab.txt/cat.jpg"), r"vocab\.txt"),
    ],
    ids=str,
)
def test_what_is_no_adapter_stays(tmp_path: Path, names: tuple[str, ...], shown: str) -> None:
    with pytest.raises(OutputError, match=rf"holds '{shown}', so it is no saved adapter"):
        check_adapter_replaceable(write(tmp_path, *names))


def test_a_folder_within_a_saved_model_stays(tmp_path: Path) -> None:
    check_replaceable(write(tmp_path, "config.json", "model.safetensors", "vocab.txt"))
    write(tmp_path, "more.json/thesis.odt")
    with pytest.raises(OutputError, match=r"holds 'more\.json', so it is no saved model"):
        check_replaceable(tmp_path)


@pytest.mark.parametrize("check", [check_replaceable, check_adapter_replaceable])
def test_a_file_is_no_folder(tmp_path: Path, check: Callable[[Path], None]) -> None:
    with pytest.raises(OutputError, match="is a file; name a folder"):
        check(write(tmp_path, "file") / "file")


def test_an_adapter_is_saved_over_an_adapter_and_over_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    for rank in (2, 3):
        pa.save_adapter(make_adapted(rank), folder)
        assert pa.PruneLoraConfig.from_pretrained(folder).r == rank
    write(folder, "chapter1.tex")
    with pytest.raises(OutputError, match=r"holds 'chapter1\.tex', so it is no saved adapter to replace"):
        pa.save_adapter(make_adapted(), folder)
    assert (folder / "chapter1.tex").read_text() == CHAPTER
    assert pa.PruneLoraConfig.from_pretrained(folder).r == 3


def test_a_checkpoint_is_pruned_over_a_model_and_over_nothing_else(tmp_path: Path) -> None:
    model, out = make_model("bert", dtype=torch.float32), tmp_path / "out"
    model.save_pretrained(tmp_path / "dense")
    for heads in ({0: [1]}, {0: [1, 2]}):
        plan = make_plan(model, heads)
        pa.prune_checkpoint(tmp_path / "dense", plan, out)
        assert pa.load_pruned(out).config.pruning["kept_heads"][0] == list(plan.kept_heads[0])
    write(out, "chapter1.tex")
    # Nothing is read for what may not be written.
    with pytest.raises(OutputError, match=r"holds 'chapter1\.tex', so it is no saved model to replace"):
        pa.prune_checkpoint(tmp_path / "nowhere", plan, out)
    assert (out / "chapter1.tex").read_text() == CHAPTER
