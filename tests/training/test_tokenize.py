"""Features without padding, and samples that keep every class."""

from collections import Counter
from pathlib import Path

import pytest
from transformers import BertTokenizer, PreTrainedTokenizerBase

from pruning_adapter.errors import DataError
from pruning_adapter.training.examples import Example
from pruning_adapter.training.tokenize import count_truncated, sample_examples, tokenize

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good", "film", "##s", "bad"]
CLS, SEP, A, GOOD, FILM, S, BAD = 2, 3, 5, 6, 7, 8, 9
NAMES = ("neg", "pos")


@pytest.fixture
def tokenizer(tmp_path: Path) -> PreTrainedTokenizerBase:
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return BertTokenizer(vocab=str(vocabulary), model_max_length=16)


def test_single_texts_are_not_padded(tokenizer: PreTrainedTokenizerBase) -> None:
    examples = [Example(("A good film",), 1), Example(("bad films",), 0)]
    features = tokenize(examples, tokenizer, max_length=8, label_names=NAMES)
    assert features == [
        {
            "input_ids": [CLS, A, GOOD, FILM, SEP],
            "token_type_ids": [0, 0, 0, 0, 0],
            "attention_mask": [1, 1, 1, 1, 1],
            "labels": 1,
        },
        {
            "input_ids": [CLS, BAD, FILM, S, SEP],
            "token_type_ids": [0, 0, 0, 0, 0],
            "attention_mask": [1, 1, 1, 1, 1],
            "labels": 0,
        },
    ]


def test_pairs_have_two_segments(tokenizer: PreTrainedTokenizerBase) -> None:
    (feature,) = tokenize([Example(("good film", "bad"), 0)], tokenizer, max_length=8, label_names=NAMES)
    assert feature["input_ids"] == [CLS, GOOD, FILM, SEP, BAD, SEP]
    assert feature["token_type_ids"] == [0, 0, 0, 0, 1, 1]


def test_long_texts_are_cut_and_of_a_pair_the_longer_one(tokenizer: PreTrainedTokenizerBase) -> None:
    (single,) = tokenize([Example(("good " * 20,), 1)], tokenizer, max_length=4, label_names=NAMES)
    assert single["input_ids"] == [CLS, GOOD, GOOD, SEP]
    (pair,) = tokenize([Example(("good " * 20, "bad"), 1)], tokenizer, max_length=6, label_names=NAMES)
    assert pair["input_ids"] == [CLS, GOOD, GOOD, SEP, BAD, SEP]


def test_labels_are_ints_for_classes_and_floats_for_regression(tokenizer: PreTrainedTokenizerBase) -> None:
    (classified,) = tokenize([Example(("a",), 1)], tokenizer, max_length=8, label_names=NAMES)
    (scored,) = tokenize([Example(("a",), 2.5)], tokenizer, max_length=8, label_names=())
    assert type(classified["labels"]) is int
    assert type(scored["labels"]) is float
    assert scored["labels"] == 2.5


def test_only_what_the_tokenizer_makes_is_kept(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    (feature,) = tokenize([Example(("a",), 1)], tokenizer, max_length=8, label_names=NAMES)
    assert set(feature) == {"input_ids", "attention_mask", "labels"}


def test_no_examples_give_no_features(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenize([], tokenizer, max_length=8, label_names=NAMES) == []


def test_a_max_length_without_room_for_text_is_an_error(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenize([Example(("a",), 1)], tokenizer, max_length=3, label_names=NAMES)
    with pytest.raises(DataError, match=r"max_length 2 leaves no room for text: 2 tokens .* Choose at least 3"):
        tokenize([Example(("a",), 1)], tokenizer, max_length=2, label_names=NAMES)
    with pytest.raises(DataError, match=r"max_length 3 leaves no room for text: 3 tokens .* Choose at least 4"):
        tokenize([Example(("a", "a"), 1)], tokenizer, max_length=3, label_names=NAMES)


def test_a_max_length_beyond_the_model_is_an_error(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(DataError, match=r"max_length 17 is more than the 16 tokens this model reads"):
        tokenize([Example(("a",), 1)], tokenizer, max_length=17, label_names=NAMES)


def make_examples(*counts: int) -> list[Example]:
    """`counts[c]` examples of each class c, sorted by class: the hardest order for a fair sample."""
    return [Example((f"{label}/{number}",), label) for label, count in enumerate(counts) for number in range(count)]


def test_a_sample_keeps_the_shares_of_the_classes() -> None:
    sample = sample_examples(make_examples(600, 300, 100), 50, seed=0)
    assert Counter(example.label for example in sample) == {0: 30, 1: 15, 2: 5}


@pytest.mark.parametrize("seed", range(5))
def test_every_class_is_present_from_as_many_examples_as_classes(seed: int) -> None:
    examples = make_examples(1000, 1, 30, 2)
    for n in (4, 5, 9):
        assert {example.label for example in sample_examples(examples, n, seed)} == {0, 1, 2, 3}


def test_a_sample_is_seeded_without_repeats_and_in_order() -> None:
    examples = make_examples(70, 50)
    sample = sample_examples(examples, 20, seed=1)
    places = [examples.index(example) for example in sample]
    assert len(set(places)) == 20
    assert places == sorted(places)
    assert sample == sample_examples(examples, 20, seed=1)
    assert sample != sample_examples(examples, 20, seed=2)


def test_every_example_of_a_class_can_be_drawn() -> None:
    examples = make_examples(10, 10)
    drawn = {example for seed in range(60) for example in sample_examples(examples, 4, seed)}
    assert drawn == set(examples)


def test_more_than_there_are_gives_all() -> None:
    examples = make_examples(3, 2)
    assert sample_examples(examples, 100, seed=0) == tuple(examples)


def test_scores_are_sampled_plainly() -> None:
    examples = [Example((str(number),), number / 7) for number in range(30)]
    sample = sample_examples(examples, 10, seed=0)
    assert len(set(sample)) == 10
    assert list(sample) == sorted(sample, key=examples.index)
    assert sample != sample_examples(examples, 10, seed=1)


@pytest.mark.parametrize("n", [0, -1])
def test_a_sample_of_nothing_is_an_error(n: int) -> None:
    with pytest.raises(DataError, match=f"Cannot sample {n} examples: ask for 1 or more"):
        sample_examples(make_examples(2), n, seed=0)


def test_what_was_cut_off_is_counted(tokenizer: PreTrainedTokenizerBase) -> None:
    """Two words and the two special tokens fill four places exactly; three words do not fit."""
    singles = [Example((text,), 1) for text in ("good film", "good film bad", "a", "bad " * 99)]
    features = tokenize(singles, tokenizer, max_length=4, label_names=NAMES)
    assert count_truncated(singles, features, tokenizer, max_length=4) == 2
    pairs = [Example(("good", "bad"), 1), Example(("good film", "bad"), 1)]
    features = tokenize(pairs, tokenizer, max_length=5, label_names=NAMES)
    assert count_truncated(pairs, features, tokenizer, max_length=5) == 1
    assert count_truncated([], [], tokenizer, max_length=5) == 0
