"""What a model card says in words, tables and code."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from pruning_adapter.architectures.shapes import public_name
from pruning_adapter.evaluation.result import Measure, Result
from pruning_adapter.reporting.numbers import as_number, is_rate
from pruning_adapter.reporting.places import without_home, without_places
from pruning_adapter.reporting.wording import CORRECTIONS, METHODS, SCORERS, pruned_kinds, row_name, say_rule

__all__ = ["Kind", "block_table", "card_content", "hub_id", "make_title", "task_name"]

Kind = Literal["merged", "adapter"]
PAPER = "https://arxiv.org/abs/2303.14704"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def card_content(result: Result, kind: Kind, place: str, base: str | None, *, picture: bool) -> dict[str, Any]:
    """The variables of the template; see `write_card`."""
    pruning = result.pruning
    columns, sizes = _sizes(result.cost)
    return {
        "title": _plain(make_title(result, kind, place)),
        "opening": _opening(result, kind),
        "notes": [_plain(without_home(note)) for note in result.notes],
        "columns": columns,
        "sizes": sizes,
        "measured_on": _measured_on(result),
        "quality": [_quality_row(name, result, metric) for name in result.quality for metric in _metrics(result, name)],
        "quality_of": _quality_of(result, kind),
        "uses": _uses(result, kind, place, base),
        "revision": (
            'To pin the weights, pass `revision="COMMIT"` to each call that names it.' if "/" in place else ""
        ),
        "blocks": [] if pruning is None else block_table(pruning),
        "pruned": "" if pruning is None else _pruned(result, pruning),
        "picture": picture,
        "picture_says": "" if pruning is None else _picture_says(pruning),
        "made": _made(result),
        "command": without_places(without_home(result.command)).replace("```", ""),
        "versions": _listed({"Versions": result.versions}),
    }


def make_title(result: Result, kind: Kind, place: str) -> str:
    """The repository's name, or for a folder what the model is."""
    if "/" in place:
        return place.rpartition("/")[2]
    short = public_name(str(result.model.get("id", "model"))).rpartition("/")[2]
    how = {"full": "fine-tuned", "lora": "LoRA", "prune-lora": "pruned"}.get(result.method, result.method)
    return f"{short}-{task_name(result.task)}-{how}{'-adapter' if kind == 'adapter' else ''}"


def task_name(task: Mapping[str, Any]) -> str:
    """The task as its result calls it."""
    return str(task.get("name", "task"))


def hub_id(result: Result) -> str | None:
    """The base's id on the Hub; None for a folder."""
    name = str(result.model.get("id", ""))
    known = result.model.get("revision") is not None or HUB_ID.fullmatch(name)
    return name if known else None


def _opening(result: Result, kind: Kind) -> str:
    base, pruning = hub_id(result), result.pruning
    name = _plain(public_name(str(result.model.get("id", "a model"))))
    named = f"[{name}](https://huggingface.co/{base})" if base else f"`{name}`"
    labels = [f"`{_plain(label)}`" for label in cast("Sequence[Any]", result.task.get("labels") or ())]
    told = f"labels {', '.join(labels)}" if labels else "a regression"
    source = "GLUE" if result.task.get("dataset") else "a data set of the maker's own, not on the Hub"
    task = f"`{_plain(task_name(result.task))}` ({source}; {told})"
    how = METHODS.get(result.method, result.method)
    if pruning is None:
        merged = " and merged" if result.method == "lora" and kind == "merged" else ""
        return f"{named}, trained by {how} on {task}{merged}."
    how, what = f"[{how}]({PAPER})", pruned_kinds(pruning)
    if not _units_went(pruning):
        return f"{named}, trained by {how} on {task}. The plan keeps all units, so nothing was removed."
    if kind == "adapter":
        return (
            f"An adapter for {named}, trained by {how} on {task}. Together with its base it makes a smaller model: "
            f"{what} are missing from the base's matrices, as the plan inside the adapter says."
        )
    return (
        f"{named}, trained by {how} on {task} and merged. {what.capitalize()} were removed from its matrices, so this "
        "is a smaller model of the same kind, with no masks and no adapter."
    )


def _units_went(pruning: Mapping[str, Any]) -> bool:
    kept = sum(len(row) for row in cast("Sequence[Sequence[int]]", pruning.get("kept_heads") or ()))
    left = sum(cast("Sequence[int]", pruning.get("neurons_kept") or ()))
    dense = sum(pruning.get("dense_heads") or ()), sum(pruning.get("dense_neurons") or ())
    return (kept, left) != dense


def _plain(text: Any) -> str:
    """Text that Markdown must take as it is, also within a table or a code span."""
    return re.sub(r"[`|<>\[\]\n\r]", " ", str(text)).strip()


