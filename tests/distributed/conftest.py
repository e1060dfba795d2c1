"""One pair of processes for all tests of this folder; a pair that was ended by a test is replaced."""

from collections.abc import Generator

import pytest
import torch.distributed

from pair import Pair

_LIVING: list[Pair] = []


@pytest.fixture
def pair() -> Pair:
    """Two processes that have met."""
    if not torch.distributed.is_gloo_available():
        pytest.skip("PyTorch was built without gloo")
    if not _LIVING or not _LIVING[0].lives:
        _LIVING[:] = [Pair()]
    return _LIVING[0]


@pytest.fixture(scope="session", autouse=True)
def end_the_pair() -> Generator[None]:
    """No process outlives the tests."""
    yield
    for living in _LIVING:
        living.end()
