"""The whole way (load, score, prune, train, save, load) for every way in which people load a base.

Quantised ones are in tests/adapter/test_quantize.py."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model

import pruning_adapter as pa
from tiny import FAMILIES, make_batch, make_model

WAYS: dict[str, dict[str, Any]] = {
    "in one piece": {},
    "sharded": {},
    "device_map": {"device_map": {"": "cpu"}},
    "device_map auto": {"device_map": "auto"},
    "bfloat16": {"dtype": torch.bfloat16},
    "torch_dtype": {"torch_dtype": torch.float16},
    "float64": {"dtype": torch.float64},
}
# BERT's own words apart, GPT-2's and Gemma's tied with the output, T5's with both of its stacks.
BASES = ["bert", "gpt2", "gemma", "t5"]


def save_base(family: str, folder: Path, way: str) -> None:
    base: Any = make_model(family, dtype=torch.float32)
    base.save_pretrained(folder, **({"max_shard_size": "8KB"} if way == "sharded" else {}))
    assert (folder / "model.safetensors.index.json").exists() == (way == "sharded")


def load_base(family: str, folder: Path, way: str) -> Any:
    return FAMILIES[family].model_class.from_pretrained(folder, **WAYS[way]).eval()


def logits(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch).logits


def ties(model: Any) -> bool:
    return model.get_input_embeddings().weight is model.get_output_embeddings().weight


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", BASES)
def test_load_score_prune_train_save_load(family: str, way: str, tmp_path: Path) -> None:
    save_base(family, tmp_path / "base", way)
    base, batch = load_base(family, tmp_path / "base", way), make_batch(FAMILIES[family].task)
    scores = pa.measure_importance(base, [batch], units=("heads", "neurons"), allow_one_class=True)
    plan = pa.plan_pruning(scores, keep_params=0.9)
    assert plan.heads_kept < sum(plan.model.heads) or any(
        len(kept) < count for kept, count in zip(plan.kept_neurons, plan.model.neurons, strict=True)
    )
    adapted: Any = get_peft_model(base, pa.PruneLoraConfig(pruning=plan, r=2))
    optimizer = torch.optim.SGD([weight for weight in adapted.parameters() if weight.requires_grad], lr=0.1)
    for _ in range(2):
        adapted(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    wanted = logits(adapted.eval(), batch)
    adapted.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    again = PeftModel.from_pretrained(load_base(family, tmp_path / "base", way), str(tmp_path / "adapter"))
    assert torch.equal(logits(again.eval(), batch), wanted)
    merged: Any = again.merge_and_unload()
    pa.save_pruned(merged, tmp_path / "merged")
    loaded = pa.load_pruned(tmp_path / "merged", **WAYS[way])
    assert torch.equal(logits(loaded, batch), logits(merged, batch))
    assert loaded.dtype == base.dtype
    if family != "bert":
        assert ties(loaded) == ties(make_model(family))
