"""What loads where: every form of a pruned model, tried for every tiny family, as the table of docs/loads-anywhere.md.

`make matrix` writes the table; `test_matrix.py` holds it to what the checks find. What Transformers 4 says comes from
`witness/fixtures/exports.json`, which `make witness` writes.
"""

import hashlib
import json
import math
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open

import pruning_adapter as pa
from conformance import backends, logits, make_case, make_plan
from pruning_adapter.architectures.identity import identify
from pruning_adapter.checkpoint import save_stock, save_uniform
from pruning_adapter.checkpoint.onnx_export import export_onnx
from pruning_adapter.checkpoint.torch_export import export_program
from pruning_adapter.errors import OutputError
from tiny import FAMILIES, Task, make_batch, make_model

__all__ = [
    "CHECKS",
    "FORMS",
    "WITNESSED",
    "Verdict",
    "digest",
    "make_uniform_plan",
    "read_page",
    "witnessed",
]

PAGE = Path(__file__).parent.parent / "docs" / "loads-anywhere.md"
RECORD = Path(__file__).parent / "witness" / "fixtures" / "exports.json"
BEGIN, END = "<!-- matrix: begin (make matrix) -->", "<!-- matrix: end -->"
EXACT, ROUNDED = 1e-11, 1e-4
"""The most that logits may differ: in float64, and in float32 or between versions of Transformers."""
AUTO: dict[Task, Any] = {
    "classification": transformers.AutoModelForSequenceClassification,
    "causal": transformers.AutoModelForCausalLM,
    "sequence to sequence": transformers.AutoModelForSeq2SeqLM,
    "sound": transformers.AutoModelForSpeechSeq2Seq,
    "image": transformers.AutoModelForImageClassification,
}


@dataclass(frozen=True)
class Verdict:
    """What a check found."""

    word: str
    """"yes", "no" (refused by an error of ours), or "neurons" (heads are refused)."""
    difference: float = 0.0
    """The largest difference of logits that was seen."""

    def __str__(self) -> str:
        if self.word == "no":
            return "no"
        shown = "0" if self.difference == 0 else f"1e{math.ceil(math.log10(self.difference))}"
        return f"{self.word}, {shown}"


def make_uniform_plan(model: Any, *, heads: bool) -> pa.PruningPlan:
    """Two of four heads (a whole group where there are groups) and 15 of 24 neurons stay in every block, other ones in
    each."""
    identity = identify(model)
    gone = {
        block: [[0, 1], [2, 3]][block % 2] if site.group_size > 1 else [block % 4, (block + 1) % 4]
        for block, site in enumerate(identity.sites)
    }
    neurons = {block: list(range(block, block + 9)) for block in range(len(identity.feed_forwards))}
    return make_plan(model, {block: sorted(lost) for block, lost in gone.items()} if heads else {}, neurons)


def pruned(family: str, case: str = "heads and neurons", **options: Any) -> Any:
    model = make_model(family, **options)
    return pa.prune_(model, make_case(model, case))


def in_float32(family: str) -> Any:
    return pruned(family, dtype=torch.float32, attention=backends(family)[-1])


def compare(family: str, model: Any, other: Any) -> float:
    batch = make_batch(FAMILIES[family].task)
    return float((logits(other, batch) - logits(model, batch)).abs().max())


def by_load_pruned(family: str, folder: Path) -> Verdict:
    model = pruned(family)
    pa.save_pruned(model, folder)
    return accepted(compare(family, model, pa.load_pruned(folder, attn_implementation="eager")), EXACT)


def by_auto_class(family: str, folder: Path) -> Verdict:
    model = pruned(family)
    pa.save_pruned(model, folder)
    loaded = AUTO[FAMILIES[family].task].from_pretrained(folder, attn_implementation="eager")
    return accepted(compare(family, model, loaded), EXACT)


def by_stock(family: str, folder: Path) -> Verdict:
    model = pruned(family)
    save_stock(model, folder)
    return accepted(compare(family, model, stock_class(model).from_pretrained(folder, **EAGER)), EXACT)


