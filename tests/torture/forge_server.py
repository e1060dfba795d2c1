"""Runs the command line in forked children that die, or meet a full disk, at a chosen moment.

Reads one JSON object a line, and answers each with one: libraries are imported once, so that a run takes seconds.

    {"argv": [...], "folder": "...", "kill_at": [n, seconds or null], "signal_at": [n, signal], "kill_after": seconds,
     "file_limit": bytes}
    → {"status": exit status, or minus the signal, "moments": [[seconds, event, path], in order], "said": output,
       "seconds": seconds}

A moment is a call that changes a file, told by Python's audit hooks just before it happens. A child is killed just
before the n-th, or with seconds so long after the one before, but no later. In place of "argv", "call" names a function
of this file, with its arguments, that works on "folder".
"""

import json
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pruning_adapter.errors import PruningAdapterError

NO_STATUS = 70
"""Of a child that ended by an exception, which the command line should never."""
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.truncate", "os.link", "os.symlink"}


def kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def watch(
    folder: str, told: int, begun: float, kill_at: tuple[int, float | None] | None, signal_at: tuple[int, int] | None
) -> None:
    """Tell every change below `folder` to the file descriptor `told`, and end the process at the chosen one."""
    number = 0

    def wait() -> None:
        if kill_at is not None and kill_at[1] is not None and number == kill_at[0]:
            threading.Timer(kill_at[1], kill_this_process).start()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal number
        if event == "open":
            path, mode, flags = arguments
            if not (isinstance(mode, str) and set(mode) & set("wax+")) and not (
                isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            ):
                return
        elif event in CHANGES:
            path = arguments[0]
        elif event == "ctypes.dlsym" and arguments[1] == "renameat2":
            # About to be called: two folders change places.
            path = folder
        else:
            return
        name = os.fsdecode(path) if isinstance(path, str | bytes) else ""
        if not name.startswith(folder):
            return
        # Counted first: the handler of a signal may raise here.
        now, number = number, number + 1
        if kill_at is not None and now == kill_at[0]:
            kill_this_process()
        if signal_at is not None and now == signal_at[0]:
            os.kill(os.getpid(), signal_at[1])
        os.write(told, (json.dumps([time.monotonic() - begun, event, name.removeprefix(folder)]) + "\n").encode())
        wait()

    wait()
    sys.addaudithook(hook)


def run_child(order: dict[str, Any], told: int, begun: float) -> None:
    if order.get("file_limit") is not None:
        # The system then refuses to let a file grow beyond it, whoever writes: a full disk for those who are not root.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_limit"], resource.RLIM_INFINITY))
    watch(order["folder"], told, begun, order.get("kill_at"), order.get("signal_at"))
    if "call" in order:
        name, *arguments = order["call"]
        try:
            FUNCTIONS[name](Path(order["folder"]), *arguments)
        except PruningAdapterError as error:
            # As the command line tells it.
            sys.stdout.write(f"error: {error}\n")
            sys.exit(2)
        return
    from pruning_adapter import cli

    sys.argv = ["pruning-adapter", *order["argv"]]
    cli.main()


def save_in_turns(target: Path, *sources: str) -> None:
    """Save two models to one folder, over each other, until somebody ends it."""
    from pruning_adapter import load_pruned, save_pruned
    from pruning_adapter.storage import write_json

    models = [load_pruned(source) for source in sources]
    while True:
        for source, model in zip(sources, models, strict=True):
            save_pruned(model, target / "merged")
            write_json(target / "which.json", {"kind": "which", "source": source, "more": list(range(5000))})


def save_adapter(target: Path, base: str, adapter: str, factor: str) -> None:
    """Save an adapter whose trained weights are multiplied."""
    from peft import PeftModel

    import pruning_adapter as pa

    model = PeftModel.from_pretrained(pa.load_pruned(base), adapter, is_trainable=True)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data *= float(factor)
    pa.save_adapter(model, target / "adapter")


def prune_checkpoint(target: Path, source: str, plan: str) -> None:
    """In files of a few kilobytes."""
    import pruning_adapter as pa

    pa.prune_checkpoint(source, pa.PruningPlan.load(plan), target / "out", shard_bytes=20_000)


FUNCTIONS: dict[str, Callable[..., None]] = {
    each.__name__: each for each in (save_in_turns, save_adapter, prune_checkpoint)
}


def serve(order: dict[str, Any]) -> dict[str, Any]:
    moments, told = os.pipe()
    output, said = os.pipe()
    begun, before = time.monotonic(), changed_at(order["folder"])
    child = os.fork()
    if child == 0:
        # As in a terminal: a shell has its background jobs ignore Ctrl-C, and so would all that they start.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(said, 1)
        os.dup2(said, 2)
        status = NO_STATUS
        try:
            run_child(order, told, begun)
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    os.close(told)
    os.close(said)
    with ThreadPoolExecutor() as pool:
        texts = [pool.submit(read_all, pipe) for pipe in (moments, output)]
        if order.get("kill_after") is not None:
            # Counted from the first change on, where there is nothing to be seen before.
            if "call" in order:
                while changed_at(order["folder"]) == before:
                    time.sleep(0.001)
            time.sleep(order["kill_after"])
            os.kill(child, signal.SIGKILL)
        changes, words = (text.result() for text in texts)
    _, status = os.waitpid(child, 0)
    return {
        "status": os.waitstatus_to_exitcode(status),
        "moments": [json.loads(line) for line in changes.splitlines()],
        "said": words,
        "seconds": time.monotonic() - begun,
    }


def changed_at(folder: str) -> int:
    return Path(folder).stat().st_mtime_ns if Path(folder).exists() else 0


def read_all(pipe: int) -> str:
    with os.fdopen(pipe, errors="replace") as text:
        return text.read()


def main() -> None:
    import torch

    torch.set_num_threads(1)
    from pruning_adapter import reporting
    from pruning_adapter.checkpoint import onnx_export
    from pruning_adapter.pipeline import run
    from pruning_adapter.surgery import reconstruct

    assert all((onnx_export, reporting, reconstruct)), "imported, so that no child has to"
    # Timing beside the dense model takes most of a tiny run and writes nothing.
    run.compare_inference = lambda *_, **__: {}
    run.Run._compare_training = lambda *_, **__: {}
    answers = os.fdopen(os.dup(1), "w")
    # What libraries print is not an answer.
    os.dup2(2, 1)
    print(json.dumps({"ready": str(Path.cwd())}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(serve(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
