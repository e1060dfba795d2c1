"""Whatever task head sits on a supported trunk: scores, gates, surgery and checkpoint work alike."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import pruning_adapter as pa
from conformance import make_case, make_gates, make_neuron_gates
from tiny import CLASSES, FAMILIES, START, TOKENS, make_batch, make_model

CASES = [
    ("bert", "AutoModelForTokenClassification"),
    ("bert", "AutoModelForQuestionAnswering"),
    ("bert", "AutoModelForMaskedLM"),
    ("roberta", "AutoModelForTokenClassification"),
    ("electra", "AutoModelForQuestionAnswering"),
    ("distilbert", "AutoModelForQuestionAnswering"),
    ("albert", "AutoModelForTokenClassification"),
    ("deberta-v3", "AutoModelForTokenClassification"),
    ("modernbert", "AutoModelForTokenClassification"),
    ("modernbert", "AutoModelForMaskedLM"),
    ("mpnet", "AutoModelForQuestionAnswering"),
    ("gpt2", "AutoModelForSequenceClassification"),
    ("gpt2", "AutoModelForTokenClassification"),
    ("gpt_neox", "AutoModelForSequenceClassification"),
    ("opt", "AutoModelForQuestionAnswering"),
    ("llama", "AutoModelForSequenceClassification"),
    ("llama", "AutoModelForTokenClassification"),
    ("mistral", "AutoModelForSequenceClassification"),
    ("qwen3", "AutoModelForSequenceClassification"),
    ("gemma2", "AutoModelForSequenceClassification"),
    ("phi3", "AutoModelForSequenceClassification"),
    ("t5", "AutoModelForTokenClassification"),
    ("t5", "AutoModelForQuestionAnswering"),
    ("t5", "AutoModelForSequenceClassification"),
    ("bart", "AutoModelForSequenceClassification"),
    ("bart", "AutoModelForQuestionAnswering"),
    ("bart", "AutoModelForCausalLM"),
    ("whisper", "AutoModelForAudioClassification"),
]


def make_labelled(family: str, auto: str) -> dict[str, Tensor]:
    """A batch with the labels that an auto class takes."""
    batch = make_batch("sound" if FAMILIES[family].task == "sound" else "classification")
    labels = batch.pop("labels")
    size = len(labels)
    if auto == "AutoModelForQuestionAnswering":
        return {**batch, "start_positions": torch.arange(size) % 3, "end_positions": torch.arange(size) % 4}
    if auto in ("AutoModelForTokenClassification", "AutoModelForMaskedLM", "AutoModelForCausalLM"):
        classes = torch.arange(size * TOKENS).view(size, TOKENS) % CLASSES
        return {**batch, "labels": classes.masked_fill(batch["attention_mask"] == 0, -100)}
    if family in ("bart", "t5"):
        # Their sentence is read off at its last end-of-sequence token.
        last = batch["attention_mask"].sum(1) - 1
        batch["input_ids"][batch["input_ids"] == START] = START + 1
        batch["input_ids"][torch.arange(size), last] = START
    return {**batch, "labels": torch.arange(size) % CLASSES}


def run(model: Any, batch: dict[str, Tensor]) -> list[Tensor]:
    with torch.no_grad():
        outputs = model(**batch)
    return [outputs.loss, *(outputs[name] for name in ("logits", "start_logits", "end_logits") if name in outputs)]


@pytest.mark.parametrize(("family", "auto"), CASES)
def test_every_task_head_is_scored_gated_pruned_and_loaded(family: str, auto: str, tmp_path: Path) -> None:
    classes = 2 if auto == "AutoModelForQuestionAnswering" else CLASSES
    own = {"bart": {"eos_token_id": START}, "t5": {"eos_token_id": START}, "whisper": {"classifier_proj_size": 16}}
    model = make_model(family, auto=getattr(transformers, auto), num_labels=classes, **own.get(family, {}))
    batch = make_labelled(family, auto)
    scores = pa.measure_importance(model, [batch], units=("heads", "neurons"))
    one_by_one = pa.measure_importance(
        model, [{name: value[row : row + 1] for name, value in batch.items()} for row in range(6)], units=("heads",)
    )
    for together, apart in zip(scores.heads, one_by_one.heads, strict=True):
        torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-8)
    plan = make_case(model, "heads and neurons")
    with pa.gated(model, make_gates(plan), make_neuron_gates(plan)):
        gated = run(model, batch)
    pruned = run(pa.prune_(model, plan), batch)
    # Some losses are float32.
    for one, other in zip(gated, pruned, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
    pa.save_pruned(model, tmp_path / "merged")
    loaded = pa.load_pruned(tmp_path / "merged", attn_implementation="eager")
    assert type(loaded) is type(model)
    for one, other in zip(run(loaded, batch), pruned, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
