"""An adapter that was trained on the dense model comes along when the model is pruned.

A LoRA product B A belongs to a linear map W. Where W loses rows, B loses the same; where W loses columns, A does. The
rank may change on the way: a larger one begins with columns of zeros in B, so that nothing changes at first; a smaller
one keeps the largest singular values.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from pruning_adapter.architectures.identity import pruned_state
from pruning_adapter.architectures.sites import find_all_sites
from pruning_adapter.errors import AdapterError
from pruning_adapter.planning.pruning_plan import PruningPlan
from pruning_adapter.surgery.cuts import Cut, cuts_of_site

__all__ = ["ADAPTER", "carry_", "carry_moments", "lift_", "take_out_"]

ADAPTER = "default"


@torch.no_grad()
def carry_(dense: nn.Module, pruned: nn.Module, plan: PruningPlan) -> None:
    """Give `pruned` the adapter of `dense`, as far as its rows, columns and ranks go, and its trained modules.

    Args:
        dense: a PEFT model with LoRA on the dense base.
        pruned: a PEFT model with LoRA on the base after `plan`; changed in place.
        plan: what was removed.

    Raises:
        AdapterError: LoRA where `dense` has none.
    """
    for part in _parts(dense, pruned, plan):
        a, b = part.cut(part.old_a, part.old_b)
        rank = min(part.rank, len(a))
        if rank < len(a):
            a, b = _truncate(a, b, rank)
        part.new_a[:rank].copy_(a)
        part.new_b.zero_()
        part.new_b[:, :rank].copy_(b)
    _copy_trained_(dense, pruned)


@torch.no_grad()
def lift_(pruned: nn.Module, dense: nn.Module, plan: PruningPlan) -> None:
    """Give `dense` the adapter of `pruned`: every row and column at its place, zeros at those that are gone.

    Args:
        pruned: a PEFT model with LoRA on the base after `plan`.
        dense: a PEFT model with LoRA of the same ranks on the dense base; changed in place.
        plan: what was removed.
    """
    for part in _parts(dense, pruned, plan):
        for whole, part_of, index, dimension in (
            (part.old_a, part.new_a, part.columns, 1),
            (part.old_b, part.new_b, part.rows, 0),
        ):
            whole.zero_()
            places = torch.arange(whole.shape[dimension]) if index is None else index
            whole.index_copy_(dimension, places.to(whole.device), part_of.to(whole))
    _copy_trained_(pruned, dense)


def _copy_trained_(source: nn.Module, target: nn.Module) -> None:
    """What trains beside LoRA: norms, the task head, single tokens. It stays where a block lost the module itself.

    Raises:
        AdapterError: `target` has no place for it.
    """
    places = dict(target.named_parameters())
    for name, trained in source.named_parameters():
        module, beside, _ = name.partition(".modules_to_save." if ".modules_to_save." in name else ".token_adapter.")
        if not beside or f".{ADAPTER}" not in name or not _has(target, module):
            continue
        place = places.get(name)
        if place is None or place.shape != trained.shape:
            raise AdapterError(
                f"{name} was trained as a whole, and {'is frozen' if place is None else 'has another size'} in the "
                "other model, so that it would be lost. Merge the adapter instead (merge_and_unload)."
            )
        place.copy_(trained)


def _has(model: nn.Module, path: str) -> bool:
    try:
        model.get_submodule(path)
    except AttributeError:
        return False
    return True


@torch.no_grad()
def take_out_(adapted: nn.Module) -> None:
    """Subtract what the adapter adds from the base below it, in place: together they are then what the base was."""
    for module in adapted.modules():
        layer = cast(Any, module)
        if ADAPTER in getattr(module, "lora_A", ()):
            weight = layer.get_base_layer().weight
            weight -= layer.get_delta_weight(ADAPTER).to(weight)


def carry_moments(
    moments: Mapping[str, Mapping[str, Tensor]], dense: nn.Module, pruned: nn.Module, plan: PruningPlan
) -> dict[str, dict[str, Tensor]]:
    """An optimizer's state for the trained parameters of `pruned`, from that for those of `dense`.

    New ranks begin at zero, and so does all of a product whose rank became smaller: its factors are others. Numbers
    such as the step stay.

    Args:
        moments: by the parameter's name, then by what it is; tensors of the parameter's shape, or single numbers.
        dense: see `carry_`.
        pruned: see `carry_`.
        plan: see `carry_`.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for name, parameter in pruned.named_parameters():
        if parameter.requires_grad and name in moments and "lora_" not in name:
            found[name] = {
                kind: value
                for kind, value in moments[name].items()
                if value.numel() == 1 or value.shape == parameter.shape
            }
    for part in _parts(dense, pruned, plan):
        names = [f"{part.name}.lora_{factor}.{ADAPTER}.weight" for factor in "AB"]
        of_a, of_b = (moments[name] for name in names)
        new_a, new_b = dict(of_a), dict(of_b)
        for kind in of_a:
            if of_a[kind].numel() == 1:
                continue
            new_a[kind], new_b[kind] = (torch.zeros_like(factor) for factor in (part.new_a, part.new_b))
            if part.rank >= len(part.old_a):
                a, b = part.cut(of_a[kind], of_b[kind])
                new_a[kind][: len(a)].copy_(a)
                new_b[kind][:, : b.shape[1]].copy_(b)
        found |= dict(zip(names, (new_a, new_b), strict=True))
    return found


