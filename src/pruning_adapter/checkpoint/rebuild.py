"""How `from_pretrained` builds a model with fewer heads: through Transformers' own patch mapping.

While a model is being loaded, Transformers lets registered classes stand in for its own. Ours stands in for the class
that makes a list of blocks: it builds the stock class and, if the config says that heads were removed, cuts it before
the weights are read. The result consists of stock modules; unpruned checkpoints come out as ever.
"""

import sys
from collections.abc import Generator
from contextlib import contextmanager
from importlib.util import find_spec
from threading import RLock
from typing import Any

import transformers
from torch import nn
from transformers.monkey_patching import register_patch_mapping

from pruning_adapter.architectures.identity import CONFIG_FIELD, PrunedState
from pruning_adapter.architectures.sites import Site
from pruning_adapter.architectures.spec import ArchitectureSpec, BlockStack
from pruning_adapter.errors import CheckpointError
from pruning_adapter.surgery.prune import cut_sites_

__all__ = ["patches_can_be_applied", "stand_ins_in_place", "teach_transformers"]

_STOCK: dict[tuple[str, str], type[nn.Module]] = {}
"""Transformers' own classes by module and name, kept because the module shows ours while a model is loaded."""
_LOCK = RLock()
_STAND_INS: dict[tuple[str, str], type[nn.Module]] = {}
"""Our classes by family and name."""


def teach_transformers(spec: ArchitectureSpec, stack: BlockStack, imported: Any) -> None:
    """Learn Transformers' own class from a module that has just been imported, and register ours to stand in for it.

    Args:
        spec: a family.
        stack: one of its lists of blocks.
        imported: the module that defines the class that builds the list, or a class of the same name.
    """
    name = stack.built_by[1]
    if (spec.family, name) not in _STAND_INS:
        _STAND_INS[spec.family, name] = _make_stand_in(spec, stack)
    stand_in = _STAND_INS[spec.family, name]
    stock: object = getattr(imported, name, None)
    if isinstance(stock, type) and issubclass(stock, nn.Module) and stock is not stand_in:
        _STOCK[imported.__name__, name] = stock
        if patches_can_be_applied():
            register_patch_mapping({f"^{name}$": stand_in}, overwrite=True)


def patches_can_be_applied() -> bool:
    """Whether Transformers can use its patch mapping here, so that plain `from_pretrained` loads pruned models.

    Before 5.21, any registered patch makes every `from_pretrained` look into modules that need torchvision. Without it
    nothing is registered, so that stock models go on loading, and pruned ones load through `load_pruned`.
    """
    version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    return version >= (5, 21) or find_spec("torchvision") is not None


@contextmanager
def stand_ins_in_place() -> Generator[None]:
    """While the context lasts, the modelling modules show our classes in place of their own."""
    with _LOCK:
        for (_, name), stand_in in _STAND_INS.items():
            for home, known in _STOCK:
                if known == name:
                    setattr(sys.modules[home], name, stand_in)
        try:
            yield
        finally:
            _show_stock_classes()


def _show_stock_classes() -> None:
    for (home, name), stock in _STOCK.items():
        setattr(sys.modules[home], name, stock)


def _make_stand_in(spec: ArchitectureSpec, stack: BlockStack) -> type[nn.Module]:
    """A class whose instances are those of the stock class, cut to the heads that the config names."""
    name = stack.built_by[1]

    def build(cls: type[nn.Module], config: Any, *args: Any, **kwargs: Any) -> nn.Module:
        # The stock class of the model that is being built; a class of the same name elsewhere stays what it is.
        stock = _stock_class(config, name)
        built = stock(config, *args, **kwargs)
        removed = getattr(config, CONFIG_FIELD, None)
        if removed is not None and config.model_type in spec.model_types:
            try:
                _cut_stack_(built, PrunedState.from_json(removed), stack, last=stack is spec.stacks[-1])
            except Exception:
                # Transformers does not take its patches back when building fails.
                _show_stock_classes()
                raise
        return built

    return type(f"Pruned{name}", (nn.Module,), {"__new__": build})


def _stock_class(config: Any, name: str) -> type[nn.Module]:
    for base in type(config).__mro__:
        home = base.__module__.replace(".configuration_", ".modeling_")
        if (home, name) in _STOCK:
            return _STOCK[home, name]
    known = ", ".join(sorted(module for module, held in _STOCK if held == name))
    raise CheckpointError(
        f"No class {name!r} is known for {type(config).__name__}; it is known in {known or 'no imported module'}."
    )


def _cut_stack_(built: nn.Module, state: PrunedState, stack: BlockStack, *, last: bool) -> None:
    blocks: Any = built.get_submodule(stack.path.rpartition(".")[2])
    sites = [
        Site(path=f"{stack.path}.{number}", block=block, spec=attention)
        for number, block in enumerate(blocks)
        for attention in stack.attentions
    ]
    dense, kept = state.dense.sites, state.kept_heads
    if len(sites) > len(dense):
        raise CheckpointError(f"config.{CONFIG_FIELD} speaks of {len(dense)} blocks, the config of {len(sites)}.")
    # A model has one list of blocks or two; the second one's heads are numbered last.
    first = len(dense) - len(sites) if last else 0
    chosen = slice(first, first + len(sites))
    cut_sites_(sites, dense[chosen], left=[range(site.heads) for site in sites], kept=kept[chosen])
