"""Configs and tokenizers, damaged or made up: one of our errors, in little memory, and no code run or asked for."""

import builtins
import json
import resource
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import pruning_adapter as pa
from conformance import make_plan
from mutate import damage_bytes, damage_json
from pruning_adapter.checkpoint.terms import read_terms
from pruning_adapter.errors import CheckpointError, PruningAdapterError
from pruning_adapter.training.base_model import load_base, load_tokenizer
from tiny import make_model

SLOW = settings(
    max_examples=settings.default.max_examples // 4,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
FOLDER = TemporaryDirectory()
OUT = Path(FOLDER.name) / "out"
TOO_MUCH = 500_000
"""Kilobytes that a test may need beyond what was needed before."""


@cache
def dense() -> tuple[Path, pa.PruningPlan]:
    folder = Path(FOLDER.name) / "dense"
    model: Any = make_model("bert", dtype=torch.float32)
    model.save_pretrained(folder)
    words = {word: number for number, word in enumerate(("[UNK]", "[PAD]", "a", "b"))}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(folder)
    return folder, make_plan(model, {0: [1]}, {1: [0, 2]})


def copy() -> Path:
    source, _ = dense()
    target = Path(FOLDER.name) / "damaged"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    return target


def change(**fields: Any) -> Path:
    folder = copy()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, **fields}), encoding="utf-8")
    return folder


def prune(folder: Path) -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    try:
        pa.prune_checkpoint(folder, dense()[1], OUT)
    except PruningAdapterError:
        assert not OUT.exists()
        raise


WAYS: dict[str, Callable[[Path], object]] = {
    "load": pa.load_pruned,
    "prune on disk": prune,
    "base": lambda folder: load_base(str(folder), label_names=("a", "b"), seed=0),
}