@dataclass(frozen=True, kw_only=True)
class _Part:
    """One linear map with LoRA, before and after."""

    name: str
    """Path of its wrapper in the PEFT model."""
    old_a: Tensor
    """`(old rank, inputs)`."""
    old_b: Tensor
    """`(outputs, old rank)`."""
    new_a: Tensor
    new_b: Tensor
    rows: Tensor | None
    """Outputs that stay; None: all."""
    columns: Tensor | None
    """Inputs that stay, likewise."""

    @property
    def rank(self) -> int:
        return len(self.new_a)

    def cut(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """What stays of tensors of the old factors' shapes."""
        return (
            a if self.columns is None else a[:, self.columns.to(a.device)],
            b if self.rows is None else b[self.rows.to(b.device)],
        )


def _parts(dense: nn.Module, pruned: nn.Module, plan: PruningPlan) -> Iterator[_Part]:
    old = {name: module for name, module in dense.named_modules() if hasattr(module, "lora_A")}
    names = {id(module): name for name, module in pruned.named_modules()}
    before = pruned_state(dense)
    there = before.kept if before is not None else [range(shape.units) for shape in plan.model.all_sites]
    sites = zip(find_all_sites(pruned), plan.model.all_sites, there, plan.kept, strict=True)
    for site, shape, left, kept in sites:
        if not kept:
            continue
        cuts = {cut.path: cut for cut in cuts_of_site(site, shape, left, kept)}
        for path in (*(projection.path for projection in site.projections), site.spec.output):
            cut = cuts.get(path, Cut(path=path))
            layer = cast(Any, site.block.get_submodule(path))
            if ADAPTER not in getattr(layer, "lora_A", ()):
                continue
            name = names[id(layer)]
            if name not in old:
                raise AdapterError(f"{name} is adapted in the pruned model and not in the dense one.")
            factors = cast(Any, old[name])
            yield _Part(
                name=name,
                old_a=factors.lora_A[ADAPTER].weight,
                old_b=factors.lora_B[ADAPTER].weight,
                new_a=layer.lora_A[ADAPTER].weight,
                new_b=layer.lora_B[ADAPTER].weight,
                rows=_index(cut.rows),
                columns=_index(cut.columns),
            )


def _index(places: Sequence[int] | None) -> Tensor | None:
    return None if places is None else torch.tensor(places, dtype=torch.long)


def _truncate(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors of the nearest product of that rank, of equal norms."""
    # The product is as large as the weight; its factors' triangles are not.
    (left, upper), (right, lower) = torch.linalg.qr(b.double()), torch.linalg.qr(a.double().T)
    u, sizes, v = torch.linalg.svd(upper @ lower.T)
    roots = sizes[:rank].sqrt()
    return (roots[:, None] * (v[:rank] @ right.T)).to(a), ((left @ u[:, :rank]) * roots).to(b)
