"""What a number was measured with: command, versions and machine. Every file that holds numbers records them."""

import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["machine", "name_places", "tell_machine", "versions"]


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide what a run computes."""
    names = ("pruning-adapter", "torch", "transformers", "peft", "accelerate", "safetensors", "scikit-learn")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """What the run ran on: processor, threads, and the GPU's name if there is one."""
    import torch

    found: dict[str, Any] = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def tell_machine(found: Mapping[str, Any]) -> str:
    """What `machine` found, in words: the GPU, or the processor and how many threads computed."""
    if "gpu" in found:
        return str(found["gpu"])
    told, count = str(found["processor"]), found.get("threads")
    return told if count is None else f"{told}, {count} thread{'' if count == 1 else 's'}"


def name_places(words: Sequence[str], places: Mapping[str, str]) -> str:
    """A command with names in place of this machine's paths, which tell nothing to a reader elsewhere.

    Args:
        words: of the command, as they were given.
        places: paths, and what to call them. A word that is one of them, is in one of them or assigns one is changed.
    """

    def named(word: str) -> str:
        option, equals, value = word.partition("=")
        if equals and option.startswith("--"):
            return f"{option}={named(value)}"
        for place, name in places.items():
            if place and word == place:
                return name
            if place and word.startswith(f"{place}/"):
                return f"{name}{word[len(place) :]}"
        return word

    return shlex.join(map(named, words))


def _processor() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
