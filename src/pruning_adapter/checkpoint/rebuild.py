"""How `from_pretrained` builds a model with fewer units: through Transformers' own patch mapping.

While a model is being loaded, Transformers lets registered classes stand in for its own. Ours stands in for the class
of a block: it builds the stock block and, if the config says that units were removed, cuts it before the weights are
read. The result consists of stock modules; unpruned checkpoints come out as ever.
"""

import sys
from collections.abc import Generator
from contextlib import contextmanager
from threading import RLock
from typing import Any
from weakref import ref

from torch import nn
from transformers.monkey_patching import get_patch_mapping, register_patch_mapping, unregister_patch_mapping

from pruning_adapter.architectures.identity import CONFIG_FIELD, PrunedState
from pruning_adapter.architectures.sites import sites_of_block
from pruning_adapter.architectures.spec import ArchitectureSpec, BlockStack
from pruning_adapter.errors import CheckpointError
from pruning_adapter.surgery.prune import cut_sites_

__all__ = ["stand_ins_in_place", "teach_transformers"]

_STOCK: dict[tuple[str, str], type[nn.Module]] = {}
"""The blocks' own classes by module and name, kept because the module shows ours while a model is loaded."""
_LOCK = RLock()
_STAND_INS: dict[tuple[str, str], type[nn.Module]] = {}
"""Our classes, by the same module and name."""
_BUILT: dict[tuple[int, str], tuple["ref[Any]", int]] = {}
"""How many blocks of a stack were built from a config object, by its identity and the stack's path."""


def teach_transformers(spec: ArchitectureSpec, stack: BlockStack, imported: Any) -> None:
    """Learn a block's own class from a module that has just been imported, and register ours to stand in for it.

    Args:
        spec: a family.
        stack: one of its lists of blocks.
        imported: the module that defines the class of its blocks, or a class of the same name.
    """
    home, name = imported.__name__, stack.built_by[1]
    stock: object = getattr(imported, name, None)
    if not (isinstance(stock, type) and issubclass(stock, nn.Module)) or stock in _STAND_INS.values():
        return
    if (home, name) not in _STAND_INS:
        _STAND_INS[home, name] = _make_stand_in(stock, spec)
    _STOCK[home, name] = stock
    # Transformers patches its own modules only; `load_pruned` shows our class in others.
    if home.startswith("transformers."):
        register_patch_mapping({f"^{name}$": _STAND_INS[home, name]}, overwrite=True)


@contextmanager
def stand_ins_in_place() -> Generator[None]:
    """While the context lasts, the modelling modules show our classes in place of their own.

    What is loaded within does not need the patch mapping, of which a single entry makes Transformers list the names of
    all its modules, for every model; reading a small one is a fraction of that. So ours are out of it for as long.
    """
    with _LOCK:
        ours = {f"^{name}$": stand_in for (_, name), stand_in in _STAND_INS.items()}
        registered = {name: each for name, each in get_patch_mapping().items() if ours.get(name) is each}
        unregister_patch_mapping([*registered])
        for (home, name), stand_in in _STAND_INS.items():
            setattr(sys.modules[home], name, stand_in)
        try:
            yield
        finally:
            _show_stock_classes()
            register_patch_mapping(registered, overwrite=True)


def _show_stock_classes() -> None:
    for (home, name), stock in _STOCK.items():
        setattr(sys.modules[home], name, stock)


class _StandsIn(type):
    """Transformers looks for blocks by their class, and may have been told ours: stock blocks pass for it."""

    stock: type[nn.Module]

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, cls.stock)


def _make_stand_in(stock: type[nn.Module], spec: ArchitectureSpec) -> type[nn.Module]:
    """A class whose instances are those of the stock class, cut to the units that the config names."""

    def build(cls: type[nn.Module], config: Any, *args: Any, **kwargs: Any) -> nn.Module:
        block = stock(config, *args, **kwargs)
        removed = getattr(config, CONFIG_FIELD, None)
        if removed is not None and config.model_type in spec.model_types:
            try:
                _cut_block_(block, PrunedState.from_json(removed), spec, stock.__name__, config)
            except Exception:
                # Transformers does not take its patches back when building fails.
                _show_stock_classes()
                raise
        return block

    return _StandsIn(stock.__name__, (nn.Module,), {"__new__": build, "stock": stock, "__module__": stock.__module__})


def _cut_block_(block: nn.Module, state: PrunedState, spec: ArchitectureSpec, name: str, config: Any) -> None:
    number = next(
        number
        for number, stack in enumerate(spec.stacks)
        if stack.built_by[1] == name
        and (stack.only_if is None or getattr(config, stack.only_if[0], None) == stack.only_if[1])
    )
    stack, blocks = spec.stacks[number], state.stack_blocks[number]
    if not blocks:
        raise CheckpointError(f"config.{CONFIG_FIELD} knows no blocks at {stack.path!r}, but the model has some.")
    place = sum(state.stack_blocks[:number]) + _count_up(config, stack.path) % blocks
    dense = state.dense
    chosen = [site for site, at in enumerate(dense.blocks_of_sites) if at == place]
    sites = sites_of_block(stack.path, block, stack)
    cut_sites_(
        sites,
        [dense.all_sites[site] for site in chosen],
        left=[range(dense.all_sites[site].units) for site in chosen],
        kept=[state.kept[site] for site in chosen],
    )


def _count_up(config: Any, path: str) -> int:
    """How many blocks of a stack were built from this very config object before: every load has its own copy."""
    key = (id(config), path)
    known, count = _BUILT.get(key, (None, 0))
    if known is None or known() is not config:
        count = 0
        for other in [other for other, (alive, _) in _BUILT.items() if alive() is None]:
            del _BUILT[other]
    _BUILT[key] = (ref(config), count + 1)
    return count
