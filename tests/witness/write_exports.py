"""Write what Transformers 4 is asked to load: every family's exports, a batch, and the logits that must come out.

The first half of `make witness`; it runs in the library's own environment. `load_exports.py` is the other half.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from transformers import BertTokenizer

import pruning_adapter as pa
from conformance import logits, make_case, make_plan, uneven_heads
from matrix import WITNESSED, digest, make_uniform_plan
from pruning_adapter.checkpoint import save_for_transformers4, save_stock, save_uniform
from pruning_adapter.errors import OutputError
from tiny import FAMILIES, make_batch, make_model

__all__ = ["export"]

SAVE: dict[str, Any] = {"transformers4": save_for_transformers4, "stock": save_stock, "uniform": save_uniform}
TEXT = "a fine film"
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LONG = {"rope_type": "longrope", "short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [2.0] * 4}


def export(family: str, form: str, folder: Path) -> tuple[str, Any] | None:
    """Write one of the forms of a pruned model; what of it is gone ("yes": heads and neurons), and the model.

    None if it is refused.
    """
    for word, heads in (("yes", True), ("neurons", False)):
        model = make_model(family, **unusual(family, form))
        pa.prune_(model, make_plan_for(form, model, heads=heads))
        try:
            SAVE[form](model, folder)
        except OutputError:
            continue
        return word, model
    return None


def make_plan_for(form: str, model: Any, *, heads: bool) -> pa.PruningPlan:
    """As uneven as the form can say."""
    if form == "stock":
        return make_case(model, "heads and neurons")
    even = make_uniform_plan(model, heads=heads)
    if form == "uniform":
        return even
    uneven = {block: uneven_heads(site, block) for block, site in enumerate(even.model.sites)}
    return make_plan(model, uneven, even.pruned_neurons)


def unusual(family: str, form: str) -> dict[str, Any]:
    """Rotary positions other than the defaults, which a config that is misread would fall back on."""
    tiny = FAMILIES[family]
    rope = getattr(getattr(tiny.module, tiny.config)(**tiny.sizes), "rope_parameters", None)
    if rope is None:
        return {}
    if "full_attention" in rope:
        return {"rope_parameters": {name: {"rope_type": "default", "rope_theta": 7.0 + len(name)} for name in rope}}
    changed: dict[str, Any] = {"rope_type": "default", "rope_theta": 77.0}
    if family == "llama":
        changed |= LLAMA3
    if family == "gpt_neox":
        changed["partial_rotary_factor"] = 0.5
    if family == "phi3" and form == "stock":
        # Phi-3 counts the factors by hidden size over heads, so that fewer heads cannot have them.
        return {"rope_parameters": changed | LONG, "original_max_position_embeddings": 64}
    return {"rope_parameters": changed}


def write_tokenizer(folder: Path) -> list[int]:
    folder.mkdir(parents=True)
    (folder / "words").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nfine\nfilm\n", encoding="utf-8")
    tokenizer = BertTokenizer(vocab=str(folder / "words"))
    tokenizer.save_pretrained(folder)
    return list(tokenizer(TEXT)["input_ids"])


def main(out: Path) -> None:
    torch.set_num_threads(1)
    manifest: dict[str, Any] = {"written by": transformers.__version__, "families": {}}
    manifest["tokenizer"] = {"text": TEXT, "ids": write_tokenizer(out / "tokenizer")}
    model = make_model("bert")
    save_for_transformers4(model, out / "with tokenizer", files_from=out / "tokenizer")
    for family, tiny in FAMILIES.items():
        forms: dict[str, Any] = {}
        for form in WITNESSED.values():
            folder = out / family / form
            written = export(family, form, folder)
            if written is None:
                continue
            batch = {name: value.contiguous() for name, value in make_batch(tiny.task).items()}
            save_file(batch | {"expected": logits(written[1], batch)}, folder / "batch.safetensors")
            forms[form] = {"word": written[0], "given": digest(folder)}
        manifest["families"][family] = {"class": tiny.model, "forms": forms}
    (out / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
