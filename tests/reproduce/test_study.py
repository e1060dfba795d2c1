"""A tiny grid, through the command line: its files, going on after an interruption, and its pages."""

import json
import shutil
import sys
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers
from safetensors.torch import load_file, save_file

from pruning_adapter import cli
from pruning_adapter.errors import CheckpointError, DataError, TrainingError
from pruning_adapter.pipeline import Run
from pruning_adapter.reproduce import grid
from pruning_adapter.reproduce.beside import measure_cost
from pruning_adapter.reproduce.cells import ARMS, Cell, make_cells
from pruning_adapter.reproduce.grid import load_cells, run_cells
from pruning_adapter.settings import Settings
from tiny_encoder import make_texts, save_tiny_encoder


@pytest.fixture(scope="module", autouse=True)
def as_quiet_as_before() -> Generator[None]:
    verbosity = transformers.logging.get_verbosity()
    yield
    transformers.logging.set_verbosity(verbosity)
    transformers.utils.logging.enable_progress_bar()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_encoder(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def glue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SST-2 and RTE in GLUE's own layout."""
    folder = tmp_path_factory.mktemp("glue")
    for name in ("SST-2", "RTE"):
        (folder / name).mkdir()
    for file, count in (("train.tsv", 40), ("dev.tsv", 16)):
        texts = make_texts(file, count, 2)
        lines = ["sentence\tlabel", *(f"{text}\t{label}" for text, label in texts)]
        (folder / "SST-2" / file).write_text("\n".join(lines) + "\n")
        named = ("entailment", "not_entailment")
        lines = ["index\tsentence1\tsentence2\tlabel"]
        lines += [f"{n}\t{text}\tw1 w2\t{named[label]}" for n, (text, label) in enumerate(texts)]
        (folder / "RTE" / file).write_text("\n".join(lines) + "\n")
    return folder


def arguments(model: Path, glue: Path, folder: Path, *more: object) -> list[object]:
    where = ["--model", model, "--model-name", "tiny", "--data-dir", glue, "--output-dir", folder, "--threads", 1]
    return [*where, "--epochs", 1, "--train-rows", 40, "--examples", 8, *more]


def call(*given: object, code: int = 0) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["pruning-adapter", "reproduce", *map(str, given)])
        with pytest.raises(SystemExit) as end:
            cli.main()
    assert end.value.code == code


@pytest.fixture(scope="module")
def finished(model: Path, glue: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "grid"
    call(*arguments(model, glue, folder, "--tasks", "sst2,rte", "--seeds", "0"))
    return folder


def test_jobs_share_a_grid(model: Path, glue: Path, tmp_path: Path, finished: Path) -> None:
    """Each runs its share and nothing beside it; a last call writes the pages from what all left."""
    folder, shared = tmp_path / "grid", ["--tasks", "sst2", "--methods", "lora,full,prune-lora", "--seeds", "0"]
    jobs = ({"lora", "prune-lora"}, {"lora", "prune-lora", "full"})
    for job, done in enumerate(jobs):
        call(*arguments(model, glue, folder, *shared, "--share", f"{job}/2"))
        cells = {path.stem for path in (folder / "cells").iterdir()}
        assert cells == {f"default-sst2-{arm}-0" for arm in done}
        assert not (folder / "reproduction.md").exists()
    call(*arguments(model, glue, folder, *shared, "--only-report"))
    for name in cells:
        found, expected = (json.loads((each / "cells" / f"{name}.json").read_text()) for each in (folder, finished))
        assert found["predictions"] == expected["predictions"]
    assert "Not finished: cost" in (folder / "reproduction.md").read_text()


@pytest.mark.parametrize("share", ["2/2", "1", "a/b", "-1/2"])
def test_a_share_that_cannot_be_is_refused(
    model: Path, glue: Path, tmp_path: Path, share: str, capsys: pytest.CaptureFixture[str]
) -> None:
    call(*arguments(model, glue, tmp_path / "grid", "--share", share), code=2)
    assert "give the number of the job, from 0" in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "grid").exists()


