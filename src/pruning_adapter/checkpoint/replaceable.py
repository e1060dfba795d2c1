"""What may be replaced as a whole: a saved model by a model, an adapter by an adapter, and nothing else."""

from collections.abc import Iterator
from pathlib import Path

from pruning_adapter.errors import OutputError

__all__ = ["check_adapter_replaceable", "check_replaceable"]

# Tokenizers and processors are kept beside both.
COMPANIONS = ("*.json", "*.txt", "*.model", "*.jinja", "*.codes", "README.md", "pruning.png")
MODEL = (*COMPANIONS, "*.safetensors")
ADAPTER = (*COMPANIONS, "adapter_model.safetensors", "adapter_model.bin")


def check_replaceable(folder: Path) -> None:
    """Refuse to replace anything but a saved model.

    Raises:
        OutputError: `folder` is a file, or holds something else.
    """
    strange = [path.name for path in _entries(folder) if not _is_like(path, MODEL)]
    if not strange and not (folder / "config.json").is_file():
        strange = [path.name for path in _entries(folder)]
    if strange:
        raise OutputError(f"{folder} holds {strange[0]!r}, so it is no saved model to replace; name another folder.")


def check_adapter_replaceable(folder: Path) -> None:
    """Refuse to replace anything but a saved adapter, of which PEFT puts each that has a name into a folder of its own.

    Raises:
        OutputError: `folder` is a file, or holds something else.
    """
    strange = _strange_to_adapters(folder)
    if strange:
        raise OutputError(f"{folder} holds {strange[0]!r}, so it is no saved adapter to replace; name another folder.")


def _strange_to_adapters(folder: Path) -> list[str]:
    named = [path for path in _entries(folder) if path.is_dir() and not path.is_symlink()]
    others = [path for path in _entries(folder) if path not in named]
    strange = [path.name for path in others if not _is_like(path, ADAPTER)]
    for path in named:
        inside = _strange_to_adapters(path) if (path / "adapter_config.json").is_file() else [""]
        strange += [str(Path(path.name, name)) for name in inside]
    if not strange and not named and not (folder / "adapter_config.json").is_file():
        strange = [path.name for path in others]
    return strange


def _is_like(path: Path, patterns: tuple[str, ...]) -> bool:
    return path.is_file() and any(path.match(pattern) for pattern in patterns)


def _entries(folder: Path) -> Iterator[Path]:
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; name a folder.")
    yield from sorted(folder.iterdir()) if folder.is_dir() else ()
