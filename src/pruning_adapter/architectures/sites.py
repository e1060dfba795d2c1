"""The attentions and feed-forwards of a live model, found through the description of its family."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from pruning_adapter.architectures.registry import find_spec
from pruning_adapter.architectures.shapes import ProjectionShape, SiteShape
from pruning_adapter.architectures.spec import (
    GROUP_ROLES,
    ArchitectureSpec,
    AttentionSpec,
    BlockStack,
    FeedForwardSpec,
    Kind,
    Projection,
)
from pruning_adapter.errors import ArchitectureError

__all__ = [
    "Site",
    "base_of",
    "features",
    "find_all_sites",
    "find_feed_forwards",
    "find_sites",
    "find_stacks",
    "has_plain_weight",
    "is_plain",
    "is_sharded",
    "model_type_of",
    "sites_of_block",
    "spec_of",
    "stores_inputs_first",
    "trunk_of",
    "whole",
]


@dataclass(frozen=True, kw_only=True)
class Site:
    """One attention or one feed-forward of a live model."""

    path: str
    """Path of its block, relative to the trunk, such as "encoder.layer.3"."""
    block: nn.Module
    spec: AttentionSpec | FeedForwardSpec

    @property
    def kind(self) -> Kind:
        return "heads" if isinstance(self.spec, AttentionSpec) else "neurons"

    @property
    def name(self) -> str:
        """Where it is, for messages: the path of its output projection."""
        return f"{self.path}.{self.spec.output}"

    def module(self, path: str) -> nn.Module:
        """The module at `path`, relative to the block; LoRA wrappers are looked through."""
        return _unwrapped(self.block.get_submodule(path))

    @property
    def projections(self) -> tuple[Projection, ...]:
        """The projections that this configuration of the family has."""
        return tuple(p for p in self.spec.projections if not p.optional or _has(self.block, p.path))

    @property
    def readers_of_one_input(self) -> tuple[Projection, ...]:
        """Projections that are always given the same input: not a cross-attention's, nor those of positions too."""
        if isinstance(self.spec, AttentionSpec) and self.spec.cross:
            return ()
        roles = {role for projection in self.spec.projections for role in projection.roles}
        return () if any(role.startswith("position_") for role in roles) else self.projections

    @property
    def output(self) -> nn.Module:
        """The output projection, as it is called (with its LoRA wrapper, if it has one)."""
        return self.block.get_submodule(self.spec.output)

    @property
    def unit_size(self) -> int:
        """Width of a head; 1 for neurons."""
        if isinstance(self.spec, FeedForwardSpec):
            return 1
        return int(getattr(self.block.get_submodule(self.spec.core), self.spec.head_size))

    @property
    def units(self) -> int:
        """Units there are now; fewer than in the dense model once it is pruned."""
        return features(self.module(self.spec.output))[0] // self.unit_size

    def shape(self) -> SiteShape:
        """Sizes as they are now. For the sizes of the dense model see `identify`.

        Raises:
            ArchitectureError: the projections do not have the rows that the description says.
        """
        size, units = self.unit_size, self.units
        shapes: list[ProjectionShape] = []
        rows_of: list[tuple[Projection, int]] = []
        for projection in self.projections:
            module = self.module(projection.path)
            width, rows = features(module)
            bias = getattr(module, "bias", None) is not None
            shapes.append(ProjectionShape(roles=projection.roles, in_features=width, bias=bias))
            rows_of.append((projection, rows))
        shape = SiteShape(
            kind=self.kind,
            units=units,
            groups=_groups(rows_of, units, size),
            unit_size=size,
            projections=tuple(shapes),
            out_features=features(self.module(self.spec.output))[1],
            shared=self._shared_parameters() if units else 0,
        )
        for projection, rows in rows_of:
            if units and shape.rows(projection.roles, range(units)) != rows:
                raise ArchitectureError(
                    f"{self.path}.{projection.path} has {rows} rows, which is not what {units} {self.kind} of {size} "
                    f"make as {', '.join(projection.roles)}: its layout is unknown. Describe it as a family of its own "
                    "(docs/add-an-architecture.md)."
                )
        return shape

    def _shared_parameters(self) -> int:
        if not isinstance(self.spec, AttentionSpec):
            return 0
        core, spec = self.block.get_submodule(self.spec.core), self.spec
        apart = [self.module(projection.path) for projection in self.projections]
        apart.append(self.module(spec.output))
        live_on = (spec.closing_norm, spec.position_bias and spec.position_bias.owner)
        apart += [child for name, child in core.named_children() if name in live_on]
        elsewhere = {id(parameter) for module in apart for parameter in module.parameters()}
        return sum(p.numel() for n, p in core.named_parameters() if id(p) not in elsewhere and "lora_" not in n)


