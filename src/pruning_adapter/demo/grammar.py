"""A small text classification task made from a grammar, for a first run without network.

Each sentence reports a contest between a person and an animal; the task is to tell which of the two **won**:

    The baker was outplayed by the old goat in the final.                  animal
    The old goat was outplayed by the baker in the final.                  person

Sentences come in pairs like these, made of the same words with the two contestants exchanged. So every word is equally
frequent in both classes, and a linear classifier on word counts can do no better than chance: one has to read who did
what to whom, through active and passive, winning and losing verbs, clefts, thwarted hopes and false reports:

    It was wrongly reported that the nurse took the cup from the fox.      animal
    The proud lion feared being outwitted by the poet but won.             animal
    It was the cow that the brave tailor finished ahead of.                person
"""

from collections.abc import Mapping, Sequence
from random import Random
from typing import NamedTuple, TypeVar

from pruning_adapter.errors import DataError
from pruning_adapter.training.examples import Example, TaskData

__all__ = ["make_demo_task"]

_T = TypeVar("_T")


def _words(line: str) -> tuple[str, ...]:
    return tuple(line.split())


_LABEL_NAMES = ("animal", "person")
_ANIMAL, _PERSON = 0, 1

# Beyond this many sentences the supply of unused combinations runs low.
_MOST_SENTENCES = 20_000

_PEOPLE = _words(
    "actor baker banker barber chemist clerk dancer dentist doctor farmer gardener judge lawyer librarian mayor "
    "miner nurse painter pilot plumber poet priest sailor singer soldier student tailor teacher waiter writer"
)
_ANIMALS = _words(
    "badger bear camel cat cow dog donkey eagle elephant fox frog goat goose hare horse lion monkey mouse otter owl "
    "parrot penguin pig pony rabbit sheep squirrel tiger tortoise wolf"
)
_ADJECTIVES = _words(
    "brave calm cheerful clever clumsy famous gentle hungry lazy lucky nervous old patient proud quiet sleepy small "
    "strong tired young"
)
_SETTINGS = (
    "after a long struggle",
    "at the county fair",
    "in front of a large crowd",
    "in the final",
    "in the first round",
    "in the pouring rain",
    "last spring",
    "on a cold morning",
    "on Sunday",
    "this year",
    "within a few minutes",
    "yet again",
)


class _Frames(NamedTuple):
    """Sentence patterns, and the words that may fill them besides the contestants."""

    clauses: tuple[str, ...]
    """Single clauses, the plainest first, which can also be claimed, rightly or wrongly."""
    turns: tuple[str, ...]
    """Reports in which hope or an early lead comes to nothing."""
    fillers: tuple[Mapping[str, str], ...]


_WINNING = _Frames(
    clauses=(
        "{winner} {past} {loser}",
        "{loser} was {participle} by {winner}",
        "it was {winner} that {past} {loser}",
        "it was {loser} that {winner} {past}",
        "{loser} was the one that {winner} {past}",
        "{loser} could not {base} {winner}",
        "{winner} could not be {participle} by {loser}",
        "everyone saw {winner} {base} {loser}",
    ),
    turns=(
        "{loser} hoped to {base} {winner} but failed",
        "{winner} feared being {participle} by {loser} but won",
        "although {loser} had led at first, {winner} {past} it",
    ),
    fillers=tuple(
        {"base": base, "past": past, "participle": participle}
        for base, past, participle in (
            ("beat", "beat", "beaten"),
            ("best", "bested", "bested"),
            ("conquer", "conquered", "conquered"),
            ("crush", "crushed", "crushed"),
            ("defeat", "defeated", "defeated"),
            ("eliminate", "eliminated", "eliminated"),
            ("humble", "humbled", "humbled"),
            ("outclass", "outclassed", "outclassed"),
            ("outplay", "outplayed", "outplayed"),
            ("outwit", "outwitted", "outwitted"),
            ("overcome", "overcame", "overcome"),
            ("overpower", "overpowered", "overpowered"),
            ("thrash", "thrashed", "thrashed"),
            ("trounce", "trounced", "trounced"),
        )
    ),
)
_LOSING = _Frames(
    clauses=(
        "{loser} {past} {winner}",
        "it was {loser} that {past} {winner}",
        "it was {winner} that {loser} {past}",
        "{winner} did not {base} {loser}",
        "everyone saw {loser} {base} {winner}",
    ),
    turns=(
        "{winner} expected to {base} {loser} but won",
        "{loser} had led at first but {past} {winner}",
    ),
    fillers=tuple(
        {"base": base, "past": past}
        for base, past in (
            ("bow to", "bowed to"),
            ("finish behind", "finished behind"),
            ("give in to", "gave in to"),
            ("lose to", "lost to"),
            ("submit to", "submitted to"),
            ("succumb to", "succumbed to"),
            ("surrender to", "surrendered to"),
            ("yield to", "yielded to"),
        )
    ),
)
_LEADING = _Frames(
    clauses=(
        "{winner} {past} {loser}",
        "it was {winner} that {past} {loser}",
        "it was {loser} that {winner} {past}",
        "{loser} did not {base} {winner}",
        "everyone saw {winner} {base} {loser}",
    ),
    turns=(
        "{loser} expected to {base} {winner} but lost",
        "{loser} had led at first but {winner} {past} it",
    ),
    fillers=tuple(
        {"base": base, "past": past}
        for base, past in (
            ("come in before", "came in before"),
            ("finish ahead of", "finished ahead of"),
            ("prevail over", "prevailed over"),
            ("triumph over", "triumphed over"),
            ("win against", "won against"),
        )
    ),
)
_PRIZE = _Frames(
    clauses=(
        "{winner} took {prize} from {loser}",
        "{prize} went to {winner} and not to {loser}",
        "{prize} went not to {loser} but to {winner}",
        "{loser} lost {prize} to {winner}",
        "{prize} was taken from {loser} by {winner}",
        "{winner}, not {loser}, earned {prize}",
    ),
    turns=("{loser} hoped for {prize} but {winner} earned it",),
    fillers=tuple({"prize": f"the {name}"} for name in _words("crown cup medal prize ribbon title trophy victory")),
)
# As in most prose, the plain is commoner than the intricate, and the winner is more often named first. This matters:
# where every pattern is equally likely no simple cue helps, and training stays at chance for hundreds of steps.
_SCHEMES = (_WINNING, _WINNING, _WINNING, _LOSING, _LEADING, _PRIZE)
_PLAINEST = 0.5
_FORMS = (
    *("plain",) * 4,
    *("setting first",) * 2,
    *("setting last",) * 2,
    *("turn",) * 2,
    "true claim",
    "false claim",
)