def base(model: Path, glue: Path) -> Settings:
    return Settings(model=str(model), data_dir=str(glue), epochs=1, train_rows=40, examples=8)


def test_every_cell_is_a_file_and_nothing_else_stays(finished: Path) -> None:
    names = {f"default-{task}-{arm}-0.json" for task in ("sst2", "rte") for arm in ARMS}
    assert {path.name for path in (finished / "cells").iterdir()} == names
    assert {path.name for path in finished.iterdir()} == {
        *("settings.json", "commands.json", "cells", "cost", "maps"),
        *("reproduction.md", "report.html", "importance-maps.svg"),
    }


def test_the_pages_hold_every_table_and_no_path(finished: Path, model: Path) -> None:
    told = (finished / "reproduction.md").read_text()
    for title in ("Table 1", "Tables 2 and 3", "Table 4", "Figure 1"):
        assert title in told
    assert "reproduced with tiny" in told
    assert "Not finished" not in told
    page = (finished / "report.html").read_text()
    assert "<svg" in page
    assert "<script" not in page
    files = [path for path in finished.rglob("*") if path.is_file()]
    assert not [path.name for path in files if str(model.parent) in path.read_text()]


def test_the_pages_tell_of_all_that_is_there(finished: Path, model: Path, glue: Path, tmp_path: Path) -> None:
    """Whatever was asked for last, and with the calls that measured it."""
    folder = shutil.copytree(finished, tmp_path / "grid")
    before = (folder / "reproduction.md").read_text()
    call(*arguments(model, glue, folder, "--tasks", "sst2", "--seeds", "0", "--only-report"))
    assert (folder / "reproduction.md").read_text() == before
    call(
        *arguments(model, glue, folder, *("--tasks", "rte", "--seeds", "0", "--recipes", "paper", "--methods", "lora"))
    )
    told = (folder / "reproduction.md").read_text()
    for part in ("recipe default", "recipe paper", "--tasks sst2,rte --seeds 0", "--recipes paper --methods lora"):
        assert part in told
    assert "--only-report" not in told
    assert told.count("pruning-adapter reproduce") == 2


@pytest.mark.parametrize(("name", "value"), [("recipe", "of another release"), ("arm", "of another study")])
def test_the_pages_leave_out_cells_that_the_grid_does_not_know(
    finished: Path, model: Path, glue: Path, tmp_path: Path, name: str, value: str
) -> None:
    folder = shutil.copytree(finished, tmp_path / "grid")
    before = (folder / "reproduction.md").read_text()
    content = json.loads((folder / "cells" / "default-sst2-lora-0.json").read_text())
    content["cell"][name] = value
    (folder / "cells" / "another.json").write_text(json.dumps(content))
    call(*arguments(model, glue, folder, "--tasks", "sst2", "--seeds", "0", "--only-report"))
    assert (folder / "reproduction.md").read_text() == before


def test_arms_differ_in_what_they_say(finished: Path) -> None:
    def cell(arm: str) -> dict[str, Any]:
        return json.loads((finished / "cells" / f"default-sst2-{arm}-0.json").read_text())["result"]

    kept = {arm: cell(arm)["pruning"]["kept_heads"] for arm in ARMS if arm not in ("full", "lora")}
    assert kept["uniform-rank"] == kept["prune-lora"]
    assert len({str(heads) for heads in kept.values()}) == 4
    ranks = {arm: cell(arm)["pruning"]["ranks"] for arm in ("prune-lora", "uniform-rank")}
    assert len(set(ranks["prune-lora"])) == 2
    # No rank is larger than what is left of a block's heads, of 8 dimensions each.
    free = [
        rank for rank, heads in zip(ranks["uniform-rank"], kept["uniform-rank"], strict=True) if rank < 8 * len(heads)
    ]
    assert max(free) - min(free) <= 1
    trained = {arm: cell(arm)["cost"]["trainable_parameters"] for arm in ranks}
    assert 0.9 * trained["prune-lora"] < trained["uniform-rank"] <= trained["prune-lora"]


