"""How `from_pretrained` builds a model with fewer heads: through Transformers' own patch mapping.

While a model is being loaded, Transformers lets registered classes stand in for its own. Ours stands in for the class
that makes a list of blocks: it builds the stock class and, if the config says that heads were removed, cuts it before
the weights are read. The result consists of stock modules; unpruned checkpoints come out as ever.
"""

from typing import Any

from torch import nn
from wrapt import register_post_import_hook

from pruning_adapter.architectures.identity import CONFIG_FIELD, PrunedState
from pruning_adapter.architectures.registry import on_register
from pruning_adapter.architectures.sites import Site
from pruning_adapter.architectures.spec import ArchitectureSpec, BlockStack
from pruning_adapter.errors import CheckpointError
from pruning_adapter.surgery.prune import cut_sites_

__all__ = ["teach_transformers"]

_STOCK: dict[tuple[str, str], type[nn.Module]] = {}
"""Transformers' own classes by module and name, kept because the module shows ours while a model is loaded."""


def teach_transformers() -> None:
    """Make `from_pretrained` rebuild pruned models of every known family, also of those registered later."""
    on_register(_teach_family)


def _teach_family(spec: ArchitectureSpec) -> None:
    for index, stack in enumerate(spec.stacks):
        module, name = stack.built_by
        if not module.startswith("transformers."):
            continue  # A user's own model: Transformers patches nothing outside itself.
        stand_in = _make_stand_in(spec, index, stack)

        def capture(imported: Any, name: str = name, stand_in: type[nn.Module] = stand_in) -> None:
            stock: object = getattr(imported, name, None)
            if isinstance(stock, type) and issubclass(stock, nn.Module) and stock is not stand_in:
                _STOCK[imported.__name__, name] = stock

        for home in (module, *stack.homonyms):
            register_post_import_hook(capture, home)
        _register_patch(name, stand_in)


def _register_patch(name: str, stand_in: type[nn.Module]) -> None:
    from transformers.monkey_patching import register_patch_mapping

    register_patch_mapping({f"^{name}$": stand_in}, overwrite=True)


def _make_stand_in(spec: ArchitectureSpec, index: int, stack: BlockStack) -> type[nn.Module]:
    """A class whose instances are those of the stock class, cut to the heads that the config names."""
    name = stack.built_by[1]

    def build(cls: type[nn.Module], config: Any, *args: Any, **kwargs: Any) -> nn.Module:
        # The stock class of the model that is being built; a class of the same name elsewhere stays what it is.
        stock = _stock_class(config, name)
        built = stock(config, *args, **kwargs)
        removed = getattr(config, CONFIG_FIELD, None)
        if removed is not None and config.model_type in spec.model_types:
            _cut_stack_(built, PrunedState.from_json(removed), stack, last=index == len(spec.stacks) - 1)
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
