"""The command line. Verbs parse, call and print; whatever is slow to import is imported when a verb runs."""

import signal
import sys
from typing import NoReturn

import typer

from pruning_adapter import __version__
from pruning_adapter.cli.evaluate import evaluate
from pruning_adapter.cli.export import export
from pruning_adapter.cli.importance import importance
from pruning_adapter.cli.merge import merge
from pruning_adapter.cli.plan import plan
from pruning_adapter.cli.push import push
from pruning_adapter.cli.report import report
from pruning_adapter.cli.reproduce import reproduce
from pruning_adapter.cli.run import run
from pruning_adapter.cli.train import train
from pruning_adapter.errors import PruningAdapterError
from pruning_adapter.processes import first_to_fail

__all__ = ["app", "main"]

INTERRUPTED, TERMINATED = 130, 143
"""Exit status that Typer makes of Ctrl-C, and the shell of SIGTERM."""

app = typer.Typer(
    name="pruning-adapter",
    help="Fine-tune a transformer cheaply and serve it cheaply: prune by importance for the task, then train LoRA.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for verb in (run, importance, plan, train, merge, evaluate, export, report, push, reproduce):
    app.command()(verb)


@app.callback(invoke_without_command=True)
def about(version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
    if version:
        typer.echo(f"pruning-adapter {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line; errors that we foresee are one line and exit status 2."""
    told = list[int]()

    def terminate(number: int, _: object) -> NoReturn:
        # As Ctrl-C: what is being written is taken back before the process ends. Clusters ask so before they kill.
        told.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        app()
    except PruningAdapterError as error:
        _fail(str(error))
    except RuntimeError:
        # A process that was waiting for one that failed; that one has told.
        if first_to_fail():
            raise
        sys.exit(2)
    except OSError as error:
        # From the libraries below: a full disk, a folder that vanished. What is written is written aside first.
        _fail(f"{error}. Files of earlier steps are untouched.")
    except SystemExit as end:
        if end.code == INTERRUPTED:
            again = "the same command" if "reproduce" in sys.argv[1:2] else "--resume"
            typer.secho(f"Interrupted. Go on with {again}.", err=True)
            if told:
                sys.exit(TERMINATED)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(message: str) -> NoReturn:
    # The libraries below put several lines into one message.
    if first_to_fail():
        typer.secho(f"error: {' '.join(message.split())}", err=True, fg="red")
    sys.exit(2)
