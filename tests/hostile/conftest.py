"""Nothing is written where nothing was asked for: each test runs in a folder and with a home that are watched."""

import os
from collections.abc import Generator
from pathlib import Path

import pytest
from transformers import dynamic_module_utils


@pytest.fixture(autouse=True)
def nothing_is_written_elsewhere(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Generator[None]:
    outside = tmp_path_factory.mktemp("outside")
    for name in ("home", "here"):
        (outside / name).mkdir()
        (outside / name / "mine.safetensors").write_bytes(b"mine")
    monkeypatch.setenv("HOME", str(outside / "home"))
    monkeypatch.chdir(outside / "here")
    # Where Transformers copies code before it runs it.
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(outside / "home" / "modules"))
    before = everything_in(outside)
    yield
    assert everything_in(outside) == before


def everything_in(folder: Path) -> dict[str, bytes | None]:
    """Files with what they hold, folders and links by their names."""
    return {
        str(path): path.read_bytes() if path.is_file() and not os.path.islink(path) else None
        for path in folder.rglob("*")
    }
