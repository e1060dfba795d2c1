import builtins
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from pruning_adapter.errors import ImportanceError
from pruning_adapter.evaluation.result import Measure, Quality, Result
from pruning_adapter.reporting import write_card, write_cards
from pruning_adapter.reporting.places import without_places
from pruning_adapter.reporting.pruning_map import draw_pruning

pytest.importorskip("jinja2")

COMMIT = "4d5e" * 10
PRUNING: dict[str, Any] = {
    "importance": [[0.0, 0.123, 1.0, 0.456], [0.789, None, 1.0, 0.1]],
    "kept_heads": [[1, 2, 3], [0]],
    "dense_heads": [4, 4],
    "neurons_kept": [37, 0],
    "dense_neurons": [64, 64],
    "beside": [0, 1],
    "ranks": [8, 5],
    "feed_forward_ranks": [6, 0],
    "rank_roles": ["query", "down"],
    "rule": {"keep_macs": 0.45, "length": 128},
    "reconstruct": "lstsq",
}
# No number twice, so that one in the wrong place is found.
COST: dict[str, Any] = {
    "parameters": 101_290_017,
    "dense_parameters": 109_483_778,
    "trainable_parameters": 308_736,
    "weight_bytes": 405_160_068,
    "dense_weight_bytes": 437_935_112,
    "macs": 9_912_345_678,
    "dense_macs": 11_023_456_789,
    "length": 72,
    "batch": 24,
    "latency_ratio": {"median": 0.874, "q1": 0.861, "q3": 0.889},
    "memory_ratio": {"median": 0.913, "q1": 0.913, "q3": 0.913},
    "peak_inference_bytes": 511_222_333,
    "dense_peak_inference_bytes": 559_777_888,
    "training_time_ratio": {"median": 0.671, "q1": 0.653, "q3": 0.694},
    "training_memory_ratio": {"median": 0.582, "q1": 0.582, "q3": 0.582},
}


def result(**changes: Any) -> Result:
    made = Result(
        task={
            "name": "mrpc",
            "train_examples": 3668,
            "labels": ["not_equivalent", "equivalent"],
            "dataset": "nyu-mll/glue",
        },
        model={
            "id": "google-bert/bert-base-uncased",
            "revision": COMMIT,
            "model_type": "bert",
            "fingerprint": "f00d",
            "license": "apache-2.0",
            "language": "en",
        },
        method="prune-lora",
        scorer="obs",
        seed=42,
        recipe={
            "name": "default",
            "learning_rate": 7e-4,
            "epochs": 3,
            "batch_size": 31,
            "precision": "float32",
            "prune_after": 0.19,
        },
        quality={
            "validation": Quality(
                metrics={
                    "accuracy": Measure(value=0.8627450980392157, low=0.8259, high=0.8927),
                    "f1": Measure(value=0.9012, low=0.8711, high=0.9277),
                },
                examples=408,
                majority_rate=0.6838,
                at_majority=False,
            )
        },
        cost=COST,
        history=(),
        pruning=PRUNING,
        notes=("The training step was not compared with LoRA's.",),
        command="pruning-adapter run --model google-bert/bert-base-uncased --task mrpc --output-dir /data/runs/mine",
        versions={"python": "3.11.9", "torch": "2.13.0"},
        machine={"system": "Linux", "processor": "Some CPU", "threads": 2},
    )
    return replace(made, **changes)


def card(folder: Path, made: Result, **options: Any) -> ModelCard:
    write_card(made, folder, **{"kind": "merged", "place": "somebody/small", **options})
    return ModelCard.load(folder / "README.md")


def numbers_in(text: str) -> list[tuple[float, float]]:
    """Every number with half a unit of its last digit, percent and MB as they are read."""
    found: list[tuple[float, float]] = []
    for digits, unit in re.findall(r"(?<![\w.])(\d[\d,]*(?:\.\d+)?)( %| MB)?", text):
        plain = digits.replace(",", "")
        scale = {" %": 0.01, " MB": 1e6}.get(unit, 1.0)
        half = 0.5 * 10.0 ** -len(plain.partition(".")[2])
        found.append((float(plain) * scale, half * scale * (1 + 1e-9)))
    return found


