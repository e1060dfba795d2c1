"""What every result file begins with: the command that made it, the machine, the versions."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pruning_adapter.environment import name_places, tell_machine

__all__ = ["command_of", "heading", "model_name"]


def model_name(options: argparse.Namespace) -> str:
    """The model as people know it."""
    return options.model_id or Path(options.model).name


def command_of(options: argparse.Namespace, *, keep_only_report: bool = False) -> str:
    """What was typed, with names in place of this machine's folders."""
    given = vars(options)
    places = {
        str(given["model"]): model_name(options),
        str(given.get("data_dir") or ""): "GLUE",
        str(given.get("work_dir") or ""): "WORK",
        str(given["output"]): given["output"].name,
    }
    # That only tells again what was measured by the rest, unless some of it can be measured no more.
    words = [word for word in sys.argv[1:] if word != "--only-report" or keep_only_report]
    return name_places(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words], places)


def heading(
    title: str, commands: str | Sequence[str], machine: Mapping[str, Any], versions: Mapping[str, str], more: str = ""
) -> list[str]:
    """The lines above a table."""
    used = ", ".join(f"{name} {version}" for name, version in versions.items())
    return [
        f"# {title}",
        "",
        *(f"    {command}" for command in ([commands] if isinstance(commands, str) else commands)),
        "",
        f"On {tell_machine(machine)}; {used}.{f' {more}' if more else ''}",
        "",
    ]
