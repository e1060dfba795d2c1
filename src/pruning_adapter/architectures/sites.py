"""The attentions of a live model, found through the description of its family."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from pruning_adapter.architectures.registry import find_spec
from pruning_adapter.architectures.shapes import ProjectionShape, SiteShape
from pruning_adapter.architectures.spec import ArchitectureSpec, AttentionSpec
from pruning_adapter.errors import ArchitectureError

__all__ = ["Site", "base_of", "features", "find_sites", "find_stacks", "model_type_of", "spec_of", "trunk_of"]


@dataclass(frozen=True, kw_only=True)
class Site:
    """One attention of a live model."""

    path: str
    """Path of its block, relative to the trunk, such as "encoder.layer.3"."""
    block: nn.Module
    spec: AttentionSpec

    def module(self, path: str) -> nn.Module:
        """The module at `path`, relative to the block; LoRA wrappers are looked through."""
        return _unwrapped(self.block.get_submodule(path))

    @property
    def output(self) -> nn.Module:
        """The output projection, as it is called (with its LoRA wrapper, if it has one)."""
        return self.block.get_submodule(self.spec.output)

    @property
    def head_size(self) -> int:
        return int(getattr(self.block.get_submodule(self.spec.core), self.spec.head_size))

    @property
    def heads(self) -> int:
        """Heads there are now; fewer than in the dense model once it is pruned."""
        return features(self.module(self.spec.output))[0] // self.head_size

    def shape(self) -> SiteShape:
        """Sizes as they are now. For the sizes of the dense model see `identify`."""
        head_size, heads = self.head_size, self.heads
        shapes: list[ProjectionShape] = []
        groups = heads
        for projection in self.spec.projections:
            module = self.module(projection.path)
            width, rows = features(module)
            shapes.append(
                ProjectionShape(
                    roles=projection.roles, in_features=width, bias=getattr(module, "bias", None) is not None
                )
            )
            if "query" not in projection.roles:
                groups = rows // head_size // len(projection.roles)
            elif len(projection.roles) == 3:
                groups = (rows // head_size - heads) // 2
        return SiteShape(
            heads=heads,
            key_value_heads=groups,
            head_size=head_size,
            projections=tuple(shapes),
            out_features=features(self.module(self.spec.output))[1],
        )


def base_of(model: nn.Module) -> nn.Module:
    """The Transformers model inside `model`: itself, or what a PEFT wrapper holds."""
    unwrap = getattr(model, "get_base_model", None)
    return cast(nn.Module, unwrap()) if callable(unwrap) else model


def model_type_of(model: nn.Module) -> str:
    """The model's `config.model_type`.

    Raises:
        ArchitectureError: this is no Transformers model.
    """
    model_type = getattr(getattr(base_of(model), "config", None), "model_type", None)
    if not isinstance(model_type, str):
        raise ArchitectureError(
            f"{type(model).__name__} has no config.model_type; pass a model of the Transformers library."
        )
    return model_type


def spec_of(model: nn.Module) -> ArchitectureSpec:
    """The description of the model's family.

    Raises:
        ArchitectureError: unknown family, or not a Transformers model.
    """
    return find_spec(model_type_of(model))


def trunk_of(model: nn.Module) -> nn.Module:
    """The model without its task head."""
    base = base_of(model)
    return cast(nn.Module, getattr(base, "base_model", base))


def find_stacks(model: nn.Module) -> Iterator[tuple[str, nn.Module, tuple[AttentionSpec, ...]]]:
    """Every block of the model: its path relative to the trunk, the block, and the attentions in it.

    Raises:
        ArchitectureError: unknown family, a list of blocks that is not where its description says, or one block
            standing in two places.
    """
    trunk, spec = trunk_of(model), spec_of(model)
    seen: dict[int, str] = {}
    for stack in spec.stacks:
        try:
            blocks = trunk.get_submodule(stack.path)
        except AttributeError:
            raise ArchitectureError(
                f"{type(trunk).__name__} has no module {stack.path!r}, where {spec.family} keeps its blocks."
            ) from None
        for number, block in enumerate(cast(Any, blocks)):
            path = f"{stack.path}.{number}"
            if id(block) in seen:
                raise ArchitectureError(
                    f"Blocks {seen[id(block)]!r} and {path!r} are one shared module; "
                    "pruning one would prune the other. Untie them (copy.deepcopy) first."
                )
            seen[id(block)] = path
            yield path, cast(nn.Module, block), stack.attentions


def find_sites(model: nn.Module) -> tuple[Site, ...]:
    """Every attention of the model, in the order in which scores and plans number them.

    Raises:
        ArchitectureError: see `find_stacks`.
    """
    return tuple(
        Site(path=path, block=block, spec=attention)
        for path, block, attentions in find_stacks(model)
        for attention in attentions
    )


def features(linear: nn.Module) -> tuple[int, int]:
    """(input features, output features) of a linear map, whichever way its class stores the weight.

    Transformers' `Conv1D` stores (in, out) and `nn.Linear` (out, in); a map whose inputs are all gone has only a bias.
    """
    weight = cast("Tensor | None", getattr(linear, "weight", None))
    if weight is None:
        return 0, int(cast(Tensor, linear.bias).shape[0])
    rows, columns = weight.shape
    return (rows, columns) if stores_inputs_first(linear) else (columns, rows)


def stores_inputs_first(linear: nn.Module) -> bool:
    """Whether the weight is (in, out). `Conv1D` tells by its attribute `nf`, the number of outputs."""
    return hasattr(linear, "nf")


def _unwrapped(module: nn.Module) -> nn.Module:
    base = getattr(module, "base_layer", None)
    return base if isinstance(base, nn.Module) else module
