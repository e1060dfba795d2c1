"""What happens when Transformers or PEFT are imported: they learn to load what we save.

Both are slow to import, so this package does not import them; it waits until somebody does, before or after.
"""

from collections.abc import Callable
from importlib import import_module

from wrapt import register_post_import_hook

from pruning_adapter.architectures.registry import on_register
from pruning_adapter.architectures.spec import ArchitectureSpec, BlockStack

__all__ = ["install"]


def install() -> None:
    """Wait for the imports of PEFT and of every known family's modelling code, also of families registered later."""
    register_post_import_hook(lambda peft: import_module("pruning_adapter.adapter"), "peft")
    on_register(_wait_for_family)


def _wait_for_family(spec: ArchitectureSpec) -> None:
    for stack in spec.stacks:
        for home in (stack.built_by[0], *stack.homonyms):
            register_post_import_hook(_teach(spec, stack), home)


def _teach(spec: ArchitectureSpec, stack: BlockStack) -> Callable[[object], None]:
    def teach(imported: object) -> None:
        from pruning_adapter.checkpoint.rebuild import teach_transformers

        teach_transformers(spec, stack, imported)

    return teach
