"""The paper's settings (arXiv:2303.14704), and the counts that it prints for BERT-base with two labels."""

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from pruning_adapter.architectures import ModelIdentity
from pruning_adapter.architectures.identity import count_parameters, identify
from pruning_adapter.errors import PlanError
from pruning_adapter.importance import ImportanceScores
from pruning_adapter.planning import PRESETS, RankPlan, find_preset
from pruning_adapter.planning.rank_plan import ROLES

torch.set_num_threads(1)
DENSE, NORMS, HEAD = 109_483_778, 38_400, 196_800
QKV = ("query", "key", "value")


@pytest.fixture(scope="module")
def bert_base() -> ModelIdentity:
    with torch.device("meta"):
        model = BertForSequenceClassification(BertConfig())
    assert count_parameters(model) == DENSE
    return identify(model)


def scores_that_keep(model: ModelIdentity, counts: list[int]) -> ImportanceScores:
    """Scores with which so many heads of every block matter equally and the others not at all.

    Per block, k such heads have the normalised score 1/sqrt(k), together sqrt(k): blocks that keep more rank higher.
    """
    return ImportanceScores(
        heads=tuple(torch.tensor([1.0] * count + [0.0] * (12 - count), dtype=torch.float64) for count in counts),
        kept_heads=(tuple(range(12)),) * 12,
        model=model,
        dense_parameters=DENSE,
        scorer="made up",
    )


def test_the_papers_text(bert_base: ModelIdentity) -> None:
    counts = [12, 11, 10, 9, 9, 9, 8, 8, 7, 7, 6, 4]
    plan, ranks = find_preset("paper").plan(scores_that_keep(bert_base, counts))
    assert [len(kept) for kept in plan.kept_heads] == counts
    assert plan.heads_kept == 144 - 44
    assert plan.parameters == DENSE - 44 * HEAD
    assert ranks.ranks == (8, 8, 8, 8, 4, 4, 4, 4, 4, 4, 4, 4)
    assert ranks.roles == ROLES


def test_the_papers_text_cannot_give_the_counts_that_it_prints(bert_base: ModelIdentity) -> None:
    # Four matrices at rank r in a block with k heads: 4 r (768 + 64 k). With 100 heads left in all, only the number in
    # the four blocks of rank 8 matters; it lies between 4 and 48.
    found = []
    for on_top, others in (((1,) * 4, (12,) * 8), ((12,) * 4, (6, 6, 6, 6, 7, 7, 7, 7))):
        kept = tuple(tuple(range(count)) for count in (*on_top, *others))
        found.append(RankPlan(model=bert_base, kept_heads=kept, ranks=(8,) * 4 + (4,) * 8).trainable_parameters)
    assert found == [341_504, 386_560]
    assert min(found) > 308_736


def test_paper_counts_prints_the_papers_counts(bert_base: ModelIdentity) -> None:
    # Three matrices at rank r in a block with k heads: 3 r (768 + 64 k). With 101 heads left, 5 blocks at rank 8 and 7
    # at rank 4, that is 156,672 + 192 (4 x 101 + 4 K), where K is the number of heads in the 5 blocks: 47 gives the
    # printed count exactly.
    counts = [10, 10, 9, 9, 9, 8, 8, 8, 8, 8, 7, 7]
    assert sum(counts[:5]) == 47
    plan, ranks = find_preset("paper-counts").plan(scores_that_keep(bert_base, counts))
    assert [len(kept) for kept in plan.kept_heads] == counts
    assert plan.heads_kept == 144 - 43
    assert ranks.ranks == (8,) * 5 + (4,) * 7
    assert ranks.roles == QKV
    # LoRA and normalisation layers, without the classifier.
    assert ranks.lora_parameters == 308_736 - NORMS
    assert ranks.trainable_parameters == 308_736
    # In all: the model that is left, its classifier included, with LoRA beside it, not merged.
    assert plan.parameters == DENSE - 43 * HEAD
    assert plan.parameters + ranks.lora_parameters == 101_291_714


@pytest.mark.parametrize(("on_top", "trainable"), [(46, 307_968), (47, 308_736), (48, 309_504), (60, 318_720)])
def test_the_count_depends_on_the_heads_in_the_blocks_of_high_rank_alone(
    bert_base: ModelIdentity, on_top: int, trainable: int
) -> None:
    for spread in (even, uneven):
        kept = tuple(tuple(range(count)) for count in (*spread(on_top, 5), *spread(101 - on_top, 7)))
        ranks = RankPlan(model=bert_base, kept_heads=kept, ranks=(8,) * 5 + (4,) * 7, roles=QKV)
        assert ranks.trainable_parameters == trainable


def test_lora_of_the_paper_adapts_three_matrices(bert_base: ModelIdentity) -> None:
    # The "259.6 K" of its LoRA without pruning: rank 4 on three matrices a block.
    every = (tuple(range(12)),) * 12
    ranks = RankPlan(model=bert_base, kept_heads=every, ranks=(4,) * 12, roles=QKV)
    assert ranks.trainable_parameters == 259_584


@pytest.mark.parametrize(
    ("name", "heads", "kept"),
    [("paper", 144, 100), ("paper", 72, 50), ("paper", 12, 8), ("paper-counts", 144, 101), ("paper-counts", 384, 269)],
)
def test_shares_of_heads_scale_with_the_model(name: str, heads: int, kept: int) -> None:
    assert find_preset(name).heads_to_keep(heads) == kept


@pytest.mark.parametrize(
    ("name", "blocks", "top"), [("paper", 12, 4), ("paper", 6, 2), ("paper", 24, 8), ("paper-counts", 12, 5)]
)
def test_shares_of_blocks_scale_with_the_model(name: str, blocks: int, top: int) -> None:
    assert find_preset(name).blocks_on_top(blocks) == top


def test_an_unknown_preset_is_refused_by_listing_the_known() -> None:
    assert list(PRESETS) == ["paper", "paper-counts"]
    with pytest.raises(PlanError, match="Preset 'papers' is unknown; there are paper, paper-counts"):
        find_preset("papers")


def even(heads: int, blocks: int) -> list[int]:
    return [heads // blocks + (block < heads % blocks) for block in range(blocks)]


def uneven(heads: int, blocks: int) -> list[int]:
    """As many as fit into the first blocks; at least one each."""
    counts: list[int] = []
    for rest in reversed(range(blocks)):
        counts.append(min(12, heads - sum(counts) - rest))
    return counts