def _sizes(cost: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    rows: list[list[str]] = []
    for label, key, show in (
        ("parameters", "parameters", _count),
        (f"multiply-accumulates for {cost.get('length')} tokens", "macs", _count),
        ("weights", "weight_bytes", _megabytes),
        ("peak memory of inference", "peak_inference_bytes", _megabytes),
    ):
        ours, dense = as_number(cost.get(key)), as_number(cost.get(f"dense_{key}"))
        if ours is not None:
            share = f" ({100 * ours / dense:.1f} %)" if dense else ""
            rows.append([label, show(ours) + share, "" if dense is None else show(dense)])
    if "latency_ratio" in cost:
        rows.append(["time of inference, ratio", _ratio(cost["latency_ratio"]), "1"])
    return ["this model", "dense model"], rows


def _count(number: float) -> str:
    return f"{int(number):,}"


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.1f} MB"


def _ratio(ratio: Mapping[str, float]) -> str:
    spread = f" (quartiles {ratio['q1']:.2f} to {ratio['q3']:.2f})" if ratio["q1"] < ratio["q3"] else ""
    return f"{ratio['median']:.2f}{spread}"


def _measured_on(result: Result) -> str:
    cost = result.cost
    if "latency_ratio" not in cost:
        return ""
    machine = ", ".join(
        f"{value} thread{'' if value == 1 else 's'}" if key == "threads" else _plain(value)
        for key, value in without_home(dict(result.machine)).items()
    )
    return (
        f"Time and peak memory at batches of {cost['batch']} x {cost['length']} tokens in eager torch, on {machine}; "
        "time was measured in turn with the dense model's. Measure it anew on your machine."
    )


def _metrics(result: Result, name: str) -> list[str]:
    return list(result.quality[name].metrics)


def _quality_row(name: str, result: Result, metric: str) -> list[str]:
    quality = result.quality[name]
    measure = quality.metrics[metric]
    majority = "" if quality.majority_rate is None or metric != "accuracy" else _value(metric, quality.majority_rate)
    return [
        _plain(name),
        _plain(metric),
        _value(metric, measure.value),
        _interval(metric, measure),
        majority,
        _count(quality.examples),
    ]


def _value(metric: str, value: float) -> str:
    return f"{100 * value:.1f} %" if is_rate(metric) else f"{value:.3f}"


def _interval(metric: str, measure: Measure) -> str:
    return f"{_value(metric, measure.low).removesuffix(' %')} to {_value(metric, measure.high)}"


def _quality_of(result: Result, kind: Kind) -> str:
    whole = "Of the merged model, as it loads from disk" if result.method != "full" else "As it loads from disk"
    same = "; the adapter on its base computes the same up to rounding" if kind == "adapter" else ""
    beside = " How well the dense model does when it is trained the same was not measured." if result.pruning else ""
    return (
        f"{whole}{same}. Intervals speak of the validation set's size, not of other seeds: this is one run, seed "
        f"{result.seed}.{beside}"
    )


def _pruned(result: Result, pruning: Mapping[str, Any]) -> str:
    said = [f"{pruned_kinds(pruning).capitalize()} to keep were {SCORERS.get(result.scorer or '', 'chosen')}."]
    rule = say_rule(cast("Mapping[str, Any]", pruning.get("rule") or {}))
    correction = CORRECTIONS.get(str(pruning.get("reconstruct")))
    said += [f"{sentence}." for sentence in (rule, correction) if sentence]
    roles = [str(role) for role in cast("Sequence[Any]", pruning.get("rank_roles") or ())]
    if roles:
        said.append(f"Ranks are those of LoRA on {', '.join(roles)}.")
    return " ".join(said).replace("\N{NO-BREAK SPACE}", " ")


def _picture_says(pruning: Mapping[str, Any]) -> str:
    said = ["importance of every head by block, with a cross where it was pruned"] if pruning.get("importance") else []
    if "neurons" in pruned_kinds(pruning):
        said.append("neurons kept by block")
    return "; ".join(said).capitalize()


def block_table(pruning: Mapping[str, Any]) -> list[list[str]]:
    """A head line, and for every attention what is left of it and of the feed-forward beside it."""
    kept = [len(row) for row in cast("Sequence[Sequence[int]]", pruning.get("kept_heads") or ())]
    heads = list(pruning.get("dense_heads") or ())
    left, neurons = list(pruning.get("neurons_kept") or ()), list(pruning.get("dense_neurons") or ())
    beside = {row: place for place, row in enumerate(pruning.get("beside") or range(len(left)))}
    ranks, down = list(pruning.get("ranks") or ()), list(pruning.get("feed_forward_ranks") or ())
    columns: list[tuple[str, dict[int, str]]] = [
        ("heads kept", {row: f"{count} of {heads[row]}" for row, count in enumerate(kept) if row < len(heads)}),
        ("neurons kept", {row: f"{left[place]:,} of {neurons[place]:,}" for row, place in beside.items()}),
        ("rank, attention", {row: str(rank) for row, rank in enumerate(ranks)}),
        ("rank, feed-forward", {row: str(down[place]) for row, place in beside.items()} if any(down) else {}),
    ]
    columns = [column for column in columns if column[1]]
    rows = max((max(column) + 1 for _, column in columns), default=0)
    first = row_name(pruning)
    lines = [[str(row), *(column.get(row, "") for _, column in columns)] for row in range(rows)]
    return [[first, *(name for name, _ in columns)], *lines] if rows else []


