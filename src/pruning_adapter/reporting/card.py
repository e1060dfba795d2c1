"""The model card: what a result says about a model, as the README.md beside its weights that the Hub reads."""

import logging
import re
from pathlib import Path
from typing import Any

from pruning_adapter.errors import ImportanceError, OutputError
from pruning_adapter.evaluation.result import Result
from pruning_adapter.reporting.card_text import Kind, block_table, card_content, hub_id, make_title, task_name
from pruning_adapter.reporting.pruning_map import draw_pruning
from pruning_adapter.reporting.template import fill_template
from pruning_adapter.storage import stays_in, write_text

__all__ = ["CARD", "PICTURE", "write_card", "write_cards"]

_LOGGER = logging.getLogger(__name__)

CARD, PICTURE = "README.md", "pruning.png"
# As https://huggingface.co/metrics calls them, where that differs.
METRICS = {"matthews": "matthews_correlation", "pearson": "pearsonr", "spearman": "spearmanr"}
TASK = "text-classification"
"""All that the pipeline trains: on the Hub regression goes by this name, too."""


def write_cards(result: Result, folder: Path) -> None:
    """Write the cards of what the run in `folder` made into merged/ and adapter/; not through a link out of it."""
    base = "base" if (folder / "base").is_dir() else None
    kinds: tuple[Kind, ...] = ("merged", "adapter")
    for kind in kinds:
        if not stays_in(folder / kind, folder):
            _LOGGER.warning("%s is a link out of %s, so no card is written into it", folder / kind, folder)
        elif (folder / kind).is_dir():
            write_card(result, folder / kind, kind=kind, place=kind, base=base)


def write_card(
    result: Result, folder: Path, *, kind: Kind, place: str, base: str | None = None, license_id: str | None = None
) -> None:
    """Write README.md, and pruning.png where something was pruned and matplotlib is there, into `folder`.

    Args:
        result: what was measured.
        folder: of the model.
        kind: "merged", or "adapter" for what is loaded onto a base.
        place: what to load it by: a hub id, or a folder's name.
        base: folder of the base that an adapter belongs to, where that is not the model of `result` itself; inside the
            repository if `place` is a hub id.
        license_id: in place of what the base's own files say.

    Raises:
        OutputError: Jinja2 is missing, or the files cannot be written.
    """
    picture = _draw(result, folder / PICTURE)
    body = fill_template(
        "card.md.j2", card_content(result, kind, place, base, picture=picture), purpose=f"write the card of {place}"
    )
    data = _metadata(result, kind, place, license_id)
    body = re.sub(r"\n{3,}", "\n\n", body).strip()
    write_text(folder / CARD, f"---\n{data.to_yaml()}\n---\n\n{body}\n")


def _draw(result: Result, path: Path) -> bool:
    if result.pruning is None or not block_table(result.pruning):
        return False
    try:
        draw_pruning(result.pruning, path)
    except ImportanceError:
        # Only neurons were scored, and none went.
        return False
    except OutputError as error:
        _LOGGER.warning("the card has no picture: %s", error)
        return False
    return True


# --- metadata -------------------------------------------------------------------------------------------------------


def _metadata(result: Result, kind: Kind, place: str, license_id: str | None) -> Any:
    from huggingface_hub import EvalResult, ModelCardData

    model, task = result.model, result.task
    dataset, splits = task.get("dataset"), task.get("splits") or {}
    terms = {key: model.get(key) or None for key in ("license", "license_name", "license_link")}
    if license_id is not None:
        terms = {"license": license_id}
    name = task_name(task)
    found = [
        EvalResult(
            task_type=TASK,
            dataset_type=str(dataset or name),
            dataset_name=f"GLUE {name}" if dataset else name,
            dataset_config=name if dataset else None,
            dataset_split=splits.get(split, split),
            metric_type=METRICS.get(metric, metric),
            metric_name=metric,
            metric_value=measure.value,
            # The format has no field for an interval; this one is kept as it is and shown nowhere as a result.
            metric_args={"confidence_level": 0.95, "low": measure.low, "high": measure.high},
        )
        for split, quality in result.quality.items()
        for metric, measure in quality.metrics.items()
    ]
    base = hub_id(result)
    relation = "adapter" if kind == "adapter" else "finetune"
    tags = ["pruning-adapter"]
    if result.pruning is not None:
        tags += ["pruning", "structured-pruning"]
    if result.method != "full":
        tags.append("lora")
    return ModelCardData(
        language=model.get("language"),
        license=terms.get("license"),
        license_name=terms.get("license_name"),
        license_link=terms.get("license_link"),
        library_name=_library(result, kind),
        pipeline_tag=TASK,
        base_model=base,
        base_model_relation=None if base is None else relation,
        datasets=None if dataset is None else [str(dataset)],
        metrics=list(dict.fromkeys(each.metric_type for each in found)),
        tags=tags,
        model_name=make_title(result, kind, place),
        eval_results=found,
    )


def _library(result: Result, kind: Kind) -> str:
    # The Hub shows for "transformers" how to load a model without our import, which a pruned one refuses.
    if kind == "adapter":
        return "peft"
    return "transformers" if result.pruning is None else "pruning-adapter"
