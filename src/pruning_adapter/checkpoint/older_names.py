"""What older versions of Transformers call fields of a config that version 5 has renamed.

They ignore names that they do not know and take their defaults instead: another rotary base, other logits, no error.
"""

from collections.abc import Mapping
from typing import Any

__all__ = ["older_names"]

_THETA = ("rope_theta", "rotary_emb_base")
_SHARE = ("partial_rotary_factor", "rotary_pct")
_OF_LAYERS = {"full_attention": "global_rope_theta", "sliding_attention": "local_rope_theta"}


def older_names(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What to add to, or change in, a `config.json` of Transformers 5, so that version 4 reads the same model from it.

    Version 5 reads what it would without: where both names stand, they say the same.
    """
    older: dict[str, Any] = {}
    rope: Any = fields.get("rope_parameters")
    if isinstance(rope, dict):
        of_layers = {name: value for name, value in rope.items() if isinstance(value, dict)}
        older = _rope_of_layers(of_layers, fields) if of_layers else _rope(rope)
    if fields.get("scale_decoder_outputs") is False:
        # T5 1.1. Version 4 scales where embeddings are tied.
        older["tie_word_embeddings"] = False
    return older


def _rope(rope: Mapping[str, Any]) -> dict[str, Any]:
    older = {name: rope["rope_theta"] for name in _THETA if rope.get("rope_theta") is not None}
    older |= {name: rope["partial_rotary_factor"] for name in _SHARE if rope.get("partial_rotary_factor") is not None}
    kind = rope.get("rope_type", "default")
    if kind == "longrope":
        # Phi-3 refuses more than these three.
        older["rope_scaling"] = {"type": kind, "short_factor": rope["short_factor"], "long_factor": rope["long_factor"]}
    elif kind != "default":
        apart = ("rope_theta", "partial_rotary_factor")
        older["rope_scaling"] = {name: value for name, value in rope.items() if name not in apart}
    return older


def _rope_of_layers(rope: Mapping[str, Mapping[str, Any]], fields: Mapping[str, Any]) -> dict[str, Any]:
    older: dict[str, Any] = {
        name: rope[layers]["rope_theta"] for layers, name in _OF_LAYERS.items() if "rope_theta" in rope.get(layers, {})
    }
    kinds = list(fields.get("layer_types") or ())
    whole = [number for number, kind in enumerate(kinds) if kind == "full_attention"]
    every = whole[1] if len(whole) > 1 else len(kinds)
    if whole and whole == list(range(0, len(kinds), every)):
        older["global_attn_every_n_layers"] = every
    return older
