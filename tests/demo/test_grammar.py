"""Laws of the demo's task: balanced, reproducible, without leaks, and closed to a bag of words."""

import os
import re
import subprocess
import sys
from collections import Counter

import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from pruning_adapter.demo.grammar import make_demo_task
from pruning_adapter.errors import DataError
from pruning_adapter.training.examples import Example, TaskData

_PEOPLE = (
    "actor baker banker barber chemist clerk dancer dentist doctor farmer gardener judge lawyer librarian mayor miner "
    "nurse painter pilot plumber poet priest sailor singer soldier student tailor teacher waiter writer"
)
_FINGERPRINT = """
import hashlib
from pruning_adapter.demo.grammar import make_demo_task
task = make_demo_task(train=400, validation=100, seed=3)
print(hashlib.sha256(repr((task.train, task.validation["validation"])).encode()).hexdigest())
"""


@pytest.fixture(scope="module")
def task() -> TaskData:
    return make_demo_task()


@pytest.fixture(scope="module")
def large_task() -> TaskData:
    """Large enough for every plain sentence pattern to occur with the common verbs."""
    return make_demo_task(train=19_000)


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
    ("pattern", "winner"),
    [
        ("A beat B", "A"),
        ("A was beaten by B", "B"),
        ("it was A that B defeated", "B"),
        ("A could not outwit B", "B"),
        ("A could not be crushed by B", "A"),
        ("A lost to B", "B"),
        ("it was A that B yielded to", "A"),
        ("A did not surrender to B", "A"),
        ("A finished ahead of B", "A"),
        ("the cup went not to A but to B", "B"),
        ("A took the medal from B", "A"),
        ("A hoped to best B but failed", "B"),
        ("A expected to lose to B but won", "A"),
        ("although A had led at first, B thrashed it", "B"),
        ("in the final, A beat B", "A"),
        ("A beat B yet again", "A"),
        ("nobody denied that A beat B", "A"),
        ("it is a myth that A beat B", "B"),
        ("witnesses disputed that A lost to B", "A"),
    ],
)
def test_labels_name_the_winner(large_task: TaskData, pattern: str, winner: str) -> None:
    contestant = r"[Tt]he (?:[a-z]+ )?(?P<{}>[a-z]+)"
    expression = pattern.replace("A", contestant.format("A")).replace("B", contestant.format("B"))
    matches = [
        (match, example.label)
        for example in large_task.train
        if (match := re.fullmatch(rf"(?i:{expression}\.)", example.texts[0]))
    ]

    assert matches
    assert all(label == int(match[winner] in _PEOPLE.split()) for match, label in matches)


@pytest.mark.parametrize("size", [0, -2, 7])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_sizes_that_cannot_be_balanced_are_refused(split: str, size: int) -> None:
    sizes = {"train": 4, "validation": 4, split: size}

    with pytest.raises(DataError, match=f"positive even number of {split} sentences, not {size}"):
        make_demo_task(**sizes)


def test_more_sentences_than_the_grammar_makes_are_refused() -> None:
    with pytest.raises(DataError, match=r"at most 20000 sentences, not 30000 \+ 1000"):
        make_demo_task(train=30_000)