def leaves(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [leaf for each in value.values() for leaf in leaves(each)]
    if isinstance(value, list | tuple):
        return [leaf for each in value for leaf in leaves(each)]
    return [float(value)] if isinstance(value, int | float) and not isinstance(value, bool) else []


def test_every_number_of_the_text_stands_in_the_result(tmp_path: Path) -> None:
    made = result()
    text = re.sub(r"```.*?```|\]\([^)]*\)|`[^`]*`", "", card(tmp_path, made).text, flags=re.DOTALL)
    text = text.replace("95 % interval", "").partition("Versions:")[0]
    for word in (made.model["id"], made.model["id"].rpartition("/")[2]):
        text = text.replace(word, "")
    # An end of an interval and a share have no sign of their own.
    text = re.sub(r"([\d.]+) to ([\d.]+ %)", r"\1 % to \2", text)
    known = leaves({**asdict(made), "history": []})
    known += [COST[name] / COST[f"dense_{name}"] for name in ("parameters", "weight_bytes", "macs")]
    known.append(COST["peak_inference_bytes"] / COST["dense_peak_inference_bytes"])
    # Blocks and heads are counted, and the dense model is the unit of ratios.
    known += [len(heads) for heads in PRUNING["kept_heads"]] + [0, 1]
    found = numbers_in(text)
    assert len(found) > 45
    for value, half in found:
        assert any(abs(value - each) <= half for each in known), value
    for value in (101_290_017, 9_912_345_678, 0.874, 0.671, 308_736, 408, 37):
        assert any(abs(value - each) <= half for each, half in found), f"{value} is not told"


def test_the_metadata_read_back_are_the_results(tmp_path: Path) -> None:
    made = result()
    data = card(tmp_path, made).data
    read = {each.metric_name: each for each in data.eval_results or ()}
    expected = made.quality["validation"].metrics
    assert {name: each.metric_value for name, each in read.items()} == {
        name: measure.value for name, measure in expected.items()
    }
    for name, measure in expected.items():
        interval = {"confidence_level": 0.95, "low": measure.low, "high": measure.high}
        assert read[name].metric_args == interval
    f1 = read["f1"]
    assert (f1.dataset_type, f1.dataset_config, f1.dataset_split) == ("nyu-mll/glue", "mrpc", "validation")
    assert data.datasets == ["nyu-mll/glue"]
    assert (data.base_model, data.base_model_relation) == ("google-bert/bert-base-uncased", "finetune")
    assert (data.license, data.language, data.pipeline_tag) == ("apache-2.0", "en", "text-classification")
    assert data.get("library_name") == "pruning-adapter"
    adapter = card(tmp_path, made, kind="adapter").data
    assert (adapter.get("library_name"), adapter.base_model_relation) == ("peft", "adapter")


def test_two_validation_sets_go_by_the_hubs_names(tmp_path: Path) -> None:
    quality = result().quality["validation"]
    splits = {"matched": "validation_matched", "mismatched": "validation_mismatched"}
    task = {**result().task, "name": "mnli", "splits": splits}
    data = card(tmp_path, result(task=task, quality=dict.fromkeys(splits, quality))).data
    assert {each.dataset_split for each in data.eval_results or ()} == set(splits.values())


def test_what_is_not_known_is_left_out(tmp_path: Path) -> None:
    local = {"id": "/home/me/models/encoder", "revision": None, "model_type": "bert", "fingerprint": "f00d"}
    task = {"name": "mine", "train_examples": 10, "labels": []}
    text = card(tmp_path, result(model=local, task=task, cost={}, machine={}, command="", notes=())).content
    metadata = yaml.safe_load(text.split("---")[1])
    for key in ("license", "license_name", "language", "base_model", "base_model_relation", "datasets"):
        assert key not in metadata
    assert "None" not in text
    assert "/home" not in text
    assert "`encoder`" in text
    chosen = card(tmp_path, result(model=local), license_id="mit").data
    assert chosen.license == "mit"


@pytest.mark.parametrize(("metric", "name"), [("matthews", "matthews_correlation"), ("pearson", "pearsonr")])
def test_metrics_go_by_the_hubs_names(tmp_path: Path, metric: str, name: str) -> None:
    quality = Quality(
        metrics={metric: Measure(value=0.5, low=0.4, high=0.6)}, examples=9, majority_rate=None, at_majority=False
    )
    data = card(tmp_path, result(quality={"validation": quality})).data
    assert [(each.metric_type, each.metric_name) for each in data.eval_results or ()] == [(name, metric)]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_model_that_was_not_pruned_needs_nothing_of_ours(tmp_path: Path, method: str) -> None:
    found = card(tmp_path, result(method=method, pruning=None, scorer=None))
    assert found.data.get("library_name") == "transformers"
    assert "import pruning_adapter" not in found.text
    assert "pruned" not in found.text
    assert ("lora" in (found.data.tags or ())) == (method == "lora")
    assert not (tmp_path / "pruning.png").exists()


def test_the_text_says_how_to_load_and_pin(tmp_path: Path) -> None:
    merged = card(tmp_path, result()).text
    assert 'pa.load_pruned("somebody/small")' in merged
    assert 'AutoModelForSequenceClassification.from_pretrained("somebody/small")' in merged
    assert 'revision="COMMIT"' in merged
    plain = card(tmp_path, result(), kind="adapter").text
    assert f'"google-bert/bert-base-uncased", revision="{COMMIT}", num_labels=2' in plain
    own = card(tmp_path, result(), kind="adapter", base="base").text
    assert 'pa.load_pruned("somebody/small", subfolder="base")' in own
    here = card(tmp_path, result(), kind="adapter", place="adapter", base="base").text
    assert 'pa.load_pruned("base")' in here
    for text in (merged, plain, own, here):
        for code in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
            compile(code, "card", "exec")


def test_what_the_user_named_cannot_break_the_page(tmp_path: Path) -> None:
    task = {"name": "a|b`<script>\n# c", "train_examples": 1, "labels": ["|", "[x](y)"]}
    notes = ("one\n\n# two <b>",)
    found = card(tmp_path, result(task=task, notes=notes, command="pruning-adapter run ``` x"), place="merged")
    body = found.text
    assert "<script>" not in body
    assert "\n# c" not in body
    assert "\n# two" not in body
    assert body.count("```") % 2 == 0
    assert (found.data.eval_results or [])[0].dataset_name == task["name"]


def test_warnings_of_the_run_stand_at_the_top(tmp_path: Path) -> None:
    note = "The model gives one answer for all 408 examples."
    text = card(tmp_path, result(notes=(note,))).text
    assert text.index(f"> **Note:** {note}") < text.index("## Quality")


def test_no_place_of_the_machine_is_told(tmp_path: Path) -> None:
    command = (
        "pruning-adapter run --model ./models/encoder --train-file=/home/me/x/train.csv --validation-file data/dev.csv "
        "--teacher ~/big/merged --keep-ratio 0.7 --output-dir /srv/secret --text-columns 'a,b'"
    )
    text = card(tmp_path, result(command=command, machine={"processor": "/root/cpu"})).content
    for place in ("models/", "/home", "/srv", "secret", "data/", "~/big", "/root"):
        assert place not in text
    expected = (
        "pruning-adapter run --model encoder --train-file=train.csv --validation-file dev.csv --teacher merged "
        "--keep-ratio 0.7 --text-columns a,b"
    )
    assert without_places(command) == expected
    hub = "pruning-adapter run --model google-bert/bert-base-uncased --task rte"
    assert without_places(f"{hub} --output-dir=x") == hub


def test_a_folder_is_told_by_its_name_where_a_name_of_the_hub_looks_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "merged").mkdir(parents=True)
    command = "pruning-adapter run --model owner/name --teacher mine/merged"
    assert without_places(command) == "pruning-adapter run --model owner/name --teacher merged"


