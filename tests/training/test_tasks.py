"""GLUE tasks: each official file format, the Hub's columns, and the errors of damaged folders."""

import os
from collections.abc import Sequence
from pathlib import Path

import datasets
import pytest

from pruning_adapter.errors import DataError
from pruning_adapter.training.examples import Example
from pruning_adapter.training.tasks import GLUE_TASKS, find_task, load_glue

# Two rows of each file as GLUE's own download has them (header line included where there is one), and what they mean.
OFFICIAL: dict[str, tuple[str, list[str], list[Example]]] = {
    "cola": (
        "CoLA",
        ["gj04\t1\t\tThey drank the pub.", "gj04\t0\t*\tThe professor talked us."],
        [Example(("They drank the pub.",), 1), Example(("The professor talked us.",), 0)],
    ),
    "sst2": (
        "SST-2",
        ["sentence\tlabel", "a quiet joy \t1", 'it is " flat " \t0'],
        [Example(("a quiet joy ",), 1), Example(('it is " flat " ',), 0)],
    ),
    "mrpc": (
        "MRPC",
        [
            "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
            '1\t7\t8\tHe said : " Yes .\tYes , he said .',
            "0\t9\t10\tShares rose .\tShares fell .",
        ],
        [
            Example(('He said : " Yes .', "Yes , he said ."), 1),
            Example(("Shares rose .", "Shares fell ."), 0),
        ],
    ),
    "stsb": (
        "STS-B",
        [
            "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
            "0\tmain\tMSRvid\t2012\t1\tnone\tnone\tA plane takes off.\tAn air plane takes off.\t5.000",
            "1\tmain\tMSRvid\t2012\t4\tnone\tnone\tA man plays a flute.\tA man smokes.\t0.75",
        ],
        [
            Example(("A plane takes off.", "An air plane takes off."), 5.0),
            Example(("A man plays a flute.", "A man smokes."), 0.75),
        ],
    ),
    "qqp": (
        "QQP",
        [
            "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
            "13\t25\t26\tHow old is it?\tWhat is its age?\t1",
            "14\t27\t28\tWho are you?\tWhere are you?\t0",
        ],
        [
            Example(("How old is it?", "What is its age?"), 1),
            Example(("Who are you?", "Where are you?"), 0),
        ],
    ),
    "mnli": (
        "MNLI",
        [
            "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\t"
            "sentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label",
            "0\t3\t3n\tfiction\t( a )\t( b )\t(ROOT a)\t(ROOT b)\tIt rains.\tIt is wet.\tentailment\tentailment",
            "1\t4\t4n\tfiction\t( a )\t( b )\t(ROOT a)\t(ROOT b)\tIt rains.\tIt is dry.\tneutral\tcontradiction",
            "2\t5\t5n\tfiction\t( a )\t( b )\t(ROOT a)\t(ROOT b)\tIt rains.\tHe sings.\tneutral\tneutral",
        ],
        [
            Example(("It rains.", "It is wet."), 0),
            Example(("It rains.", "It is dry."), 2),
            Example(("It rains.", "He sings."), 1),
        ],
    ),
    "qnli": (
        "QNLI",
        [
            "index\tquestion\tsentence\tlabel",
            "0\tWhen was it?\tIt was in 1999.\tentailment",
            "1\tWho was it?\tIt was late.\tnot_entailment",
        ],
        [
            Example(("When was it?", "It was in 1999."), 0),
            Example(("Who was it?", "It was late."), 1),
        ],
    ),
    "rte": (
        "RTE",
        [
            "index\tsentence1\tsentence2\tlabel",
            "0\tDana died at 44.\tDana died.\tentailment",
            "1\tDana died at 44.\tDana sang.\tnot_entailment",
        ],
        [
            Example(("Dana died at 44.", "Dana died."), 0),
            Example(("Dana died at 44.", "Dana sang."), 1),
        ],
    ),
    "wnli": (
        "WNLI",
        [
            "index\tsentence1\tsentence2\tlabel",
            "0\tI pulled the pin from the carrot. It had a hole.\tThe carrot had a hole.\t1",
            "1\tI pulled the pin from the carrot. It had a hole.\tThe pin had a hole.\t0",
        ],
        [
            Example(("I pulled the pin from the carrot. It had a hole.", "The carrot had a hole."), 1),
            Example(("I pulled the pin from the carrot. It had a hole.", "The pin had a hole."), 0),
        ],
    ),
}
METRICS = {
    "cola": ("matthews",),
    "mrpc": ("accuracy", "f1"),
    "qqp": ("accuracy", "f1"),
    "stsb": ("pearson", "spearman"),
}
# Rows of the prepared folder; the first is train, then each validation set.
ROWS = {
    "rte": (2490, {"validation": 277}),
    "mrpc": (3668, {"validation": 408}),
    "wnli": (635, {"validation": 71}),
    "sst2": (67349, {"validation": 872}),
    "qnli": (12259, {"validation": 5463}),
    "mnli": (32114, {"matched": 9815, "mismatched": 5094}),
}


