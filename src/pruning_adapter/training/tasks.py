"""The nine GLUE tasks as data, and their examples from a local folder or from the Hub."""

import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pruning_adapter.errors import DataError
from pruning_adapter.training.examples import Example, TaskData
from pruning_adapter.training.rows import locate, read_tsv, take_rows

__all__ = ["GLUE_TASKS", "HUB_DATASET", "GlueTask", "ValidationSet", "find_task", "load_glue"]

HUB_DATASET = "nyu-mll/glue"


class ValidationSet(NamedTuple):
    """One validation set of a task."""

    name: str
    file: str
    """In the task's folder."""
    split: str
    """On the Hub."""
    may_be_missing: bool = False
    """Do without it if a local folder lacks the file."""


@dataclass(frozen=True, kw_only=True)
class GlueTask:
    """Where a task's texts and labels are, what the labels mean, and how GLUE scores them."""

    name: str
    """Also the name of the Hub dataset's configuration."""
    folder: str
    """In GLUE's own download."""
    texts: tuple[str, ...]
    """Text columns of the local files."""
    label: str
    """Label column of the local files; on the Hub it is always "label"."""
    hub_texts: tuple[str, ...]
    label_names: tuple[str, ...]
    """In the Hub's order; empty for regression. Local files hold names or numbers."""
    metrics: tuple[str, ...] = ("accuracy",)
    header: tuple[str, ...] | None = None
    """Columns of local files that have no header line."""
    has_broken_rows: bool = False
    """GLUE's own files have some rows that cannot be read or lack a text; everybody leaves them out."""
    validation: tuple[ValidationSet, ...] = (ValidationSet("validation", "dev.tsv", "validation"),)


_PAIR = ("sentence1", "sentence2")

GLUE_TASKS: Mapping[str, GlueTask] = {
    task.name: task
    for task in (
        GlueTask(
            name="cola",
            folder="CoLA",
            texts=("sentence",),
            label="label",
            hub_texts=("sentence",),
            label_names=("unacceptable", "acceptable"),
            metrics=("matthews",),
            header=("source", "label", "mark", "sentence"),
        ),
        GlueTask(
            name="sst2",
            folder="SST-2",
            texts=("sentence",),
            label="label",
            hub_texts=("sentence",),
            label_names=("negative", "positive"),
        ),
        GlueTask(
            name="mrpc",
            folder="MRPC",
            texts=("#1 String", "#2 String"),
            label="Quality",
            hub_texts=_PAIR,
            label_names=("not_equivalent", "equivalent"),
            metrics=("accuracy", "f1"),
        ),
        GlueTask(
            name="stsb",
            folder="STS-B",
            texts=_PAIR,
            label="score",
            hub_texts=_PAIR,
            label_names=(),
            metrics=("pearson", "spearman"),
        ),
        GlueTask(
            name="qqp",
            folder="QQP",
            texts=("question1", "question2"),
            label="is_duplicate",
            hub_texts=("question1", "question2"),
            label_names=("not_duplicate", "duplicate"),
            metrics=("accuracy", "f1"),
            # In the download of 2018, which is still around: questions with a line end in them, or with no words.
            has_broken_rows=True,
        ),
        GlueTask(
            name="mnli",
            folder="MNLI",
            texts=_PAIR,
            label="gold_label",
            hub_texts=("premise", "hypothesis"),
            label_names=("entailment", "neutral", "contradiction"),
            validation=(
                ValidationSet("matched", "dev_matched.tsv", "validation_matched"),
                ValidationSet("mismatched", "dev_mismatched.tsv", "validation_mismatched", may_be_missing=True),
            ),
        ),
        GlueTask(
            name="qnli",
            folder="QNLI",
            texts=("question", "sentence"),
            label="label",
            hub_texts=("question", "sentence"),
            label_names=("entailment", "not_entailment"),
        ),
        GlueTask(
            name="rte",
            folder="RTE",
            texts=_PAIR,
            label="label",
            hub_texts=_PAIR,
            label_names=("entailment", "not_entailment"),
        ),
        GlueTask(
            name="wnli",
            folder="WNLI",
            texts=_PAIR,
            label="label",
            hub_texts=_PAIR,
            label_names=("not_entailment", "entailment"),
        ),
    )
}


