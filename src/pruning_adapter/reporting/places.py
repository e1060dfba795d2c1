"""Names instead of places: a path of the machine that a run ran on tells nothing to a reader elsewhere."""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

__all__ = ["without_home", "without_places"]

# A result may be read on another machine than the one that made it, so homes are known by their shape.
HOME = re.compile(r"(?:/home/|/Users/|[A-Za-z]:\\Users\\)[^/\\\s'\"]+|/root(?![\w.-])")
OUTPUTS = ("--output-dir", "--figure")
FILES = ("--train-file", "--validation-file", "--data-dir", "--latency-table")
MODELS = ("--model", "--teacher")
"""A name with one slash may be the Hub's."""
PLACE = re.compile(r"(?:[A-Za-z]:[\\/]|[/~]|\.{1,2}[\\/]).*")


def without_home(value: Any) -> Any:
    """`value` with every path into a user's home folder shortened to `~`, at any depth."""
    if isinstance(value, str):
        home = str(Path.home())
        # "/" is the home of some containers, and is in every path.
        return HOME.sub("~", value.replace(home, "~") if len(home) > 1 else value)
    if isinstance(value, Mapping):
        return {key: without_home(each) for key, each in cast("Mapping[str, Any]", value).items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [without_home(each) for each in cast("Sequence[Any]", value)]
    return value


def without_places(command: str) -> str:
    """A command with the names of files and folders in place of their paths, and without where its output went."""
    try:
        words = shlex.split(command)
    except ValueError:
        words = command.split()
    said: list[str] = []
    option = ""
    for word in words:
        name, equals, value = word.partition("=")
        if word.startswith("--") and not equals:
            option = word
            said += [] if option in OUTPUTS else [word]
            continue
        if equals and word.startswith("--"):
            option, start = name, f"{name}="
        else:
            value, start = word, ""
        if option not in OUTPUTS:
            place = option in FILES or PLACE.fullmatch(value) or (option in MODELS and Path(value).is_dir())
            said.append(start + (_last_part(value) if place else value))
        option = ""
    return shlex.join(said)


def _last_part(word: str) -> str:
    return re.split(r"[/\\]", word.rstrip("/\\"))[-1] or word
