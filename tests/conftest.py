"""For all tests: no network, one thread a worker, and property tests that are not timed."""

import gc
import math
import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("untimed", deadline=None)
settings.register_profile("many", deadline=None, max_examples=1000)
settings.load_profile("untimed")


@pytest.fixture(scope="module", autouse=True)
def garbage_of_tests_only() -> None:
    """Every training has all garbage collected first, and would look through all that imports have left as well."""
    gc.collect()
    gc.freeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--moments", type=int, default=4, help="At how many moments the tests in tests/torture kill a run."
    )
    parser.addoption("--many", action="store_true", help="Damage files in ten times as many ways.")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "in_turn(name, values): share the moments out among these, each in turn")
    config.addinivalue_line("markers", "every(n): only every n-th moment, for tests that take long")
    if config.getoption("--many"):
        settings.load_profile("many")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes a `moment` is run at as many moments as were asked for."""
    if "moment" in metafunc.fixturenames:
        every = next((mark.args[0] for mark in metafunc.definition.iter_markers("every")), 1)
        metafunc.parametrize("moment", range(0, metafunc.config.getoption("moments"), every))
    for mark in metafunc.definition.iter_markers("in_turn"):
        name, values = mark.args
        turns = math.ceil(metafunc.config.getoption("moments") / len(values))
        metafunc.parametrize((name, "turn"), [(value, turn) for value in values for turn in range(turns)])
