"""From settings to plans: what the command line's words make of scores."""

from dataclasses import replace

import torch

from pruning_adapter.decide import plan_from_settings
from pruning_adapter.importance import random_importance
from pruning_adapter.settings import Settings
from tiny import make_model


def test_a_budget_of_ranks_is_no_prey_of_one_block() -> None:
    """Scores over the model differ by orders of magnitude between blocks; each block's own do not."""
    scores = random_importance(make_model("bert"), seed=0)
    uneven = replace(scores, heads=tuple(block * 100.0**number for number, block in enumerate(scores.heads)))
    settings = Settings(model="any", task="sst2", rank_budget=6000)
    _, by_blocks = plan_from_settings(settings, uneven)
    assert max(by_blocks.ranks) <= 3 * min(by_blocks.ranks)
    assert by_blocks.trainable_parameters <= 6000
    _, over_the_model = plan_from_settings(replace(settings, normalization="model"), uneven)
    assert max(over_the_model.ranks) > 3 * min(over_the_model.ranks)


def test_two_levels_follow_the_order_over_the_model() -> None:
    scores = random_importance(make_model("bert"), seed=0)
    even = replace(scores, heads=tuple(torch.full((4,), float(number)) for number in (1, 3, 2)))
    _, ranks = plan_from_settings(Settings(model="any", task="sst2", keep_ratio=1.0, top_blocks=1), even)
    assert ranks.ranks == (8, 16, 8)


def test_a_third_of_the_attentions_and_of_the_feed_forwards_get_the_high_rank() -> None:
    """A decoder of T5 has two attentions a block: of six attentions two, and of four feed-forwards one."""
    scores = random_importance(make_model("t5", num_layers=2, num_decoder_layers=2), seed=0)
    settings = Settings(model="any", task="sst2", keep_ratio=1.0, target="all-linear")
    _, ranks = plan_from_settings(settings, scores)
    assert (len(ranks.ranks), len(ranks.feed_forward_ranks)) == (6, 4)
    assert (ranks.ranks.count(16), ranks.feed_forward_ranks.count(16)) == (2, 1)
    _, ranks = plan_from_settings(replace(settings, top_blocks=3), scores)
    assert (ranks.ranks.count(16), ranks.feed_forward_ranks.count(16)) == (3, 3)
