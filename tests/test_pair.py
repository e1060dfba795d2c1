"""What is said of a process of a pair that dies: a crash in native code leaves no exception behind."""

import ctypes
import os
from collections.abc import Callable

import pytest
import torch.distributed

from pair import Pair

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="PyTorch was built without gloo")


def crash(rank: int) -> None:
    if rank == 1:
        ctypes.string_at(0)


def end(rank: int) -> None:
    if rank == 0:
        os._exit(7)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (crash, r"process 1 died in crash, status -11:\nFatal Python error: Segmentation fault"),
        (end, "process 0 died in end, status 7"),
    ],
)
def test_a_process_that_dies_is_named_and_the_other_ends(how: Callable[[int], None], said: str) -> None:
    pair = Pair()
    with pytest.raises(AssertionError, match=said):
        pair.do(how)
    assert not pair.lives