def by_uniform(family: str, folder: Path) -> Verdict:
    for word, heads in (("yes", True), ("neurons", False)):
        model = make_model(family)
        pa.prune_(model, make_uniform_plan(model, heads=heads))
        try:
            save_uniform(model, folder)
        except OutputError:
            continue
        found = accepted(compare(family, model, stock_class(model).from_pretrained(folder, **EAGER)), EXACT)
        return Verdict(word, found.difference)
    return Verdict("no")


def by_onnx(family: str, folder: Path) -> Verdict:
    return refusable(lambda: export_onnx(in_float32(family), folder / "model.onnx"))


def by_torch_export(family: str, folder: Path) -> Verdict:
    return refusable(lambda: export_program(in_float32(family), folder / "model.pt2"))


EAGER = {"attn_implementation": "eager"}


def stock_class(model: Any) -> Any:
    return type(model)


def accepted(difference: float, most: float) -> Verdict:
    assert difference <= most, f"the logits differ by {difference}"
    return Verdict("yes", difference)


def refusable(export: Callable[[], float]) -> Verdict:
    try:
        return accepted(export(), ROUNDED)
    except OutputError:
        return Verdict("no")


CHECKS: dict[str, Callable[[str, Path], Verdict]] = {
    "`load_pruned`": by_load_pruned,
    "`AutoModel` after import": by_auto_class,
    "`--stock`": by_stock,
    "`--uniform-heads`": by_uniform,
    "`--onnx`": by_onnx,
    "`--torch-export`": by_torch_export,
}
WITNESSED = {
    "`--transformers4` in 4.57.6": "transformers4",
    "`--stock` in 4.57.6": "stock",
    "`--uniform-heads` in 4.57.6": "uniform",
}
FORMS = (
    "`load_pruned`",
    "`AutoModel` after import",
    "`--transformers4` in 4.57.6",
    "`--stock`",
    "`--stock` in 4.57.6",
    "`--uniform-heads`",
    "`--uniform-heads` in 4.57.6",
    "`--onnx`",
    "`--torch-export`",
)


def witnessed(family: str, form: str) -> Verdict:
    """What Transformers 4 made of an export, according to the record."""
    found = json.loads(RECORD.read_text(encoding="utf-8"))["families"][family].get(form)
    if found is None:
        return Verdict("no")
    assert "difference" in found, f"{form} of {family}: {found}"
    return Verdict(found["word"], accepted(found["difference"], ROUNDED).difference)


def digest(folder: Path) -> str:
    """Of all that tells Transformers how to build a model: the names and shapes of the weights, and the config."""
    fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    fields.pop("transformers_version")
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in sorted(file.keys())}
    return hashlib.sha256(json.dumps([fields, shapes], sort_keys=True).encode()).hexdigest()


def read_page() -> dict[str, dict[str, str]]:
    """The verdicts that the page tells, by family and form."""
    lines = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].strip().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    forms = rows[0][1:]
    return {
        cells[0].strip("`"): {form: cell.partition(",")[0] for form, cell in zip(forms, cells[1:], strict=True)}
        for cells in rows[2:]
    }


def check(family: str, form: str) -> Verdict:
    if form in WITNESSED:
        return witnessed(family, WITNESSED[form])
    with tempfile.TemporaryDirectory() as folder:
        return CHECKS[form](family, Path(folder))


def write_page() -> None:
    torch.set_num_threads(1)
    rows = ["| | " + " | ".join(FORMS) + " |", "| --- " * (len(FORMS) + 1) + "|"]
    for family in FAMILIES:
        cells = [str(check(family, form)) for form in FORMS]
        rows.append(f"| `{family}` | " + " | ".join(cells) + " |")
        print(rows[-1], file=sys.stderr, flush=True)  # noqa: T201 (it takes minutes)
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    PAGE.write_text(before + "\n".join([BEGIN, *rows, END]) + after, encoding="utf-8")


if __name__ == "__main__":
    write_page()
