"""Two runs into one folder: the second is refused while the first lives; a dead one's lock does not block."""

import os
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pruning_adapter import cli
from pruning_adapter.errors import OutputError
from pruning_adapter.run_folder import LOCK, check_folder, lock_folder

HOLD = """
import sys, time
from pathlib import Path
from pruning_adapter.run_folder import lock_folder
lock = lock_folder(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


@contextmanager
def another_process(folder: Path) -> Generator["subprocess.Popen[str]"]:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield holder
    finally:
        holder.kill()
        holder.wait()


def test_a_second_run_is_refused_while_the_first_lives(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    monkeypatch.setattr(sys, "argv", ["pruning-adapter", "run", "--demo", "--output-dir", str(folder), "--overwrite"])
    with another_process(folder), pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert f"Another process works in {folder}" in capsys.readouterr().err.replace("\n", " ")
    assert [path.name for path in folder.iterdir()] == [LOCK]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_of_a_dead_process_does_not_block(tmp_path: Path, how: signal.Signals) -> None:
    with another_process(tmp_path) as holder:
        os.kill(holder.pid, how)
        holder.wait()
        lock_folder(tmp_path).release()


def test_the_lock_alone_does_not_make_a_folder_somebodys(tmp_path: Path) -> None:
    lock_folder(tmp_path / "run").release()
    check_folder(tmp_path / "run", overwrite=False, resume=False)


def test_waiting_ends_when_the_other_lets_go(tmp_path: Path) -> None:
    with another_process(tmp_path) as holder:
        with pytest.raises(OutputError, match="Wait until it has ended, or name another folder"):
            lock_folder(tmp_path)
        holder.kill()
        lock_folder(tmp_path, wait=True).release()


def test_waiting_for_what_can_be_no_folder_ends(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for path in (tmp_path / "file", tmp_path / "link", tmp_path / "link" / "run"):
        with pytest.raises(OutputError, match=r"Cannot write into .*Name another folder"):
            lock_folder(path, wait=True)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="Cannot write into"):
        lock_folder(tmp_path)
