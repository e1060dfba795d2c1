"""A PEFT type of our own. PEFT's enum is closed; extending it at import is how a method outside the package joins."""

from typing import Any, cast

from peft.utils.peft_types import PeftType

__all__ = ["PRUNE_LORA"]


def _extend(name: str) -> PeftType:
    # `PeftType` is typed as final with fixed members; its own machinery is what is reached into here.
    members = cast(Any, PeftType)
    if name in members.__members__:
        return cast(PeftType, members[name])
    member = str.__new__(PeftType, name)
    member._name_, member._value_ = name, name
    members._member_map_[name] = member
    members._member_names_.append(name)
    members._value2member_map_[name] = member
    type.__setattr__(PeftType, name, member)
    return member


PRUNE_LORA = _extend("PRUNE_LORA")