def _made(result: Result) -> str:
    recipe, cost = result.recipe, result.cost
    said = [f"{METHODS.get(result.method, result.method)} on {result.task.get('train_examples', 0):,} examples"]
    for text, key in (
        ("recipe `{}`", "name"),
        ("{} epochs", "epochs"),
        ("learning rate {}", "learning_rate"),
        ("batches of {}", "batch_size"),
        ("{}", "precision"),
    ):
        if recipe.get(key) is not None:
            said.append(text.format(_plain(without_home(recipe[key]))))
    said.append(f"seed {result.seed}")
    text = ", ".join(said) + "."
    if recipe.get("prune_after"):
        text += f" Units went after {100 * recipe['prune_after']:g} % of the steps."
    if recipe.get("teacher"):
        text += f" The answers of `{_plain(without_home(recipe['teacher']))}` were learnt from too."
    if "trainable_parameters" in cost:
        text += f" {_count(cost['trainable_parameters'])} parameters were trained."
    for what in ("time", "memory"):
        if f"training_{what}_ratio" in cost:
            text += f" {what.capitalize()} of a training step beside LoRA on the dense model: "
            text += f"{_ratio(cost[f'training_{what}_ratio'])}."
    return text


def _listed(values: Mapping[str, Mapping[str, Any]]) -> str:
    return " ".join(
        f"{title}: {', '.join(f'{_plain(key)} {_plain(value)}' for key, value in without_home(dict(named)).items())}."
        for title, named in values.items()
        if named
    )


# --- how to load it -------------------------------------------------------------------------------------------------


def _uses(result: Result, kind: Kind, place: str, base: str | None) -> list[tuple[str, str]]:
    if kind == "adapter":
        return [_use_of_adapter(result, place, base)]
    auto = (
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n\n"
        f'model = AutoModelForSequenceClassification.from_pretrained("{place}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{place}")'
    )
    if result.pruning is None:
        return [("With Transformers:", auto)]
    ours = (
        "import pruning_adapter as pa\nfrom transformers import AutoTokenizer\n\n"
        f'model = pa.load_pruned("{place}")\ntokenizer = AutoTokenizer.from_pretrained("{place}")'
    )
    return [
        (
            "With the Python package pruning-adapter, which chooses the class and loads only safetensors:",
            ours,
        ),
        (
            "Or by Transformers' own classes and pipelines, once `pruning_adapter` is imported:",
            f"import pruning_adapter  # teaches Transformers to build models with fewer units\n{auto}",
        ),
    ]


def _use_of_adapter(result: Result, place: str, base: str | None) -> tuple[str, str]:
    imports = ["from peft import PeftModel"]
    classes, found = len(result.task.get("labels") or ()) or 1, hub_id(result)
    if result.pruning is not None:
        imports.insert(0, "import pruning_adapter as pa  # teaches PEFT this kind of adapter")
    if base is not None and result.pruning is not None:
        load = f'pa.load_pruned("{place}", subfolder="{base}")' if "/" in place else f'pa.load_pruned("{base}")'
        text = (
            "The adapter belongs to the base that the run made, because the dense model trained for a while or was "
            f"corrected before the adapter was: it lies beside it, in `{base}/`."
        )
    else:
        imports.append("from transformers import AutoModelForSequenceClassification")
        commit = result.model.get("revision")
        at = f', revision="{commit}"' if commit else ""
        name = found or public_name(str(result.model.get("id", "the base")))
        # The base may have a head of its own, of another size; the adapter brings the trained one.
        load = (
            f'AutoModelForSequenceClassification.from_pretrained(\n    "{name}"{at}, num_labels={classes}, '
            "ignore_mismatched_sizes=True\n)"
        )
        text = "The adapter is loaded onto its base" + (
            ", which it prunes first, after a check that it is the one it was trained on:" if result.pruning else ":"
        )
    imports[-1] = imports[-1].replace("Classification", "Classification, AutoTokenizer")
    if "AutoTokenizer" not in imports[-1]:
        imports.append("from transformers import AutoTokenizer")
    lines = [f"base = {load}", f'model = PeftModel.from_pretrained(base, "{place}")']
    return text, "\n".join([*imports, "", *lines, f'tokenizer = AutoTokenizer.from_pretrained("{place}")'])
