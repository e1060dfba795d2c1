"""Examples turned into what a model reads, and a fair sample of them for scoring heads."""

import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from pruning_adapter.errors import DataError
from pruning_adapter.training.examples import Example

__all__ = ["count_truncated", "sample_examples", "tokenize"]


def tokenize(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, *, max_length: int, label_names: Sequence[str]
) -> list[dict[str, Any]]:
    """Return one dict of lists per example: input_ids, attention_mask, token_type_ids if the tokenizer makes them.

    "labels" is an int, or a float if `label_names` is empty (regression). Texts longer than `max_length` tokens are cut
    (of a pair, the longer text first); nothing is padded, which is left to the batch.

    Raises:
        DataError: `max_length` leaves no room for a token of text, or is beyond what the tokenizer's model reads.
    """
    if not examples:
        return []
    _check_max_length(max_length, tokenizer, pair=len(examples[0].texts) > 1)
    first, *second = (list(texts) for texts in zip(*(example.texts for example in examples), strict=True))
    encoded = tokenizer(first, text_pair=second[0] if second else None, truncation=True, max_length=max_length)
    to_label = float if not label_names else int
    return [
        {**{key: encoded[key][index] for key in encoded}, "labels": to_label(example.label)}
        for index, example in enumerate(examples)
    ]


def count_truncated(
    examples: Sequence[Example],
    features: Sequence[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
) -> int:
    """How many of `examples` had more than `max_length` tokens, so that `tokenize`, which gave `features`, cut them."""
    full = [
        example.texts
        for example, feature in zip(examples, features, strict=True)
        if len(feature["input_ids"]) == max_length
    ]
    if not full:
        return 0
    first, *second = (list(texts) for texts in zip(*full, strict=True))
    # Not verbose: that some are longer than the model reads is what is asked.
    whole = tokenizer(first, text_pair=second[0] if second else None, truncation=False, verbose=False)
    return sum(len(tokens) > max_length for tokens in whole["input_ids"])


def sample_examples(examples: Sequence[Example], n: int, seed: int) -> tuple[Example, ...]:
    """Return `n` examples drawn without replacement, in their original order; all of them if there are fewer.

    Classes keep their shares, and each is present if `n` is at least their number. Regression is sampled plainly.

    Raises:
        DataError: `n` is below 1.
    """
    if n < 1:
        raise DataError(f"Cannot sample {n} examples: ask for 1 or more.")
    order = list(range(len(examples)))
    random.Random(seed).shuffle(order)
    if any(isinstance(example.label, float) for example in examples):
        return tuple(examples[index] for index in sorted(order[:n]))
    classes: defaultdict[float, list[int]] = defaultdict(list)
    for index in order:
        classes[examples[index].label].append(index)
    # Spread over [0, 1] by its place within its own class, each class contributes its share to every prefix of the
    # sorted order; the first of every class go before all others.
    spread = sorted(
        (place > 0, (place + 0.5) / len(members), index)
        for members in classes.values()
        for place, index in enumerate(members)
    )
    return tuple(examples[index] for index in sorted(index for *_, index in spread[:n]))


def _check_max_length(max_length: int, tokenizer: PreTrainedTokenizerBase, *, pair: bool) -> None:
    special = tokenizer.num_special_tokens_to_add(pair=pair)
    # Checked here, because with less room than the special tokens need the tokenizer silently cuts nothing at all.
    if max_length <= special:
        raise DataError(
            f"max_length {max_length} leaves no room for text: {special} tokens of each example are special ones. "
            f"Choose at least {special + 1}."
        )
    if max_length > tokenizer.model_max_length:
        raise DataError(
            f"max_length {max_length} is more than the {tokenizer.model_max_length} tokens this model reads. "
            f"Choose at most {tokenizer.model_max_length}."
        )
