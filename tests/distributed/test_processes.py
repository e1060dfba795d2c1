"""What ends one process ends all of them, however it ends; a process that is told does not wait for the others."""

from typing import Any

import pytest

from pair import Pair
from pruning_adapter.errors import ProcessError
from pruning_adapter.processes import all_or_none, first_does, gather

ENDS: dict[str, tuple[BaseException, str]] = {
    "an error": (ValueError("no such thing"), "no such thing"),
    "an error without words": (ValueError(), "ValueError"),
    "an interrupt": (KeyboardInterrupt(), "KeyboardInterrupt"),
    "an exit": (SystemExit(3), "SystemExit"),
}


def end_one(rank: int, which: int, end: BaseException) -> tuple[str, str]:
    """What a process raises of which one ends, as values: an interrupt would end the pair too."""
    try:
        with all_or_none():
            if rank == which:
                raise end
    except BaseException as error:
        return type(error).__name__, str(error)
    return "nothing", ""


@pytest.mark.parametrize(("end", "said"), ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("which", [0, 1])
def test_the_others_are_told(pair: Pair, which: int, end: BaseException, said: str) -> None:
    found = pair.do(end_one, which, end)
    assert found[which] == (type(end).__name__, str(end))
    assert found[1 - which] == ("ProcessError", f"Process {which} of 2 failed: {said}")


def write_first(rank: int, end: BaseException) -> str:
    def work() -> None:
        raise end

    try:
        first_does(work)
    except BaseException as error:
        return type(error).__name__
    return "nothing"


@pytest.mark.parametrize("end", [KeyboardInterrupt(), SystemExit(1)], ids=["an interrupt", "an exit"])
def test_those_who_wait_for_the_first_are_told(pair: Pair, end: BaseException) -> None:
    assert pair.do(write_first, end) == [type(end).__name__, "ProcessError"]


def end_both(rank: int, end: BaseException) -> tuple[str, list[Any]]:
    try:
        with all_or_none():
            raise end
    except ProcessError:
        raise
    except BaseException as error:
        # And they still understand each other.
        return type(error).__name__, gather(rank)


def test_processes_that_are_interrupted_together_do_not_wait_for_each_other(pair: Pair) -> None:
    """As Ctrl-C does it to all of a terminal."""
    assert pair.do(end_both, KeyboardInterrupt()) == [("KeyboardInterrupt", [0, 1])] * 2
