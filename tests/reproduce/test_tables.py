"""Tables by hand: means, intervals, paired tests, and what has no number."""

from typing import Any

import pytest

from pruning_adapter.reproduce.cells import Cell
from pruning_adapter.reproduce.grid import Done
from pruning_adapter.reproduce.maps import correlation_table, normalized_maps
from pruning_adapter.reproduce.tables import accuracy_tables, difference_tables, step_table, time_to_accuracy_table


def done(
    arm: str,
    seed: int,
    right: list[int],
    *,
    task: str = "rte",
    curve: list[float] | None = None,
    stuck: bool = False,
    metric: str = "accuracy",
    stop: float | None = None,
) -> Done:
    """A cell whose answers are right where `right` is 1; all labels are 1; `stop` is measured after 0.6 epochs."""
    value = sum(right) / len(right)
    quality = {"metrics": {metric: {"value": value}}, "at_majority": stuck, "majority_rate": 0.527}
    history = [{f"eval_{metric}": each, "epoch": float(n)} for n, each in enumerate(curve or [value], 1)]
    history = [*([] if stop is None else [{f"eval_{metric}": stop, "epoch": 0.6}]), *history]
    result: dict[str, Any] = {"quality": {"validation": quality}, "history": history}
    cell = Cell(recipe="default", task=task, arm=arm, seed=seed)
    return Done(
        cell=cell,
        result=result,
        predictions={"validation": [float(each) for each in right]},
        labels={"validation": [1.0] * len(right)},
        seconds=1.0,
    )


def row(cells: list[Done], name: str) -> str:
    (table,) = accuracy_tables(cells)
    return next(cells[1] for cells in table.rows if cells[0] == name)


def test_mean_and_interval_over_seeds() -> None:
    """50 and 100 per cent: the mean is 75, the interval t(0.975, 1) * 35.355 / sqrt(2) = 317.7."""
    cells = [done("lora", 0, [1, 0]), done("lora", 1, [1, 1]), done("full", 1, [1, 1])]
    assert row(cells, "lora") == "75.0 ± 317.7"
    assert row(cells, "full") == "100.0 [1] (p 1.00)"
    assert row(cells, "lora, paper (BERT-base)") == "60.6"
    assert row(cells, "larger class") == "52.7"


def test_one_seed_has_no_interval_and_a_stuck_run_is_marked() -> None:
    assert row([done("full", 0, [1, 0], stuck=True)], "full") == "50.0 †"


@pytest.mark.parametrize(("ours", "chance"), [([1] * 8, "0.008"), ([1, 1, 1, 1, 0, 0, 0, 0], "1.00")])
def test_the_difference_to_lora_is_tested_on_the_same_examples(ours: list[int], chance: str) -> None:
    """LoRA is right nowhere: all signs agree in 2 of 2 ** 8 ways. Where both answer alike, all is chance."""
    theirs = [0] * 8 if chance != "1.00" else ours
    assert row([done("lora", 0, theirs), done("random", 0, ours)], "random").endswith(f"(p {chance})")


def test_only_seeds_that_both_have_are_compared() -> None:
    cells = [done("lora", 0, [1] * 8), done("random", 0, [1] * 8), done("random", 1, [0] * 8)]
    assert row(cells, "random").endswith("(p 1.00)")


def test_differences_are_taken_seed_by_seed() -> None:
    """+50 and +0 points on RTE: mean 25, interval t(0.975, 1) * 35.355 / sqrt(2) = 317.7; both signs are as far."""
    cells = [
        *(done("lora", seed, [0, 1]) for seed in (0, 1)),
        *(done("prune-lora", seed, [1 - seed, 1]) for seed in (0, 1)),
        done("random", 2, [1, 1]),
    ]
    (table,) = difference_tables(cells)
    assert table.columns == ("prune-lora", "rte", "mean of tasks")
    assert table.rows == (("minus lora", "+25.0 ± 317.7 (p 1.00)", "+25.0 ± 317.7 (p 1.00)"),)


def test_the_mean_of_tasks_needs_the_seed_of_every_task() -> None:
    cells = [
        *(done(arm, 0, [1, int(arm == "prune-lora")]) for arm in ("lora", "prune-lora")),
        *(done(arm, seed, [1, int(arm == "lora")], task="sst2") for arm in ("lora", "prune-lora") for seed in (0, 1)),
        done("full", 0, [1, 1], task="sst2"),
    ]
    (table,) = difference_tables(cells)
    assert [row[-1] for row in table.rows] == ["", "+0.0 (p 1.00)"]
    assert table.rows[1][1:3] == ("+50.0 (p 1.00)", "-50.0 ± 0.0 (p 1.00)")


