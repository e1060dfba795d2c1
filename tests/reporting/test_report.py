import builtins
import html
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pruning_adapter.errors import OutputError
from pruning_adapter.evaluation.result import Measure, Quality, Result
from pruning_adapter.reporting import chart, write_report
from pruning_adapter.reporting import report as internals

pytest.importorskip("jinja2")

IMPORTANCE = [[0.0, 0.123, 1.0, 0.456], [0.789, 0.0, 1.0], [0.25, 0.5]]
KEPT = [[1, 2, 3], [0, 2], []]
PRUNED = 1 + 1 + 2


def result(**changes: Any) -> Result:
    accuracy = Measure(value=0.8627, low=0.8259, high=0.8927)
    f1 = Measure(value=0.9012, low=0.8711, high=0.9277)
    made = Result(
        task={"name": "mrpc", "train_examples": 3668, "labels": ["no", "yes"]},
        model={"id": "bert-base-uncased", "revision": "abc", "model_type": "bert", "fingerprint": "f00d"},
        method="prune-lora",
        scorer="gradient",
        seed=42,
        recipe={"name": "default", "learning_rate": 5e-4},
        quality={
            "validation": Quality(
                metrics={"accuracy": accuracy, "f1": f1}, examples=408, majority_rate=0.6838, at_majority=False
            )
        },
        cost={
            "parameters": 101_290_000,
            "dense_parameters": 109_480_000,
            "trainable_parameters": 308_700,
            "weight_bytes": 405_160_000,
            "macs": 9.9e9,
            "dense_macs": 11.0e9,
            "latency_ratio": {"median": 0.87, "q1": 0.86, "q3": 0.885},
            "memory_ratio": {"median": 1.01, "q1": 0.99, "q3": 1.02},
        },
        history=(
            {"step": 100, "epoch": 0.5, "loss": 0.61},
            {"step": 200, "epoch": 1.0, "loss": 0.52},
            {"step": 200, "epoch": 1.0, "eval_loss": 0.55, "eval_accuracy": 0.81, "eval_runtime": 1.5},
        ),
        pruning={
            "importance": IMPORTANCE,
            "kept_heads": KEPT,
            "ranks": [8, 4, 4],
            "rank_roles": ["query", "key", "value", "output"],
        },
        command="pruning-adapter run --task mrpc",
        versions={"python": "3.11.9"},
        machine={"processor": "Some CPU"},
    )
    return replace(made, **changes)


def page(tmp_path: Path, made: Result) -> str:
    write_report(made, tmp_path / "report.html")
    return (tmp_path / "report.html").read_text(encoding="utf-8")


