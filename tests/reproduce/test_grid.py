"""Jobs of a grid."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks the system by /proc")

SCRIPT = """
import multiprocessing, os, pathlib, sys, time
from concurrent.futures import ProcessPoolExecutor
from pruning_adapter.reproduce.grid import set_up_job

def work(folder):
    pathlib.Path(folder, str(os.getpid())).touch()
    time.sleep(600)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context, initializer=set_up_job, initargs=(None,)) as pool:
        list(pool.map(work, [sys.argv[1]] * 2))
"""


def is_alive(process: int) -> bool:
    try:
        # One that has ended and that nobody has waited for still has a number.
        return "State:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return False


def wait_until(holds: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.1)
    return False


def test_jobs_end_with_a_grid_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "grid.py"
    script.write_text(SCRIPT, encoding="utf-8")
    (tmp_path / "jobs").mkdir()
    grid = subprocess.Popen([sys.executable, script, tmp_path / "jobs"])
    try:
        assert wait_until(lambda: len(list((tmp_path / "jobs").iterdir())) == 2, 60)
        jobs = [int(path.name) for path in (tmp_path / "jobs").iterdir()]
        assert all(map(is_alive, jobs))
    finally:
        os.kill(grid.pid, signal.SIGKILL)
        grid.wait()
    assert wait_until(lambda: not any(map(is_alive, jobs)), 10)