_TRUE_CLAIMS = (
    "it is true that",
    "it was rightly reported that",
    "the judges confirmed that",
    "the newspaper correctly wrote that",
    "nobody denied that",
    "witnesses agreed that",
)
# There are no draws: where one contestant did not win, the other did.
_FALSE_CLAIMS = (
    "it is a myth that",
    "it is untrue that",
    "it was wrongly reported that",
    "the judges denied that",
    "the newspaper falsely wrote that",
    "witnesses disputed that",
)


def make_demo_task(*, train: int = 4_800, validation: int = 1_000, seed: int = 0) -> TaskData:
    """Make the task "who-won": one sentence each, labelled with the winner, "animal" or "person".

    The same arguments give the same task everywhere. Both splits hold whole pairs, so they are exactly balanced, and
    no combination of person, animal and verb (or prize) occurs twice: no validation sentence was seen in training, nor
    was its twin.

    Args:
        train: Number of training sentences, even.
        validation: Number of validation sentences, even.
        seed: Chooses the sentences and their order.

    Raises:
        DataError: If a number is odd or not positive, or the grammar cannot make that many different sentences.
    """
    for split, size in (("train", train), ("validation", validation)):
        if size <= 0 or size % 2:
            raise DataError(f"The demo task needs a positive even number of {split} sentences, not {size}.")
    if train + validation > _MOST_SENTENCES:
        raise DataError(
            f"The demo grammar makes at most {_MOST_SENTENCES} sentences, not {train} + {validation}. Ask for fewer."
        )
    rng = Random(seed)
    used: set[tuple[str, str, str]] = set()
    return TaskData(
        name="who-won",
        label_names=_LABEL_NAMES,
        metrics=("accuracy", "f1"),
        train=_make_split(rng, train, used),
        validation={"validation": _make_split(rng, validation, used)},
    )


def _make_split(rng: Random, size: int, used: set[tuple[str, str, str]]) -> tuple[Example, ...]:
    """Make `size` examples in random order, adding their combinations to `used`."""
    examples: list[Example] = []
    while len(examples) < size:
        form = _pick(rng, _FORMS)
        frames = _pick(rng, _SCHEMES)
        pattern = _pick(rng, frames.turns if form == "turn" else frames.clauses)
        if form != "turn" and rng.random() < _PLAINEST:
            pattern = frames.clauses[0]
        filler = _pick(rng, frames.fillers)
        person, animal = _pick(rng, _PEOPLE), _pick(rng, _ANIMALS)
        combination = (person, animal, next(iter(filler.values())))
        if combination in used:
            continue
        used.add(combination)
        template = _embed(rng, form, pattern)
        examples += _make_pair(template, filler, _noun_phrase(rng, person), _noun_phrase(rng, animal))
    # `Random.random` is the one method whose sequence Python promises to keep; `shuffle` and `choice` are not.
    return tuple(sorted(examples, key=lambda _: rng.random()))


def _embed(rng: Random, form: str, pattern: str) -> str:
    """Complete a pattern to a sentence, in which a false claim exchanges winner and loser."""
    match form:
        case "true claim":
            return f"{_pick(rng, _TRUE_CLAIMS)} {pattern}"
        case "false claim":
            return f"{_pick(rng, _FALSE_CLAIMS)} {_exchange_contestants(pattern)}"
        case "setting first":
            return f"{_pick(rng, _SETTINGS)}, {pattern}"
        case "setting last":
            return f"{pattern} {_pick(rng, _SETTINGS)}"
        case _:
            return pattern


def _exchange_contestants(pattern: str) -> str:
    return "{winner}".join(part.replace("{winner}", "{loser}") for part in pattern.split("{loser}"))


def _make_pair(template: str, filler: Mapping[str, str], person: str, animal: str) -> tuple[Example, Example]:
    """Make two sentences of the same words: one that the person wins, one that the animal wins."""

    def sentence(winner: str, loser: str) -> str:
        text = template.format(winner=winner, loser=loser, **filler)
        return f"{text[0].upper()}{text[1:]}."

    return (
        Example((sentence(winner=person, loser=animal),), _PERSON),
        Example((sentence(winner=animal, loser=person),), _ANIMAL),
    )


def _noun_phrase(rng: Random, noun: str) -> str:
    return f"the {_pick(rng, _ADJECTIVES)} {noun}" if rng.random() < 0.3 else f"the {noun}"


def _pick(rng: Random, items: Sequence[_T]) -> _T:
    return items[int(rng.random() * len(items))]
