"""From a model to the description of its family. Users add families of their own with `register`."""

from collections.abc import Callable
from difflib import get_close_matches

from pruning_adapter.architectures.spec import ArchitectureSpec
from pruning_adapter.errors import ArchitectureError

__all__ = ["find_spec", "on_register", "register", "registered", "supported_model_types"]

_SPECS: dict[str, ArchitectureSpec] = {}
_LISTENERS: list[Callable[[ArchitectureSpec], None]] = []


def register(spec: ArchitectureSpec) -> ArchitectureSpec:
    """Make a family known. A second description of the same model type is refused.

    Raises:
        ArchitectureError: one of `spec.model_types` is described already.
    """
    taken = [name for name in spec.model_types if name in _SPECS]
    if taken:
        raise ArchitectureError(
            f"Model type {taken[0]!r} is already described by the family {_SPECS[taken[0]].family!r}; "
            "give your architecture a model_type of its own."
        )
    for name in spec.model_types:
        _SPECS[name] = spec
    for listener in _LISTENERS:
        listener(spec)
    return spec


def on_register(listener: Callable[[ArchitectureSpec], None]) -> None:
    """Call `listener` with every family, those known already and those to come."""
    for spec in registered():
        listener(spec)
    _LISTENERS.append(listener)


def registered() -> tuple[ArchitectureSpec, ...]:
    """The known families, each once, in the order they were registered."""
    return tuple(dict.fromkeys(_SPECS.values()))


def supported_model_types() -> tuple[str, ...]:
    """The values of `config.model_type` that can be pruned, sorted."""
    return tuple(sorted(_SPECS))


def find_spec(model_type: str) -> ArchitectureSpec:
    """The description that serves `model_type` (as in `model.config.model_type`).

    Raises:
        ArchitectureError: unknown; the message lists the supported ones.
    """
    try:
        return _SPECS[model_type]
    except KeyError:
        guess = get_close_matches(str(model_type), _SPECS, n=1)
        hint = f" Did you mean {guess[0]!r}?" if guess else ""
        raise ArchitectureError(
            f"Model type {model_type!r} is not supported.{hint} Supported: {', '.join(supported_model_types())}. "
            "Another family can be described in your own code: see docs/add-an-architecture.md."
        ) from None
