"""The whole way on a tiny random BERT and a tiny task of its own, through the command line."""

import json
import shutil
import sys
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from pruning_adapter import cli, load_pruned, prune_
from pruning_adapter.architectures.identity import count_parameters, pruned_state
from pruning_adapter.errors import AdapterError
from pruning_adapter.evaluation.result import Result
from pruning_adapter.importance import ImportanceScores
from pruning_adapter.planning import PruningPlan, RankPlan
from pruning_adapter.run_folder import BESIDE, LOCK, STEPS, remove_steps
from pruning_adapter.training.recipes import find_recipe
from tiny_encoder import WORDS, make_texts, save_tiny_encoder

torch.set_num_threads(1)

CLASSIFIER, NORMS = 2 * 32 + 2, 7 * 2 * 32
FILES = {
    "settings.json",
    "importance.json",
    "plan.json",
    "ranks.json",
    "training.json",
    "result.json",
    "report.html",
} | {"predictions.json"}
FOLDERS = {"adapter", "merged"}


@pytest.fixture(scope="module", autouse=True)
def offline_and_as_quiet_as_before() -> Generator[None]:
    """No test asks the Hub, and the command line's quietness does not outlive this file."""
    verbosity = transformers.logging.get_verbosity()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield
    transformers.logging.set_verbosity(verbosity)
    transformers.utils.logging.enable_progress_bar()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {LOCK}


def call(*arguments: object, code: int = 0) -> None:
    """The command line, which must end with `code`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["pruning-adapter", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
    assert end.value.code == code


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_encoder(tmp_path_factory.mktemp("base") / "model")


def write_task(folder: Path, labels: Sequence[str]) -> Path:
    """train.csv and dev.csv, whose texts have words of their own for every label."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("train.csv", 40), ("dev.csv", 16)):
        lines = ["text,label", *(f"{text},{labels[place]}" for text, place in make_texts(name, count, len(labels)))]
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task(tmp_path_factory.mktemp("task"), ["no", "yes"])


def model_and_data(model: Path, task: Path) -> list[object]:
    files = ["--train-file", task / "train.csv", "--validation-file", task / "dev.csv"]
    return ["--model", model, *files, "--text-columns", "text", "--label-column", "label"]


def inputs(model: Path, task: Path) -> list[object]:
    return [*model_and_data(model, task), *AT_ONCE]


# The shortest way: before any training, by gradients. tests/test_prune_after.py takes the longer one.
AT_ONCE = ["--prune-after", 0, "--scorer", "gradient"]
PLAN = ["--keep-heads", 7, "--high-rank", 6, "--low-rank", 2, "--normalization", "block", "--reconstruct", "none"]
TRAIN = ["--epochs", 1]