def _groups(rows_of: list[tuple[Projection, int]], units: int, size: int) -> int:
    """Key/value heads, from the rows of the projections that write them."""
    for projection, rows in rows_of:
        shared = sum(role in GROUP_ROLES for role in projection.roles)
        if shared and units:
            return max((rows // size - units * (len(projection.roles) - shared)) // shared, 1)
    return units


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


def find_stacks(model: nn.Module) -> Iterator[tuple[str, nn.Module, BlockStack]]:
    """Every block of the model: its path relative to the trunk, the block, and the stack it belongs to.

    Raises:
        ArchitectureError: unknown family, a list of blocks that is not where its description says, or one block
            standing in two places.
    """
    trunk, spec = trunk_of(model), spec_of(model)
    seen: dict[int, str] = {}
    for stack in spec.stacks:
        lists = list(_expand(trunk, stack.path))
        if not lists and not stack.optional:
            raise ArchitectureError(
                f"{type(trunk).__name__} has no module {stack.path!r}, where {spec.family} keeps its blocks."
            )
        for path, block in ((f"{path}.{n}", block) for path, blocks in lists for n, block in enumerate(blocks)):
            if id(block) in seen:
                raise ArchitectureError(
                    f"Blocks {seen[id(block)]!r} and {path!r} are one shared module; "
                    "pruning one would prune the other. Untie them (copy.deepcopy) first."
                )
            seen[id(block)] = path
            yield path, block, stack
    if not seen:
        raise ArchitectureError(f"{type(trunk).__name__} has no blocks where {spec.family} keeps them.")


def sites_of_block(path: str, block: nn.Module, stack: BlockStack) -> tuple[Site, ...]:
    """The attentions, then the feed-forward, of one block."""
    specs = (*stack.attentions, *((stack.feed_forward,) if stack.feed_forward else ()))
    return tuple(Site(path=path, block=block, spec=spec) for spec in specs)


def find_sites(model: nn.Module) -> tuple[Site, ...]:
    """Every attention of the model, in the order in which scores and plans number them.

    Raises:
        ArchitectureError: see `find_stacks`.
    """
    return tuple(site for site in _every_site(model) if site.kind == "heads")


def find_feed_forwards(model: nn.Module) -> tuple[Site, ...]:
    """Every feed-forward of the model, in the order in which scores and plans number them.

    Raises:
        ArchitectureError: see `find_stacks`.
    """
    return tuple(site for site in _every_site(model) if site.kind == "neurons")


def find_all_sites(model: nn.Module) -> tuple[Site, ...]:
    """Every attention, then every feed-forward: as `ModelIdentity.all_sites`.

    Raises:
        ArchitectureError: see `find_stacks`.
    """
    return (*find_sites(model), *find_feed_forwards(model))


def _every_site(model: nn.Module) -> Iterator[Site]:
    for path, block, stack in find_stacks(model):
        yield from sites_of_block(path, block, stack)


def _expand(root: nn.Module, path: str) -> Iterator[tuple[str, Any]]:
    """The modules at a path in which `*` stands for every child."""
    head, star, rest = path.partition(".*.")
    if not _has(root, head):
        return
    if not star:
        yield head, root.get_submodule(head)
        return
    for name, child in root.get_submodule(head).named_children():
        for below, module in _expand(child, rest):
            yield f"{head}.{name}.{below}", module


def _has(root: nn.Module, path: str) -> bool:
    try:
        root.get_submodule(path)
    except AttributeError:
        return False
    return True


def features(linear: nn.Module) -> tuple[int, int]:
    """(input features, output features) of a linear map, whichever way its class stores the weight.

    Transformers' `Conv1D` stores (in, out) and `nn.Linear` (out, in); a quantised weight may have any shape.
    """
    if not has_plain_weight(linear) and hasattr(linear, "in_features"):
        return int(cast(Any, linear).in_features), int(cast(Any, linear).out_features)
    rows, columns = cast(Tensor, linear.weight).shape
    return (rows, columns) if stores_inputs_first(linear) else (columns, rows)


def has_plain_weight(linear: nn.Module) -> bool:
    """Whether the weight is made of numbers as torch stores them, not packed by a library that quantises."""
    weight = getattr(linear, "weight", None)
    return is_plain(weight) if isinstance(weight, Tensor) else False


def is_plain(weight: Tensor) -> bool:
    """See `has_plain_weight`; libraries that quantise use whole numbers, or a tensor class of their own."""
    return type(weight) in (Tensor, nn.Parameter) and weight.dtype.is_floating_point


def is_sharded(weight: Tensor) -> bool:
    """Whether this process holds only a part of the weight, as under FSDP2."""
    # Torch's DTensor, whose module takes a second to import.
    return hasattr(weight, "full_tensor")


def whole(weight: Tensor) -> Tensor:
    """All of a weight, whose parts may lie in several processes; then all of them must call."""
    return cast(Any, weight).full_tensor() if is_sharded(weight) else weight


def stores_inputs_first(linear: nn.Module) -> bool:
    """Whether the weight is (in, out). `Conv1D` tells by its attribute `nf`, the number of outputs."""
    return hasattr(linear, "nf")


def _unwrapped(module: nn.Module) -> nn.Module:
    base = getattr(module, "base_layer", None)
    return base if isinstance(base, nn.Module) else module
