"""What a model can read, told by its modules: which tokens it knows, and how long a sequence may be."""

from typing import Any, NamedTuple, cast

from torch import nn

from pruning_adapter.architectures.sites import base_of

__all__ = ["Limits", "limits_of"]

_TABLES = ("position_embeddings", "wpe", "embed_positions")


class Limits(NamedTuple):
    """None: there is no limit, or none that the modules tell."""

    words: int | None
    """Tokens that have an embedding."""
    positions: int | None
    """Positions that there are weights for."""
    positions_of_decoder: int | None
    """Likewise, where a decoder reads what an encoder made."""
    classes: int
    """That an example may belong to; 0 or 1: one number or class is learnt."""
    classes_of_token: int | None
    """That a token may belong to: the words of a language model, or what its head tells apart."""


def limits_of(model: nn.Module) -> Limits:
    """The limits of a Transformers model, which an adapter may wrap."""
    base = cast(Any, base_of(model))
    words, heads = _ask(base, "get_input_embeddings"), (_ask(base, "get_output_embeddings"), *_heads_of(base))
    tables = [_rows(module) for name, module in base.named_modules() if _is_table(name, module)]
    two_stacks = bool(getattr(base.config, "is_encoder_decoder", False))
    return Limits(
        words=getattr(_below(words), "num_embeddings", None),
        positions=tables[0] if tables else None,
        positions_of_decoder=tables[-1] if tables and two_stacks else None,
        classes=int(getattr(base.config, "num_labels", 0)),
        classes_of_token=next(
            (found for head in heads if (found := getattr(_below(head), "out_features", None))), None
        ),
    )


def _ask(model: Any, name: str) -> nn.Module | None:
    """What a method of Transformers gives, which a family of its own need not have."""
    try:
        return getattr(model, name)()
    except (NotImplementedError, AttributeError):
        return None


def _heads_of(model: nn.Module) -> list[nn.Module]:
    """Where Transformers' classes keep the map to an example's or a token's classes."""
    return [head for name in ("classifier", "score") if (head := getattr(model, name, None)) is not None]


def _below(module: nn.Module | None) -> nn.Module | None:
    """Without PEFT's wrapper, where some or all of a module trains."""
    return getattr(module, "original_module", module)


def _is_table(name: str, module: nn.Module) -> bool:
    return name.rpartition(".")[2] in _TABLES and isinstance(module, nn.Embedding)


def _rows(table: nn.Module) -> int:
    """Some families number positions from behind the padding's, some from a fixed offset: the rows before are lost."""
    rows, padding = cast(nn.Embedding, table).num_embeddings, cast(nn.Embedding, table).padding_idx
    return rows - int(getattr(table, "offset", 0)) - (0 if padding is None else padding + 1)
