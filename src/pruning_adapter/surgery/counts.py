"""Counts that follow the surgery, so that modules go on telling the truth about themselves."""

from typing import Any

from torch import nn

__all__ = ["ConfigView", "set_count_"]


class ConfigView:
    """A model's config as one module sees it: a few counts are its own, all else is the shared config's.

    Some families read head counts from the config in their forward. The view follows later changes of the shared
    config, such as another attention implementation.
    """

    def __init__(self, shared: Any) -> None:
        self.__dict__["_shared"] = shared

    def __getattr__(self, name: str) -> Any:
        # Only asked for what the view does not hold itself. Copying asks before anything is there.
        if name == "_shared" or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(name)
        return getattr(self._shared, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._shared, name, value)

    def own(self, name: str, value: Any) -> None:
        """Give this view a value of its own."""
        self.__dict__[name] = value


def set_count_(module: nn.Module, attribute: str, count: int) -> None:
    """Set an attribute of a module; "config.name" sets it in a view of the config that only this module sees."""
    name = attribute.removeprefix("config.")
    if name == attribute:
        setattr(module, attribute, count)
        return
    config: Any = module.config
    if not isinstance(config, ConfigView):
        config = ConfigView(config)
        module.config = config
    config.own(name, count)