def write_task(root: Path, name: str, lines: Sequence[str] | None = None, *, encoding: str = "utf-8") -> Path:
    folder, official, _ = OFFICIAL[name]
    dev = ("dev_matched.tsv", "dev_mismatched.tsv") if name == "mnli" else ("dev.tsv",)
    (root / folder).mkdir(parents=True)
    for file in ("train.tsv", *dev):
        text = "\n".join(lines if lines is not None and file == "train.tsv" else official) + "\n"
        (root / folder / file).write_bytes(text.encode(encoding))
    return root


def rte_lines(count: int) -> list[str]:
    labels = ("entailment", "not_entailment")
    rows = [f"{number}\tpremise {number}\thypothesis {number}\t{labels[number % 2]}" for number in range(count)]
    return ["index\tsentence1\tsentence2\tlabel", *rows]


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_files_are_read_with_the_labels_of_the_hub(name: str, tmp_path: Path) -> None:
    expected = tuple(OFFICIAL[name][2])
    data = load_glue(name, data_dir=write_task(tmp_path, name))
    assert data.train == expected
    sets = ["matched", "mismatched"] if name == "mnli" else ["validation"]
    assert dict(data.validation) == dict.fromkeys(sets, expected)
    assert next(iter(data.validation)) == sets[0]
    assert data.name == name
    assert data.metrics == METRICS.get(name, ("accuracy",))
    assert data.is_regression == (name == "stsb")
    assert all(type(example.label) is (float if name == "stsb" else int) for example in data.train)


def test_the_table_has_the_nine_tasks_and_the_hubs_label_order() -> None:
    assert set(GLUE_TASKS) == set(OFFICIAL)
    assert {name: task.label_names for name, task in GLUE_TASKS.items()} == {
        "cola": ("unacceptable", "acceptable"),
        "sst2": ("negative", "positive"),
        "mrpc": ("not_equivalent", "equivalent"),
        "stsb": (),
        "qqp": ("not_duplicate", "duplicate"),
        "mnli": ("entailment", "neutral", "contradiction"),
        "qnli": ("entailment", "not_entailment"),
        "rte": ("entailment", "not_entailment"),
        "wnli": ("not_entailment", "entailment"),
    }


@pytest.mark.parametrize("name", ["sst2", "SST2", "sst-2", "SST-2", "Sst_2"])
def test_task_names_ignore_case_and_hyphens(name: str) -> None:
    assert find_task(name).name == "sst2"


def test_an_unknown_task_is_guessed_and_all_are_listed() -> None:
    with pytest.raises(DataError, match=r"no GLUE task 'SST-3'.*cola, sst2, mrpc.*wnli\. Did you mean 'sst2'\?"):
        find_task("SST-3")
    with pytest.raises(DataError, match=r"no GLUE task 'imagenet'; the tasks are .*wnli\.$"):
        find_task("imagenet")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_byte_order_mark_does_not_hide_the_first_column(encoding: str, tmp_path: Path) -> None:
    data = load_glue("mrpc", data_dir=write_task(tmp_path, "mrpc", OFFICIAL["mrpc"][1], encoding=encoding))
    assert [example.label for example in data.train] == [1, 0]


def test_windows_line_ends_and_a_last_blank_line_change_nothing(tmp_path: Path) -> None:
    write_task(tmp_path, "rte")
    expected = load_glue("rte", data_dir=tmp_path)
    file = tmp_path / "RTE" / "train.tsv"
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    assert load_glue("rte", data_dir=tmp_path) == expected


def test_characters_that_only_look_like_line_ends_stay_in_their_text(tmp_path: Path) -> None:
    text = "a\x85b\u2028c\x0cd"
    lines = ["index\tsentence1\tsentence2\tlabel", f"0\t{text}\th\tentailment", "1\tp\th\tnot_entailment"]
    data = load_glue("rte", data_dir=write_task(tmp_path, "rte", lines))
    assert data.train[0].texts == (text, "h")


def test_mnli_without_its_mismatched_file_has_only_the_matched_set(tmp_path: Path) -> None:
    write_task(tmp_path, "mnli")
    (tmp_path / "MNLI" / "dev_mismatched.tsv").unlink()
    assert list(load_glue("mnli", data_dir=tmp_path).validation) == ["matched"]


def test_mnli_without_its_matched_file_is_an_error(tmp_path: Path) -> None:
    write_task(tmp_path, "mnli")
    (tmp_path / "MNLI" / "dev_matched.tsv").unlink()
    with pytest.raises(DataError, match=r"Cannot read .*dev_matched\.tsv: No such file"):
        load_glue("mnli", data_dir=tmp_path)


def test_a_subset_is_seeded_and_keeps_the_order(tmp_path: Path) -> None:
    write_task(tmp_path, "rte", rte_lines(50))
    whole = load_glue("rte", data_dir=tmp_path).train
    subset = load_glue("rte", data_dir=tmp_path, train_rows=10, seed=3).train
    places = [whole.index(example) for example in subset]
    assert len(set(places)) == 10
    assert places == sorted(places)
    assert subset == load_glue("rte", data_dir=tmp_path, train_rows=10, seed=3).train
    assert subset != load_glue("rte", data_dir=tmp_path, train_rows=10, seed=4).train
    assert load_glue("rte", data_dir=tmp_path, train_rows=1000).train == whole


