"""Asks `torture/forge_server.py` for runs that end as they are told to."""

import json
import signal
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

__all__ = ["ENDED", "KILLED", "Forge", "Moment", "Outcome", "check_refused", "start_forge"]

ENDED, KILLED = 0, -signal.SIGKILL


class Moment(NamedTuple):
    """Just before a file changes."""

    seconds: float
    """Since the run began."""
    event: str
    """What Python calls the change."""
    path: str
    """Within the folder that is watched."""


class Outcome(NamedTuple):
    """What became of a run."""

    status: int
    """Minus the signal, of a run that was killed."""
    moments: list[Moment]
    said: str
    seconds: float


class Forge:
    """Runs of the command line, and of functions of forge_server.py, where `how` they may end is told."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def run(self, argv: Sequence[object], folder: Path, **how: Any) -> Outcome:
        return self._ask({"argv": [str(word) for word in argv], "folder": str(folder), **how})

    def call(self, function: str, *arguments: object, folder: Path, **how: Any) -> Outcome:
        return self._ask({"call": [function, *map(str, arguments)], "folder": str(folder), **how})

    def _ask(self, order: dict[str, Any]) -> Outcome:
        asked, answers = cast("tuple[IO[str], IO[str]]", (self._process.stdin, self._process.stdout))
        print(json.dumps(order), file=asked, flush=True)
        answer = json.loads(answers.readline())
        moments = [Moment(float(when), event, path) for when, event, path in answer.pop("moments")]
        return Outcome(moments=moments, **answer)


@contextmanager
def start_forge() -> Generator[Forge]:
    """While the context lasts, the libraries are imported and runs take seconds."""
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("torture") / "forge_server.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert "ready" in json.loads(process.stdout.readline())
        yield Forge(process)
        process.kill()


def check_refused(failed: Outcome, *reasons: str) -> None:
    """One clear error, for one of these reasons, and no other end."""
    assert failed.status == 2, failed.said
    assert "Traceback" not in failed.said
    assert "error: " in failed.said
    said = " ".join(failed.said.split())
    assert any(reason in said for reason in reasons), said
