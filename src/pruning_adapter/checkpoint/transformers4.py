"""A pruned model for Transformers 4, which cuts heads itself by the legacy field `pruned_heads`."""

from pathlib import Path

from torch import nn

from pruning_adapter.architectures.identity import PrunedState, pruned_state
from pruning_adapter.architectures.registry import registered
from pruning_adapter.architectures.sites import find_all_sites, spec_of
from pruning_adapter.checkpoint.plain_folder import plain_copy, write_plain
from pruning_adapter.errors import OutputError
from pruning_adapter.storage import replace_folder

__all__ = ["save_for_transformers4"]

NOTE = """# A pruned model for Transformers 4

Transformers 4 (checked with 4.57.6) loads this folder with its own classes: its config names the heads that are gone in
`pruned_heads`. Transformers 5 no longer knows that field; for it, take what `save_pruned` of Pruning-Adapter writes.
"""
OTHERWISE = "Export with --stock (save_stock), which pads with zeros and saves nothing."


def save_for_transformers4(model: nn.Module, path: str | Path, *, files_from: str | Path | None = None) -> None:
    """Save `model`, merged, as a folder that Transformers 4 loads with no code of ours, as small as it is.

    BERT and its kin, DistilBERT, ALBERT, GPT-2 and ViT honour `config.pruned_heads` there. Neurons may be gone too if
    all blocks lost equally many. Transformers 4 itself is not at hand when this is called, so nothing is loaded to
    check it; `tests/witness` holds what 4.57.6 made of such folders.

    Args:
        model: dense or pruned, with or without adapters.
        path: the folder; one that holds a saved model is replaced as a whole.
        files_from: a folder, such as the one that `save_pruned` wrote, whose tokenizer is copied along.

    Raises:
        OutputError: Transformers 4 has no way to say it: another family, an attention without heads, feed-forwards of
            different widths; or the folder cannot be written.
        AdapterError: the base was quantised by `quantize_base_`.
    """
    plain = plain_copy(model, path)
    spec, state = spec_of(plain), pruned_state(plain)
    if not spec.legacy_pruned_heads:
        known = ", ".join(each.family for each in registered() if each.legacy_pruned_heads)
        raise OutputError(f"Transformers 4 prunes no heads of {spec.family}, only of {known}. {OTHERWISE}")
    changes = {} if state is None else _fields(plain, state)
    with replace_folder(path) as aside:
        write_plain(aside, plain, note=NOTE, changes=changes, files_from=files_from)


def _fields(model: nn.Module, state: PrunedState) -> dict[str, object]:
    if not all(state.kept):
        empty = next(site for site, kept in zip(find_all_sites(model), state.kept, strict=True) if not kept)
        raise OutputError(
            f"{empty.path} has no {empty.kind} left, which Transformers 4 cannot build. Plan without "
            f"allow_empty_blocks. {OTHERWISE}"
        )
    widths = sorted({len(neurons) for neurons in state.kept_neurons})
    if len(widths) > 1:
        raise OutputError(
            f"The feed-forwards keep between {widths[0]} and {widths[-1]} neurons, and Transformers 4 knows one width "
            f"for all. Prune heads only. {OTHERWISE}"
        )
    fields: dict[str, object] = {"pruned_heads": {str(block): heads for block, heads in state.pruned_heads.items()}}
    for site, kept in zip(find_all_sites(model), state.kept, strict=True):
        if site.kind == "neurons":
            fields |= {field.name: len(kept) for field in site.spec.in_config}
    return fields
