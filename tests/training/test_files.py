"""The user's own files: four formats of the same rows, what labels mean, and every bad input by file and line."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from pruning_adapter.errors import DataError
from pruning_adapter.training.examples import Example, TaskData
from pruning_adapter.training.files import MAX_INTEGER_CLASSES, load_files

ROWS = [{"text": "good film", "label": "pos"}, {"text": "bad film", "label": "neg"}, {"text": "a film", "label": "pos"}]


def write(path: Path, content: str | bytes | Sequence[dict[str, Any]]) -> Path:
    """Write text or bytes as they are, rows in the format that the suffix names."""
    if isinstance(content, str | bytes):
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(content)), path)
    elif path.suffix in (".jsonl", ".json"):
        path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    else:
        separator = "\t" if path.suffix == ".tsv" else ","
        lines = [list(content[0]), *(list(map(str, row.values())) for row in content)]
        path.write_text("".join(separator.join(line) + "\n" for line in lines), encoding="utf-8")
    return path


def label_rows(labels: Sequence[Any]) -> list[dict[str, Any]]:
    return [{"text": f"text {number}", "label": label} for number, label in enumerate(labels)]


def load(train: Path, validation: Path | None = None, **options: Any) -> TaskData:
    options = {"text_columns": ["text"], "label_column": "label", **options}
    return load_files(train, validation or train, **options)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json", ".parquet", ".CSV"])
def test_every_format_gives_the_same_task(suffix: str, tmp_path: Path) -> None:
    file = write(tmp_path / "x.csv", ROWS).rename(tmp_path / "x.CSV") if suffix == ".CSV" else None
    data = load(file or write(tmp_path / f"reviews{suffix}", ROWS), write(tmp_path / "dev.jsonl", ROWS[:2]))
    assert data.label_names == ("neg", "pos")
    assert data.metrics == ("accuracy", "f1")
    assert data.train == (Example(("good film",), 1), Example(("bad film",), 0), Example(("a film",), 1))
    assert data.validation == {"validation": (Example(("good film",), 1), Example(("bad film",), 0))}
    assert data.name == ("x" if file else "reviews")


def test_two_columns_make_a_pair_in_the_order_named(tmp_path: Path) -> None:
    file = write(tmp_path / "x.csv", "a,label,b\nfirst,0,second\nthird,1,fourth\n")
    assert load(file, text_columns=["b", "a"]).train[0] == Example(("second", "first"), 0)


def test_csv_has_the_usual_quoting_and_tsv_none(tmp_path: Path) -> None:
    csv_file = write(tmp_path / "x.csv", 'text,label\n"one, ""two""\nlines",0\nplain,1\n')
    assert load(csv_file).train[0].texts == ('one, "two"\nlines',)
    tsv_file = write(tmp_path / "x.tsv", 'text\tlabel\n"one, ""two"\t0\n5" plain\t1\n')
    assert [example.texts[0] for example in load(tsv_file).train] == ['"one, ""two"', '5" plain']


def test_blank_lines_and_a_byte_order_mark_are_nothing(tmp_path: Path) -> None:
    plain = load(write(tmp_path / "x.csv", "text,label\na,0\nb,1\n"))
    assert load(write(tmp_path / "x.csv", b"\xef\xbb\xbftext,label\r\na,0\r\n\r\nb,1\r\n\r\n")) == plain
    assert load(write(tmp_path / "x.jsonl", b'\xef\xbb\xbf{"text":"a","label":0}\n\n{"text":"b","label":1}')) == plain


def test_a_subset_is_seeded_and_leaves_validation_whole(tmp_path: Path) -> None:
    file = write(tmp_path / "x.jsonl", label_rows([number % 2 for number in range(40)]))
    data = load(file, train_rows=7, seed=1)
    numbers = [int(example.texts[0].removeprefix("text ")) for example in data.train]
    assert len(set(numbers)) == 7
    assert numbers == sorted(numbers)
    assert data == load(file, train_rows=7, seed=1)
    assert data.train != load(file, train_rows=7, seed=2).train
    assert len(data.validation["validation"]) == 40


@pytest.mark.parametrize(
    ("labels", "names", "numbers", "metrics"),
    [
        pytest.param([10, 9, 2], ("2", "9", "10"), [2, 1, 0], ("accuracy", "f1_macro"), id="integers numerically"),
        pytest.param(["10", "9", "2"], ("2", "9", "10"), [2, 1, 0], ("accuracy", "f1_macro"), id="integers as text"),
        pytest.param([" b ", "a"], ("a", "b"), [1, 0], ("accuracy", "f1"), id="strings alphabetically, stripped"),
        pytest.param(
            ["b", "10", "9"], ("10", "9", "b"), [2, 0, 1], ("accuracy", "f1_macro"), id="strings among integers"
        ),
        pytest.param([True, False], ("false", "true"), [1, 0], ("accuracy", "f1"), id="truth values"),
        pytest.param(["1_2", "2_1"], ("1_2", "2_1"), [0, 1], ("accuracy", "f1"), id="underscores are no number"),
        pytest.param([-1, 1], ("-1", "1"), [0, 1], ("accuracy", "f1"), id="negative integers"),
    ],
)
def test_strings_and_integers_are_classes(
    labels: list[Any], names: tuple[str, ...], numbers: list[int], metrics: tuple[str, ...], tmp_path: Path
) -> None:
    data = load(write(tmp_path / "x.jsonl", label_rows(labels)))
    assert data.label_names == names
    assert [example.label for example in data.train] == numbers
    assert all(type(example.label) is int for example in data.train)
    assert data.metrics == metrics


@pytest.mark.parametrize("labels", [[1, 2.5, 3], ["1", "2.5", "3"], ["1.0", "2.5", "3.0"], ["1e0", "25e-1", "3"]])
def test_a_fraction_makes_the_task_a_regression(labels: list[Any], tmp_path: Path) -> None:
    data = load(write(tmp_path / "x.jsonl", label_rows(labels)))
    assert data.is_regression
    assert data.metrics == ("pearson", "spearman")
    assert [example.label for example in data.train] == [1.0, 2.5, 3.0]
    assert all(type(example.label) is float for example in data.train)


def test_json_floats_are_regression_even_without_a_fraction(tmp_path: Path) -> None:
    assert load(write(tmp_path / "x.jsonl", label_rows([1.0, 2.0]))).is_regression


def test_a_fraction_in_the_validation_file_counts_too(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", label_rows([1, 2]))
    data = load(train, write(tmp_path / "dev.jsonl", label_rows([1.5])))
    assert [example.label for example in data.train] == [1.0, 2.0]


def test_many_integers_look_like_a_quantity(tmp_path: Path) -> None:
    classes = list(range(MAX_INTEGER_CLASSES))
    assert len(load(write(tmp_path / "x.jsonl", label_rows(classes))).label_names) == 100
    with pytest.raises(
        DataError, match=r"x\.jsonl has 101 different whole numbers .*as floats \(0\.0\) for regression"
    ):
        load(write(tmp_path / "x.jsonl", label_rows([*classes, 100])))
    names = [f"class_{number}" for number in range(101)]
    assert len(load(write(tmp_path / "x.jsonl", label_rows(names))).label_names) == 101


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        pytest.param("x.xlsx", "", r"x\.xlsx: the suffix '\.xlsx' is none of \.csv, \.tsv, \.jsonl, .*", id="suffix"),
        pytest.param("x.csv", "", r"x\.csv has no rows", id="nothing"),
        pytest.param("x.csv", "text,label\n\n", r"x\.csv has no rows", id="header only"),
        pytest.param("x.jsonl", "\n", r"x\.jsonl has no rows", id="blank jsonl"),
        pytest.param("x.csv", "a,label\nb,1\n", r"x\.csv has no column 'text'; .* 'a', 'label'", id="text column"),
        pytest.param("x.tsv", "text\tb\na\t1\n", r"x\.tsv has no column 'label'; .* 'text', 'b'", id="label column"),
        pytest.param(
            "x.jsonl", '{"text": "a"}\n', r"x\.jsonl, line 1 has no column 'label'; .* 'text'", id="jsonl key"
        ),
        pytest.param("x.csv", "text,text,label\na,b,1\n", r"x\.csv has the column 'text' more than once", id="twice"),
        pytest.param("x.csv", "text,label\na,1\nb\n", r"x\.csv, line 3 has 1 fields where 2", id="csv fields"),
        pytest.param("x.tsv", "text\tlabel\na\t1\nb\tc\t0\n", r"x\.tsv, line 3 has 3 fields", id="tsv fields"),
        pytest.param("x.csv", 'text,label\na,1\n"b,0\nc,1\n', r"x\.csv, line 3 is not readable as csv", id="quote"),
        pytest.param("x.csv", 'text,label\n"a"b,1\n', r"x\.csv, line 2 is not readable as csv", id="after a quote"),
        pytest.param("x.csv", '"te\nxt","label"\n', r"no column 'text'", id="header over two lines"),
        pytest.param(
            "x.csv", 'text,label\n"a\nb",1\nc\n', r"x\.csv, line 4 has 1 fields", id="line after two-line row"
        ),
        pytest.param(
            "x.csv", b"text,label\na,1\n\xff,0\n", r"x\.csv, line 3 is not UTF-8 \(byte 0 .* 0xff\)", id="utf-8"
        ),
        pytest.param("x.tsv", "text\tlabel\n".encode("utf-16"), r"x\.tsv, line 1 is not UTF-8", id="utf-16"),
        pytest.param("x.jsonl", '{"text":"a","label":1}\n{"text"\n', r"line 2 is not readable as JSON", id="bad JSON"),
        pytest.param("x.json", '[{"text":"a","label":1}]', r"x\.json, line 1 holds a JSON list", id="JSON list"),
        pytest.param("x.jsonl", "[" * 100_000, r"x\.jsonl, line 1 is not readable as JSON", id="deep JSON"),
        pytest.param("x.csv", "text,label\na,1\n ,0\n", r"x\.csv, line 3: the column 'text' is empty", id="no text"),
        pytest.param("x.csv", "text,label\na,1\nb,\n", r"x\.csv, line 3: the column 'label' is empty", id="no label"),
        pytest.param(
            "x.jsonl", '{"text":null,"label":1}', r"x\.jsonl, line 1: the column 'text' is empty", id="null text"
        ),
        pytest.param(
            "x.jsonl",
            '{"text":7,"label":1}',
            r"line 1: the text column 'text' holds 7, which is not a str",
            id="number",
        ),
        pytest.param(
            "x.jsonl", '{"text":"a","label":[1]}', r"line 1: the label \[1\] is neither a string", id="list label"
        ),
        pytest.param(
            "x.jsonl", '{"text":"\\ud83d","label":1}', r"line 1: the column 'text' has half a character", id="surrogate"
        ),
        pytest.param(
            "x.jsonl", '{"text":"a","label":"\\ud83d"}', "line 1: the label .* has half a character", id="label"
        ),
        pytest.param("x.csv", "text,label\na,1.5\nb,nan\n", r"x\.csv, line 3: the label nan is not a fin", id="nan"),
        pytest.param("x.csv", "text,label\na,1.5\nb,-inf\n", r"x\.csv, line 3: the label -inf is not", id="inf"),
        pytest.param("x.jsonl", '{"text":"a","label":NaN}', r"line 1: the label nan is not a finite", id="JSON NaN"),
        pytest.param(
            "x.csv", f"text,label\na,1\nb,1{'0' * 400}\n", r"line 3: the label 10+ is not a finite number", id="huge"
        ),
        pytest.param(
            "x.csv",
            "text,label\na,1.5\nb,good\n",
            r"x\.csv, line 3: the label 'good' is not a number, but other labels are fractions",
            id="word among scores",
        ),
        pytest.param("x.csv", "text,label\na,yes\nb,yes\n", r"Every label in .*x\.csv is 'yes'", id="one class"),
        pytest.param("x.csv", "text,label\na,0.5\nb,0.5\n", r"Every label in .*x\.csv is 0\.5", id="one score"),
        pytest.param("x.parquet", b"PAR1 not", r"x\.parquet is not readable as parquet", id="parquet"),
    ],
)
def test_bad_input_is_named_by_file_and_line(name: str, content: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        load(write(tmp_path / name, content))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        pytest.param(
            [{"text": "a", "label": 1}, {"text": None, "label": 0}], r"row 2: the column 'text' is", id="null"
        ),
        pytest.param(
            [{"text": "a", "label": 1.5}, {"text": "b", "label": float("nan")}], r"row 2: the label nan", id="nan"
        ),
        pytest.param(
            [{"text": "a", "class": 1}], r"has no column 'label'; its columns are 'text', 'class'", id="column"
        ),
        pytest.param([{"text": 3, "label": 1}], r"row 1: the text column 'text' holds 3", id="number"),
    ],
)
def test_bad_parquet_is_named_by_file_and_row(rows: list[dict[str, Any]], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"x\.parquet.*{message}"):
        load(write(tmp_path / "x.parquet", rows))


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Cannot read .*none\.csv: No such file or directory"):
        load(tmp_path / "none.csv")
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(DataError, match=r"folder\.parquet"):
        load(tmp_path / "folder.parquet")


def test_a_class_that_training_lacks_is_named_by_line(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", ROWS)
    validation = write(tmp_path / "dev.csv", "text,label\na,pos\nb,mixed\n")
    with pytest.raises(
        DataError,
        match=r"dev\.csv, line 3: the class 'mixed' does not occur in .*train\.csv, whose classes are neg, pos\.",
    ):
        load(train, validation)


def test_a_class_that_validation_lacks_is_fine(tmp_path: Path) -> None:
    data = load(write(tmp_path / "train.csv", ROWS), write(tmp_path / "dev.csv", ROWS[:1]))
    assert data.label_names == ("neg", "pos")


@pytest.mark.parametrize(
    ("text_columns", "message"),
    [
        ([], r"Got 0 text columns"),
        (["a", "b", "c"], r"Got 3 text columns \(a, b, c\): name one, or two"),
        (["text", "text"], r"The column 'text' is named twice"),
        (["text", "label"], r"The column 'label' is named twice"),
    ],
)
def test_text_columns_are_one_or_two_and_distinct(text_columns: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        load(write(tmp_path / "x.csv", ROWS), text_columns=text_columns)


def test_one_text_column_may_be_given_as_a_plain_string(tmp_path: Path) -> None:
    file = write(tmp_path / "x.csv", ROWS)
    assert load(file, text_columns="text") == load(file, text_columns=["text"])
