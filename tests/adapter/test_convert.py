"""Slicing and lifting are exact, in memory and from files, or refused: no option of LoRA is lost on the way."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

import pruning_adapter as pa
from conformance import logits, make_case, make_plan
from pruning_adapter.architectures.identity import count_parameters
from pruning_adapter.errors import AdapterError
from tiny import FAMILIES, make_batch, make_model, randomize_

CLOSE = {"rtol": 0, "atol": 1e-10}
TARGETS: dict[str, list[str]] = {"bert": ["query", "value"], "gpt2": ["c_attn"], "llama": ["q_proj", "o_proj"]}


def tied(family: str, *, dtype: torch.dtype = torch.float64) -> Any:
    """Language models whose words going in and coming out share their weights."""
    return make_model(family, dtype=dtype, **({} if family == "bert" else {"tie_word_embeddings": True}))


def dtype_for(options: dict[str, Any]) -> torch.dtype:
    """PEFT takes weights apart in single precision only."""
    return torch.float32 if options.get("init_lora_weights") in ("pissa", "olora") else torch.float64


def plain(family: str = "bert", **options: Any) -> Any:
    task = {"task_type": "SEQ_CLS"} if family == "bert" else {"task_type": "CAUSAL_LM"}
    chosen: dict[str, Any] = {"r": 3, "lora_alpha": 6, "target_modules": TARGETS[family], **task, **options}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = get_peft_model(tied(family, dtype=dtype_for(options)), LoraConfig(**chosen)).eval()
        randomize_(model, only_trainable=True)
    return model


def ours(family: str = "bert", **options: Any) -> Any:
    base = tied(family, dtype=dtype_for(options))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = pa.PruneLoraConfig(pruning=make_case(base, "heads and neurons"), r=3, **options)
        model = get_peft_model(base, config).eval()
        randomize_(model, only_trainable=True)
    return model


def assert_sliced_exactly(model: Any, family: str, folder: Path) -> None:
    batch = make_batch(FAMILIES[family].task)
    sliced = pa.slice_adapter(model, make_case(tied(family), "heads and neurons"))
    found = logits(sliced, batch)
    sliced.save_pretrained(folder, save_embedding_layers=False)
    again = PeftModel.from_pretrained(tied(family), folder).eval()
    torch.testing.assert_close(logits(again, batch), found, **CLOSE)
    merged = model.merge_and_unload()
    pa.prune_(merged, make_case(merged, "heads and neurons"))
    torch.testing.assert_close(found, logits(merged, batch), **CLOSE)


EXACT: dict[str, tuple[str, dict[str, Any]]] = {
    "rslora": ("bert", {"use_rslora": True}),
    "ranks by block": ("bert", {"rank_pattern": {r"layer\.1\..*": 2}, "alpha_pattern": {r"layer\.1\..*": 4}}),
    "some blocks": ("bert", {"layers_to_transform": [0, 2]}),
    "one block less": ("bert", {"exclude_modules": r".*layer\.1\..*"}),
    "a pooler": ("bert", {"modules_to_save": ["pooler"]}),
    "embeddings": ("bert", {"modules_to_save": ["word_embeddings"]}),
    "some tokens": ("bert", {"trainable_token_indices": [2, 5, 7]}),
    "some tokens of a fused family": ("gpt2", {"trainable_token_indices": [2, 5, 7]}),
    "some tokens, named": ("llama", {"trainable_token_indices": {"embed_tokens": [4, 6]}}),
    "another start": ("bert", {"init_lora_weights": "gaussian"}),
}


@pytest.mark.parametrize(("family", "options"), EXACT.values(), ids=EXACT)
def test_what_can_be_sliced_is_sliced_exactly(family: str, options: dict[str, Any], tmp_path: Path) -> None:
    assert_sliced_exactly(plain(family, **options), family, tmp_path)


def test_what_was_loaded_to_look_at_is_sliced_as_what_trains(tmp_path: Path) -> None:
    """No weight of an adapter that was loaded for inference requires a gradient."""
    plain(trainable_token_indices=[2, 5], modules_to_save=["pooler"]).save_pretrained(tmp_path / "whole")
    loaded = PeftModel.from_pretrained(tied("bert"), tmp_path / "whole").eval()
    assert not any(weight.requires_grad for weight in loaded.parameters())
    assert_sliced_exactly(loaded, "bert", tmp_path / "sliced")


@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize(
    "options",
    [{}, {"use_rslora": True}, {"trainable_token_indices": [2, 5, 7]}, {"train_norms": False}],
    ids=["lora", "rslora", "some tokens", "no norms"],
)
def test_what_can_be_lifted_gives_itself_when_it_is_sliced_again(
    family: str, options: dict[str, Any], tmp_path: Path
) -> None:
    model, batch = ours(family, **options), make_batch(FAMILIES[family].task)
    lifted = pa.lift_adapter(model, tied(family))
    lifted.save_pretrained(tmp_path, save_embedding_layers=False)
    for each in (lifted, PeftModel.from_pretrained(tied(family), tmp_path).eval()):
        back = pa.slice_adapter(each, make_case(tied(family), "heads and neurons"))
        torch.testing.assert_close(logits(back, batch), logits(model, batch), **CLOSE)


def merged_in(**options: Any) -> Any:
    model = plain(**options)
    model.merge_adapter()
    return model


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "biases": ({"bias": "all"}, "bias='all'"),
    "lora's biases": ({"bias": "lora_only"}, "bias='lora_only'"),
    "dora": ({"use_dora": True}, "use_dora=True"),
    "a bias of its own": ({"lora_bias": True}, "lora_bias=True"),
    "pissa": ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
    "olora": ({"init_lora_weights": "olora"}, "init_lora_weights='olora'"),
    "parameters": ({"target_modules": [], "target_parameters": ["query.weight"]}, r"target_parameters=\['query.weight"),
    "an activated one": ({"alora_invocation_tokens": [5, 6]}, "alora_invocation_tokens"),
    "more layers": ({"layer_replication": [(0, 2), (1, 3)]}, "layer_replication"),
    "a whole projection": ({"target_modules": ["value"], "modules_to_save": ["query"]}, "attention.self.query was"),
    "a whole attention": ({"target_modules": ["query"], "modules_to_save": ["intermediate"]}, "intermediate was"),
    "a whole block": ({"target_modules": r".*layer\.0.*query", "modules_to_save": ["layer.1"]}, "layer.1 was trained"),
    "an embedding": ({"target_modules": ["query", "word_embeddings"]}, "an embedding with LoRA"),
    "two ranks": ({"rank_pattern": {"query": 2}, "alpha_pattern": {"query": 4}}, r"ranks \[2, 3\]"),
    "two scalings": ({"alpha_pattern": {"query": 9}}, "scalings"),
}


@pytest.mark.parametrize(("options", "said"), REFUSED.values(), ids=REFUSED)
def test_what_would_be_lost_when_slicing_is_refused(options: dict[str, Any], said: str) -> None:
    model = plain(**options)
    # Of the base as it is, which some of them changed.
    with pytest.raises(AdapterError, match=said):
        pa.slice_adapter(model, make_plan(tied("bert"), {0: [1], 1: [2]}), allow_other_weights=True)


def test_a_merged_adapter_is_not_added_twice() -> None:
    with pytest.raises(AdapterError, match="unmerge_adapter"):
        pa.slice_adapter(merged_in(), make_case(tied("bert"), "heads and neurons"), allow_other_weights=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"bias": "all"}, "bias='all'"),
        ({"bias": "lora_only"}, "bias='lora_only'"),
        ({"use_dora": True}, "use_dora=True"),
        ({"lora_bias": True}, "lora_bias=True"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"modules_to_save": ["intermediate"], "train_norms": False}, "intermediate was trained as a whole"),
    ],
    ids=["biases", "lora's biases", "dora", "a bias of its own", "pissa", "a whole feed-forward"],
)
def test_what_would_be_lost_when_lifting_is_refused_before_the_base_is_wrapped(
    options: dict[str, Any], said: str
) -> None:
    model, dense = ours(**options), tied("bert")
    before = {name: weight.clone() for name, weight in dense.state_dict().items()}
    with pytest.raises(AdapterError, match=said):
        pa.lift_adapter(model, dense)
    after = dense.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_an_option_of_a_later_peft_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody has looked at yet is not taken for harmless."""
    from pruning_adapter.adapter import carried

    model, plan = plain(use_rslora=True), make_case(tied("bert"), "heads and neurons")
    monkeypatch.setattr(carried, "_KNOWN", carried._KNOWN - {"use_rslora"})
    with pytest.raises(AdapterError, match="use_rslora=True, which cannot be cut"):
        pa.slice_adapter(model, plan)


def test_trained_tokens_are_no_part_of_the_base() -> None:
    assert count_parameters(plain(trainable_token_indices=[2, 5])) == count_parameters(tied("bert"))