@pytest.mark.parametrize("rows", [0, -3])
def test_a_subset_of_nothing_is_an_error(rows: int, tmp_path: Path) -> None:
    write_task(tmp_path, "rte")
    with pytest.raises(DataError, match=f"Cannot train on {rows} rows: give a number of 1 or more"):
        load_glue("rte", data_dir=tmp_path, train_rows=rows)


def test_a_folder_of_another_layout_names_what_it_holds(tmp_path: Path) -> None:
    write_task(tmp_path, "rte")
    with pytest.raises(DataError, match=r"no folder SST-2 \(it holds RTE\).*SST-2/train\.tsv"):
        load_glue("sst2", data_dir=tmp_path)
    with pytest.raises(DataError, match=r"no folder RTE \(it is empty or not there\)"):
        load_glue("rte", data_dir=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        pytest.param("1\tp\th", r"train\.tsv, line 3 has 3 fields where 4 are expected", id="too few fields"),
        pytest.param("1\tp\th\tx\tentailment", r"train\.tsv, line 3 has 5 fields where 4", id="too many fields"),
        pytest.param("1\tp\th\tmaybe", r"line 3: 'maybe' is no label of rte, which are entailment", id="label"),
        pytest.param("1\tp\th\t2", r"line 3: '2' is no label of rte", id="number beyond the classes"),
        pytest.param("1\tp\t \tentailment", r"line 3: the column 'sentence2' is empty", id="half-empty"),
    ],
)
def test_a_damaged_row_is_named_by_file_and_line(row: str, message: str, tmp_path: Path) -> None:
    lines = ["index\tsentence1\tsentence2\tlabel", "0\tp\th\tentailment", row]
    with pytest.raises(DataError, match=message):
        load_glue("rte", data_dir=write_task(tmp_path, "rte", lines))


@pytest.mark.parametrize("score", ["nan", "inf", "high"])
def test_a_score_that_is_no_number_is_named_by_file_and_line(score: str, tmp_path: Path) -> None:
    header, first, _ = OFFICIAL["stsb"][1]
    lines = [header, first, first.replace("5.000", score)]
    with pytest.raises(DataError, match=rf"train\.tsv, line 3: the score '{score}' is not a finite number"):
        load_glue("stsb", data_dir=write_task(tmp_path, "stsb", lines))


def test_the_broken_rows_of_the_first_qqp_download_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    header, *rows = OFFICIAL["qqp"][1]
    broken = ["15\t29\t30\tWas it", '"\tWas it?\t0', "16\t31\t32\tHow?\t\t0"]
    data = load_glue("qqp", data_dir=write_task(tmp_path, "qqp", [header, rows[0], *broken, rows[1]]))
    assert data.train == tuple(OFFICIAL["qqp"][2])
    assert "Left out 3 broken rows" in caplog.text
    assert "the first in line 3" in caplog.text


def test_the_hub_is_read_by_its_own_columns_and_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"premise": ["a", "b", "c"], "hypothesis": ["x", "y", "z"], "label": [0, 2, 1]}
    splits = {name: datasets.Dataset.from_dict(rows) for name in ("train", "validation_matched")}
    splits["validation_mismatched"] = datasets.Dataset.from_dict({key: values[:2] for key, values in rows.items()})
    asked: list[tuple[str, ...]] = []

    def load_dataset(*names: str) -> dict[str, datasets.Dataset]:
        asked.append(names)
        return splits

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = load_glue("MNLI", data_dir=None, train_rows=2)
    assert asked == [("nyu-mll/glue", "mnli")]
    assert len(data.train) == 2
    assert data.validation["matched"] == (Example(("a", "x"), 0), Example(("b", "y"), 2), Example(("c", "z"), 1))
    assert list(data.validation) == ["matched", "mismatched"]
    assert len(data.validation["mismatched"]) == 2


def test_a_hidden_label_of_the_hub_is_named_by_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = datasets.Dataset.from_dict({"sentence": ["a", "b"], "label": [0, -1]})
    splits = {"train": rows, "validation": rows}

    def load_dataset(*_: str) -> dict[str, datasets.Dataset]:
        return splits

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"nyu-mll/glue sst2, train row 2: -1 is no label of sst2"):
        load_glue("sst2", data_dir=None)


def test_without_a_network_the_error_says_to_pass_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: str) -> None:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"Cannot load rte .*Couldn't reach the Hub.*--data-dir.*RTE/train\.tsv"):
        load_glue("rte", data_dir=None)


@pytest.mark.glue
@pytest.mark.parametrize("name", ROWS)
def test_the_real_files_have_their_row_counts(name: str) -> None:
    folder = os.environ.get("GLUE_DIR")
    if not folder:
        pytest.skip("GLUE_DIR is not set")
    data = load_glue(name, data_dir=Path(folder))
    train, validation = ROWS[name]
    assert len(data.train) == train
    assert {key: len(examples) for key, examples in data.validation.items()} == validation
    assert {example.label for example in data.train} == set(range(len(data.label_names)))