def test_a_teacher_is_told(tmp_path: Path) -> None:
    made = result()
    assert "learnt from too" not in card(tmp_path, made).text
    taught = replace(made, recipe={**made.recipe, "teacher": "owner/name"})
    assert "The answers of `owner/name` were learnt from too." in card(tmp_path, taught).text


def test_a_run_has_cards_for_what_it_made(tmp_path: Path) -> None:
    for name in ("merged", "base"):
        (tmp_path / name).mkdir()
    write_cards(result(), tmp_path)
    assert sorted(path.name for path in (tmp_path / "merged").iterdir()) == ["README.md", "pruning.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "merged"]


def test_no_card_is_written_through_a_link_out_of_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    for folder in (run / "moved", elsewhere):
        folder.mkdir(parents=True)
        (folder / "README.md").write_text("mine")
    (run / "merged").symlink_to(elsewhere)
    (run / "adapter").symlink_to("moved")
    write_cards(result(), run)
    assert [path.name for path in elsewhere.iterdir()] == ["README.md"]
    assert (elsewhere / "README.md").read_text() == "mine"
    assert "merged is a link out of" in caplog.text
    assert (run / "moved" / "README.md").read_text() != "mine"


def test_the_picture_repeats_to_the_byte_and_shows_what_there_is(tmp_path: Path) -> None:
    draw_pruning(PRUNING, tmp_path / "one.png")
    draw_pruning(PRUNING, tmp_path / "two.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    heads = {**PRUNING, "neurons_kept": [64, 64]}
    neurons = {**PRUNING, "importance": []}
    pictures = set[bytes]()
    for number, pruning in enumerate((PRUNING, heads, neurons)):
        draw_pruning(pruning, tmp_path / f"{number}.svg")
        text = (tmp_path / f"{number}.svg").read_bytes()
        pictures.add(text)
        assert (b"neurons kept" in text) == (pruning is not heads)
        assert (b"normalised importance" in text) == (pruning is not neurons)
    assert len(pictures) == 3
    with pytest.raises(ImportanceError, match="nothing to draw"):
        draw_pruning({**neurons, "neurons_kept": [64, 64]}, tmp_path / "none.png")


def test_a_result_with_nothing_to_draw_has_a_card_all_the_same(tmp_path: Path) -> None:
    untouched = {**PRUNING, "importance": [], "kept_heads": [[0, 1, 2, 3]] * 2, "neurons_kept": [64, 64]}
    text = card(tmp_path, result(pruning=untouched)).text
    assert "pruning.png" not in text
    assert "nothing was removed" in text


def test_without_matplotlib_the_card_has_no_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    text = card(tmp_path, result()).text
    assert "pruning.png" not in text
    assert "the card has no picture" in caplog.text
