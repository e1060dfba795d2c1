"""What lies in a folder beside a model: its tokenizer or image processor."""

import logging
import os
import shutil
from pathlib import Path

from pruning_adapter.checkpoint.shards import INDEX
from pruning_adapter.storage import stays_in

__all__ = ["copy_companions"]

_LOGGER = logging.getLogger(__name__)
SUFFIXES = (".json", ".txt", ".model", ".jinja", ".codes")


def copy_companions(source: Path, target: Path) -> None:
    """Copy what describes a tokenizer and the like from one folder of a model into another; the config stays.

    Links out of the folder are not followed, because nobody said that what lies elsewhere is to travel along.
    """
    for file in sorted(source.iterdir()):
        if not file.is_file() or file.suffix not in SUFFIXES or file.name in ("config.json", INDEX):
            continue
        if not any(stays_in(file, home) for home in (source, *_blobs(source))):
            _LOGGER.warning("%s is a link out of its folder and is not copied", file)
            continue
        shutil.copyfile(file, target / file.name)


def _blobs(source: Path) -> list[Path]:
    """Where the Hub's cache keeps what the files of a snapshot, or of a folder in it, are links to."""
    return [above.parent / "blobs" for above in Path(os.path.realpath(source)).parents if above.name == "snapshots"]
