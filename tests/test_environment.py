"""What is recorded beside numbers."""

import pytest

from pruning_adapter.environment import machine, name_places, tell_machine


def test_only_whole_paths_get_a_name() -> None:
    """Not where a folder is called like an option, is the current one, or is not given."""
    words = [
        "run",
        "--data-dir",
        "data",
        "--model=model",
        "--model-name",
        "x",
        "--table",
        "data/t.json",
        "--length=1.5",
    ]
    named = name_places(words, {"data": "GLUE", "model": "an/encoder", ".": "out", "": "nothing"})
    assert named == "run --data-dir GLUE --model=an/encoder --model-name x --table GLUE/t.json --length=1.5"


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ({"processor": "abacus", "threads": 1}, "abacus, 1 thread"),
        ({"processor": "abacus", "threads": 2}, "abacus, 2 threads"),
        ({"processor": "abacus"}, "abacus"),
        ({"processor": "abacus", "threads": 2, "gpu": "slide rule"}, "slide rule"),
    ],
)
def test_a_machine_in_words(found: dict[str, object], told: str) -> None:
    assert tell_machine(found) == told


def test_this_machine_can_be_told() -> None:
    assert machine()["threads"] >= 1
    assert tell_machine(machine())
