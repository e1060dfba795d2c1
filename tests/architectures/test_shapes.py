from pathlib import Path

import pytest

from pruning_adapter.architectures.shapes import public_name


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("google-bert/bert-base-uncased", "google-bert/bert-base-uncased"),
        ("gpt2", "gpt2"),
        ("", ""),
        ("/home/me/models/encoder", "encoder"),
        ("/home/me/models/encoder/", "encoder"),
        ("./encoder", "encoder"),
        ("~/runs/encoder", "encoder"),
        (r"C:\Users\me\encoder", "encoder"),
    ],
)
def test_a_model_goes_by_its_id_or_its_folders_name(name: str, public: str) -> None:
    assert public_name(name) == public


def test_a_folder_that_is_there_is_no_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models/encoder").mkdir(parents=True)
    assert public_name("models/encoder") == "models/encoder"
    monkeypatch.chdir(tmp_path)
    assert public_name("models/encoder") == "encoder"
