"""`pruning-adapter push`: a run's model on the Hub."""

from pathlib import Path
from typing import Annotated

import typer

from pruning_adapter.cli import options as o
from pruning_adapter.cli.session import prepare_libraries

__all__ = ["push"]


def push(
    repo_id: Annotated[str, typer.Argument(help="Where to, such as somebody/rte-small; made if it is not there.")],
    adapter: Annotated[
        bool, typer.Option("--adapter", help="The adapter, with base/ where the run made one, instead of merged/.")
    ] = False,
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to push to. \\[main]")] = None,
    message: Annotated[str | None, typer.Option(help="Of the commit.")] = None,
    license_id: Annotated[
        str | None, typer.Option("--license", help="Such as apache-2.0. \\[what the base's own files say]")
    ] = None,
    card: Annotated[Path | None, typer.Option(help="A Markdown file in place of the card that is made.")] = None,
    output_dir: o.OutputDir = Path("run"),
    verbose: o.Verbose = False,
) -> None:
    """Push merged/ or adapter/ to the Hugging Face Hub, with a model card made from result.json.

    Log in with `hf auth login`, or set HF_TOKEN. The commit that is printed loads these weights for ever.
    """
    prepare_libraries(threads=None, verbose=verbose)
    from pruning_adapter.cli import show
    from pruning_adapter.publish import push_run

    commit = push_run(
        output_dir,
        repo_id,
        adapter=adapter,
        private=private,
        revision=revision,
        message=message,
        license_id=license_id,
        card=card,
    )
    show.step(f"Pushed: {repo_id} at revision {commit}")