def find_task(name: str) -> GlueTask:
    """Return the GLUE task called `name`; case and hyphens do not matter ("SST-2", "sst2").

    Raises:
        DataError: there is no such task.
    """
    key = name.lower().replace("-", "").replace("_", "")
    if key in GLUE_TASKS:
        return GLUE_TASKS[key]
    close = difflib.get_close_matches(key, GLUE_TASKS, n=1, cutoff=0.5)
    guess = f" Did you mean {close[0]!r}?" if close else ""
    raise DataError(f"There is no GLUE task {name!r}; the tasks are {', '.join(GLUE_TASKS)}.{guess}")


def load_glue(name: str, *, data_dir: Path | None, train_rows: int | None = None, seed: int = 0) -> TaskData:
    """Return a GLUE task's training and validation examples.

    Args:
        name: a task, such as "rte" or "SST-2".
        data_dir: a folder laid out like GLUE's own download (RTE/train.tsv, RTE/dev.tsv, ...); None loads from the Hub.
        train_rows: train on a random subset of this many examples, the same for the same `seed`; None for all.
        seed: of that subset.

    Raises:
        DataError: no such task, folder or file, a row that cannot be read (named by file and line), or no network.
    """
    task = find_task(name)
    sets = _load_hub(task) if data_dir is None else _load_folder(task, Path(data_dir))
    train = take_rows(sets.pop("train"), train_rows, seed)
    return TaskData(name=task.name, label_names=task.label_names, metrics=task.metrics, train=train, validation=sets)


def _load_folder(task: GlueTask, data_dir: Path) -> dict[str, tuple[Example, ...]]:
    folder = data_dir / task.folder
    if not folder.is_dir():
        found = sorted(path.name for path in data_dir.iterdir()) if data_dir.is_dir() else []
        holds = f"it holds {', '.join(found[:12])}" if found else "it is empty or not there"
        raise DataError(
            f"{data_dir} has no folder {task.folder} ({holds}). --data-dir names the folder that contains "
            f"{task.folder}/train.tsv, laid out like GLUE's own download."
        )
    sets = {"train": _read_examples(task, folder / "train.tsv")}
    for validation in task.validation:
        path = folder / validation.file
        if path.exists() or not validation.may_be_missing:
            sets[validation.name] = _read_examples(task, path)
    return sets


def _read_examples(task: GlueTask, path: Path) -> tuple[Example, ...]:
    rows = read_tsv(
        path,
        text_columns=task.texts,
        label_column=task.label,
        header=task.header,
        skip_broken=task.has_broken_rows,
    )
    return tuple(Example(row.texts, _number_label(task, row.label, locate(path, row.line))) for row in rows)


def _load_hub(task: GlueTask) -> dict[str, tuple[Example, ...]]:
    # Slow to import, and needed only here.
    from datasets import load_dataset

    try:
        hub: Any = load_dataset(HUB_DATASET, task.name)
    except Exception as error:  # the Hub's client, its transport and the file reader each raise their own kinds
        raise DataError(
            f"Cannot load {task.name} from {HUB_DATASET} on the Hub ({error}). Pass --data-dir with a local GLUE "
            f"folder (one that contains {task.folder}/train.tsv), or try again with a network."
        ) from error
    splits = {"train": "train", **{validation.name: validation.split for validation in task.validation}}
    return {name: tuple(_convert_split(task, split, hub[split])) for name, split in splits.items()}


def _convert_split(task: GlueTask, split: str, rows: Any) -> Iterator[Example]:
    texts = zip(*(rows[column] for column in task.hub_texts), strict=True)
    for number, (pair, label) in enumerate(zip(texts, rows["label"], strict=True), start=1):
        yield Example(pair, _number_label(task, label, f"{HUB_DATASET} {task.name}, {split} row {number}"))


def _number_label(task: GlueTask, label: str | float, place: str) -> int | float:
    if not task.label_names:
        try:
            score = float(label)
        except ValueError:
            score = math.nan
        if not math.isfinite(score):
            raise DataError(f"{place}: the score {label!r} is not a finite number. Correct it, or remove the row.")
        return score
    if label in task.label_names:
        return task.label_names.index(str(label))
    numbers = [str(number) for number in range(len(task.label_names))]
    if str(label) not in numbers:
        raise DataError(
            f"{place}: {label!r} is no label of {task.name}, which are {', '.join(task.label_names)} or "
            f"{', '.join(numbers)}. Correct it, or remove the row."
        )
    return int(label)
