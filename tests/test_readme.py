"""What the README and the tutorial say is true: their code runs, their tables are current, their commands exist."""

import re
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from peft import get_peft_model
from transformers import BertTokenizer

import pruning_adapter as pa
from conformance import make_plan
from pruning_adapter.architectures.table import supported_table
from pruning_adapter.costs.macs import count_macs
from pruning_adapter.demo import find_demo_encoder
from pruning_adapter.errors import DataError
from pruning_adapter.training.base_model import load_base
from tiny import make_batch, make_model
from tiny_encoder import save_tiny_encoder

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
MANY_TASKS = (ROOT / "docs" / "many-tasks.md").read_text(encoding="utf-8")


def code_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def test_the_example_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n", encoding="utf-8")
    paper, budget, _ = code_blocks(README)
    code = paper.replace("top_blocks=4", "top_blocks=1")
    names: dict[str, Any] = {
        "model": make_model("bert"),
        "batches": [make_batch()],
        "tokenizer": BertTokenizer(vocab=str(vocabulary)),
    }
    exec(code, names)
    assert {path.name for path in tmp_path.iterdir()} >= {"adapter", "merged"}
    assert names["plan"].heads_kept == 8
    names["model"] = make_model("bert", max_position_embeddings=128)
    exec(budget, names)
    dense = make_model("bert", max_position_embeddings=128)
    assert count_macs(names["model"], length=128) <= 0.5 * count_macs(dense, length=128)
    assert (tmp_path / "smaller" / "model.safetensors").is_file()


def test_the_examples_of_many_tasks_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    encoder = save_tiny_encoder(tmp_path / "encoder")
    for number, name in enumerate(("mrpc", "sst2")):
        model = load_base(str(encoder), label_names=("no", "yes"), seed=number).model
        config = pa.PruneLoraConfig(pruning=make_plan(model, {number: [1]}), task_type="SEQ_CLS")
        adapted: Any = get_peft_model(cast(Any, model), config)
        adapted.save_pretrained(f"{name}-run/adapter", save_embedding_layers=False)
    (page,) = code_blocks(MANY_TASKS)
    for code in (page, code_blocks(README)[2]):
        exec(code, {"pa": pa})
    assert "('sst2', 'mrpc') ('sst2',)" in capsys.readouterr().out


def test_the_table_of_supported_models_is_the_registrys() -> None:
    begin, end = README.index("<!-- supported: begin"), README.index("<!-- supported: end")
    written = README[begin:end].partition("\n")[2].strip()
    assert written == supported_table(), f"put this into README.md:\n\n{supported_table()}"


def test_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_commands_and_options_of_the_readme_exist() -> None:
    import typer.main

    from pruning_adapter.cli import app

    commands: dict[str, Any] = typer.main.get_command(app).commands  # pyright: ignore
    for page in (README, TUTORIAL, MANY_TASKS):
        for line in re.findall(r"^pruning-adapter (.*(?:\\\n.*)*)", page, flags=re.MULTILINE):
            verb, *words = line.replace("\\\n", " ").split()
            known = {option for parameter in commands[verb].params for option in parameter.opts}
            used = {word for word in words if word.startswith("--")}
            assert used <= known, f"{verb}: {used - known}"


@pytest.mark.encoder
def test_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        encoder = find_demo_encoder()
    except DataError as error:
        pytest.skip(str(error))
    monkeypatch.chdir(tmp_path)
    walk, serve = code_blocks(TUTORIAL)
    names: dict[str, Any] = {}
    exec(walk.replace("sentence-transformers/all-MiniLM-L6-v2", str(encoder)), names)
    exec(serve, names)
    found = names["classify"]("a fine film")[0]["score"]
    with torch.no_grad():
        inputs = names["tokenizer"]("a fine film", return_tensors="pt")
        expected = names["smaller"](**inputs).logits.softmax(-1).max().item()
    assert found == pytest.approx(expected, abs=1e-6)
    assert "heads stay" in capsys.readouterr().out
