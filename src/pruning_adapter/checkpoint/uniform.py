"""A pruned model whose blocks are all alike, as an ordinary checkpoint of a smaller config."""

from pathlib import Path

from torch import nn

from pruning_adapter.architectures.identity import PrunedState, pruned_state
from pruning_adapter.architectures.shapes import SiteShape
from pruning_adapter.architectures.sites import Site, find_all_sites, spec_of
from pruning_adapter.architectures.unit_index import kept_groups
from pruning_adapter.checkpoint.plain_folder import build_stock, check_against, config_fields, plain_copy, write_plain
from pruning_adapter.errors import OutputError
from pruning_adapter.storage import replace_folder

__all__ = ["save_uniform", "uniform_sizes"]

NOTE = """# A pruned model of uniform size

Every block kept as many heads and neurons as every other, so an ordinary config describes this model. It is smaller,
and stock Transformers loads it with its own classes.
"""
OTHERWISE = "Or export with --stock (save_stock), which pads with zeros and saves nothing."


def save_uniform(model: nn.Module, path: str | Path, *, files_from: str | Path | None = None) -> float:
    """Save `model`, merged, with an ordinary config of fewer heads and neurons.

    Stock Transformers loads the folder; nothing of ours is in its config, and it is as small as the pruned model. That
    takes as many heads in every attention, as many neurons in every feed-forward, and a family whose config has the
    width of a head beside the hidden size (Llama and its kin, Phi-3) where heads are gone. The folder is written
    only after stock Transformers has loaded it and given the model's logits.

    Args:
        model: dense or pruned, with or without adapters.
        path: the folder; one that holds a saved model is replaced as a whole.
        files_from: a folder, such as the one that `save_pruned` wrote, whose tokenizer is copied along.

    Returns:
        The largest difference of logits that was seen.

    Raises:
        OutputError: no ordinary config describes the model, the folder cannot be written, or logits differ.
        AdapterError: the base was quantised by `quantize_base_`.
    """
    plain = plain_copy(model, path)
    sizes = uniform_sizes(plain)
    small = build_stock(plain, config_fields(plain) | sizes)
    weights, expected = plain.state_dict(), small.state_dict()
    odd = [name for name in expected if name not in weights or weights[name].shape != expected[name].shape]
    if odd:
        raise OutputError(
            f"{type(plain).__name__} makes {odd[0]} of another shape from the config {sizes}. {OTHERWISE}"
        )
    small.load_state_dict({name: weights[name] for name in expected}, assign=True)
    with replace_folder(path) as aside:
        write_plain(aside, small, note=NOTE, changes={}, files_from=files_from)
        return check_against(plain, aside)


def uniform_sizes(model: nn.Module) -> dict[str, int]:
    """Fields of the config that describe a pruned model whose blocks are alike; none if it is dense.

    Raises:
        OutputError: the blocks are not alike, one of them is empty, or the family's config has no field for it.
    """
    state = pruned_state(model)
    if state is None:
        return {}
    found: dict[str, int] = {}
    for site, shape, kept in zip(find_all_sites(model), state.dense.all_sites, state.kept, strict=True):
        _check_describable(site, shape, kept, spec_of(model).family)
        counts = _counts(shape, kept)
        for field in site.spec.in_config:
            if found.setdefault(field.name, counts[field.counts]) != counts[field.counts]:
                raise OutputError(_uneven(state, site, field.name))
    return found


def _check_describable(site: Site, shape: SiteShape, kept: tuple[int, ...], family: str) -> None:
    if not kept:
        raise OutputError(
            f"{site.path} has no {site.kind} left, and no config can say so. Plan without allow_empty_blocks. "
            f"{OTHERWISE}"
        )
    if len(kept) < shape.units and not site.spec.in_config:
        way = "fewer heads of the same width. Prune neurons only" if site.kind == "heads" else "fewer neurons"
        raise OutputError(f"{site.path} lost {site.kind}, and no config of {family} describes {way}. {OTHERWISE}")


def _counts(shape: SiteShape, kept: tuple[int, ...]) -> dict[str, int]:
    groups = len(kept_groups(kept, shape.units, shape.groups))
    return {"heads": len(kept), "neurons": len(kept), "key_value_heads": groups, "head_size": shape.unit_size}


def _uneven(state: PrunedState, site: Site, field: str) -> str:
    rows = state.kept_heads if site.kind == "heads" else state.kept_neurons
    low, high = min(map(len, rows)), max(map(len, rows))
    span = f"between {low} and {high} {site.kind}" if low != high else f"other {site.kind} in number than the config's"
    way = (
        "No rule of `plan` keeps equally many, but for the smallest keep_heads, which leaves one (of every group) in "
        "each: edit the kept_heads of plan.json, or make the plan with PruningPlan.from_pruned_heads."
        if site.kind == "heads"
        else "Score heads only, or make the plan with PruningPlan.from_pruned_heads(..., pruned_neurons=...)."
    )
    return f"The blocks keep {span}, and the config's {field} is one number for all. {way} {OTHERWISE}"
