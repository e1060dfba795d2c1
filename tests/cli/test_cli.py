"""The command line: quick help, and for every bad input one line that says what, why and the way out."""

import errno
import json
import os
import random
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import BertTokenizer
from typer.main import get_command

from pruning_adapter import __version__, cli, pipeline
from pruning_adapter.architectures.identity import identify
from pruning_adapter.checkpoint import save_pruned
from pruning_adapter.costs.latency import LatencyTable
from pruning_adapter.errors import TrainingError
from pruning_adapter.importance import ImportanceScores
from pruning_adapter.pipeline import inputs
from pruning_adapter.planning import PruningPlan, RankPlan
from pruning_adapter.run_folder import LOCK
from pruning_adapter.settings import Settings
from pruning_adapter.surgery import prune_
from tiny import make_model

torch.set_num_threads(1)

WORDS = 45
ALL_FILES = {
    "settings.json",
    "start",
    "base",
    "importance.json",
    "plan.json",
    "predictions.json",
    "ranks.json",
    "adapter",
    "training.json",
    "merged",
    "result.json",
    "report.html",
}
PLAN = (
    "--preset --keep-heads --keep-ratio --threshold --keep-params --keep-macs --keep-bytes --keep-latency --length "
    "--dtype --latency-table --multiple-of --grouping --normalization --allow-empty-blocks --reconstruct --target "
    "--top-blocks --high-rank --low-rank --rank-budget"
)
TRAIN = "--epochs --learning-rate --teacher --report-to --accumulate --padding-free --bf16 --seed"
DATA = (
    "--model --revision --demo --task --data-dir --train-file --validation-file --text-columns --label-column "
    "--train-rows"
)
SCORE = "--scorer --units --order --reduction --examples --stop-when-stable"
VERBS = {
    "run": f"{DATA} {SCORE} {PLAN} --method --recipe --prune-after {TRAIN} --output-dir --overwrite --resume "
    "--threads --verbose",
    "importance": f"{DATA} {SCORE} --recipe --prune-after --target {TRAIN} --output-dir --figure --overwrite --threads "
    "--verbose",
    "plan": f"--units {PLAN} --output-dir --sweep --by --figure --dry-run --overwrite --threads --verbose",
    "train": f"{DATA} --method --recipe {TRAIN} --output-dir --overwrite --threads --verbose",
    "merge": "--output-dir --overwrite --threads --verbose",
    "evaluate": "--output-dir --overwrite --threads --verbose",
    "export": "--stock --uniform-heads --transformers4 --onnx --int8 --torch-export "
    "--model --output-dir --overwrite --threads --verbose",
    "report": "--output-dir",
    "push": "--adapter --private --revision --message --license --card --output-dir --verbose",
    "reproduce": "--model --model-name --revision --data-dir --tasks --methods --seeds --recipes --train-rows --epochs "
    "--keep-ratio --examples --bf16 --jobs --share --only-report --output-dir --threads --verbose",
}


class Outcome(NamedTuple):
    status: object
    out: str
    err: str


Call = Callable[..., Outcome]
Edit = Callable[[Path], object]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the command line with some arguments."""

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["pruning-adapter", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return Outcome(end.value.code, *capsys.readouterr())

    return run


@pytest.fixture(autouse=True)
def offline_and_as_quiet_as_before(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """No test asks the Hub, and the command line's quietness does not outlive its test."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    verbosity = transformers.logging.get_verbosity()
    yield
    transformers.logging.set_verbosity(verbosity)
    transformers.utils.logging.enable_progress_bar()


def save_model(folder: Path) -> Path:
    """A tiny random BERT with a tokenizer of 45 words."""
    folder.mkdir()
    vocabulary = folder / "vocabulary"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(WORDS))]
    vocabulary.write_text("\n".join(words) + "\n", encoding="utf-8")
    BertTokenizer(vocab=str(vocabulary), model_max_length=128).save_pretrained(folder)
    vocabulary.unlink()
    model = make_model("bert", dtype=torch.float32, max_position_embeddings=128, pad_token_id=0)
    model.save_pretrained(folder)
    return folder


