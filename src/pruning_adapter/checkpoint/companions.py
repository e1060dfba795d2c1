"""What lies in a folder beside a model: its tokenizer or image processor."""

import shutil
from pathlib import Path

from pruning_adapter.checkpoint.shards import INDEX

__all__ = ["copy_companions"]

SUFFIXES = (".json", ".txt", ".model", ".jinja")


def copy_companions(source: Path, target: Path) -> None:
    """Copy what describes a tokenizer and the like from one folder of a model into another; the config stays."""
    for file in sorted(source.iterdir()):
        if file.is_file() and file.suffix in SUFFIXES and file.name not in ("config.json", INDEX):
            shutil.copyfile(file, target / file.name)
