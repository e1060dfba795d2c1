"""Jobs of a grid end with it, however it ends."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks the system by /proc")

SCRIPT = """
import os, pathlib, signal, sys, time
from pruning_adapter.reproduce import grid
from pruning_adapter.reproduce.cells import make_cells
from pruning_adapter.settings import Settings

def work(folder, cell, base):
    (folder / str(os.getpid())).touch()
    time.sleep(600)

def terminate(*_):
    raise KeyboardInterrupt

if __name__ == "__main__":
    # As the command line has it.
    signal.signal(signal.SIGTERM, terminate)
    grid.run_cell = work
    cells = make_cells(recipes=["default"], tasks=["rte"], arms=["lora", "full"], seeds=[0, 1])
    list(grid.run_cells(pathlib.Path(sys.argv[1]), cells, Settings(), jobs=2))
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


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_jobs_end_with_their_grid(tmp_path: Path, how: signal.Signals) -> None:
    script = tmp_path / "grid.py"
    script.write_text(SCRIPT, encoding="utf-8")
    (tmp_path / "jobs").mkdir()
    grid = subprocess.Popen([sys.executable, script, tmp_path / "jobs"])
    try:
        assert wait_until(lambda: len(list((tmp_path / "jobs").iterdir())) == 2, 60)
        jobs = [int(path.name) for path in (tmp_path / "jobs").iterdir()]
        assert all(map(is_alive, jobs))
        grid.send_signal(how)
        grid.wait(20)
    finally:
        grid.kill()
        grid.wait()
    assert wait_until(lambda: not any(map(is_alive, jobs)), 10)
    # The cells that had not begun did not.
    assert len(list((tmp_path / "jobs").iterdir())) == 2
