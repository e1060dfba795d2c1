"""The paper's Tables 2 and 3 for the model it used, counted from the model's configuration alone: no weights needed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pruning_adapter.architectures.identity import count_parameters, identify
from pruning_adapter.architectures.shapes import ModelIdentity
from pruning_adapter.planning.presets import PRESETS, Preset
from pruning_adapter.planning.pruning_plan import PruningPlan
from pruning_adapter.planning.rank_plan import ROLES, RankPlan

__all__ = ["Account", "account_for_bert_base"]


@dataclass(frozen=True, kw_only=True)
class Account:
    """What a setting gives, from the smallest to the largest number that the choice of heads allows."""

    name: str
    trainable: tuple[int, int]
    """LoRA and normalisation layers, without the task head, as the paper counts."""
    parameters: tuple[int, int]
    """Of the pruned model and its LoRA."""


def account_for_bert_base() -> tuple[Account, ...]:
    """bert-base-uncased with two labels: as it is, with the paper's LoRA, with Prune-LoRA as text and as tables say.

    The paper's LoRA is counted as its table prints it, which is rank 4 on query, key and value, not on the output.
    """
    from transformers import BertConfig, BertForSequenceClassification

    with torch.device("meta"):
        model: Any = BertForSequenceClassification(BertConfig())
    whole, identity = count_parameters(model), identify(model)
    everything = PruningPlan.from_pruned_heads(identity, {}, dense_parameters=whole)
    norms = identity.norm_parameters
    lora = _ranks(everything, (4,) * 12, ("query", "key", "value"))
    with_output = _ranks(everything, (4,) * 12, ROLES)
    return (
        Account(name="full fine-tuning", trainable=(whole, whole), parameters=(whole, whole)),
        _same("LoRA, rank 4 on query, key, value", lora, everything, norms),
        _same("LoRA, rank 4 on query, key, value, output", with_output, everything, norms),
        _range("Prune-LoRA as the text says", PRESETS["paper"], identity, whole),
        _range("Prune-LoRA as the tables count", PRESETS["paper-counts"], identity, whole),
    )


def _same(name: str, ranks: RankPlan, plan: PruningPlan, norms: int) -> Account:
    trainable, parameters = ranks.trainable_parameters, plan.parameters + ranks.trainable_parameters - norms
    return Account(name=name, trainable=(trainable, trainable), parameters=(parameters, parameters))


def _range(name: str, preset: Preset, identity: ModelIdentity, whole: int) -> Account:
    """Where the blocks of high rank keep as few heads, and as many, as possible."""
    kept, top, blocks, size = 144 - preset.pruned_heads, preset.top_blocks, 12, 12
    fewest = max(top, kept - size * (blocks - top))
    most = min(size * top, kept - (blocks - top))
    trainable: list[int] = []
    parameters: list[int] = []
    for on_top in (fewest, most):
        counts = [*_spread(on_top, top), *_spread(kept - on_top, blocks - top)]
        pruned = {block: list(range(count, size)) for block, count in enumerate(counts)}
        plan = PruningPlan.from_pruned_heads(identity, pruned, dense_parameters=whole)
        ranks = _ranks(plan, (preset.high,) * top + (preset.low,) * (blocks - top), preset.roles)
        trainable.append(ranks.trainable_parameters)
        parameters.append(plan.parameters + ranks.lora_parameters)
    return Account(name=name, trainable=(trainable[0], trainable[1]), parameters=(parameters[0], parameters[1]))


def _spread(heads: int, blocks: int) -> list[int]:
    return [heads // blocks + (block < heads % blocks) for block in range(blocks)]


def _ranks(plan: PruningPlan, ranks: Sequence[int], roles: tuple[str, ...]) -> RankPlan:
    return RankPlan(
        model=plan.model,
        kept_heads=plan.kept_heads,
        kept_neurons=plan.kept_neurons,
        ranks=tuple(ranks),
        feed_forward_ranks=(0,) * len(plan.model.feed_forwards),
        roles=roles,
        origin={},
    )