def test_nothing_is_compared_without_prune_lora() -> None:
    assert difference_tables([done("lora", 0, [1]), done("random", 0, [0])]) == []


def cost(time: float) -> dict[str, Any]:
    ratio = {"median": time, "q1": time, "q3": time}
    one = {"training_time_ratio": ratio, "training_memory_ratio": ratio}
    stock = {name: {"median": 1.0, "q1": 1.0, "q3": 1.0} for name in one}
    where = {"machine": {"processor": "abacus", "threads": 1}, "versions": {"torch": "2"}}
    return {"recipe": "default", "task": "rte", "length": 64, "full": one, "lora": stock, "prune-lora": one, **where}


def test_time_to_accuracy_counts_in_loras_epochs() -> None:
    """LoRA ends at 0.8. Ours is there after 2 of its epochs, each half as long; full fine-tuning in one run of two."""
    cells = [
        done("lora", 0, [1], curve=[0.5, 0.795, 0.8]),
        done("prune-lora", 0, [1], curve=[0.5, 0.79, 0.6]),
        done("full", 0, [1], curve=[0.5, 0.6]),
        done("full", 1, [1], curve=[0.9, 0.6]),
    ]
    table = time_to_accuracy_table(cells, [cost(0.5)])
    assert table.rows == (("default, rte", "0.5 (1 of 2 never)", "2.0", "1.0"),)


def test_training_that_stops_to_prune_is_timed_in_its_parts() -> None:
    """Measured at 0.6 of 3 epochs too, which is no epoch: there after 2, of which 0.6 took 1 each, and 1.4 half."""
    cells = [
        done("lora", 0, [1], curve=[0.5, 0.795, 0.8]),
        done("prune-lora", 0, [1], curve=[0.5, 0.79, 0.6], stop=0.9),
    ]
    parts = [{"share": 0.2, "time": 1.0}, {"share": 0.8, "time": 0.5}]
    measured = cost(0.6)
    measured["prune-lora"] = measured["prune-lora"] | {"parts": parts}
    table = time_to_accuracy_table(cells, [measured])
    assert table.rows == (("default, rte", "", "2.0", "1.3"),)


def test_accuracy_of_the_larger_class_is_no_matthews_correlation() -> None:
    """LoRA's correlation of 0.4 is something to get to, though the larger class makes up 53 % of the examples."""
    cells = [done("lora", 0, [1], task="rte", metric="matthews", curve=[0.4])]
    assert row(cells, "larger class") == ""
    assert time_to_accuracy_table(cells, [cost(0.5)]).rows == (("default, rte", "", "1.0", ""),)


def test_there_is_no_time_to_what_was_not_learnt() -> None:
    """LoRA ends at the larger class's rate; and a method that was not run has no number."""
    cells = [done("lora", 0, [1], curve=[0.5, 0.53]), done("full", 0, [1], curve=[0.9])]
    assert time_to_accuracy_table(cells, [cost(0.5)]).rows == ()
    cells = [done("lora", 0, [1], curve=[0.8]), done("full", 0, [1], curve=[0.9])]
    assert time_to_accuracy_table(cells, [cost(0.5)]).rows == (("default, rte", "0.5", "1.0", ""),)


def test_the_papers_own_ratios_stand_below() -> None:
    table = step_table([cost(0.5)])
    assert table.rows[0][0] == "default, rte (64 tokens)"
    assert table.rows[-1] == ("mnli, paper", "1.36", "1.00", "0.89", "", "", "")
    assert table.note.endswith("Measured on abacus, 1 thread, torch 2.")


def test_correlations_between_tasks_and_within() -> None:
    up, down = [[0.1, 0.2, 0.3]], [[0.3, 0.2, 0.1]]
    maps = [
        {"task": "a", "examples": [8, 8], "heads": [up, up], "agreement": 1.0},
        {"task": "b", "examples": [8, 8], "heads": [up, down], "agreement": -1.0},
    ]
    table = correlation_table(maps)
    assert table.rows == (("a", "**1.00**", "0.00"), ("b", "0.00", "**-1.00**"))
    assert normalized_maps(maps)["a"] == [pytest.approx([0.0, 0.5, 1.0])]