@pytest.fixture(scope="module")
def finished(model: Path, task: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run. Tests read it; those that change it work on a copy."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    call("run", *inputs(model, task), *PLAN, *TRAIN, "--output-dir", folder)
    return folder


def result_of(folder: Path) -> Result:
    return Result.load(folder / "result.json")


def assert_same_model(folder: Path, other: Path) -> None:
    """The merged models are the same to the bit, and predict as well."""
    assert (folder / "merged/model.safetensors").read_bytes() == (other / "merged/model.safetensors").read_bytes()
    assert result_of(folder).quality == result_of(other).quality


def test_a_run_leaves_what_it_promises(finished: Path) -> None:
    assert names(finished) == FILES | FOLDERS
    assert {path.name for path in (finished / "adapter").iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert {path.name for path in (finished / "merged").iterdir()} >= {"config.json", "model.safetensors"}
    steps = {name for names in STEPS.values() for name in names}
    assert steps | {"settings.json"} == FILES | FOLDERS
    assert not steps & {name for names in BESIDE.values() for name in names}


def test_the_models_have_cards_and_know_no_path(finished: Path, model: Path) -> None:
    for folder in ("merged", "adapter"):
        card = (finished / folder / "README.md").read_text(encoding="utf-8")
        assert f"# model-train-pruned{'-adapter' * (folder == 'adapter')}\n" in card
        assert str(model.parent) not in card
        assert str(finished.parent) not in card
    assert str(model.parent) not in (finished / "merged/config.json").read_text(encoding="utf-8")
    assert str(model.parent) not in (finished / "plan.json").read_text(encoding="utf-8")


def test_a_card_goes_with_the_result_that_it_tells(finished: Path, tmp_path: Path) -> None:
    again = Path(shutil.copytree(finished, tmp_path / "again"))
    remove_steps(again, "evaluate")
    for folder in ("merged", "adapter"):
        assert (again / folder).is_dir()
        assert not {"README.md", "pruning.png"} & names(again / folder)
    shutil.copy(finished / "result.json", again)
    call("report", "--output-dir", again)
    for file in ("merged/README.md", "merged/pruning.png", "adapter/README.md"):
        assert (again / file).read_bytes() == (finished / file).read_bytes()


def test_every_file_says_the_same(finished: Path) -> None:
    scores = ImportanceScores.load(finished / "importance.json")
    plan, ranks = PruningPlan.load(finished / "plan.json"), RankPlan.load(finished / "ranks.json")
    result = result_of(finished)
    assert (scores.examples, scores.task, scores.scorer) == (40, "train", "gradient")
    assert scores.model == plan.model == ranks.model
    assert plan.heads_kept == 7
    assert sorted(ranks.ranks) == [2, 2, 6]
    pruning: Any = result.pruning
    assert pruning["kept_heads"] == [list(kept) for kept in plan.kept_heads]
    assert pruning["ranks"] == list(ranks.ranks)
    assert pruning["importance"] == [block.tolist() for block in scores.normalized()]
    assert (pruning["dense_heads"], pruning["dense_neurons"], pruning["neurons_kept"]) == ([4] * 3, [24] * 3, [24] * 3)
    assert pruning["rank_roles"] == ["query", "key", "value", "output"]
    assert (pruning["rule"], pruning["reconstruct"]) == ({"keep_heads": 7}, "none")
    assert (result.method, result.scorer, result.seed) == ("prune-lora", "gradient", 0)
    assert result.task == {"name": "train", "train_examples": 40, "labels": ["no", "yes"]}
    assert result.model["fingerprint"] == scores.model.fingerprint
    assert result.command.startswith("pruning-adapter run --model ")


def test_what_was_planned_is_what_came_out(finished: Path) -> None:
    plan, ranks = PruningPlan.load(finished / "plan.json"), RankPlan.load(finished / "ranks.json")
    cost = result_of(finished).cost
    merged = load_pruned(finished / "merged")
    assert count_parameters(merged) == cost["parameters"] == plan.parameters
    assert cost["dense_parameters"] == plan.dense_parameters
    assert cost["macs"] == plan.count_macs(cost["length"]) < cost["dense_macs"]
    pruning: Any = result_of(finished).pruning
    assert pruning["predicted"] == {"parameters": cost["parameters"], "macs": cost["macs"]}
    # The task head is untrained, so it trains too; a plan leaves it out, as the paper's counts do.
    assert cost["trainable_parameters"] == ranks.trainable_parameters + CLASSIFIER
    state: Any = pruned_state(merged)
    assert state.kept_heads == plan.kept_heads
    assert state.dense == plan.model


def test_the_merged_model_stands_alone(finished: Path, task: Path) -> None:
    folder = finished / "merged"
    classify = transformers.pipeline(
        "text-classification", model=load_pruned(folder), tokenizer=AutoTokenizer.from_pretrained(folder)
    )
    texts = [line.split(",") for line in (task / "dev.csv").read_text(encoding="utf-8").splitlines()[1:]]
    said = [found["label"] for found in classify([text for text, _ in texts])]
    accuracy = sum(label == told for (_, label), told in zip(texts, said, strict=True)) / len(texts)
    assert accuracy == result_of(finished).quality["validation"].metrics["accuracy"].value
    assert AutoTokenizer.from_pretrained(folder).vocab_size == WORDS + 5


def test_the_report_is_one_file_that_tells_the_result(finished: Path) -> None:
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert "<html" in page
    assert result_of(finished).command.split(" --")[1].split()[0] in page
    assert not any(f'{attribute}="http' in page for attribute in ("src", "href"))


def test_the_same_seed_gives_the_same_model_to_the_bit(finished: Path, model: Path, task: Path, tmp_path: Path) -> None:
    call("run", *inputs(model, task), *PLAN, *TRAIN, "--output-dir", tmp_path / "run")
    assert_same_model(tmp_path / "run", finished)
    for name in ("plan.json", "ranks.json", "importance.json"):
        assert (tmp_path / "run" / name).read_bytes() == (finished / name).read_bytes()
    assert result_of(tmp_path / "run").history == result_of(finished).history


def test_another_seed_gives_another_model(finished: Path, model: Path, task: Path, tmp_path: Path) -> None:
    call("run", *inputs(model, task), *PLAN, *TRAIN, "--seed", 1, "--output-dir", tmp_path / "run")
    one, other = (load_file(folder / "merged/model.safetensors") for folder in (finished, tmp_path / "run"))
    assert not torch.equal(one["classifier.weight"], other["classifier.weight"])


def test_step_by_step_gives_the_same_model_as_the_whole_run(
    finished: Path, model: Path, task: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    there: set[str] = {"settings.json"}
    for step, arguments in (
        ("importance", inputs(model, task)),
        ("plan", PLAN),
        ("train", TRAIN),
        ("merge", []),
        ("evaluate", []),
        ("report", []),
    ):
        call(step, *arguments, "--output-dir", folder)
        there |= set(STEPS[step])
        assert names(folder) == there
    assert_same_model(folder, finished)
    settings = (json.loads((run / "settings.json").read_text(encoding="utf-8")) for run in (folder, finished))
    assert next(settings) == next(settings)


@pytest.mark.parametrize("first", ["merge", "train"])
def test_resuming_does_what_is_missing_and_nothing_else(
    finished: Path, model: Path, task: Path, tmp_path: Path, first: str
) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    remove_steps(folder, first)
    # Cards are written anew with the report.
    anew = ("settings.json", LOCK, "README.md", "pruning.png")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name not in anew}
    call("run", *inputs(model, task), *PLAN, *TRAIN, "--output-dir", folder, "--resume")
    assert_same_model(folder, finished)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert names(folder) == FILES | FOLDERS


def test_removing_steps_leaves_what_came_before_and_what_is_not_ours(finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    remove_steps(folder, "train")
    left = {"settings.json", "importance.json", "plan.json", "ranks.json", "notes.txt"}
    assert names(folder) == left
    remove_steps(folder, "importance")
    assert names(folder) == {"settings.json", "notes.txt"}


BUDGET = ["--keep-params", 0.7, "--reconstruct", "lstsq", "--target", "all-linear", "--order", "second"]


@pytest.fixture(scope="module")
def corrected(model: Path, task: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that prunes heads and neurons by a budget and corrects the kept weights. Tests read it."""
    folder = tmp_path_factory.mktemp("corrected") / "run"
    call("run", *inputs(model, task), *BUDGET, *TRAIN, "--output-dir", folder)
    return folder


def test_a_budget_prunes_heads_and_neurons_and_is_kept(corrected: Path) -> None:
    scores, plan = ImportanceScores.load(corrected / "importance.json"), PruningPlan.load(corrected / "plan.json")
    ranks, cost = RankPlan.load(corrected / "ranks.json"), result_of(corrected).cost
    assert (scores.kinds, scores.order) == (("heads", "neurons"), "second")
    assert plan.heads_kept < 12
    assert plan.neurons_kept < 72
    merged = load_pruned(corrected / "merged")
    assert count_parameters(merged) == cost["parameters"] == plan.parameters <= 0.7 * cost["dense_parameters"]
    assert cost["macs"] == plan.count_macs(cost["length"])
    assert cost["trainable_parameters"] == ranks.trainable_parameters + CLASSIFIER
    pruning: Any = result_of(corrected).pruning
    assert pruning["neurons_kept"] == [len(kept) for kept in plan.kept_neurons]
    assert pruning["feed_forward_ranks"] == list(ranks.feed_forward_ranks)
    assert pruning["beside"] == [0, 1, 2]
    assert pruning["rank_roles"] == ["query", "key", "value", "output", "up", "down"]
    assert (pruning["rule"], pruning["reconstruct"]) == ({"keep_params": 0.7}, "lstsq")
    page = (corrected / "report.html").read_text(encoding="utf-8")
    assert "Which heads and neurons were kept" in page
    assert "by least squares" in page


def test_a_corrected_base_is_saved_and_the_adapter_belongs_to_it(corrected: Path, model: Path) -> None:
    assert names(corrected) == FILES | FOLDERS | {"base"}
    base: Any = load_pruned(corrected / "base")
    state: Any = pruned_state(base)
    assert (state.reconstructed, state.kept) == ("lstsq", PruningPlan.load(corrected / "plan.json").kept)
    adapted = PeftModel.from_pretrained(base, str(corrected / "adapter"))
    merged = load_pruned(corrected / "merged")
    batch = {"input_ids": torch.tensor([[2, 7, 19, 33, 3], [2, 44, 8, 3, 0]])}
    batch["attention_mask"] = (batch["input_ids"] != 0).long()
    with torch.no_grad():
        torch.testing.assert_close(adapted.eval()(**batch).logits, merged.eval()(**batch).logits)
    dense = AutoModelForSequenceClassification.from_pretrained(model, num_labels=2, ignore_mismatched_sizes=True)
    with pytest.raises(AdapterError, match="First make that base"):
        PeftModel.from_pretrained(dense, str(corrected / "adapter"))


@pytest.mark.parametrize("first", ["merge", "train", "plan"])
def test_resuming_with_a_corrected_base_gives_the_same_model(
    corrected: Path, model: Path, task: Path, tmp_path: Path, first: str
) -> None:
    folder = Path(shutil.copytree(corrected, tmp_path / "run"))
    remove_steps(folder, first)
    assert (folder / "base").exists() == (first == "merge")
    call("run", *inputs(model, task), *BUDGET, *TRAIN, "--output-dir", folder, "--resume")
    assert_same_model(folder, corrected)


def test_a_corrected_base_starts_nearer_to_the_dense_model_than_plain_pruning(
    corrected: Path, model: Path, task: Path
) -> None:
    plan = replace(PruningPlan.load(corrected / "plan.json"), reconstruct="none")
    dense, plain = AutoModel.from_pretrained(model), AutoModel.from_pretrained(model)
    prune_(plain, plan)
    base = load_pruned(corrected / "base").bert
    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = [line.split(",")[0] for line in (task / "train.csv").read_text(encoding="utf-8").splitlines()[1:]]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    counts = batch["attention_mask"].bool()
    with torch.no_grad():
        wanted, bare, better = (each.eval()(**batch).last_hidden_state[counts] for each in (dense, plain, base))
    assert (better - wanted).square().mean() < (bare - wanted).square().mean()


def test_without_scores_of_heads_the_report_still_tells_what_was_kept(model: Path, task: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    plan = ["--units", "neurons", "--keep-ratio", 0.5, "--reconstruct", "none"]
    call("run", *inputs(model, task), *TRAIN, *plan, "--output-dir", folder)
    pruning: Any = result_of(folder).pruning
    assert (pruning["importance"], pruning["dense_heads"]) == ([], [4] * 3)
    assert sum(pruning["neurons_kept"]) == 36
    assert "Which neurons were kept" in (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_other_methods_go_the_same_way(model: Path, task: Path, tmp_path: Path, method: str) -> None:
    folder, arguments = tmp_path / "run", [*model_and_data(model, task), *TRAIN, "--method", method]
    call("run", *arguments, "--output-dir", folder)
    result = result_of(folder)
    assert names(folder) == {
        "settings.json",
        "training.json",
        "merged",
        "result.json",
        "predictions.json",
        "report.html",
        *({"adapter"} if method == "lora" else ()),
    }
    assert (result.method, result.scorer, result.pruning) == (method, None, None)
    assert result.cost["parameters"] == result.cost["dense_parameters"]
    # One rank on four square matrices of 32 x 32 in 3 blocks, for comparison with what "prune-lora" trains beside it.
    lora = find_recipe("default").lora_rank * 3 * 4 * (32 + 32)
    expected = {"full": result.cost["parameters"], "lora": lora + NORMS + CLASSIFIER}[method]
    assert result.cost["trainable_parameters"] == expected

    # Whatever is missing is made anew, also where training itself writes the merged model.
    before = Path(shutil.copytree(folder, tmp_path / "before"))
    remove_steps(folder, "merge")
    call("run", *arguments, "--output-dir", folder, "--resume")
    assert_same_model(folder, before)


def test_regression(model: Path, tmp_path: Path) -> None:
    task, folder = write_task(tmp_path / "task", ["0.5", "2.25", "4.0"]), tmp_path / "run"
    call("run", *inputs(model, task), *PLAN, *TRAIN, "--output-dir", folder)
    quality = result_of(folder).quality["validation"]
    assert list(quality.metrics) == ["pearson", "spearman"]
    assert quality.majority_rate is None
    assert result_of(folder).task["labels"] == []
    merged = load_pruned(folder / "merged")
    assert (merged.config.num_labels, merged.config.problem_type) == (1, "regression")


def test_three_classes(model: Path, tmp_path: Path) -> None:
    task, folder = write_task(tmp_path / "task", ["c", "a", "b"]), tmp_path / "run"
    call("run", *inputs(model, task), *PLAN, *TRAIN, "--output-dir", folder)
    quality = result_of(folder).quality["validation"]
    assert list(quality.metrics) == ["accuracy", "f1_macro"]
    assert quality.majority_rate == 6 / 16
    merged = load_pruned(folder / "merged")
    assert merged.config.id2label == {0: "a", 1: "b", 2: "c"}


def test_pairs_of_texts(model: Path, tmp_path: Path) -> None:
    task, folder = write_task(tmp_path / "task", ["no", "yes"]), tmp_path / "run"
    for path in task.iterdir():
        _, *rows = path.read_text(encoding="utf-8").splitlines()
        path.write_text("one,two,label\n" + "\n".join(f"w1 w2,{row}" for row in rows) + "\n", encoding="utf-8")
    arguments = [name if name != "text" else "one, two" for name in inputs(model, task)]
    call("importance", *arguments, "--output-dir", folder)
    # [CLS] w1 w2 [SEP] stands before every text of 3 to 8 words and its [SEP].
    scores = ImportanceScores.load(folder / "importance.json")
    words = sum(len(row.split(",")[1].split()) for row in (task / "train.csv").read_text("utf-8").splitlines()[1:])
    assert scores.tokens == words + 40 * 5


@pytest.mark.parametrize("scorer", ["random", "magnitude", "reversed", "shuffled"])
def test_control_scorers_by_name(finished: Path, model: Path, task: Path, tmp_path: Path, scorer: str) -> None:
    call("importance", *inputs(model, task), "--scorer", scorer, "--output-dir", tmp_path)
    scores, gradient = (ImportanceScores.load(folder / "importance.json") for folder in (tmp_path, finished))
    assert scores.scorer == {"reversed": "reversed obs", "shuffled": "shuffled obs"}.get(scorer, scorer)
    assert scores.model == gradient.model
    negative = all(bool((block <= 0).all()) for block in scores.heads)
    assert negative == (scorer == "reversed")


def test_a_rank_budget_below_what_always_trains_is_refused_before_anything(
    model: Path, task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    call("run", *inputs(model, task), *TRAIN, "--keep-ratio", 0.5, "--rank-budget", 10, "--output-dir", folder, code=2)
    assert "The rank budget is 10 trainable parameters; the normalisation layers alone have" in " ".join(
        capsys.readouterr().err.split()
    )
    assert not folder.exists()
