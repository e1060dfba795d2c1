"""What older versions call it: by hand, and read again by today's configs as if it were not there."""

from typing import Any

import pytest
from transformers import GPTNeoXConfig, LlamaConfig, ModernBertConfig, Phi3Config, T5Config

from pruning_adapter.checkpoint.older_names import older_names

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONG = {"rope_type": "longrope", "rope_theta": 7.0, "partial_rotary_factor": 1.0, "short_factor": [1.0] * 4}
LONG["long_factor"] = [2.0] * 4


def test_rotary_positions_are_told_by_their_old_names() -> None:
    assert older_names({"hidden_size": 8}) == {}
    assert older_names({"rope_parameters": {"rope_theta": 5.0, "rope_type": "default"}}) == {
        "rope_theta": 5.0,
        "rotary_emb_base": 5.0,
    }
    found = older_names({"rope_parameters": LLAMA3})
    assert found["rope_scaling"] == {name: value for name, value in LLAMA3.items() if name != "rope_theta"}
    assert older_names({"rope_parameters": LONG})["rope_scaling"] == {
        "type": "longrope",
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
    }
    layers = {"full_attention": {"rope_theta": 5.0}, "sliding_attention": {"rope_theta": 3.0}}
    kinds = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    assert older_names({"rope_parameters": layers, "layer_types": kinds}) == {
        "global_rope_theta": 5.0,
        "local_rope_theta": 3.0,
        "global_attn_every_n_layers": 3,
    }
    assert older_names({"scale_decoder_outputs": False}) == {"tie_word_embeddings": False}


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(rope_parameters={"rope_type": "default", "rope_theta": 77.0}),
        LlamaConfig(rope_parameters=dict(LLAMA3), max_position_embeddings=512),
        GPTNeoXConfig(rope_parameters={"rope_type": "default", "rope_theta": 77.0, "partial_rotary_factor": 0.5}),
        Phi3Config(
            hidden_size=32,
            num_attention_heads=4,
            num_key_value_heads=4,
            original_max_position_embeddings=64,
            rope_parameters=dict(LONG),
        ),
        ModernBertConfig(
            rope_parameters={
                "full_attention": {"rope_type": "default", "rope_theta": 77.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 7.0},
            }
        ),
        T5Config(tie_word_embeddings=False),
    ],
    ids=["rotary base", "llama3", "partial", "longrope", "modernbert", "t5 1.1"],
)
def test_todays_transformers_reads_the_same_with_them(config: Any) -> None:
    fields = config.to_dict()
    older = older_names(fields)
    assert older
    again = type(config).from_dict({**fields, **older}).to_dict()
    # Phi-3's old name for the kind stays beside the new one.
    again.get("rope_parameters", {}).pop("type", None)
    assert {name: again[name] for name in fields} == fields
