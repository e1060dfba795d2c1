"""What the fields of an adapter's config may be. PEFT takes any value, and fails on some of them far inside."""

import math
from collections.abc import Callable, Mapping
from typing import Any, cast

from pruning_adapter.errors import AdapterError

__all__ = ["check_fields"]


def check_fields(config: Any) -> None:
    """Refuse values of the wrong type or range.

    Raises:
        AdapterError: the first of them.
    """
    for name, (fits, wanted) in RULES.items():
        # Older releases of PEFT lack some.
        if hasattr(config, name) and not fits(getattr(config, name)):
            raise AdapterError(f"{name} is {getattr(config, name)!r}; {wanted}.")
    if getattr(config, "init_lora_weights", None) == "eva":
        # PEFT notes the ranks that it chose in `rank_pattern`, which is the plan's.
        raise AdapterError(
            'init_lora_weights is "eva", which gives ranks of its own in place of the plan\'s, so that the adapter '
            'could not be loaded again. Use another start, such as true or "pissa".'
        )
    if getattr(config, "megatron_config", None) is not None:
        raise AdapterError(
            "megatron_config is set, by which PEFT imports Megatron; its layers are not pruned here. Leave it out."
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _are_names(value: Any) -> bool:
    return value is None or (isinstance(value, list | tuple | set) and all(isinstance(each, str) for each in value))


def _are_tokens(value: Any) -> bool:
    if value is None:
        return True
    if isinstance(value, Mapping):
        lists = cast("Mapping[Any, Any]", value)
        return all(isinstance(name, str) and _are_tokens(tokens) for name, tokens in lists.items())
    return isinstance(value, list | tuple) and all(type(token) is int and 0 <= token < 2**31 for token in value)


FLAGS = (
    *("train_norms", "quick_linear", "allow_other_weights", "use_rslora", "use_dora", "use_qalora", "lora_bias"),
    *("fan_in_fan_out", "ensure_weight_tying"),
)
RULES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "r": (lambda value: type(value) is int and value >= 1, "the rank of LoRA is a whole number from 1"),
    "lora_alpha": (lambda value: _is_number(value) and math.isfinite(value), "it must be a number"),
    "lora_dropout": (lambda value: _is_number(value) and 0 <= value <= 1, "it must be a share between 0 and 1"),
    "bias": (lambda value: value in ("none", "all", "lora_only"), 'it must be "none", "all" or "lora_only"'),
    "init_lora_weights": (
        lambda value: value is None or isinstance(value, bool | str),
        "it must be true, false or a name",
    ),
    "modules_to_save": (_are_names, "it must be a list of names"),
    "target_parameters": (_are_names, "it must be a list of names"),
    "label_names": (_are_names, "it must be a list of names"),
    "alora_invocation_tokens": (
        lambda value: not isinstance(value, Mapping) and _are_tokens(value),
        "it must be a list of token numbers",
    ),
    "trainable_token_indices": (
        _are_tokens,
        "it must be a list of token numbers, or such lists by the name of their module",
    ),
    **dict.fromkeys(
        ("base_fingerprint", "problem_type", "base_model_name_or_path", "revision"),
        (_is_text, "it must be text, or left out"),
    ),
    **dict.fromkeys(FLAGS, (lambda value: isinstance(value, bool), "it must be true or false")),
}
