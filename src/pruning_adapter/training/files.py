"""The user's own task: two files of labelled text, whose labels say whether it is classification or regression."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pruning_adapter.errors import DataError
from pruning_adapter.training.examples import Example, TaskData
from pruning_adapter.training.rows import Row, locate, read_rows, take_rows

__all__ = ["MAX_INTEGER_CLASSES", "load_files"]

MAX_INTEGER_CLASSES = 100
"""More different whole numbers than this are taken for a quantity somebody forgot to write as floats."""


def load_files(
    train_file: str | Path,
    validation_file: str | Path,
    *,
    text_columns: Sequence[str],
    label_column: str,
    train_rows: int | None = None,
    seed: int = 0,
) -> TaskData:
    """Return the task in two files of one format or two: csv, tsv, jsonl (also .json with an object per line), parquet.

    Strings and whole numbers are classes: numbers in numerical order, otherwise alphabetically. One label written with
    a fraction (2.5, also 2.0) makes the task a regression.

    Args:
        train_file: examples to train on; its classes are the task's classes.
        validation_file: examples to evaluate on.
        text_columns: one column, or two for a sentence-pair task.
        label_column: the column of labels.
        train_rows: train on a random subset of this many rows, the same for the same `seed`; None for all.
        seed: of that subset.

    Raises:
        DataError: a file, column, row or label that cannot be used; it names file and line.
    """
    columns = (text_columns,) if isinstance(text_columns, str) else tuple(text_columns)
    _check_columns(columns, label_column)
    train_path, validation_path = Path(train_file), Path(validation_file)
    train = _read_labelled(train_path, columns, label_column)
    validation = _read_labelled(validation_path, columns, label_column)
    if any(isinstance(row.label, float) for row in (*train, *validation)):
        label_names, metrics = (), ("pearson", "spearman")
        train_examples = _number_scores(train_path, train)
        validation_examples = _number_scores(validation_path, validation)
    else:
        label_names = _name_classes(train_path, train)
        metrics = ("accuracy", "f1" if len(label_names) == 2 else "f1_macro")
        train_examples = _number_classes(train_path, train, label_names, train_path)
        validation_examples = _number_classes(validation_path, validation, label_names, train_path)
    if len({example.label for example in train_examples}) == 1:
        raise DataError(
            f"Every label in {train_path} is {train[0].label!r}: there is nothing to learn. "
            f"Add examples with other labels, or check that {label_column!r} is the label column."
        )
    return TaskData(
        name=train_path.stem,
        label_names=label_names,
        metrics=metrics,
        train=take_rows(train_examples, train_rows, seed),
        validation={"validation": tuple(validation_examples)},
    )


def _check_columns(text_columns: Sequence[str], label_column: str) -> None:
    if len(text_columns) not in (1, 2):
        raise DataError(
            f"Got {len(text_columns)} text columns ({', '.join(text_columns)}): name one, or two for a pair of texts."
        )
    columns = (*text_columns, label_column)
    for column in columns:
        if columns.count(column) > 1:
            raise DataError(
                f"The column {column!r} is named twice among text and label columns: each must be another one."
            )


def _read_labelled(path: Path, text_columns: Sequence[str], label_column: str) -> list[Row]:
    rows = read_rows(path, text_columns=text_columns, label_column=label_column)
    return [row._replace(label=_parse_label(row.label, locate(path, row.line))) for row in rows]


def _parse_label(label: Any, place: str) -> int | float | str:
    if isinstance(label, bool):
        return str(label).lower()
    # Python's numbers may also have underscores and other scripts' digits; a class called "1_2" is not twelve.
    if isinstance(label, str) and label.isascii() and "_" not in label:
        label = _parse_number(label)
    if not isinstance(label, int | float | str):
        raise DataError(f"{place}: the label {label!r} is neither a string nor a number. Write it as one of them.")
    if not isinstance(label, str) and not _is_finite(label):
        raise DataError(
            f"{place}: the label {label} is not a finite number. Correct it or remove the row; "
            "a class of that name needs another name."
        )
    return label


def _parse_number(label: str) -> int | float | str:
    for parse in (int, float):
        try:
            return parse(label)
        except ValueError:
            continue
    return label


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # a whole number beyond the largest float
        return False


def _number_scores(path: Path, rows: Sequence[Row]) -> list[Example]:
    for row in rows:
        if isinstance(row.label, str):
            raise DataError(
                f"{locate(path, row.line)}: the label {row.label!r} is not a number, but other labels are fractions, "
                "which makes this a regression. Write all labels as numbers, or all as class names."
            )
    return [Example(row.texts, float(row.label)) for row in rows]


def _name_classes(path: Path, rows: Sequence[Row]) -> tuple[str, ...]:
    labels = {row.label for row in rows}
    numbers = sorted(label for label in labels if isinstance(label, int))
    if len(numbers) < len(labels):
        return tuple(sorted(map(str, labels)))
    if len(numbers) > MAX_INTEGER_CLASSES:
        raise DataError(
            f"{path} has {len(numbers)} different whole numbers as labels; more than {MAX_INTEGER_CLASSES} look like a "
            f"quantity. Write them as floats ({numbers[0]}.0) for regression, or as names (class_{numbers[0]}) for "
            "classes."
        )
    return tuple(map(str, numbers))


def _number_classes(path: Path, rows: Sequence[Row], names: Sequence[str], train_path: Path) -> list[Example]:
    numbers = {name: number for number, name in enumerate(names)}
    for row in rows:
        if str(row.label) not in numbers:
            shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
            raise DataError(
                f"{locate(path, row.line)}: the class {str(row.label)!r} does not occur in {train_path}, whose classes "
                f"are {shown}. Add training examples of it, or remove the row."
            )
    return [Example(row.texts, numbers[str(row.label)]) for row in rows]
