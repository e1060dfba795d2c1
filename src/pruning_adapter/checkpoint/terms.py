"""What a model's own files say about its license and language: copied into the card of what is made of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pruning_adapter.errors import CheckpointError
from pruning_adapter.reading import read_object

__all__ = ["read_terms"]

LICENSE = ("license", "license_name", "license_link")


def read_terms(folder: Path) -> dict[str, str]:
    """The license (license, license_name, license_link) and the one language of the model in `folder`.

    From the metadata of its card, else from its config. What they do not say is left out; so are several languages,
    because nobody knows which of them the task is in.
    """
    card = _read_card(folder / "README.md")
    terms = {key: value for key in LICENSE if isinstance(value := card.get(key), str) and value}
    if "license" not in terms:
        terms = {}
        found = _read_config(folder / "config.json").get("license")
        if isinstance(found, str) and found:
            terms["license"] = found
    language = card.get("language")
    if isinstance(language, list) and len(language) == 1:
        language = language[0]
    if isinstance(language, str) and language not in ("", "multilingual"):
        terms["language"] = language
    return terms


def _read_card(path: Path) -> Mapping[str, Any]:
    from huggingface_hub import ModelCard

    try:
        return ModelCard.load(path, ignore_metadata_errors=True).data.to_dict()
    # Cards are written by hand: YAML that is none, another encoding, metadata of any shape.
    except Exception:
        return {}


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        return read_object(path, "config")
    except CheckpointError:
        return {}
