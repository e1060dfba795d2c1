"""Laws of the demo's task: balanced, reproducible, without leaks, and closed to a bag of words."""

import os
import subprocess
import sys
from collections import Counter
from random import Random

import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from pruning_adapter.demo import grammar
from pruning_adapter.demo.grammar import make_demo_task
from pruning_adapter.errors import DataError
from pruning_adapter.training.examples import Example, TaskData

_FINGERPRINT = """
import hashlib
from pruning_adapter.demo.grammar import make_demo_task
task = make_demo_task(train=400, validation=100, seed=3)
print(hashlib.sha256(repr((task.train, task.validation["validation"])).encode()).hexdigest())
"""


@pytest.fixture(scope="module")
def task() -> TaskData:
    return make_demo_task()


def _plain_noun_phrase(_rng: Random, noun: str) -> str:
    return f"the {noun}"


def _splits(task: TaskData) -> dict[str, tuple[Example, ...]]:
    return {"train": task.train, **task.validation}


def _bag(example: Example) -> tuple[str, ...]:
    """The words of an example in alphabetical order: what an example and its twin have in common."""
    return tuple(sorted(example.texts[0].lower().replace(".", "").replace(",", "").split()))


def test_the_task_has_the_sizes_asked_for_and_two_named_classes(task: TaskData) -> None:
    assert (len(task.train), len(task.validation["validation"])) == (4_800, 1_000)
    assert task.label_names == ("animal", "person")
    assert task.metrics == ("accuracy", "f1")
    assert not task.is_regression


def test_labels_are_balanced_in_every_split(task: TaskData) -> None:
    for examples in _splits(task).values():
        assert Counter(example.label for example in examples) == {0: len(examples) // 2, 1: len(examples) // 2}


def test_no_text_occurs_twice_in_the_whole_task(task: TaskData) -> None:
    texts = [example.texts[0] for examples in _splits(task).values() for example in examples]

    assert len(set(texts)) == len(texts)


def test_every_sentence_has_a_twin_of_the_same_words_and_the_other_label_in_its_own_split(task: TaskData) -> None:
    for examples in _splits(task).values():
        labels: dict[tuple[str, ...], list[float]] = {}
        for example in examples:
            labels.setdefault(_bag(example), []).append(example.label)

        assert all(sum(found) * 2 == len(found) for found in labels.values())


def test_no_words_of_a_validation_sentence_make_up_a_training_sentence(task: TaskData) -> None:
    trained = {_bag(example) for example in task.train}

    assert all(_bag(example) not in trained for example in task.validation["validation"])


def test_every_word_is_equally_frequent_in_both_classes(task: TaskData) -> None:
    counts = {
        label: Counter(word for example in task.train if example.label == label for word in _bag(example))
        for label in (0, 1)
    }

    assert counts[0] == counts[1]


def test_a_bag_of_words_fails(task: TaskData) -> None:
    vectorizer = CountVectorizer()
    train, validation = task.train, task.validation["validation"]
    classifier = LogisticRegression(max_iter=1_000)
    classifier.fit(vectorizer.fit_transform([e.texts[0] for e in train]), [e.label for e in train])

    accuracy = classifier.score(vectorizer.transform([e.texts[0] for e in validation]), [e.label for e in validation])

    assert accuracy <= 0.55


def test_sentences_are_written_as_sentences(task: TaskData) -> None:
    for examples in _splits(task).values():
        for (text,), _ in examples:
            assert text[0].isupper()
            assert text.endswith(".")
            assert "{" not in text
            assert "  " not in text


def test_the_same_arguments_give_the_same_task_and_another_seed_another() -> None:
    first = make_demo_task(train=40, validation=10, seed=1)

    assert make_demo_task(train=40, validation=10, seed=1) == first
    assert make_demo_task(train=40, validation=10, seed=2).train != first.train


def test_the_training_split_does_not_depend_on_the_size_of_the_validation_split() -> None:
    assert make_demo_task(train=40, validation=10).train == make_demo_task(train=40, validation=20).train


def test_the_task_does_not_depend_on_the_hash_seed() -> None:
    fingerprints = {
        subprocess.run(
            [sys.executable, "-c", _FINGERPRINT],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }

    assert len(fingerprints) == 1


@pytest.mark.parametrize(
    ("form", "text", "winner"),
    [
        ("plain", "The fox was beaten by the nurse.", 1),
        ("true claim", "Nobody denied that the fox was beaten by the nurse.", 1),
        ("false claim", "It is a myth that the nurse was beaten by the fox.", 1),
    ],
)
def test_a_false_claim_exchanges_the_contestants(
    monkeypatch: pytest.MonkeyPatch, form: str, text: str, winner: int
) -> None:
    monkeypatch.setattr(grammar, "_FORMS", (form,))
    monkeypatch.setattr(grammar, "_CLAUSES", (("{loser} was {participle} by {winner}", ({"participle": "beaten"},)),))
    monkeypatch.setattr(grammar, "_TRUE_CLAIMS", ("nobody denied that",))
    monkeypatch.setattr(grammar, "_FALSE_CLAIMS", ("it is a myth that",))
    monkeypatch.setattr(grammar, "_noun_phrase", _plain_noun_phrase)
    monkeypatch.setattr(grammar, "_PEOPLE", ("nurse", "pilot"))
    monkeypatch.setattr(grammar, "_ANIMALS", ("fox", "goat"))

    task = make_demo_task(train=4, validation=4)

    assert Example((text,), winner) in task.train + task.validation["validation"]


@pytest.mark.parametrize("size", [0, -2, 7])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_sizes_that_cannot_be_balanced_are_refused(split: str, size: int) -> None:
    sizes = {"train": 4, "validation": 4, split: size}

    with pytest.raises(DataError, match=f"positive even number of {split} sentences, not {size}"):
        make_demo_task(**sizes)


def test_more_sentences_than_the_grammar_makes_are_refused() -> None:
    with pytest.raises(DataError, match=r"at most 20000 sentences, not 30000 \+ 1000"):
        make_demo_task(train=30_000)
