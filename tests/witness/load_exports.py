"""Load what `write_exports.py` wrote with Transformers 4, and write down what came of it.

It needs an environment of its own, with transformers==4.57.6, and nothing of the library; see `make witness`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file


def load(folder: Path, model_class: Any) -> dict[str, Any]:
    """The largest difference of logits, in float64, or what went wrong."""
    batch = load_file(folder / "batch.safetensors")
    expected = batch.pop("expected")
    try:
        model, info = model_class.from_pretrained(
            folder, attn_implementation="eager", dtype=torch.float64, output_loading_info=True
        )
        strange = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
        if strange:
            return {"error": f"weights do not fit: {strange[:3]}"}
        with torch.no_grad():
            found = model.eval()(**batch).logits
    except Exception as error:
        return {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"}
    return {"difference": float((found - expected).abs().max())}


def main() -> None:
    parser = argparse.ArgumentParser(description="Let Transformers 4 load the exports.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("record", type=Path)
    given = parser.parse_args()
    if not transformers.__version__.startswith("4."):
        raise SystemExit(f"This is Transformers {transformers.__version__}: use 4.57.6, see `make witness`.")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    # What is computed while a model is built is then as good as its weights.
    torch.set_default_dtype(torch.float64)
    manifest = json.loads((given.folder / "manifest.json").read_text(encoding="utf-8"))
    families: dict[str, Any] = {}
    for family, told in manifest["families"].items():
        model_class = getattr(transformers, told["class"])
        families[family] = {
            form: {**what, **load(given.folder / family / form, model_class)} for form, what in told["forms"].items()
        }
    tokenizer = transformers.AutoTokenizer.from_pretrained(given.folder / "with tokenizer")
    same = list(tokenizer(manifest["tokenizer"]["text"])["input_ids"]) == manifest["tokenizer"]["ids"]
    versions = {"written by": manifest["written by"], "loaded by": transformers.__version__, "torch": torch.__version__}
    record = {"versions": versions, "the tokenizer gives the same ids": same, "families": families}
    given.record.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
