"""What lies in examples/ runs, and says what tests and documentation say."""

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


@pytest.mark.parametrize("name", ["array.slurm", "grid.sh", "grid_here.sh"])
def test_scripts_can_be_read(name: str) -> None:
    subprocess.run(["bash", "-n", str(EXAMPLES / name)], check=True)
