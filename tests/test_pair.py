"""What is said of a process of a pair that dies: a crash in native code leaves no exception behind."""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed

from pair import Pair

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="PyTorch was built without gloo")


def crash(rank: int) -> None:
    if rank == 1:
        ctypes.string_at(0)


def crash_once(rank: int, folder: Path) -> int:
    if rank == 1 and not (folder / "crashed").exists():
        (folder / "crashed").touch()
        ctypes.string_at(0)
    return rank


def end(rank: int) -> None:
    if rank == 0:
        os._exit(7)


@pytest.mark.filterwarnings("ignore:tried again")
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


def test_what_crashes_once_is_told_and_tried_again(tmp_path: Path) -> None:
    pair = Pair()
    with pytest.warns(UserWarning, match="tried again: process 1 died in crash_once, status -11"):
        assert pair.do(crash_once, tmp_path) == [0, 1]
    assert pair.lives
    pair.end()
