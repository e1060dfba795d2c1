"""The table of docs/loads-anywhere.md tells of every family, and what it tells is so."""

import json
from pathlib import Path

import pytest
import transformers

from matrix import CHECKS, FORMS, RECORD, WITNESSED, digest, read_page, witnessed
from tiny import FAMILIES
from witness.write_exports import export

DEAR = "`--onnx`"
"""Seconds for each family: `make matrix` tries all, test_onnx_export.py three; here those that are refused."""


def test_the_page_has_a_row_for_every_family_and_a_column_for_every_form() -> None:
    page = read_page()
    assert list(page) == list(FAMILIES)
    assert all(tuple(row) == FORMS for row in page.values())


def test_transformers_4_reads_the_tokenizer_too() -> None:
    assert json.loads(RECORD.read_text(encoding="utf-8"))["the tokenizer gives the same ids"] is True


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_page_says_is_what_the_checks_find(family: str, tmp_path: Path) -> None:
    told = read_page()[family]
    for number, (form, check) in enumerate(CHECKS.items()):
        if form == DEAR and told[form] != "no":
            continue
        folder = tmp_path / str(number)
        folder.mkdir()
        assert check(family, folder).word == told[form], form


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_page_says_about_transformers_4_is_what_it_said_of_the_folders_that_we_write(
    family: str, tmp_path: Path
) -> None:
    """The weights are others on every machine; names, shapes and configs are what the witness was given."""
    told, record = read_page()[family], json.loads(RECORD.read_text(encoding="utf-8"))
    for column, form in WITNESSED.items():
        assert witnessed(family, form).word == told[column], column
    if record["versions"]["written by"] != transformers.__version__:
        pytest.skip("another release of Transformers writes other configs: `make witness` asks the witness again")
    for form in WITNESSED.values():
        written = export(family, form, tmp_path / form)
        found = record["families"][family].get(form)
        assert (written is None) == (found is None), form
        if written is not None:
            assert digest(tmp_path / form) == found["given"], f"{form}: run `make witness`"