def write_rows(path: Path, count: int) -> Path:
    """Texts whose words tell their label, "no" or "yes"."""
    generator = random.Random(path.name)
    lines = ["text,label"]
    for number in range(count):
        yes = number % 2
        words = (f"w{generator.randrange(20) + 20 * yes}" for _ in range(generator.randrange(3, 9)))
        lines.append(f"{' '.join(words)},{'yes' if yes else 'no'}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model/, train.csv and dev.csv."""
    folder = tmp_path_factory.mktemp("base")
    save_model(folder / "model")
    write_rows(folder / "train.csv", 40)
    write_rows(folder / "dev.csv", 16)
    return folder


def options(base: Path, output: Path, **changes: object) -> list[object]:
    """What a run needs; `changes` by option name, None leaves one out."""
    values: dict[str, object] = {
        "model": base / "model",
        "train_file": base / "train.csv",
        "validation_file": base / "dev.csv",
        "text_columns": "text",
        "label_column": "label",
        "epochs": 1,
        "output_dir": output,
        **changes,
    }
    given = [(f"--{name.replace('_', '-')}", value) for name, value in values.items() if value is not None]
    return [part for pair in given for part in pair]


@pytest.fixture(scope="module")
def finished_run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run, made once; tests work on copies."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["pruning-adapter", "run", *map(str, options(base, folder))])
        with pytest.raises(SystemExit) as end:
            cli.main()
    assert end.value.code == 0
    return folder


@pytest.fixture
def finished(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {LOCK}


def assert_refused(outcome: Outcome, message: str) -> None:
    """One line, status 2, nothing else said."""
    assert outcome.status == 2
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert outcome.err.endswith("\n")
    assert re.search(message, outcome.err), outcome.err


# ---- help


def test_help_imports_nothing_slow() -> None:
    script = (
        "import sys, contextlib, io\n"
        "from pruning_adapter.cli import main\n"
        f"for words in [['--help'], ['--version'], [], *([verb, '--help'] for verb in {list(VERBS)})]:\n"
        "    sys.argv = ['pruning-adapter', *words]\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "        main()\n"
        "slow = ('torch', 'transformers', 'peft', 'numpy', 'scipy', 'sklearn', 'datasets', 'matplotlib', 'jinja2')\n"
        "print([name for name in slow if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_and_its_options(call: Call, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    outcome = call(verb, "--help")
    assert (outcome.status, outcome.err) == (0, "")
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", outcome.out))
    assert set(VERBS[verb].split()) <= named
    assert re.search(rf"Usage: .* {verb} \[OPTIONS\]", outcome.out)


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_what_holds_where_nothing_is_given(call: Call, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    """In brackets, which Rich takes for markup of its own."""
    monkeypatch.setenv("COLUMNS", "400")
    said = " ".join(call(verb, "--help").out.split())
    commands: dict[str, Any] = vars(get_command(cli.app))["commands"]
    for option in commands[verb].params:
        if "help" in vars(option):
            assert vars(option)["help"].replace("\\[", "[") in said


def test_no_verb_and_no_option_is_forgotten_here() -> None:
    """What the list above holds is all there is."""
    commands: dict[str, Any] = vars(get_command(cli.app))["commands"]
    there = {
        verb: {name for option in command.params for name in option.opts if name.startswith("--")}
        for verb, command in commands.items()
    }
    assert there == {verb: set(named.split()) for verb, named in VERBS.items()}


def test_the_verbs_are_listed(call: Call) -> None:
    for outcome in (call("--help"), call()):
        assert all(re.search(rf"\b{verb}\b", outcome.out) for verb in VERBS)
    assert call("--version") == (0, f"pruning-adapter {__version__}\n", "")


# ---- models


def damage_config(model: Path) -> None:
    (model / "config.json").write_text(json.dumps({"model_type": "zamba"}), encoding="utf-8")


def pickle_weights(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def remove_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").unlink()
    (model / "tokenizer_config.json").unlink()


def drop_a_weight(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    del weights["bert.encoder.layer.1.attention.self.key.weight"]
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_config, r"'zamba' is not supported\. .*Supported: .*\bbert, .*roberta"),
        (pickle_weights, r"holds pickled weights \(pytorch_model\.bin\) .* model\.save_pretrained\(folder\)"),
        (lambda model: cut(model / "config.json"), r"config\.json is not readable as a config"),
        (lambda model: (model / "model.safetensors").unlink(), r"holds no \*\.safetensors; it is not a saved model"),
        (drop_a_weight, r"lacks the weight 'bert\.encoder\.layer\.1\.attention\.self\.key\.weight', .* damaged"),
        (lambda model: cut(model / "tokenizer.json"), "Cannot load a model from the folder"),
        pytest.param(
            lambda model: cut(model / "model.safetensors"),
            "Cannot load a model from the folder",
        ),
        pytest.param(
            remove_tokenizer,
            "tokenizer",
        ),
    ],
    ids=["family", "pickled", "config", "no weights", "a weight", "tokenizer", "cut short", "no tokenizer"],
)
def test_a_model_that_cannot_be_used_is_refused(
    call: Call, base: Path, tmp_path: Path, damage: Edit, message: str
) -> None:
    model = Path(shutil.copytree(base / "model", tmp_path / "model"))
    damage(model)
    assert_refused(call("run", *options(base, tmp_path / "run", model=model)), message)
    assert names(tmp_path) == {"model"}


@pytest.mark.parametrize(
    ("model", "reason"),
    [("no-such/model", r"is not \(wholly\) in the local cache, .* offline"), ("no/such/folder", "no hub id either")],
)
def test_a_model_neither_here_nor_on_the_hub_is_refused(
    call: Call, base: Path, tmp_path: Path, model: str, reason: str
) -> None:
    message = f"'{model}' is no folder here, and .*{reason}"
    assert_refused(call("run", *options(base, tmp_path / "run", model=model)), message)
    assert names(tmp_path) == set()


def test_weights_that_are_no_numbers_are_refused(call: Call, base: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(base / "model", tmp_path / "model"))
    weights = load_file(model / "model.safetensors")
    weights["bert.encoder.layer.1.attention.self.value.weight"][3, 3] = float("nan")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})

    at_once = {"model": model, "prune_after": 0}
    measured = call("run", *options(base, tmp_path / "run", **at_once))
    assert_refused(measured, r"The loss of batch 0 is nan, for all of its \d+ examples\. Look for NaN in the weights")
    assert names(tmp_path / "run") == {"settings.json"}
    weighed = call("run", *options(base, tmp_path / "weighed", **at_once, scorer="magnitude"))
    assert_refused(weighed, r"importance of head 0 of block 1 is not a finite number\. Look for NaN")
    assert names(tmp_path / "weighed") == {"settings.json"}
    trained = call("run", *options(base, tmp_path / "trained", model=model, scorer="random"))
    assert_refused(trained, r"The training loss is nan at step 1 .* so look at the weights, not at the data\. Lower")
    assert not names(tmp_path / "trained") & {"adapter", "training.json", "merged", "result.json", "report.html"}


# ---- data


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_column": "class"}, r"train\.csv has no column 'class'; its columns are 'text', 'label'"),
        ({"text_columns": "text,other"}, r"train\.csv has no column 'other'; its columns are 'text', 'label'"),
        ({"train_file": "none.csv"}, r"Cannot read none\.csv: No such file"),
        ({"train_file": "none.xls"}, r"the suffix '\.xls' is none of \.csv, \.tsv"),
        ({"validation_file": None}, "--train-file also needs --validation-file"),
        ({"train_file": None}, "No data was named. Give --task"),
        ({"model": None}, "No model was named. Give --model"),
        ({"task": "rte"}, "Give one source of data; --task and --train-file were given"),
        ({"train_file": None, "task": "rtx"}, r"no GLUE task 'rtx'; the tasks are cola, .* Did you mean 'rte'\?"),
        ({"train_file": None, "task": "rte", "data_dir": "none"}, "none has no folder RTE .* --data-dir names the"),
    ],
)
def test_data_that_is_not_there_is_refused(
    call: Call, base: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    assert_refused(call("run", *options(base, tmp_path / "run", **changes)), message)
    assert names(tmp_path) == set()


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        (
            "validation_file",
            "text,label\nw1,yes\nw2,perhaps\n",
            r"rows\.csv, line 3: the class 'perhaps' does not",
        ),
        ("train_file", "text,label\nw1,yes\nw2,\n", r"rows\.csv, line 3: the column 'label' is empty\. Fill it in, or"),
        ("train_file", "text,label\nw1,yes\nw2\n", r"rows\.csv, line 3 has 1 fields where 2 are expected"),
        ("train_file", 'text,label\nw1,yes\n"w2,no\n', r"rows\.csv, line 3 is not readable as csv .* Check the quotes"),
        (
            "both",
            "text,label\nw1,yes\nw2,yes\n",
            r"Every label in .*rows\.csv is 'yes': there is nothing to learn",
        ),
        ("train_file", "text,label\n", r"rows\.csv has no rows: at least one labelled example"),
    ],
    ids=["new class", "half empty", "fields", "quotes", "one class", "no rows"],
)
def test_rows_that_cannot_be_used_are_refused_by_file_and_line(
    call: Call, base: Path, tmp_path: Path, option: str, text: str, message: str
) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text(text, encoding="utf-8")
    files: dict[str, object] = {"train_file": rows, "validation_file": rows} if option == "both" else {option: rows}
    assert_refused(call("run", *options(base, tmp_path / "run", **files)), message)
    assert names(tmp_path) == {"rows.csv"}


