"""One forge for all tests of this folder."""

from collections.abc import Generator

import pytest

from forge import Forge, start_forge


@pytest.fixture(scope="session")
def forge() -> Generator[Forge]:
    with start_forge() as forge:
        yield forge
