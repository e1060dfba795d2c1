"""Multiply-accumulates: counted on the model at hand, and told in advance for every plan.

The cost of a site falls in proportion to its units, so it is enough to count the dense model once: what every head and
every neuron costs follows exactly, whatever else the family's attention computes per head. Over the sequence length the
count is a polynomial of degree two (attention's quadratic part), so three lengths give it for all.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, cast

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pruning_adapter.architectures.shapes import SiteShape
from pruning_adapter.architectures.sites import Site, base_of, find_all_sites
from pruning_adapter.architectures.spec import GROUP_ROLES, AttentionSpec
from pruning_adapter.architectures.unit_index import kept_groups
from pruning_adapter.costs.inputs import make_inputs
from pruning_adapter.errors import CostError

__all__ = ["ModelMacs", "Polynomial", "count_macs", "count_model_macs"]

LENGTHS = (3, 4, 6, 8)
"""Three determine the polynomial, the fourth checks it. Short: counting should cost nothing."""

REMEMBERED = 16
"""Counts of that many models are kept: scoring, planning and evaluating one model all ask for them."""
_COUNTED: "dict[tuple[object, ...], ModelMacs]" = {}

_FRACTION = "-?[0-9]{1,40}(/[1-9][0-9]{0,40})?"

Polynomial = tuple[Fraction, Fraction, Fraction]
"""Coefficients of 1, length and length squared."""


@dataclass(frozen=True, kw_only=True)
class ModelMacs:
    """Multiply-accumulates of one example through the dense model, as functions of the sequence length."""

    total: Polynomial
    """Of the whole model, task head included."""
    of_units: tuple[Polynomial, ...]
    """What one unit (query head, neuron) of each site costs; attentions first, then feed-forwards."""
    of_groups: tuple[Polynomial, ...]
    """What one key/value head of each site costs beyond that; zero for feed-forwards."""

    def is_of(self, sites: Sequence[SiteShape]) -> bool:
        """Whether it tells the cost of as many sites."""
        return len(self.of_units) == len(self.of_groups) == len(sites)

    def dense(self, length: int) -> int:
        """Of the dense model."""
        return int(evaluate(self.total, length))

    def unit(self, site: int, length: int) -> Fraction:
        """Of one unit of a site."""
        return evaluate(self.of_units[site], length)

    def group(self, site: int, length: int) -> Fraction:
        """Of one key/value head of a site."""
        return evaluate(self.of_groups[site], length)

    def kept(self, sites: Sequence[SiteShape], kept: Sequence[Sequence[int]], length: int) -> int:
        """Of the model when only the units `kept` of each site are left."""
        total = evaluate(self.total, length)
        for number, (site, units) in enumerate(zip(sites, kept, strict=True)):
            total -= (site.units - len(units)) * self.unit(number, length)
            gone = site.groups - len(kept_groups(units, site.units, site.groups))
            if site.kind == "heads":
                total -= gone * self.group(number, length)
        return int(total)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object of numerator/denominator texts."""
        return {
            "total": _texts(self.total),
            "of_units": [_texts(polynomial) for polynomial in self.of_units],
            "of_groups": [_texts(polynomial) for polynomial in self.of_groups],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any] | None) -> "ModelMacs | None":
        """Read what `to_json` wrote; None stays None.

        Raises:
            KeyError, TypeError, ValueError: damaged.
        """
        if value is None:
            return None
        return cls(
            total=_polynomial(value["total"]),
            of_units=tuple(_polynomial(texts) for texts in value["of_units"]),
            of_groups=tuple(_polynomial(texts) for texts in value["of_groups"]),
        )


def count_macs(model: nn.Module, *, batch: int = 1, length: int = 128) -> int:
    """Multiply-accumulates of one forward pass, attention's quadratic part included: counted, not estimated.

    Half of what `torch.utils.flop_counter` counts, which takes a multiplication and an addition for two. It has no
    formula for attention's CPU kernel, so it is told one.
    """
    with torch.no_grad(), _counter() as counter:
        model(**make_inputs(model, batch=batch, length=length))
    return counter.get_total_flops() // 2


def count_model_macs(model: nn.Module) -> ModelMacs:
    """Count what the dense model and each of its units cost, as functions of the sequence length.

    Runs the model four times on one short made-up example; models that are made alike are counted once.

    Raises:
        CostError: the cost is no polynomial of degree two in the sequence length.
    """
    signature = _signature(model)
    if signature not in _COUNTED:
        found = _count(model)
        if len(_COUNTED) >= REMEMBERED:
            del _COUNTED[next(iter(_COUNTED))]
        _COUNTED[signature] = found
    return _COUNTED[signature]


def _signature(model: nn.Module) -> tuple[object, ...]:
    """All that the count depends on: the config, what modules there are, and their sizes."""
    base = cast(Any, base_of(model))
    config = base.config
    modules = tuple((name, type(module)) for name, module in base.named_modules())
    sizes = tuple((name, tuple(parameter.shape)) for name, parameter in base.named_parameters())
    return (config.to_json_string(), str(config._attn_implementation), modules, sizes)