# ---- settings


def test_every_option_of_pruning_is_refused_beside_a_method_that_does_not_prune() -> None:
    """And no other: what a verb's help lists under importance and plans, and when units go."""
    of_pruning = f"{SCORE} {PLAN} --prune-after".split()
    for option in VERBS["run"].split():
        name = option.removeprefix("--").replace("-", "_")
        given = {name: 1}
        Settings().check_used(given)
        if option in of_pruning:
            with pytest.raises(TrainingError, match=f"{name} is 1, but the method 'lora' prunes nothing"):
                Settings(method="lora").check_used(given)
        else:
            Settings(method="lora").check_used(given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scorer": "magic"}, "'magic' is unknown; use one of gradient, obs, random, magnitude, reversed, shuffled"),
        ({"recipe": "magic"}, "'magic' is unknown; there are paper, default"),
        ({"method": "magic"}, "'magic' is unknown; use one of full, lora, prune-lora"),
        ({"method": "lora", "low_rank": 4}, "low_rank is 4, but the method 'lora' prunes nothing and spreads no ranks"),
        ({"method": "full", "keep_macs": 0.5}, r"keep_macs is 0\.5, but the method 'full' prunes nothing"),
        ({"scorer": "random", "order": "first"}, "order is 'first', but the scores are those of 'random'"),
        ({"preset": "magic"}, "'magic' is unknown; there are paper, paper-counts"),
        ({"reduction": "magic"}, "'magic' is unknown; use one of example, batch, token, bertology"),
        ({"normalization": "magic"}, "'magic' is unknown; use one of block, model"),
        ({"units": "magic"}, "'magic' is unknown; use one of heads, neurons, both"),
        ({"reconstruct": "magic"}, "'magic' is unknown; use one of none, bias, lstsq"),
        ({"target": "magic"}, "'magic' is unknown; use one of attention, all-linear"),
        ({"keep_macs": 0.5, "keep_params": 0.5}, "keep_params and keep_macs were given"),
        ({"keep_bytes": "much"}, "keep_bytes is 'much'; give bytes, or text such as \"60MB\""),
        ({"latency_table": "t.json"}, "latency_table was given without keep_latency"),
        ({"keep_ratio": 0}, r"keep_ratio is 0\.0; it must be the share of heads that stay, in \(0, 1\]"),
        ({"keep_ratio": 1.5}, r"keep_ratio is 1\.5; it must be the share"),
        ({"threshold": 2}, r"threshold is 2\.0; it must be a normalised importance, in \[0, 1\]"),
        ({"keep_heads": 0}, "keep_heads is 0; it must be 1 or more"),
        ({"keep_heads": 5, "keep_ratio": 0.5}, "Give one of preset, .*; keep_heads and keep_ratio were given"),
        ({"preset": "paper", "threshold": 0.5}, "Give one of preset, .*; preset and threshold were given"),
        ({"seed": -1}, "seed is -1; it must be in 0 to 4294967295"),
        ({"epochs": 0}, r"epochs is 0\.0; it must be a positive number"),
        ({"learning_rate": "nan"}, "learning_rate is nan; it must be a positive number"),
        ({"low_rank": 4, "high_rank": 2}, "low_rank is 4; it must not be above high_rank, 2"),
    ],
)
def test_settings_that_cannot_be_met_are_refused_before_any_work(
    call: Call, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], message: str
) -> None:
    monkeypatch.delattr(inputs, "load_base")
    monkeypatch.delattr(inputs, "load_files")
    assert_refused(call("run", *options(base, tmp_path / "run", **changes)), message)
    assert names(tmp_path) == set()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep_heads": 13}, "keep_heads is 13 heads, but the model has 12"),
        ({"keep_ratio": 0.1}, r"keep_ratio=0\.1 keeps 1 heads, but each of the 3 blocks needs one"),
        ({"top_blocks": 4}, "top_blocks is 4, but the model has 3 blocks"),
        ({"keep_params": 0.5}, r"to weigh heads and neurons, but no neurons were scored\. .*--units both --overwrite"),
        ({"units": "neurons"}, r"no neurons were scored\. .*importance --units neurons .* plan with --units heads"),
        ({"rank_budget": 10}, r"The budget is 10 trainable parameters; .* already need [\d,]+\. Raise the budget"),
    ],
)
def test_plans_that_the_model_cannot_meet_are_refused(
    call: Call, finished: Path, changes: dict[str, object], message: str
) -> None:
    ((name, value),) = changes.items()
    before = snapshot(finished)
    for more in ("--overwrite", "--dry-run"):
        outcome = call("plan", f"--{name.replace('_', '-')}", value, "--output-dir", finished, more)
        assert_refused(outcome, message)
        assert snapshot(finished) == before