class Tree(HTMLParser):
    """Collects tags, and claims that every element that was opened is closed in order."""

    VOID = ("meta", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def of_class(self, name: str) -> list[dict[str, str | None]]:
        return [attrs for _, attrs in self.seen if name in (attrs.get("class") or "").split()]


VARIANTS = {
    "pruned": {},
    "without pruning": {"pruning": None, "method": "lora", "scorer": None},
    "without importance": {"pruning": {"importance": None, "kept_heads": KEPT, "ranks": [8, 4, 4]}},
    "bare": {"quality": {}, "cost": {}, "history": (), "recipe": {}, "versions": {}, "machine": {}, "command": ""},
    "regression": {
        "quality": {
            "validation": Quality(
                metrics={"pearson": Measure(value=-0.12, low=-0.3, high=0.08)},
                examples=1500,
                majority_rate=None,
                at_majority=False,
            )
        }
    },
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_page_is_well_formed_and_fetches_nothing(tmp_path: Path, changes: dict[str, Any]) -> None:
    text = page(tmp_path, result(**changes))

    tags = Tree(text).seen
    assert not {tag for tag, _ in tags} & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    assert not [name for _, attrs in tags for name in attrs if name in ("src", "href", "srcset") or name[:2] == "on"]
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text


def test_every_importance_is_in_the_hover_text(tmp_path: Path) -> None:
    tips = re.findall(r'<span class="tip">(.*?)</span>', page(tmp_path, result()))

    assert tips == [
        f"block {block}, head {head}: {value:.3f}, {'kept' if head in KEPT[block] else 'pruned'}"
        for block, row in enumerate(IMPORTANCE)
        for head, value in enumerate(row)
    ]


def test_as_many_heads_are_crossed_out_as_were_pruned(tmp_path: Path) -> None:
    text = page(tmp_path, result())

    crossed = [attrs for attrs in Tree(text).of_class("cut") if "h" in str(attrs["class"]).split()]
    assert len(crossed) == PRUNED
    assert f"{PRUNED} of 9 heads pruned" in text
    assert "Without any head: block 2." in text


def test_every_row_of_the_map_is_as_wide_as_its_head(tmp_path: Path) -> None:
    table = re.search(r'<table class="heads".*?</table>', page(tmp_path, result()), re.DOTALL)
    assert table is not None

    widths: list[int] = []
    for row in re.findall(r"<tr>.*?</tr>", table.group(), re.DOTALL):
        spans = (re.search(r'colspan="(\d+)"', cell) for cell in re.findall(r"<t[hd]\b[^>]*>", row))
        widths.append(sum(int(span.group(1)) if span else 1 for span in spans))
    assert widths == [1 + 4 + 2] * 4


def test_ranks_and_their_places_are_told(tmp_path: Path) -> None:
    text = " ".join(page(tmp_path, result()).split())

    assert "LoRA on query, key, value, output: rank 8 in 1 block, rank 4 in 2 blocks." in text


@pytest.mark.parametrize(
    ("within", "told"),
    [("block", ", the largest of each block 1"), ("model", ", the largest of all 1"), (None, "")],
)
def test_the_map_says_of_what_the_largest_score_is_one(tmp_path: Path, within: str | None, told: str) -> None:
    """Results of older releases do not say."""
    made = result()
    text = page(tmp_path, replace(made, pruning={**(made.pruning or {}), "shown_within": within}))
    assert f"<span>normalised importance{told}</span>" in text


def test_notes_come_before_the_numbers(tmp_path: Path) -> None:
    note = "The run ended at the majority class."
    text = page(tmp_path, result(notes=(note,)))

    assert text.index('role="note"') < text.index(note) < text.index('class="tile')
    assert 'role="note"' not in page(tmp_path, result())


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    hostile = "<script>alert('x')</script>\"onload=\""
    name = hostile.strip("\"'")
    made = result(
        task={"name": hostile, hostile: hostile},
        model={"id": hostile},
        method=hostile,
        scorer=hostile,
        command=hostile,
        notes=(hostile,),
        recipe={hostile: {hostile: [hostile]}},
        quality={hostile: replace(result().quality["validation"], metrics={hostile: Measure(value=1, low=0, high=1)})},
        pruning={"importance": IMPORTANCE, "kept_heads": KEPT, "ranks": [1, 1, 1], "rank_roles": [hostile]},
        history=({"step": 1, f"eval_{hostile}": 0.5}, {"step": 2, f"eval_{hostile}_{hostile}": 0.5}),
    )
    text = page(tmp_path, made)

    assert "<script" not in text
    assert not [attrs for _, attrs in Tree(text).seen if "onload" in attrs]
    assert html.escape(name, quote=False).split("&gt;")[0] in text


def test_tiles_say_what_was_counted_and_measured(tmp_path: Path) -> None:
    plain = {"\N{NO-BREAK SPACE}": " ", "\N{WORD JOINER}": "", "\N{EN DASH}": "-", "\N{MULTIPLICATION SIGN}": "x"}
    text = page(tmp_path, result()).translate(str.maketrans(plain))

    for said in (
        *("86.3 %", "82.6 - 89.3 %", "408 examples; largest class 68.4 %"),
        *("101.3 M", "92.5 % of 109.5 M dense", "308.7 K", "0.30 % of all parameters"),
        *("0.87 x", "quartiles 0.86 - 0.89", "13.0 % less time", "no clear difference"),
        *("0.90 x", "9.90 G of 11.0 G", "405.2 MB"),
    ):
        assert said in text, said


def test_what_was_not_measured_has_no_tile(tmp_path: Path) -> None:
    text = page(tmp_path, result(cost={"latency_ratio": None, "parameters": 12}))

    assert len(Tree(text).of_class("tile")) == 2
    assert "vs dense" not in text


def test_without_pruning_no_head_is_mentioned(tmp_path: Path) -> None:
    text = page(tmp_path, result(**VARIANTS["without pruning"]))

    assert 'id="map"' not in text
    assert "heads chosen" not in text


def test_without_importance_the_kept_heads_are_listed(tmp_path: Path) -> None:
    text = page(tmp_path, result(**VARIANTS["without importance"]))

    assert "1, 2, 3" in text
    assert "5 heads kept" in text
    assert 'class="ramp"' not in text


def test_regression_has_no_largest_class(tmp_path: Path) -> None:
    text = page(tmp_path, result(**VARIANTS["regression"]))

    assert "-0.120" in text
    assert "largest class" not in text


def test_a_model_that_learnt_nothing_is_marked_even_without_a_note(tmp_path: Path) -> None:
    quality = {"validation": replace(result().quality["validation"], at_majority=True)}

    assert page(tmp_path, result(quality=quality)).count("Says the same for every example") == 2


def test_curves_tell_every_logged_number_on_hover(tmp_path: Path) -> None:
    text = page(tmp_path, result()).replace("\N{NO-BREAK SPACE}", " ")

    assert "step 100, epoch 0.5: training 0.610<" in text
    assert "step 200, epoch 1: training 0.520, validation 0.550<" in text
    assert "step 200, epoch 1: validation 81.0 %<" in text
    assert "runtime" not in text


def test_curves_follow_each_validation_set(tmp_path: Path) -> None:
    quality = result().quality["validation"]
    history = (
        {"step": 1, "eval_matched_accuracy": 0.5, "eval_mismatched_accuracy": 0.6},
        {"step": 2, "eval_matched_accuracy": 0.7, "eval_mismatched_accuracy": 0.8},
    )
    text = page(tmp_path, result(quality={"matched": quality, "mismatched": quality}, history=history))

    assert "step 2: matched 70.0" in text
    assert text.count("<polyline") == 2


def test_a_long_history_stays_a_small_page_with_both_ends(tmp_path: Path) -> None:
    history = tuple({"step": step, "loss": 1 / step} for step in range(1, 50_001))
    text = page(tmp_path, result(history=history))

    assert len(text) < 200_000
    assert "step 1: " in text
    assert "step 50000: " in text


@pytest.mark.parametrize("loss", [0.0, 3.5, -2.0, math.nan, math.inf])
def test_a_history_of_one_step_is_drawn_or_left_out(tmp_path: Path, loss: float) -> None:
    text = page(tmp_path, result(history=({"step": 0, "loss": loss},)))

    assert ("<polyline" in text) is math.isfinite(loss)


@pytest.mark.parametrize("value", [math.nan, -3.0, 7.0])
def test_an_importance_out_of_range_does_not_stop_the_page(tmp_path: Path, value: float) -> None:
    text = page(tmp_path, result(pruning={"importance": [[value]], "kept_heads": [[0]], "ranks": [4]}))

    assert f"block 0, head 0: {value:.3f}, kept" in text


def test_homes_leak_only_through_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path("/data/people/eve"))
    secrets = ("/home/jane/m/bert", "/Users/jane/x", "C:\\Users\\jane\\x", "/root/x", "/data/people/eve/x")
    made = result(
        model={"id": secrets[0]},
        recipe={"files": list(secrets), "nested": {"deep": secrets[1]}},
        machine={"cache": secrets[2]},
        notes=(f"Read {secrets[4]}.",),
        command="run --model /home/jane/m/bert",
    )
    text = page(tmp_path, made)

    assert text.count("jane") == 1
    assert "eve/" not in text
    assert "/root" not in text
    assert "<title>mrpc · bert · Prune-LoRA</title>" in text


def test_the_same_result_gives_the_same_page(tmp_path: Path) -> None:
    assert page(tmp_path, result()) == page(tmp_path, result())


def test_a_saved_result_gives_the_same_page(tmp_path: Path) -> None:
    made = result()
    made.save(tmp_path / "result.json")

    assert page(tmp_path, Result.load(tmp_path / "result.json")) == page(tmp_path, made)


def test_missing_jinja2_names_the_extra_and_keeps_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = builtins.__import__

    def missing(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("jinja2"):
            raise ImportError(name)
        return found(name, *rest, **more)

    (tmp_path / "report.html").write_text("old")
    monkeypatch.setattr(builtins, "__import__", missing)

    with pytest.raises(OutputError, match=r'pip install "pruning-adapter\[report\]"'):
        write_report(result(), tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text() == "old"


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.2, 0.7), (-3, 5), (0.683, 0.6831), (0, 0), (7, 7), (1e-7, 3e-7), (0, 123456)]
)
def test_ticks_are_few_rising_and_enclose_the_data(low: float, high: float) -> None:
    ticks = chart._ticks(low, high, 4)  # pyright: ignore[reportPrivateUsage]

    assert 2 <= len(ticks) <= 6
    assert ticks == sorted(set(ticks))
    assert ticks[0] <= low
    assert ticks[-1] >= high


def test_colours_are_the_anchors_and_grow_lighter() -> None:
    colors = [internals._color(step / 50) for step in range(51)]  # pyright: ignore[reportPrivateUsage]
    light = [internals._luminance(color) for color in colors]  # pyright: ignore[reportPrivateUsage]

    assert tuple(colors[::5]) == internals.VIRIDIS
    assert light == sorted(light)