def _count(model: nn.Module) -> ModelMacs:
    sites = find_all_sites(model)
    counts = [_count_sites(model, sites, length) for length in LENGTHS]
    totals = [total for total, _, _ in counts]
    units = zip(*(of_units for _, of_units, _ in counts), strict=True)
    groups = zip(*(of_groups for _, _, of_groups in counts), strict=True)
    return ModelMacs(
        total=_fit(totals),
        of_units=tuple(_fit(list(series)) for series in units),
        of_groups=tuple(_fit(list(series)) for series in groups),
    )


def evaluate(polynomial: Polynomial, length: int) -> Fraction:
    """Value at a sequence length."""
    constant, linear, quadratic = polynomial
    return constant + linear * length + quadratic * length * length


def _count_sites(model: nn.Module, sites: Sequence[Site], length: int) -> tuple[int, list[Fraction], list[Fraction]]:
    """MACs of one example: of the whole model, of one unit of each site, and of one group of each."""
    inputs = make_inputs(model, batch=1, length=length)
    base, totals = base_of(model), dict[tuple[int, str], int]()
    training = [module for module in base.modules() if module.training]
    base.eval()
    try:
        with ExitStack() as stack, torch.no_grad(), _counter() as counter:
            for number, site in enumerate(sites):
                for path in _parts(site):
                    _watch(site.block.get_submodule(path), counter, totals, (number, path), stack)
            base(**inputs)
    finally:
        for module in training:
            module.training = True
    of_units: list[Fraction] = []
    of_groups: list[Fraction] = []
    for number, site in enumerate(sites):
        shape = site.shape()
        groups = Fraction(0)
        for projection in site.projections:
            shared = sum(role in GROUP_ROLES for role in projection.roles) * shape.groups
            rows = shape.rows(projection.roles, range(shape.units)) // shape.unit_size
            groups += Fraction(totals.get((number, projection.path), 0) * shared, rows or 1)
        whole = sum(totals.get((number, path), 0) for path in _outermost(site))
        of_units.append((whole - groups) / (shape.units or 1))
        of_groups.append(groups / (shape.groups or 1))
    return counter.get_total_flops() // 2, of_units, of_groups


def _parts(site: Site) -> list[str]:
    core = [site.spec.core] if isinstance(site.spec, AttentionSpec) else []
    return [*core, *(projection.path for projection in site.projections), site.spec.output]


def _outermost(site: Site) -> list[str]:
    parts = _parts(site)
    return [path for path in parts if not any(path.startswith(f"{other}.") for other in parts)]


def _watch(
    module: nn.Module,
    counter: FlopCounterMode,
    totals: dict[tuple[int, str], int],
    key: tuple[int, str],
    stack: ExitStack,
) -> None:
    started: list[int] = []

    def start(*_: Any) -> None:
        started.append(counter.get_total_flops())

    def stop(*_: Any) -> None:
        totals[key] = totals.get(key, 0) + (counter.get_total_flops() - started.pop()) // 2

    stack.callback(module.register_forward_pre_hook(start, prepend=True).remove)
    stack.callback(module.register_forward_hook(stop).remove)


def _counter() -> FlopCounterMode:
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    formula: dict[Any, Callable[..., int]] = {kernel: _attention_flops}
    return FlopCounterMode(display=False, custom_mapping=formula)


def _attention_flops(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], *args: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    batch, heads, queries, size = query
    # Grouped-query kernels are handed fewer key heads than query heads; each query head still does its own work.
    return 2 * batch * heads * queries * key[2] * (size + value[3])


def _fit(counts: Sequence[int | Fraction]) -> Polynomial:
    """The polynomial of degree two through the first three counts, checked on the fourth."""
    (x0, x1, x2, x3), (y0, y1, y2, y3) = LENGTHS, (Fraction(count) for count in counts)
    slope = (y1 - y0) / (x1 - x0)
    quadratic = ((y2 - y0) / (x2 - x0) - slope) / (x2 - x1)
    linear = slope - quadratic * (x0 + x1)
    found = (y0 - linear * x0 - quadratic * x0 * x0, linear, quadratic)
    if evaluate(found, x3) != y3:
        raise CostError(
            "The cost of this model is no polynomial of degree two in the sequence length, so it cannot be told in "
            "advance. Use keep_params or keep_bytes, and count what you got with count_macs."
        )
    return found


def _texts(polynomial: Polynomial) -> list[str]:
    return [str(coefficient) for coefficient in polynomial]


def _polynomial(texts: Sequence[str]) -> Polynomial:
    constant, linear, quadratic = (_fraction(text) for text in texts)
    return constant, linear, quadratic


def _fraction(text: str) -> Fraction:
    # `Fraction` also reads "1e999999999", and takes hours over it.
    if not re.fullmatch(_FRACTION, text):
        raise ValueError(f"{text[:50]!r} is no fraction of whole numbers, such as 12 or -7/2")
    return Fraction(text)