@pytest.mark.parametrize("way", WAYS)
@SLOW
@given(data=st.data())
def test_a_config_with_wrong_values_is_our_error(way: str, data: st.DataObject) -> None:
    text = (dense()[0] / "config.json").read_text(encoding="utf-8")
    folder = copy()
    (folder / "config.json").write_text(data.draw(damage_json(text)), encoding="utf-8")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with suppress(PruningAdapterError):
        WAYS[way](folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < TOO_MUCH, "kilobytes"


@pytest.mark.parametrize("way", WAYS)
@SLOW
@given(data=st.data())
def test_a_broken_config_is_our_error(way: str, data: st.DataObject) -> None:
    content = (dense()[0] / "config.json").read_bytes()
    folder = copy()
    (folder / "config.json").write_bytes(data.draw(damage_bytes(content)))
    with suppress(PruningAdapterError):
        WAYS[way](folder)


WRONG: list[dict[str, Any]] = [
    *({"num_attention_heads": 0}, {"hidden_act": "nope"}, {"vocab_size": -1}, {"hidden_size": 10**12}),
    *({"hidden_size": 1e12}, {"num_hidden_layers": 10**5}, {"num_hidden_layers": 10**12}, {"num_labels": 10**12}),
    *({"vocab_size": 10**9}, {"max_position_embeddings": 10**12}, {"model_type": [1]}, {"architectures": 3}),
    *({"intermediate_size": 10**8}, {"type_vocab_size": 10**9}),
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("fields", WRONG, ids=str)
def test_sizes_that_cannot_be_are_refused_without_the_memory(way: str, fields: dict[str, Any]) -> None:
    folder = change(**fields)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # What the base does not read of its checkpoint it may be wrong about.
    mine = way == "base" and fields.keys() <= {"architectures", "num_labels"}
    with pytest.raises(PruningAdapterError) if not mine else suppress(PruningAdapterError):
        WAYS[way](folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < TOO_MUCH, "kilobytes"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("content", ["[]", "3", "null", "", "{", '{"model_type": "bert", "model_type": "gpt2"}'])
def test_what_is_no_config_is_refused(way: str, content: str) -> None:
    folder = copy()
    (folder / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError):
        WAYS[way](folder)


@pytest.mark.parametrize("way", [*WAYS, "tokenizer"])
def test_code_is_neither_run_nor_asked_for(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal, Transformers asks whether to run the code, and does so after a yes."""
    ran = Path(FOLDER.name) / "ran"
    names = ("Config", "Model", "ModelForSequenceClassification", "Tokenizer")
    folder = change(model_type="unheard-of", auto_map={f"Auto{name}": "evil.It" for name in names})
    settings_path = folder / "tokenizer_config.json"
    said = {"auto_map": {"AutoTokenizer": ["evil.It", None]}, "tokenizer_class": "UnheardOf"}
    settings_path.write_text(json.dumps(said), encoding="utf-8")
    (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w')\n", encoding="utf-8")
    asked = list[str]()
    monkeypatch.setattr(builtins, "input", lambda text="": asked.append(text) or "y")
    with suppress(PruningAdapterError):
        {**WAYS, "tokenizer": lambda path: load_tokenizer(str(path))}[way](folder)
    assert not asked
    assert not ran.exists()


@pytest.mark.parametrize("way", [*WAYS, "tokenizer", "terms"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_link_to_a_device_is_not_read(way: str, name: str) -> None:
    folder = copy()
    (folder / name).unlink()
    (folder / name).symlink_to("/dev/zero")
    ways = {**WAYS, "tokenizer": lambda path: load_tokenizer(str(path))}
    if way == "terms":
        assert read_terms(folder) == {}
        return
    with pytest.raises(CheckpointError, match="is no ordinary file"):
        ways[way](folder)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["../dense/model.safetensors", "/etc/passwd", "a/../../dense/model.safetensors"])
def test_an_index_that_names_files_elsewhere_is_refused(way: str, name: str) -> None:
    folder = copy()
    names = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(CheckpointError, match="which is no safetensors file of that folder"):
        WAYS[way](folder)


@pytest.mark.parametrize("way", WAYS)
def test_an_index_with_a_name_twice_is_refused(way: str) -> None:
    folder = copy()
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    text = '{"weight_map": {"x": "a.safetensors", "x": "a.safetensors"}}'
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match="the key 'x' is there twice"):
        WAYS[way](folder)


@pytest.mark.parametrize("way", WAYS)
def test_an_adapter_beside_a_model_is_refused(way: str) -> None:
    """Transformers would attach it unasked, its weights pickled or not."""
    folder = copy()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}', encoding="utf-8")
    torch.save({}, folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"holds a model and an adapter_config\.json"):
        WAYS[way](folder)


TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


@pytest.mark.parametrize("name", TOKENIZER)
@pytest.mark.parametrize("content", ["[]", "{}", "3", "null", "", "[" * 100_000, '{"a":' * 5000 + "1" + "}" * 5000])
def test_what_is_no_tokenizer_is_our_error(name: str, content: str) -> None:
    folder = copy()
    (folder / name).write_text(content, encoding="utf-8")
    with suppress(PruningAdapterError):
        load_tokenizer(str(folder))


@pytest.mark.parametrize("name", TOKENIZER)
@SLOW
@given(data=st.data())
def test_a_damaged_tokenizer_is_our_error(name: str, data: st.DataObject) -> None:
    content, folder = (dense()[0] / name).read_bytes(), copy()
    damaged = data.draw(st.one_of(damage_bytes(content), damage_json(content.decode()).map(str.encode)))
    (folder / name).write_bytes(damaged)
    with suppress(PruningAdapterError):
        load_tokenizer(str(folder))


def test_the_whole_files_are_read() -> None:
    folder = copy()
    for way in WAYS.values():
        way(folder)
    assert load_tokenizer(str(folder)).get_vocab() == AutoTokenizer.from_pretrained(dense()[0]).get_vocab()


def test_a_users_own_word_still_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code is run where `load_pruned` is told so."""
    folder = change(model_type="unheard-of", auto_map={"AutoConfig": "evil.It"})
    ran = Path(FOLDER.name) / "ran"
    (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w')\n", encoding="utf-8")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(Path(FOLDER.name) / "modules"))
    with pytest.raises(CheckpointError):
        pa.load_pruned(folder, trust_remote_code=True)
    assert ran.exists()
    ran.unlink()
