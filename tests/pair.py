"""Two processes that meet over gloo and do what they are told, one thing after the other."""

import faulthandler
import os
import shutil
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch.multiprocessing

__all__ = ["Failure", "Pair", "free_port"]

PATIENCE = 120
"""Seconds until a pair that does not answer is taken to hang."""
ATTEMPTS = 3
"""How often two processes are started that do not meet."""

MET = "met"


class Failure(NamedTuple):
    """An exception in one of the processes."""

    kind: str
    message: str
    trace: str


class Pair:
    """Starting two processes takes seconds, so that tests share them."""

    def __init__(self) -> None:
        # The port was free a moment ago: another program may take it before ours do.
        for _ in range(ATTEMPTS):
            self._start()
            if all(_says_it_met(line) for line in self._lines):
                return
            self.end()
        raise TimeoutError(f"two processes did not meet in {ATTEMPTS} attempts of {PATIENCE} s each")

    def _start(self) -> None:
        context = torch.multiprocessing.get_context("spawn")
        self._said = Path(tempfile.mkdtemp(prefix="pair-"))
        self._lines: list[Connection] = []
        self._processes: list[Any] = []
        port = free_port()
        for rank in range(2):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, port, theirs, self._said), daemon=True)
            process.start()
            theirs.close()
            self._lines.append(ours)
            self._processes.append(process)

    def do(self, work: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What `work(rank, *arguments)` gives in both; `work` is a function of a module."""
        answers = self._ask(work, arguments)
        for rank, answer in enumerate(answers):
            if isinstance(answer, Failure):
                raise AssertionError(f"process {rank} failed:\n{answer.trace}")
        return answers

    def fail(self, work: Callable[..., Any], *arguments: Any) -> list["Failure"]:
        """What both raise."""
        answers = self._ask(work, arguments)
        assert all(isinstance(answer, Failure) for answer in answers), answers
        return answers

    def _ask(self, work: Callable[..., Any], arguments: tuple[Any, ...]) -> list[Any]:
        for line in self._lines:
            line.send((work, arguments))
        answers: list[Any] = []
        for rank, line in enumerate(self._lines):
            if not line.poll(PATIENCE):
                self.end()
                raise TimeoutError(f"process {rank} does not answer: it hangs in {work.__name__}")
            try:
                answers.append(line.recv())
            except EOFError:
                self._processes[rank].join()
                status, said = self._processes[rank].exitcode, (self._said / str(rank)).read_text(errors="replace")
                self.end()
                raise AssertionError(f"process {rank} died in {work.__name__}, status {status}:\n{said}") from None
        return answers

    def end(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        shutil.rmtree(self._said, ignore_errors=True)

    @property
    def lives(self) -> bool:
        return all(process.is_alive() for process in self._processes)


def _says_it_met(line: Connection) -> bool:
    try:
        return line.poll(PATIENCE) and line.recv() == MET
    except EOFError:
        return False


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _serve(rank: int, port: int, line: Connection, said: Path) -> None:
    # What only the system sees of a process that dies, such as a crash in native code.
    log = (said / str(rank)).open("w")
    os.dup2(log.fileno(), sys.stderr.fileno())
    faulthandler.enable()
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    line.send(MET)
    with suppress(EOFError, KeyboardInterrupt):
        while True:
            work, arguments = line.recv()
            try:
                line.send(work(rank, *arguments))
            except Exception as error:
                line.send(Failure(type(error).__name__, str(error), traceback.format_exc()))
