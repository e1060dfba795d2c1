"""Imports point one way, and light modules stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pruning_adapter

SOURCE = Path(pruning_adapter.__file__).parent

# A package may import those to its left, and itself.
ORDER = (
    ("errors",),
    ("reading",),
    ("environment", "processes", "storage"),
    ("architectures",),
    ("costs",),
    ("importance",),
    ("planning",),
    ("surgery",),
    ("adapter", "checkpoint", "hooks"),
    ("training", "demo"),
    ("evaluation",),
    ("serving",),
    ("reporting",),
    ("settings", "run_folder"),
    ("scoring", "decide"),
    ("pipeline", "publish"),
    ("reproduce",),
    ("cli",),
    ("__main__",),
)
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}
# The demo makes task data; hooks wait on the same floor as those they call.
BESIDE = {("demo", "training"), ("hooks", "adapter"), ("hooks", "checkpoint")}


def package_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    found = set[str]()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        found |= {name.split(".")[1] for name in names if name.startswith("pruning_adapter.")}
    return found


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_one_way(path: Path) -> None:
    here = package_of(path)
    if here == "__init__":
        return
    assert here in LEVEL, f"say where {here} stands"
    for there in imports_of(path) - {here}:
        assert LEVEL[there] < LEVEL[here] or (here, there) in BESIDE, f"{here} imports {there}"


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("pruning_adapter", ("torch", "transformers", "peft")),
        ("pruning_adapter.cli", ("torch", "transformers", "peft", "datasets", "matplotlib", "jinja2")),
        ("pruning_adapter.importance.scores", ("transformers", "peft")),
        ("pruning_adapter.planning", ("transformers", "peft")),
    ],
)
def test_light_modules_stay_light(module: str, forbidden: tuple[str, ...]) -> None:
    program = f"import sys, {module}; print([name for name in {forbidden!r} if name in sys.modules])"
    said = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert said.stdout.strip() == "[]"


def test_no_file_reaches_for_the_network_or_runs_foreign_code() -> None:
    for path in SOURCE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for word in ("trust_remote_code=True", "pickle.load", "torch.load(", "eval(compile", "os.system"):
            assert word not in text, f"{path.name} holds {word}"


def test_every_public_name_exists() -> None:
    for name in pruning_adapter.__all__:
        assert getattr(pruning_adapter, name).__name__ == name
        assert getattr(pruning_adapter, name).__doc__, f"{name} has no docstring"
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = pruning_adapter.no_such_name
