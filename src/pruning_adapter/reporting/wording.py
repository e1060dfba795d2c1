"""What the settings of a run are called in sentences."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from pruning_adapter.reporting.numbers import as_number, show_percent

__all__ = ["CORRECTIONS", "METHODS", "SCORERS", "pruned_kinds", "say_rule"]

METHODS = {"full": "full fine-tuning", "lora": "LoRA", "prune-lora": "Prune-LoRA"}
SCORERS = {
    "gradient": "chosen by how strongly the loss reacts to each one",
    "obs": "chosen by what the others cannot make up for",
    "magnitude": "chosen by the size of their weights",
    "random": "chosen at random",
    "reversed": "chosen in reverse, the most important first",
    "shuffled": "chosen at random within each block, as many as the scores would leave there",
}
CORRECTIONS = {
    "bias": "The biases behind the pruned parts were corrected for what is gone, on the examples that were scored",
    "lstsq": "The kept weights were corrected for what is gone, by least squares on the examples that were scored",
}


def row_name(pruning: Mapping[str, Any]) -> str:
    """What a row of the map is: a block has several attentions where a decoder reads what an encoder made."""
    heads, neurons = pruning.get("dense_heads") or (), pruning.get("dense_neurons") or ()
    return "block" if len(heads) == len(neurons) or not neurons else "attention"


def pruned_kinds(pruning: Mapping[str, Any]) -> str:
    """ "heads", "neurons", or both; "heads" where nothing went."""
    kept = cast("Sequence[Sequence[int]]", pruning.get("kept_heads") or ())
    heads = sum(pruning.get("dense_heads") or ()) != sum(len(row) for row in kept)
    neurons = sum(pruning.get("dense_neurons") or ()) != sum(pruning.get("neurons_kept") or ())
    return "heads and neurons" if heads and neurons else "neurons" if neurons else "heads"


def say_rule(rule: Mapping[str, Any]) -> str | None:
    """The rule that the plan was made by, as a sentence without its full stop; None if unknown."""
    name, value = next(iter(rule.items()), ("", None))
    share = as_number(value)
    if name == "keep_bytes":
        return f"Budget: weights of at most {value} as {rule.get('dtype')}"
    if share is None:
        return None
    said = {
        "keep_heads": f"Rule: {share:g} heads stay",
        "keep_ratio": f"Rule: {show_percent(share)} of the units stay",
        "threshold": f"Rule: units of a normalised importance below {share:g} go",
        "keep_params": f"Budget: at most {show_percent(share)} of the parameters",
        "keep_macs": f"Budget: at most {show_percent(share)} of the multiply-adds at {rule.get('length')} tokens",
        "keep_latency": f"Budget: at most {show_percent(share)} of the time, as predicted before",
    }
    return said.get(name)
