"""Rows of labelled text from csv, tsv, jsonl and parquet files. Every error names the file and the line."""

import csv
import json
import logging
import random
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

from pruning_adapter.errors import DataError

__all__ = ["Row", "locate", "read_rows", "read_tsv", "take_rows"]

T = TypeVar("T")

_log = logging.getLogger(__name__)

# JSON can escape half of a character outside the basic plane, which no tokenizer can encode.
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


class Row(NamedTuple):
    """One row of a file."""

    line: int
    """Where it starts in its file, from 1 (in a parquet file: its number)."""
    texts: tuple[str, ...]
    """One per text column; none is empty."""
    label: Any
    """A stripped, non-empty string from csv and tsv, otherwise whatever JSON or parquet holds; never None."""


def read_rows(path: Path, *, text_columns: Sequence[str], label_column: str) -> list[Row]:
    """Read the named columns of a file; its suffix says the format (.csv, .tsv, .jsonl, .json lines, .parquet).

    csv follows the usual quoting; in tsv a quote is a character like any other, as in GLUE. Blank lines are skipped.

    Raises:
        DataError: no such file or format, a missing column, a row that cannot be read or has an empty cell, no rows.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"Cannot read {path}: the suffix {path.suffix!r} is none of {', '.join(_READERS)}. "
            "Save the data as one of these."
        )
    columns = (*text_columns, label_column)
    return _collect_rows(path, columns, reader(path, columns))


def read_tsv(
    path: Path,
    *,
    text_columns: Sequence[str],
    label_column: str,
    header: Sequence[str] | None = None,
    skip_broken: bool = False,
) -> list[Row]:
    """Read a tsv file as `read_rows` does.

    Args:
        path: the file, whatever its suffix.
        text_columns: names of the text columns.
        label_column: name of the label column.
        header: the columns, if the file has no header line.
        skip_broken: leave out rows with a wrong number of fields or an empty cell, and log how many.

    Raises:
        DataError: as `read_rows`.
    """
    columns = (*text_columns, label_column)
    return _collect_rows(path, columns, _read_tsv(path, columns, header, skip_broken))


def locate(path: Path, line: int) -> str:
    """Name a row for an error message: "train.csv, line 7"."""
    return f"{path}, {'row' if path.suffix.lower() == '.parquet' else 'line'} {line}"


def take_rows(rows: Sequence[T], number: int | None, seed: int) -> tuple[T, ...]:
    """A random subset of `number` rows, in their original order; all of them if `number` is None or beyond them.

    Raises:
        DataError: `number` is below 1.
    """
    if number is not None and number < 1:
        raise DataError(f"Cannot train on {number} rows: give a number of 1 or more, or none for all rows.")
    if number is None or number >= len(rows):
        return tuple(rows)
    chosen = random.Random(seed).sample(range(len(rows)), number)
    return tuple(rows[index] for index in sorted(chosen))


_Cells = Iterator[tuple[int, Sequence[Any]]]


def _collect_rows(path: Path, columns: Sequence[str], found: _Cells) -> list[Row]:
    try:
        rows = [_check_row(path, line, columns, cells) for line, cells in found]
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or error}. Check the path.") from error
    if not rows:
        raise DataError(f"{path} has no rows: at least one labelled example is needed.")
    return rows


def _check_row(path: Path, line: int, columns: Sequence[str], cells: Sequence[Any]) -> Row:
    for column, cell in zip(columns, cells, strict=True):
        if cell is None or (isinstance(cell, str) and not cell.strip()):
            raise DataError(
                f"{locate(path, line)}: the column {column!r} is empty. Fill it in, or remove the row from the file."
            )
    *texts, label = cells
    if isinstance(label, str) and _HALF_CHARACTER.search(label):
        raise DataError(
            f"{locate(path, line)}: the label {label!r} has half a character (an unpaired surrogate). Repair it, or "
            "remove the row."
        )
    for column, text in zip(columns, texts, strict=False):
        if not isinstance(text, str):
            raise DataError(
                f"{locate(path, line)}: the text column {column!r} holds {text!r}, which is not a string. "
                "Write it as one, or name another column."
            )
        if _HALF_CHARACTER.search(text):
            raise DataError(
                f"{locate(path, line)}: the column {column!r} has half a character (an unpaired surrogate). "
                "Repair the text, or remove the row."
            )
    return Row(line, tuple(texts), label.strip() if isinstance(label, str) else label)


def _find_columns(place: str, columns: Sequence[str], available: Sequence[str]) -> list[int]:
    for column in columns:
        if available.count(column) == 0:
            raise DataError(
                f"{place} has no column {column!r}; its columns are {', '.join(map(repr, available))}. "
                "Name the text and label columns as the file does."
            )
        if available.count(column) > 1:
            raise DataError(f"{place} has the column {column!r} more than once. Rename or remove all but one.")
    return [available.index(column) for column in columns]


def _read_lines(path: Path) -> Iterator[tuple[int, str]]:
    # Decoded line by line, because a text file decoded in chunks cannot tell which line is broken. Lines end at "\n"
    # only: a text may contain others of the many characters that `str.splitlines` takes for line ends.
    with path.open("rb") as file:
        for line, content in enumerate(file, start=1):
            try:
                yield line, content.decode("utf-8-sig" if line == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{locate(path, line)} is not UTF-8 (byte {error.start} of the line is "
                    f"0x{content[error.start]:02x}). Save the file as UTF-8."
                ) from error


def _read_csv(path: Path, columns: Sequence[str]) -> _Cells:
    return _pick_cells(path, _split_csv(path), columns)


def _split_csv(path: Path) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader((text for _, text in _read_lines(path)), strict=True)
    line = 1
    try:
        for cells in reader:
            if cells:
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{locate(path, line)} is not readable as csv ({error}). "
            "Check the quotes of this row, or save the file as jsonl."
        ) from error


def _read_tsv(
    path: Path, columns: Sequence[str], header: Sequence[str] | None = None, skip_broken: bool = False
) -> _Cells:
    lines = ((line, text.rstrip("\r\n")) for line, text in _read_lines(path))
    return _pick_cells(path, ((line, text.split("\t")) for line, text in lines if text), columns, header, skip_broken)


def _pick_cells(
    path: Path,
    rows: Iterator[tuple[int, list[str]]],
    columns: Sequence[str],
    header: Sequence[str] | None = None,
    skip_broken: bool = False,
) -> _Cells:
    if header is None:
        _, header = next(rows, (1, None))
        if header is None:
            return
    places = _find_columns(str(path), columns, header)
    skipped: list[int] = []
    for line, cells in rows:
        if skip_broken and (len(cells) != len(header) or not all(cells[place].strip() for place in places)):
            skipped.append(line)
        elif len(cells) != len(header):
            raise DataError(
                f"{locate(path, line)} has {len(cells)} fields where {len(header)} are expected "
                f"({', '.join(header)}). Look for a stray or missing separator, or remove the row."
            )
        else:
            yield line, [cells[place] for place in places]
    if skipped:
        _log.warning("Left out %d broken rows of %s, the first in line %d.", len(skipped), path, skipped[0])


def _read_jsonl(path: Path, columns: Sequence[str]) -> _Cells:
    for line, text in _read_lines(path):
        if not text.strip():
            continue
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{locate(path, line)} is not readable as JSON ({error}). Write one JSON object per line."
            ) from error
        if not isinstance(found, dict):
            raise DataError(
                f"{locate(path, line)} holds a JSON {type(found).__name__}. Write one JSON object per line, "
                'such as {"text": "...", "label": "..."}.'
            )
        row = cast("dict[str, Any]", found)
        _find_columns(locate(path, line), columns, list(row))
        yield line, [row[column] for column in columns]


def _read_parquet(path: Path, columns: Sequence[str]) -> _Cells:
    # pyarrow comes with `datasets`, whose tables it makes; it is slow to import, and only this format needs it.
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            _find_columns(str(path), columns, file.schema_arrow.names)
            first = 1
            for batch in file.iter_batches(columns=list(columns)):
                cells = zip(*(batch.column(column).to_pylist() for column in columns), strict=True)
                yield from enumerate(cells, start=first)
                first += batch.num_rows
    except ArrowException as error:
        raise DataError(f"{path} is not readable as parquet ({error}). Write it again.") from error


_READERS: dict[str, Callable[[Path, Sequence[str]], _Cells]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".json": _read_jsonl,
    ".parquet": _read_parquet,
}
