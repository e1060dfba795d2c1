"""Two files of the Trainer's checkpoints as JSON: it pickles them, and nothing pickled is kept among frozen files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.trainer_pt_utils import safe_globals

__all__ = ["STATES", "pack_states", "unpack_states"]

STATES = "trainer_states.json"
SCHEDULE, RANDOM = "scheduler.pt", "rng_state.pth"


def pack_states(checkpoint: Path) -> None:
    """Put `trainer_states.json` in place of what the Trainer pickled."""
    schedule = torch.load(checkpoint / SCHEDULE, weights_only=True)
    with safe_globals():
        random: dict[str, Any] = torch.load(checkpoint / RANDOM, weights_only=True)
    name, numbers, *rest = random["numpy"]
    random = {**random, "numpy": [name, numbers.tolist(), *rest], "cpu": bytes(random["cpu"].tolist()).hex()}
    (checkpoint / STATES).write_text(json.dumps({SCHEDULE: schedule, RANDOM: random}) + "\n", encoding="utf-8")
    for file in (SCHEDULE, RANDOM):
        (checkpoint / file).unlink()


def unpack_states(checkpoint: Path) -> None:
    """The other way."""
    states = json.loads((checkpoint / STATES).read_text(encoding="utf-8"))
    random = states[RANDOM]
    version, numbers, gauss = random["python"]
    name, words, *rest = random["numpy"]
    random = {
        **random,
        "python": (version, tuple(numbers), gauss),
        "numpy": (name, np.array(words, dtype=np.uint32), *rest),
        "cpu": torch.tensor(list(bytes.fromhex(random["cpu"])), dtype=torch.uint8),
    }
    torch.save(states[SCHEDULE], checkpoint / SCHEDULE)
    torch.save(random, checkpoint / RANDOM)
    (checkpoint / STATES).unlink()
