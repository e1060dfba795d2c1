import json
from pathlib import Path
from typing import Any

import pytest

from pruning_adapter.checkpoint.terms import read_terms


@pytest.mark.parametrize(
    ("card", "config", "terms"),
    [
        ("license: mit\nlanguage: en", {}, {"license": "mit", "language": "en"}),
        ("license: mit\nlanguage: [de]", {}, {"license": "mit", "language": "de"}),
        ("license: mit\nlanguage: [de, en]", {}, {"license": "mit"}),
        ("language: multilingual", {"license": "apache-2.0"}, {"license": "apache-2.0"}),
        ("license: mit", {"license": "apache-2.0"}, {"license": "mit"}),
        (
            "license: other\nlicense_name: gemma\nlicense_link: LICENSE",
            {},
            {"license": "other", "license_name": "gemma", "license_link": "LICENSE"},
        ),
        ("license_name: gemma", {}, {}),
        ("license: [mit, apache-2.0]", {}, {}),
        ("license: 3", {"license": 4}, {}),
        ("a: [", {}, {}),
        ("tags: [x]", {"license": ""}, {}),
    ],
)
def test_terms_are_those_of_the_models_files(
    tmp_path: Path, card: str, config: dict[str, Any], terms: dict[str, str]
) -> None:
    (tmp_path / "README.md").write_text(f"---\n{card}\n---\n\n# A model\n", encoding="utf-8")
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert read_terms(tmp_path) == terms


def test_without_a_card_nothing_is_made_up(tmp_path: Path) -> None:
    assert read_terms(tmp_path) == {}
    (tmp_path / "README.md").write_bytes(b"\xff\xfe no text")
    (tmp_path / "config.json").write_text("[1", encoding="utf-8")
    assert read_terms(tmp_path) == {}


@pytest.mark.parametrize("depth", [200, 100_000])
def test_a_config_that_is_nested_without_end_says_nothing(tmp_path: Path, depth: int) -> None:
    (tmp_path / "config.json").write_text(
        '{"license": "mit", "a": ' + "[" * depth + "]" * depth + "}", encoding="utf-8"
    )
    assert read_terms(tmp_path) == {}