def test_what_is_done_is_not_done_again(
    finished: Path, model: Path, glue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "train", lambda _: pytest.fail("a cell was run again"))
    call(*arguments(model, glue, finished, "--tasks", "sst2,rte", "--seeds", "0"))


def test_a_grid_can_move_to_another_machine(
    finished: Path, model: Path, glue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = {name: shutil.copytree(path, tmp_path / name) for name, path in (("model", model), (glue.name, glue))}
    moved = shutil.copytree(finished, tmp_path / "moved")
    monkeypatch.setattr(Run, "train", lambda _: pytest.fail("a cell was run again"))
    call(*arguments(there["model"], there[glue.name], moved, "--tasks", "sst2,rte", "--seeds", "0"))


def test_other_settings_are_refused_in_the_same_folder(
    finished: Path, model: Path, glue: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(*arguments(model, glue, finished, "--tasks", "rte", "--keep-ratio", 0.5), code=2)
    assert "keep_ratio=None, now keep_ratio=0.5" in capsys.readouterr().err


def test_an_interrupted_grid_goes_on_to_the_same_end(
    model: Path, glue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = make_cells(recipes=["default"], tasks=["sst2"], arms=["lora", "prune-lora"], seeds=[0])
    whole = [progress.done for progress in run_cells(tmp_path / "whole", cells, base(model, glue))]
    evaluate = Run.evaluate
    monkeypatch.setattr(Run, "evaluate", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        list(run_cells(tmp_path / "halved", cells, base(model, glue)))
    assert not load_cells(tmp_path / "halved", cells)
    monkeypatch.setattr(Run, "evaluate", evaluate)
    halved = list(run_cells(tmp_path / "halved", cells, base(model, glue)))
    assert [progress.done.predictions for progress in halved] == [done.predictions for done in whole]
    assert [(progress.count, progress.of) for progress in halved] == [(1, 2), (2, 2)]
    assert halved[-1].seconds_left == 0


def test_jobs_give_what_one_process_gives(model: Path, glue: Path, tmp_path: Path) -> None:
    cells = make_cells(recipes=["default"], tasks=["sst2"], arms=["lora", "random"], seeds=[0])
    list(run_cells(tmp_path / "one", cells, base(model, glue)))
    list(run_cells(tmp_path / "two", cells, base(model, glue), jobs=2))
    one, two = (load_cells(tmp_path / name, cells) for name in ("one", "two"))
    assert [done.cell for done in one] == [done.cell for done in two] == list(cells)
    assert [done.predictions for done in one] == [done.predictions for done in two]


def test_cells_that_begin_alike_train_the_dense_model_once(
    model: Path, glue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = ("prune-lora", "random", "uniform-rank")
    cells = make_cells(recipes=["default"], tasks=["sst2"], arms=arms, seeds=[0, 1])
    alone = [done.done for cell in cells for done in run_cells(tmp_path / cell.name, [cell], base(model, glue))]
    trained: list[Path] = []
    train_start = Run._train_start
    monkeypatch.setattr(
        Run, "_train_start", lambda run, *given: (trained.append(run.folder), train_start(run, *given))[-1]
    )
    together = [progress.done for progress in run_cells(tmp_path / "grid", cells, base(model, glue))]
    assert [path.name for path in trained] == ["default-sst2-prune-lora-0", "default-sst2-prune-lora-1"]
    assert [(done.cell, done.predictions, done.result["history"]) for done in together] == [
        (done.cell, done.predictions, done.result["history"]) for done in alone
    ]
    assert not (tmp_path / "grid" / "work").exists()


def test_a_taught_cell_learns_from_dense_lora_of_its_own_seed(
    model: Path, glue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = make_cells(recipes=["default"], tasks=["sst2"], arms=["prune-lora"], seeds=[0, 1])
    taught = [replace(cell, arm=arm, taught=True) for cell in plain for arm in ("prune-lora", "random")]
    said: list[tuple[str, str | None]] = []
    begin = Run.__init__
    monkeypatch.setattr(
        Run,
        "__init__",
        lambda run, settings, folder, **more: (
            said.append((folder.name, settings.teacher)),
            begin(run, settings, folder, **more),
        )[-1],
    )
    found = [progress.done for progress in run_cells(tmp_path / "grid", taught, base(model, glue))]
    alone = [progress.done for progress in run_cells(tmp_path / "plain", plain, base(model, glue))]
    teachers = {name: teacher for name, teacher in said if teacher}
    assert {name: Path(teacher).parent.name for name, teacher in teachers.items()} == {
        done.cell.name: f"default-sst2-lora-{done.cell.seed}" for done in found
    }
    assert [done.cell for done in load_cells(tmp_path / "grid", taught)] == taught
    histories = [[done.result["history"] for done in each] for each in (found[::2], alone)]
    assert all(taught != untaught for taught, untaught in zip(*histories, strict=True))
    assert not (tmp_path / "grid" / "work").exists()


def test_a_damaged_cell_is_named(finished: Path, tmp_path: Path) -> None:
    cell = Cell(recipe="default", task="sst2", arm="lora", seed=0)
    content = json.loads((finished / "cells" / f"{cell.name}.json").read_text())
    (tmp_path / "cells").mkdir()
    path = tmp_path / "cells" / f"{cell.name}.json"
    path.write_text(json.dumps({name: value for name, value in content.items() if name != "labels"}))
    with pytest.raises(CheckpointError, match="is not a complete cell.*labels"):  # noqa: RUF043
        load_cells(tmp_path, [cell])
    path.write_text(json.dumps(content | {"cell": content["cell"] | {"seed": 1}}))
    with pytest.raises(CheckpointError, match="holds another cell than its name says"):
        load_cells(tmp_path, [cell])


def test_seeds_that_are_no_numbers_are_one_error(
    model: Path, glue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(*arguments(model, glue, tmp_path / "grid", "--seeds", "0,a"), code=2)
    assert "--seeds is '0,a'; give whole numbers" in capsys.readouterr().err
    assert not (tmp_path / "grid").exists()


def test_what_is_named_twice_is_run_once() -> None:
    cells = make_cells(recipes=["default"], tasks=["rte", "RTE"], arms=["lora"], seeds=[0, 0])
    assert [cell.name for cell in cells] == ["default-rte-lora-0"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--tasks", "sst2,rtee"], "There is no GLUE task 'rtee'"),
        (["--seeds", ""], "no seeds were named"),
        (["--methods", ","], "no methods were named"),
        (["--share", "0/2", "--only-report"], "--share runs cells and writes no pages"),
    ],
)
def test_what_cannot_be_a_grid_is_refused_at_once(
    model: Path, glue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[str], message: str
) -> None:
    call(*arguments(model, glue, tmp_path / "grid", *given), code=2)
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "grid").exists()


@pytest.mark.parametrize(
    ("name", "was", "now"), [("lora_rank", 4, "8"), ("learning_rate", 2e-3, "0.001"), ("prune_after", 0.4, "0.2")]
)
def test_cells_of_another_recipe_of_the_same_name_are_refused(
    finished: Path, model: Path, glue: Path, tmp_path: Path, name: str, was: float, now: str
) -> None:
    """As an earlier release would have left them; a setting that they do not tell of may be any."""
    folder = Path(shutil.copytree(finished, tmp_path / "grid"))
    cell = Cell(recipe="default", task="rte", arm="prune-lora", seed=0)
    path = folder / "cells" / f"{cell.name}.json"
    content = json.loads(path.read_text())
    recipe = content["result"]["recipe"]
    path.write_text(json.dumps(content | {"result": content["result"] | {"recipe": recipe | {name: was}}}))
    with pytest.raises(CheckpointError, match=rf"{cell.name} was run with {name} {was}; .* now has {now}\."):
        list(run_cells(folder, [cell], base(model, glue)))
    told = {key: value for key, value in recipe.items() if key != name}
    path.write_text(json.dumps(content | {"result": content["result"] | {"recipe": told}}))
    assert not list(run_cells(folder, [cell], base(model, glue)))


def test_a_cost_of_another_recipe_of_the_same_name_is_refused(
    finished: Path, model: Path, glue: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "grid"))
    path = folder / "cost" / "default-rte.json"
    content = json.loads(path.read_text())
    assert measure_cost(folder, "default", "rte", base(model, glue)) == content
    path.write_text(json.dumps(content | {"followed": content["followed"] | {"lora_rank": 2}}))
    with pytest.raises(CheckpointError, match=r"default-rte.json was measured by another recipe"):
        measure_cost(folder, "default", "rte", base(model, glue))


def test_another_model_of_the_same_name_is_refused(finished: Path, model: Path, glue: Path, tmp_path: Path) -> None:
    """Before anything is trained: one table would mean both."""
    folder = Path(shutil.copytree(finished, tmp_path / "grid"))
    other = Path(shutil.copytree(model, tmp_path / "other"))
    weights = load_file(other / "model.safetensors")
    name = next(name for name in weights if name.endswith("query.weight"))
    save_file(weights | {name: -weights[name]}, other / "model.safetensors", metadata={"format": "pt"})
    cells = [Cell(recipe="default", task="rte", arm="prune-lora", seed=seed) for seed in (0, 7)]
    with pytest.raises(CheckpointError, match=r"was run with another model than .*Name another folder"):
        next(iter(run_cells(folder, cells, replace(base(model, glue), model=str(other)))))
    # What is done is told without it.
    assert not list(run_cells(folder, cells[:1], replace(base(model, glue), model=str(other))))


def test_a_cell_that_was_interrupted_does_not_go_on_by_other_settings(
    model: Path, glue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    first, second = (
        Cell(recipe="default", task="sst2", arm="mine", seed=0, asked=(("keep_ratio", share), ("scorer", scorer)))
        for share, scorer in ((0.25, "random"), (0.75, "obs"))
    )
    with monkeypatch.context() as patch:
        patch.setattr(Run, "evaluate", stop)
        with pytest.raises(KeyboardInterrupt):
            list(run_cells(tmp_path, [first], base(model, glue)))
    assert (tmp_path / "work" / first.name / "plan.json").exists()
    (progress,) = run_cells(tmp_path, [second], base(model, glue))
    assert (progress.done.result["pruning"]["rule"]["keep_ratio"], progress.done.result["scorer"]) == (0.75, "obs")


def test_a_failure_leaves_a_page_and_the_work_of_other_cells(
    model: Path, glue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(run: Run) -> None:
        if run.method == "prune-lora":
            raise TrainingError("no luck")
        train(run)

    train, folder = Run.train, tmp_path / "grid"
    monkeypatch.setattr(Run, "train", fail)
    begun = arguments(model, glue, folder, "--tasks", "rte", "--seeds", "0")
    call(*begun, "--methods", "lora,prune-lora", code=2)
    assert "no luck" in capsys.readouterr().err
    assert "Not finished: 1 of 2 cells" in (folder / "reproduction.md").read_text()
    (folder / "work" / "default-mnli-lora-0").mkdir(parents=True)
    call(*begun, "--methods", "lora")
    assert (folder / "work" / "default-mnli-lora-0").is_dir()


def test_an_unknown_arm_is_refused() -> None:
    with pytest.raises(DataError, match="method 'best' is unknown; there are full, lora"):
        make_cells(recipes=["default"], tasks=["rte"], arms=["best"], seeds=[0])


def test_what_is_left_is_guessed_from_cells_like_it() -> None:
    def cell(task: str, arm: str, seed: int) -> Cell:
        return Cell(recipe="default", task=task, arm=arm, seed=seed)

    times = [(cell("rte", "lora", 0), 10.0), (cell("rte", "full", 0), 20.0), (cell("mnli", "lora", 0), 90.0)]
    assert grid._expected(cell("rte", "lora", 1), times) == 10.0
    assert grid._expected(cell("rte", "random", 1), times) == 15.0
    assert grid._expected(cell("sst2", "random", 1), times) == 40.0
    assert grid._expected(cell("rte", "lora", 0), []) == 0.0
