"""`ImportanceScores` as a value: what it refuses, how it prints, and that its file keeps every bit."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning_adapter.architectures import ModelIdentity, ProjectionShape, SiteShape
from pruning_adapter.errors import CheckpointError, ImportanceError, OutputError, PruningAdapterError
from pruning_adapter.importance import ImportanceScores

torch.set_num_threads(1)
NAN = float("nan")


def make_scores(*blocks: list[float], kept: tuple[tuple[int, ...], ...] | None = None) -> ImportanceScores:
    """Scores of a made-up model whose blocks have 4 heads each; all of them are scored unless `kept` says otherwise."""
    projections = tuple(ProjectionShape(roles=(role,), in_features=8, bias=True) for role in ("query", "key", "value"))
    site = SiteShape(units=4, groups=4, unit_size=2, projections=projections, out_features=8)
    return ImportanceScores(
        heads=tuple(torch.tensor(block, dtype=torch.float64) for block in blocks),
        kept_heads=((0, 1, 2, 3),) * len(blocks) if kept is None else kept,
        model=ModelIdentity(
            model_type="bert",
            sites=(site,) * len(blocks),
            block_parameters=(500,) * len(blocks),
            norm_parameters=32,
            fingerprint="0123456789abcdef",
            name="made/up",
            revision="r1",
        ),
        dense_parameters=2000,
        scorer="gradient",
        reduction="example",
        examples=7,
        tokens=90,
        task="toy",
        seed=3,
        versions={"python": "3.11", "torch": "2.13"},
    )


SCORES = make_scores([0.1, 0.2, 0.3, 0.4], [4e-9, 3e-9, 2e-9, 1e-9])
PRUNED = make_scores([0.5], [1.0, 3.0, 2.0], [], kept=((3,), (0, 1, 3), ()))


def bits(scores: ImportanceScores) -> list[list[int]]:
    return [block.numpy().view(np.int64).tolist() for block in scores.heads]


def record(scores: ImportanceScores) -> dict[str, Any]:
    """Everything but the numbers."""
    return {name: getattr(scores, name) for name in scores.__dataclass_fields__ if name != "heads"}


def edited(scores: ImportanceScores, path: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    scores.save(path)
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize("scores", [SCORES, PRUNED], ids=["dense", "pruned"])
def test_saved_then_loaded_is_the_same_value(scores: ImportanceScores, tmp_path: Path) -> None:
    scores.save(tmp_path / "importance.json")
    loaded = ImportanceScores.load(tmp_path / "importance.json")
    assert bits(loaded) == bits(scores)
    assert record(loaded) == record(scores)
    assert all(block.dtype == torch.float64 for block in loaded.heads)


@settings(max_examples=50)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=4, max_size=4))
def test_the_file_keeps_every_bit_of_every_number(tmp_path_factory: pytest.TempPathFactory, block: list[float]) -> None:
    path = tmp_path_factory.getbasetemp() / "importance.json"
    scores = make_scores(block)
    scores.save(path)
    assert bits(ImportanceScores.load(path)) == bits(scores)


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    SCORES.save(tmp_path / "one.json")
    ImportanceScores.load(tmp_path / "one.json").save(tmp_path / "other.json")
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "other.json").read_bytes()


def test_it_prints_as_a_table_with_a_row_a_block() -> None:
    # Per block: 0.5 alone is 1; (1, 3, 2) / sqrt(14) is (0.27, 0.80, 0.53); then a min-max over all four.
    assert str(PRUNED).splitlines() == [
        "importance of heads for toy: gradient, example reduction, 7 examples, 90 tokens",
        "'made/up', bert, 3 blocks x 4 heads of 2",
        "",
        "block    h0    h1    h2    h3",
        "    0     -     -     -  1.00",
        "    1  0.00  0.73     -  0.36",
        "    2     -     -     -     -",
        "",
        "normalised per block (equations 1 and 2)",
    ]


def test_rows_are_attentions_where_some_have_no_feed_forward_beside_them() -> None:
    """As of a decoder that reads what an encoder made; a model of which no feed-forward is known has blocks."""
    feed_forward = replace(PRUNED.model.sites[0], units=24, groups=24, unit_size=1)
    for beside, row in ((0, "block"), (2, "attention"), (3, "block")):
        scores = replace(PRUNED, model=replace(PRUNED.model, feed_forwards=(feed_forward,) * beside))
        assert str(scores).splitlines()[3].split()[0] == row


def test_what_was_not_measured_is_not_printed() -> None:
    headline = str(replace(SCORES, scorer="random", reduction=None, task=None)).splitlines()[0]
    assert headline == "importance of heads: random"


def test_scores_that_are_no_numbers_are_refused_by_block_and_head() -> None:
    with pytest.raises(ImportanceError, match=r"head 2 of block 1 is not a finite number\. Look for NaN in the model"):
        make_scores([1, 2, 3, 4], [1, 2, NAN, 4])
    with pytest.raises(ImportanceError, match="head 0 of block 0 is not"):
        make_scores([float("inf"), 2, 3, 4])
    # By its number in the dense model.
    with pytest.raises(ImportanceError, match="head 3 of block 0 is not"):
        make_scores([1.0, NAN], kept=((1, 3),))


def test_scores_that_do_not_fit_the_model_are_refused() -> None:
    with pytest.raises(
        ImportanceError, match=r"Scores of 1 blocks .* 2 blocks x 4 heads of 2; give one tensor a block"
    ):
        replace(SCORES, heads=SCORES.heads[:1])
    with pytest.raises(ImportanceError, match=r"Block 1 has 4 heads, but scores of shape \(3,\)"):
        replace(SCORES, heads=(SCORES.heads[0], SCORES.heads[1][:3]))


def test_every_truncation_of_the_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "importance.json"
    SCORES.save(path)
    text = path.read_text(encoding="utf-8")
    # Without its last line break alone, the file is complete.
    for length in range(len(text) - 1):
        path.write_text(text[:length], encoding="utf-8")
        with pytest.raises(CheckpointError, match=r"importance\.json is not readable .* damaged or cut short"):
            ImportanceScores.load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"kind": "pruning-adapter plan"}', "holds 'pruning-adapter plan' where a 'pruning-adapter importance' was"),
        ('{"heads": [[1, 2]]}', "holds None where"),
        ("[1, 2]", "holds 'list' where"),
        ('"importance"', "holds 'str' where"),
        ('{"kind": "pruning-adapter importance"}', r"has schema None; this release reads 2"),
        ('{"kind": "pruning-adapter importance", "schema": 1}', r"has schema 1; this release reads 2"),
        (
            '{"kind": "pruning-adapter importance", "schema": 2}',
            r"is not a complete importance file: KeyError\('heads'\)",
        ),
    ],
)
def test_another_kind_of_file_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "importance.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=message):
        ImportanceScores.load(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"Cannot read .*none\.json: No such file"):
        ImportanceScores.load(tmp_path / "none.json")


def test_numbers_that_do_not_fit_their_model_are_refused_on_loading(tmp_path: Path) -> None:
    path = edited(SCORES, tmp_path / "scores.json", lambda content: content["heads"].pop())
    with pytest.raises(ImportanceError, match="Scores of 1 blocks were given for 'made/up'"):
        ImportanceScores.load(path)
    path = edited(SCORES, path, lambda content: content["heads"][1].__setitem__(3, NAN))
    with pytest.raises(CheckpointError, match="NaN is no JSON"):
        ImportanceScores.load(path)


@pytest.mark.parametrize(
    "value",
    [
        *(None, -1, 2.5, True, [[None]]),
        *("x", [], ["x"], [["x"]], {}, {"x": 1}, 1e999),
    ],
)
def test_any_damaged_field_is_one_of_our_errors_or_none(tmp_path: Path, value: object) -> None:
    path = tmp_path / "scores.json"
    SCORES.save(path)
    content = json.loads(path.read_text(encoding="utf-8"))
    fields = [(content, name) for name in content] + [(content["model"], name) for name in content["model"]]
    fields += [(content["model"]["sites"][0], name) for name in content["model"]["sites"][0]]
    escaped: list[str] = []
    for holder, name in fields:
        whole, holder[name] = holder[name], value
        path.write_text(json.dumps(content), encoding="utf-8")
        holder[name] = whole
        try:
            str(ImportanceScores.load(path))
        except PruningAdapterError:
            continue
        except Exception as error:
            escaped.append(f"{name}={value!r}: {error!r}")
    assert escaped == []


@pytest.mark.parametrize(("name", "start"), [("map.png", b"\x89PNG\r\n"), ("map.svg", b"<?xml")])
@pytest.mark.parametrize("scores", [SCORES, PRUNED], ids=["dense", "pruned"])
def test_the_map_is_drawn_as_png_or_svg(tmp_path: Path, name: str, start: bytes, scores: ImportanceScores) -> None:
    pytest.importorskip("matplotlib")
    scores.draw(tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(start)
    scores.draw(tmp_path / name, scope="model")
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_a_map_of_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"map\.pdf: the figure is a \.png or a \.svg"):
        SCORES.draw(tmp_path / "map.pdf")
    with pytest.raises(ImportanceError, match="'head' is unknown; use one of block, model"):
        SCORES.draw(tmp_path / "map.png", scope="head")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
