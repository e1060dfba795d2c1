"""What lies in examples/ runs, and says what tests and documentation say."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import LlamaConfig

from accelerate_on_cpus import FSDP2
from tiny import FAMILIES
from tiny_encoder import make_texts, save_tiny_encoder

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_the_memory_of_a_large_model_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    LlamaConfig(**FAMILIES["llama"].sizes).save_pretrained(tmp_path)
    words = ["--config", tmp_path / "config.json", "--gpus", 4, "--rank", 2, "--length", 16]
    monkeypatch.setattr(sys, "argv", ["memory", *map(str, words)])
    runpy.run_path(str(EXAMPLES / "memory_of_a_large_model.py"), run_name="__main__")
    said = capsys.readouterr().out
    left, planned = re.findall(r"pruned: ([\d,]+) parameters.*the plan says ([\d,]+)", said)[0]
    assert left == planned
    # Of heads of 8 two stay, and 12 neurons, in three blocks of 32: rank 2 on q, k, v, o, gate, up and down.
    sizes = [(16, 32), (8, 32), (8, 32), (32, 16), (12, 32), (12, 32), (32, 12)]
    assert f"on all linear maps: {3 * sum(2 * (rows + columns) for rows, columns in sizes):,} parameters" in said
    assert len(re.findall(r"^  together", said, flags=re.MULTILINE)) == 4


def test_the_tests_spread_models_as_the_file_says() -> None:
    said: dict[str, Any] = yaml.safe_load((EXAMPLES / "fsdp2.yaml").read_text(encoding="utf-8"))["fsdp_config"]
    said.pop("fsdp_transformer_layer_cls_to_wrap")
    told = {name.upper(): str(value).lower() if isinstance(value, bool) else str(value) for name, value in said.items()}
    assert told == {name: value for name, value in FSDP2.items() if name != "ACCELERATE_USE_FSDP"}


@pytest.fixture
def smaller_grid(tmp_path: Path) -> dict[str, str]:
    """What the scripts read, for two cells on a tiny encoder; and the command, in the environment of these tests."""
    save_tiny_encoder(tmp_path / "model")
    for name, count in (("train.tsv", 40), ("dev.tsv", 12)):
        (tmp_path / "RTE").mkdir(exist_ok=True)
        rows = [
            f"{number}\t{text}\t{text}\t{('not_entailment', 'entailment')[place]}"
            for number, (text, place) in enumerate(make_texts(name, count, 2))
        ]
        header = "index\tsentence1\tsentence2\tlabel"
        (tmp_path / "RTE" / name).write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "pruning-adapter"
    calls = f'exec {sys.executable} -m pruning_adapter "$@" --epochs 1 --examples 8'
    command.write_text(f"#!/bin/sh\n{calls}\n", encoding="utf-8")
    command.chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "MODEL": str(tmp_path / "model"),
        "GLUE_DIR": str(tmp_path),
        "GRID": str(tmp_path / "grid"),
        "TASKS": "rte",
        "METHODS": "lora,prune-lora",
        "SEEDS": "0",
        "CELLS": "2",
        "JOBS": "2",
    }


@pytest.mark.skipif(os.name != "posix", reason="runs bash")
def test_the_grid_of_one_machine_is_run_and_written(tmp_path: Path, smaller_grid: dict[str, str]) -> None:
    script = EXAMPLES / "grid_here.sh"
    done = subprocess.run([script], env=smaller_grid, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    grid = tmp_path / "grid"
    cells = {path.stem for path in (grid / "cells").iterdir()}
    assert cells == {"default-rte-lora-0", "default-rte-prune-lora-0"}
    page = (grid / "reproduction.md").read_text(encoding="utf-8")
    assert "prune-lora" in page
    assert (grid / "report.html").is_file()


@pytest.mark.parametrize("name", ["array.slurm", "grid.sh", "grid_here.sh"])
def test_scripts_can_be_read(name: str) -> None:
    subprocess.run(["bash", "-n", str(EXAMPLES / name)], check=True)