def test_a_plan_is_shown_without_touching_anything(call: Call, finished: Path) -> None:
    before = snapshot(finished)
    (finished / "settings.json").touch()
    outcome = call("plan", "--keep-heads", 5, "--output-dir", finished, "--dry-run")
    assert (outcome.status, outcome.err) == (0, "")
    assert "5 of 12 heads stay" in outcome.out
    assert "LoRA ranks by block" in outcome.out
    assert snapshot(finished) == before
    assert_refused(
        call("plan", "--preset", "paper", "--threshold", 1, "--output-dir", finished, "--dry-run"), "Give one"
    )


# ---- heads and neurons


@pytest.fixture(scope="module")
def scored_run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has come as far as scores of heads and neurons, made once; tests work on copies."""
    folder = tmp_path_factory.mktemp("scored") / "run"
    with pytest.MonkeyPatch.context() as patch:
        arguments = options(base, folder, epochs=None, units="both", figure=folder.parent / "map.svg")
        patch.setattr(sys, "argv", ["pruning-adapter", "importance", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
    assert end.value.code == 0
    return folder


@pytest.fixture
def scored(scored_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(scored_run, tmp_path / "run"))


def test_each_kind_that_was_scored_has_its_figure(scored_run: Path) -> None:
    assert names(scored_run.parent) == {"run", "map.svg", "map-neurons.svg"}
    assert "most important first" in (scored_run.parent / "map-neurons.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--keep-params", 0.6), "neurons"),
        (("--keep-macs", 0.6, "--length", 32), "neurons"),
        (("--keep-bytes", "30KB", "--dtype", "bfloat16"), "neurons"),
        (("--keep-ratio", 0.5), "6 of 12 heads stay, 36 of 72 neurons"),
        (("--keep-ratio", 0.5, "--units", "heads"), "6 of 12 heads stay\n"),
        (("--keep-ratio", 0.5, "--units", "neurons"), "12 of 12 heads stay, 36 of 72 neurons"),
        (("--keep-heads", 5), "5 of 12 heads stay\n"),
        (("--preset", "paper"), "8 of 12 heads stay\n"),
    ],
)
def test_each_rule_makes_its_plan(call: Call, scored: Path, arguments: tuple[object, ...], said: str) -> None:
    before = snapshot(scored)
    outcome = call("plan", *arguments, "--output-dir", scored, "--dry-run")
    assert (outcome.status, outcome.err) == (0, "")
    assert said in outcome.out
    assert snapshot(scored) == before


def test_widths_come_out_as_multiples(call: Call, scored: Path) -> None:
    arguments = ("--keep-params", 0.7, "--multiple-of", 8, "--reconstruct", "bias")
    assert call("plan", *arguments, "--output-dir", scored).status == 0
    plan, ranks = PruningPlan.load(scored / "plan.json"), RankPlan.load(scored / "ranks.json")
    assert {len(kept) % 8 for kept in plan.kept_neurons} == {0}
    assert plan.parameters <= 0.7 * plan.dense_parameters
    assert plan.reconstruct == "bias"
    assert not any(ranks.feed_forward_ranks)


def test_lora_trains_where_the_start_trained(call: Call, scored: Path) -> None:
    outcome = call("plan", "--keep-params", 0.7, "--target", "all-linear", "--output-dir", scored)
    assert_refused(outcome, r"start was trained with target='attention', now target='all-linear' was given")
    assert not (scored / "plan.json").exists()


def test_a_latency_table_that_is_named_is_read(call: Call, scored: Path, tmp_path: Path) -> None:
    model = ImportanceScores.load(scored / "importance.json").model
    curves = tuple(
        tuple((units, 0.15 * units / site.units) for units in range(1, site.units + 1)) for site in model.all_sites
    )
    # Widths of eight are as quick per neuron as any; without a multiple of its own, the plan takes that.
    table = LatencyTable(
        model=model,
        curves=curves,
        spread=0.0,
        batch=2,
        length=16,
        dtype="float32",
        roundings=((1, 2.0), (2, 2.0), (4, 2.0), (8, 1.0)),
    )
    table.save(tmp_path / "table.json")
    arguments = ("--keep-latency", 0.6, "--latency-table", tmp_path / "table.json", "--output-dir", scored)
    assert call("plan", *arguments).status == 0
    plan = PruningPlan.load(scored / "plan.json")
    rule: Any = plan.origin["rule"]
    assert rule["keep_latency"] == 0.6
    assert rule["predicted"] == table.predict([len(kept) for kept in plan.kept]) <= 0.6
    assert {len(kept) % 8 for kept in plan.kept_neurons} == {0}
    assert LatencyTable.load(scored / "latency.json") == table

    # Another rule takes the table away with the old one.
    assert call("plan", "--keep-heads", 5, "--output-dir", scored, "--overwrite").status == 0
    assert names(scored) == {"settings.json", "start", "importance.json", "plan.json", "ranks.json"}


def test_without_a_table_latency_is_measured_once(
    call: Call, scored: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lengths: list[int] = []

    def measure(model: Any, *, length: int) -> LatencyTable:
        lengths.append(length)
        identity = identify(model)
        curves = tuple(((site.units, 0.15),) for site in identity.all_sites)
        return LatencyTable(model=identity, curves=curves, spread=0.0, batch=2, length=length, dtype="float32")

    monkeypatch.setattr("pruning_adapter.evaluation.latency.measure_latency", measure)
    outcome = call("plan", "--keep-latency", 1, "--length", 24, "--output-dir", scored)
    assert (outcome.status, lengths) == (0, [24])
    assert LatencyTable.load(scored / "latency.json").length == 24


@pytest.mark.parametrize("by", ["macs", "params"])
def test_a_sweep_shows_twenty_budgets_and_keeps_the_run(call: Call, scored: Path, by: str, tmp_path: Path) -> None:
    before = snapshot(scored)
    outcome = call("plan", "--sweep", "--by", by, "--output-dir", scored, "--dry-run")
    assert outcome.status == 0
    assert len(re.findall(r"^ +[01]\.\d{3} ", outcome.out, re.MULTILINE)) == 20
    assert snapshot(scored) == before

    assert call("plan", "--sweep", "--by", by, "--output-dir", scored).status == 0
    assert names(scored) == {"settings.json", "start", "importance.json", "sweep.json", "sweep.png"}
    assert {name: snapshot(scored)[name] for name in before} == before
    assert json.loads((scored / "sweep.json").read_text(encoding="utf-8"))["by"] == by
    assert call("plan", "--sweep", "--figure", tmp_path / "curves.svg", "--output-dir", scored).status == 0
    assert (tmp_path / "curves.svg").read_text(encoding="utf-8").startswith("<?xml")
    # A sweep is in no step's way.
    assert call("plan", "--keep-params", 0.8, "--output-dir", scored).status == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--by", "heads"), "swept by macs or params, not by 'heads'"),
        (("--keep-heads", 5), "--sweep tries budgets of its own; leave out keep_heads"),
        (("--length", 0), "length is 0; it must be a number of tokens from 1"),
        (("--figure", "map.pdf"), r"\.png or a \.svg"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(
    call: Call, scored: Path, arguments: tuple[object, ...], message: str
) -> None:
    assert_refused(call("plan", "--sweep", *arguments, "--output-dir", scored), message)


# ---- folders


def test_a_folder_that_is_not_empty_is_refused_before_any_work(
    call: Call, base: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(finished)
    monkeypatch.delattr(inputs, "load_base")
    message = r"run exists and is not empty\. Go on with --resume, replace its run with --overwrite, or name another"
    assert_refused(call("run", *options(base, finished)), message)
    assert snapshot(finished) == before


def test_a_file_in_the_folders_place_is_refused(call: Call, base: Path, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine", encoding="utf-8")
    for more in ((), ("--overwrite",), ("--resume",)):
        assert_refused(call("run", *options(base, tmp_path / "run"), *more), "run is a file; name another one")
    assert (tmp_path / "run").read_text(encoding="utf-8") == "mine"


def test_overwriting_replaces_a_runs_own_files_and_no_others(call: Call, base: Path, finished: Path) -> None:
    (finished / "notes.txt").write_text("mine", encoding="utf-8")
    (finished / "figures").mkdir()
    (finished / "figures" / "result.json").write_text("mine too", encoding="utf-8")
    before = snapshot(finished)
    outcome = call("run", *options(base, finished, scorer="random", keep_heads=5), "--overwrite")
    assert outcome.status == 0
    after = snapshot(finished)
    assert names(finished) == {*ALL_FILES, "notes.txt", "figures"}
    unchanged = {name for name in after if after[name] == before.get(name)}
    assert {"notes.txt", "figures/result.json"} <= unchanged
    assert not unchanged & {"settings.json", "importance.json", "plan.json", "merged/model.safetensors", "result.json"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "none"}, "'none' is no folder here"),
        ({"recipe": "magic"}, "'magic' is unknown"),
        ({"label_column": "class"}, "has no column 'class'"),
        # What no scores of this model could meet is known before they are measured.
        ({"keep_heads": 99}, "keep_heads is 99 heads, but the model has 12"),
        ({"keep_params": 0.01}, r"the smallest possible plan needs .*keep_params=0\.\d+"),
        ({"top_blocks": 4}, "top_blocks is 4, but the model has 3 blocks"),
    ],
)
def test_what_cannot_begin_overwrites_nothing(
    call: Call, base: Path, finished: Path, changes: dict[str, object], message: str
) -> None:
    before = snapshot(finished)
    assert_refused(call("run", *options(base, finished, **changes), "--overwrite"), message)
    assert snapshot(finished) == before


def test_resuming_with_other_settings_is_refused(call: Call, base: Path, finished: Path) -> None:
    before = snapshot(finished)
    message = r"run was begun with seed=0, now seed=3 was given\. Resume with the same settings, or begin anew"
    assert_refused(call("run", *options(base, finished, seed=3), "--resume"), message)
    assert snapshot(finished) == before


@pytest.mark.parametrize("verb", ["importance", "plan", "train", "merge", "evaluate"])
def test_a_step_does_not_replace_its_files_unasked(call: Call, finished: Path, verb: str) -> None:
    before = snapshot(finished)
    outcome = call(verb, "--output-dir", finished)
    assert_refused(outcome, "exists already; replace it, and what followed from it, with --overwrite")
    assert snapshot(finished) == before


def test_replacing_a_step_takes_away_what_followed_from_it(call: Call, finished: Path) -> None:
    (finished / "notes.txt").write_text("mine", encoding="utf-8")
    assert call("plan", "--keep-heads", 5, "--output-dir", finished, "--overwrite").status == 0
    assert names(finished) == {"settings.json", "start", "importance.json", "plan.json", "ranks.json", "notes.txt"}
    assert PruningPlan.load(finished / "plan.json").heads_kept == 5
    assert RankPlan.load(finished / "ranks.json").kept_heads == PruningPlan.load(finished / "plan.json").kept_heads


def test_an_interrupted_training_does_not_go_on_by_other_settings(call: Call, finished: Path) -> None:
    (finished / "training.json").unlink()
    shutil.rmtree(finished / "adapter")
    (finished / "checkpoints").mkdir()
    before = snapshot(finished)
    message = r"begun with learning_rate=None, now learning_rate=0\.01 was given\. Resume with the same settings, or"
    assert_refused(call("train", "--learning-rate", 0.01, "--output-dir", finished), message)
    assert snapshot(finished) == before


@pytest.mark.parametrize("verb", ["importance", "plan", "train", "merge", "evaluate", "report"])
def test_a_step_without_a_run_is_refused(call: Call, tmp_path: Path, verb: str) -> None:
    message = r"No data was named|holds no run; begin one with `pruning-adapter importance`|result\.json: No such file"
    assert_refused(call(verb, "--output-dir", tmp_path / "none"), message)
    assert names(tmp_path) == set()


# ---- damaged files


def edit_json(name: str, edit: Callable[[Any], object]) -> Edit:
    def damage(folder: Path) -> None:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        edit(content)
        (folder / name).write_text(json.dumps(content), encoding="utf-8")

    return damage


def drop_an_adapter_weight(folder: Path) -> None:
    path = folder / "adapter/adapter_model.safetensors"
    weights = load_file(path)
    del weights[next(name for name in weights if "lora_B" in name)]
    save_file(weights, path, metadata={"format": "pt"})


def keep(block: int, heads: list[Any]) -> Edit:
    return edit_json("plan.json", lambda plan: plan["kept_heads"].__setitem__(block, heads))


def make_foreign(name: str) -> Edit:
    return lambda folder: (folder / name).write_text('{"kind": "recipe"}', encoding="utf-8")


@pytest.mark.parametrize(
    ("verb", "damage", "message"),
    [
        ("plan", lambda folder: cut(folder / "importance.json"), r"importance\.json is not readable .* Make it again"),
        (
            "plan",
            make_foreign("importance.json"),
            r"importance\.json holds 'recipe' where a 'pruning-adapter imp",
        ),
        ("train", lambda folder: cut(folder / "plan.json"), r"plan\.json is not readable as a pruning-adapter plan"),
        ("train", make_foreign("plan.json"), r"plan\.json holds 'recipe' where a 'pruning-adapter plan'"),
        ("train", keep(1, [0, 4]), r"plan\.json: The plan keeps in block 1 head 4, but .* has heads 0-3 there\. Score"),
        ("train", keep(1, [2, 2]), r"plan\.json: The plan keeps in block 1 head 2 twice; name every head once"),
        ("train", keep(1, []), r"plan\.json: The plan leaves block 1 without heads\. Keep at least one, or say"),
        ("train", keep(1, [2, 0]), r"plan\.json: The plan lists the heads of block 1 out of order: \[2, 0\]; sort"),
        ("train", lambda folder: cut(folder / "ranks.json"), r"ranks\.json is not readable as a pruning-adapter ranks"),
        (
            "merge",
            lambda folder: cut(folder / "adapter/adapter_model.safetensors"),
            r"adapter_model\.saf.* is damaged",
        ),
        (
            "merge",
            lambda folder: cut(folder / "adapter/adapter_config.json"),
            r"config\.json is not readable as a c",
        ),
        (
            "merge",
            lambda folder: (folder / "adapter/adapter_model.safetensors").unlink(),
            r"adapter has no adapter_model",
        ),
        ("merge", drop_an_adapter_weight, r"adapter is .* incomplete \(Found missing .*lora_B.*\)\. Train again"),
        ("merge", lambda folder: shutil.rmtree(folder / "adapter"), r"has no adapter\. Run `pruning-adapter train`"),
        ("plan", lambda folder: (folder / "importance.json").unlink(), "has no importance.json. Run"),
        ("train", lambda folder: (folder / "plan.json").unlink(), "has no plan.json. Run `pruning-adapter plan`"),
        ("evaluate", lambda folder: cut(folder / "merged/model.safetensors"), "Cannot load a model from .*merged: "),
        ("evaluate", lambda folder: cut(folder / "merged/config.json"), r"config\.json is not readable as a config"),
        ("evaluate", lambda folder: (folder / "merged/config.json").unlink(), r"merged has no config\.json"),
        ("evaluate", lambda folder: cut(folder / "training.json"), r"training\.json is not readable"),
        ("evaluate", lambda folder: cut(folder / "settings.json"), r"settings\.json is not readable .* settings"),
        (
            "report",
            lambda folder: cut(folder / "result.json"),
            r"result\.json is not readable as a pruning-adapter re",
        ),
        ("report", make_foreign("result.json"), r"result\.json holds 'recipe' where a 'pruning-adapter result'"),
    ],
)
def test_damaged_files_are_refused_and_nothing_is_replaced(
    call: Call, finished: Path, verb: str, damage: Edit, message: str
) -> None:
    damage(finished)
    before = snapshot(finished)
    assert_refused(call(verb, "--output-dir", finished, *(() if verb == "report" else ("--overwrite",))), message)
    assert snapshot(finished) == before


def test_a_plan_for_another_model_is_refused(call: Call, base: Path, finished: Path, tmp_path: Path) -> None:
    other, before = Path(shutil.copytree(base / "model", tmp_path / "other")), snapshot(finished)
    make_model("bert", dtype=torch.float32, seed=1, max_position_embeddings=128, pad_token_id=0).save_pretrained(other)
    outcome = call("train", "--model", other, "--output-dir", finished, "--overwrite")
    assert_refused(outcome, r"start was trained from another model than .*other\. Score this one anew")
    make_model("bert", dtype=torch.float32, max_position_embeddings=128, intermediate_size=8).save_pretrained(other)
    outcome = call("train", "--model", other, "--output-dir", finished, "--overwrite")
    assert_refused(outcome, r"start was trained from another model than .*other\. Score this one anew")
    assert snapshot(finished) == before


# ---- what the system does


@pytest.mark.parametrize(
    ("verb", "arguments"), [("plan", ("--keep-heads", 5, "--overwrite")), ("merge", ("--overwrite",)), ("report", ())]
)
def test_a_full_disk_costs_no_file(
    call: Call, finished: Path, monkeypatch: pytest.MonkeyPatch, verb: str, arguments: tuple[object, ...]
) -> None:
    def fsync(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = snapshot(finished)
    monkeypatch.setattr(os, "fsync", fsync)
    outcome = call(verb, *arguments, "--output-dir", finished)
    assert_refused(outcome, r"Cannot write .*: No space left on device\. What was there before is untouched")
    assert snapshot(finished) == before


def test_what_the_libraries_raise_is_one_line_too(call: Call, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(run: pipeline.Run) -> None:
        raise OSError("The disk\n  went away")

    monkeypatch.setattr(pipeline.Run, "measure", measure)
    outcome = call("plan", "--output-dir", finished, "--overwrite")
    assert_refused(outcome, r"error: The disk went away\. Files of earlier steps are untouched\.")


def test_an_interrupt_says_how_to_go_on(
    call: Call, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(run: pipeline.Run) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline.Run, "measure", measure)
    outcome = call("run", *options(base, tmp_path / "run"))
    assert outcome.status == 130
    assert outcome.err.endswith("Interrupted. Go on with --resume.\n")
    assert names(tmp_path / "run") == {"settings.json"}


def test_a_link_out_of_the_folder_is_refused_before_anything_is_written(call: Call, base: Path, tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    for each in (folder, elsewhere):
        each.mkdir()
    (folder / "checkpoints").symlink_to(elsewhere)
    for words in (("run", *options(base, folder), "--resume"), ("importance", *options(base, folder))):
        assert_refused(call(*words), r"checkpoints is a link out of .*run, and no step writes through one\. Remove")
        assert names(folder) == {"checkpoints"}
    assert names(elsewhere) == set()


def test_brackets_in_names_are_shown_as_they_are(call: Call, base: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(base / "model", tmp_path / "a[bold]b[]c"))
    outcome = call("run", *options(base, tmp_path / "r[bold]un", model=model))
    assert outcome.status == 0
    assert "train with a[bold]b[]c" in outcome.out
    assert f"Report: {tmp_path / 'r[bold]un'}" in outcome.out


def test_the_merged_model_is_exported_for_onnxruntime(call: Call, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    save_model(tmp_path / "model")
    outcome = call("export", "--onnx", "--int8", "--model", tmp_path / "model", "--output-dir", tmp_path)
    assert (outcome.status, outcome.err) == (0, "")
    assert (tmp_path / "model-int8.onnx").stat().st_size < (tmp_path / "model.onnx").stat().st_size
    again = call("export", "--onnx", "--model", tmp_path / "model", "--output-dir", tmp_path)
    assert again.status == 2
    assert "model.onnx exists already; replace it with --overwrite" in again.err


def test_eight_bit_weights_alone_leave_an_earlier_model_as_it_is(call: Call, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    save_model(tmp_path / "model")
    (tmp_path / "model.onnx").write_text("mine")
    words = ("export", "--int8", "--model", tmp_path / "model", "--output-dir", tmp_path)
    for more in ((), ("--overwrite",)):
        outcome = call(*words, *more)
        assert (outcome.status, outcome.err) == (0, "")
        # Before it, an older onnxscript says what it rewrote.
        assert outcome.out.splitlines()[-1].startswith("ONNX, 8-bit weights: ")
        assert (tmp_path / "model.onnx").read_text() == "mine"
    assert names(tmp_path) == {"model", "model.onnx", "model-int8.onnx"}
    assert "model-int8.onnx exists already; replace it with --overwrite" in call(*words).err


def test_the_merged_model_is_exported_for_those_who_have_nothing_of_ours(call: Call, tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    forms = ("--stock", "--transformers4", "--torch-export")
    outcome = call("export", *forms, "--model", tmp_path / "model", "--output-dir", tmp_path)
    assert (outcome.status, outcome.err) == (0, "")
    assert "saves nothing" in outcome.out
    for name in ("stock", "transformers4"):
        assert "pruning" not in json.loads((tmp_path / name / "config.json").read_text(encoding="utf-8"))
        assert (tmp_path / name / "tokenizer.json").is_file()
    assert "**It saves nothing**" in (tmp_path / "stock" / "README.md").read_text(encoding="utf-8")
    assert zipfile.is_zipfile(tmp_path / "model.pt2")
    before = (tmp_path / "stock" / "config.json").stat().st_mtime_ns
    again = call("export", "--stock", "--model", tmp_path / "model", "--output-dir", tmp_path)
    assert again.status == 2
    assert "stock exists already; replace it with --overwrite" in again.err
    assert (tmp_path / "stock" / "config.json").stat().st_mtime_ns == before
    assert call("export", "--stock", "--overwrite", "--model", tmp_path / "model", "--output-dir", tmp_path).status == 0


def test_an_export_that_cannot_be_leaves_nothing_behind(call: Call, tmp_path: Path) -> None:
    model = make_model("bert", dtype=torch.float32)
    save_pruned(prune_(model, PruningPlan.from_pruned_heads(identify(model), {0: [1]})), tmp_path / "model")
    outcome = call("export", "--uniform-heads", "--model", tmp_path / "model", "--output-dir", tmp_path)
    assert outcome.status == 2
    assert "no config of BERT describes fewer heads of the same width" in outcome.err
    assert "--stock" in outcome.err
    assert names(tmp_path) == {"model"}


def test_an_export_without_a_format_or_a_model_is_refused(call: Call, tmp_path: Path) -> None:
    assert "Say what to export: --stock, --uniform-heads" in call("export", "--output-dir", tmp_path).err
    missing = call("export", "--onnx", "--output-dir", tmp_path)
    assert missing.status == 2
    assert "merged is no folder. Run `pruning-adapter merge` first" in missing.err
