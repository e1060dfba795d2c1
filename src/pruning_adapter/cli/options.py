"""The options that several verbs share. Their help is written here once; this module must stay quick to import."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "Accumulate",
    "AllowEmptyBlocks",
    "Bf16",
    "DataDir",
    "Demo",
    "Dtype",
    "Epochs",
    "Examples",
    "Grouping",
    "HighRank",
    "KeepBytes",
    "KeepHeads",
    "KeepLatency",
    "KeepMacs",
    "KeepParams",
    "KeepRatio",
    "LabelColumn",
    "LatencyTable",
    "LearningRate",
    "Length",
    "LowRank",
    "MethodName",
    "ModelName",
    "MultipleOf",
    "Normalization",
    "Order",
    "OutputDir",
    "Overwrite",
    "PaddingFree",
    "Preset",
    "RankBudget",
    "RecipeName",
    "Reconstruct",
    "Reduction",
    "Revision",
    "ScorerName",
    "Seed",
    "StopWhenStable",
    "Target",
    "Task",
    "Teacher",
    "TextColumns",
    "Threads",
    "Threshold",
    "TopBlocks",
    "TrainFile",
    "TrainRows",
    "Units",
    "ValidationFile",
    "Verbose",
]

_DATA, _SCORES, _PLAN, _TRAIN = "Model and data", "Importance", "Plans", "Training"

ModelName = Annotated[
    str | None, typer.Option("--model", help="Hub id or folder of the base model.", rich_help_panel=_DATA)
]
Revision = Annotated[
    str | None,
    typer.Option(help="Of a hub id: a branch, a tag, or best a commit. \\[main]", rich_help_panel=_DATA),
]
Demo = Annotated[
    bool, typer.Option("--demo", help="The embedded encoder and a task made here; no network.", rich_help_panel=_DATA)
]
Task = Annotated[str | None, typer.Option(help="A GLUE task, such as rte or sst2.", rich_help_panel=_DATA)]
DataDir = Annotated[Path | None, typer.Option(help="Folder of GLUE data; without it, the Hub.", rich_help_panel=_DATA)]
TrainFile = Annotated[
    Path | None, typer.Option(help="Your own examples: csv, tsv, jsonl or parquet.", rich_help_panel=_DATA)
]
ValidationFile = Annotated[Path | None, typer.Option(help="Your own validation examples.", rich_help_panel=_DATA)]
TextColumns = Annotated[
    str | None, typer.Option(help="One text column, or two with a comma between.", rich_help_panel=_DATA)
]
LabelColumn = Annotated[str | None, typer.Option(help="The label column.", rich_help_panel=_DATA)]
TrainRows = Annotated[int | None, typer.Option(help="Train on a random subset of this size.", rich_help_panel=_DATA)]

ScorerName = Annotated[
    str | None,
    typer.Option(
        "--scorer",
        help="obs, gradient, random, magnitude, reversed or shuffled. \\[the recipe's]",
        rich_help_panel=_SCORES,
    ),
]
Units = Annotated[
    str | None,
    typer.Option(
        "--units",
        help="What may go: heads, neurons or both. \\[both under a budget, else heads]",
        rich_help_panel=_SCORES,
    ),
]
Order = Annotated[
    str | None,
    typer.Option(
        "--order", help="first (absolute gradient) or second (squared). \\[the recipe's]", rich_help_panel=_SCORES
    ),
]
Reduction = Annotated[
    str | None, typer.Option(help="example, batch, token or bertology. \\[example]", rich_help_panel=_SCORES)
]
Examples = Annotated[int | None, typer.Option(help="Training examples to measure on. [512]", rich_help_panel=_SCORES)]
StopWhenStable = Annotated[
    float | None,
    typer.Option(
        help="Stop measuring once the rankings of two halves of the examples agree this well, such as 0.9. \\[never]",
        rich_help_panel=_SCORES,
    ),
]

Preset = Annotated[
    str | None, typer.Option(help="A setting of the paper: paper or paper-counts.", rich_help_panel=_PLAN)
]
KeepHeads = Annotated[int | None, typer.Option(help="How many heads stay.", rich_help_panel=_PLAN)]
KeepRatio = Annotated[
    float | None, typer.Option(help="Share of units that stay, in (0, 1]. [0.7]", rich_help_panel=_PLAN)
]
Threshold = Annotated[
    float | None, typer.Option(help="Units of lower normalised importance go.", rich_help_panel=_PLAN)
]
KeepParams = Annotated[
    float | None, typer.Option(help="Budget: share of all parameters, in (0, 1].", rich_help_panel=_PLAN)
]
KeepMacs = Annotated[
    float | None, typer.Option(help="Budget: share of multiply-accumulates, in (0, 1].", rich_help_panel=_PLAN)
]
KeepBytes = Annotated[
    str | None, typer.Option(help="Budget: size of the weights, such as 60MB.", rich_help_panel=_PLAN)
]
KeepLatency = Annotated[
    float | None,
    typer.Option(help="Budget: share of the time, in (0, 1]; measured here first.", rich_help_panel=_PLAN),
]
Length = Annotated[
    int | None, typer.Option(help="Tokens at which --keep-macs and --keep-latency hold. [128]", rich_help_panel=_PLAN)
]
Dtype = Annotated[str | None, typer.Option(help="Of the weights, for --keep-bytes. \\[float32]", rich_help_panel=_PLAN)]
LatencyTable = Annotated[
    Path | None, typer.Option(help="A saved table for --keep-latency, instead of measuring.", rich_help_panel=_PLAN)
]
MultipleOf = Annotated[
    int | None, typer.Option(help="Feed-forward widths are multiples of it. [1, or as measured]", rich_help_panel=_PLAN)
]
Grouping = Annotated[
    str | None,
    typer.Option(
        help="Under grouped-query attention: even (heads of each group) or whole (groups). \\[even; whole for latency]",
        rich_help_panel=_PLAN,
    ),
]
Normalization = Annotated[
    str | None,
    typer.Option(
        help="Compare units per block or over the model. \\[the recipe's; none for budgets]", rich_help_panel=_PLAN
    ),
]
AllowEmptyBlocks = Annotated[
    bool | None,
    typer.Option(
        "--allow-empty-blocks/--no-allow-empty-blocks",
        help="A block may lose all its heads or neurons.",
        rich_help_panel=_PLAN,
    ),
]
Reconstruct = Annotated[
    str | None,
    typer.Option(help="Correct what stays for what goes: none, bias or lstsq. \\[the recipe's]", rich_help_panel=_PLAN),
]
Target = Annotated[
    str | None, typer.Option(help="LoRA on attention or all-linear. \\[attention]", rich_help_panel=_PLAN)
]
TopBlocks = Annotated[int | None, typer.Option(help="Blocks of high rank. \\[a third]", rich_help_panel=_PLAN)]
HighRank = Annotated[
    int | None, typer.Option(help="Rank of the most important blocks. \\[twice the recipe's]", rich_help_panel=_PLAN)
]
LowRank = Annotated[int | None, typer.Option(help="Rank of the other blocks. \\[the recipe's]", rich_help_panel=_PLAN)]
RankBudget = Annotated[
    int | None,
    typer.Option(help="Trainable parameters to spread by importance instead.", rich_help_panel=_PLAN),
]

MethodName = Annotated[
    str | None, typer.Option("--method", help="full, lora or prune-lora. \\[prune-lora]", rich_help_panel=_TRAIN)
]
RecipeName = Annotated[
    str | None, typer.Option("--recipe", help="default or paper. \\[default]", rich_help_panel=_TRAIN)
]
Epochs = Annotated[float | None, typer.Option(help="In place of the recipe's.", rich_help_panel=_TRAIN)]
LearningRate = Annotated[float | None, typer.Option(help="In place of the recipe's.", rich_help_panel=_TRAIN)]
PruneAfter = Annotated[
    float | None,
    typer.Option(help="Share of the training before units go, in [0, 1). \\[the recipe's]", rich_help_panel=_TRAIN),
]
Teacher = Annotated[
    str | None,
    typer.Option(help="Folder or hub id of a classifier to learn from, beside the labels.", rich_help_panel=_TRAIN),
]
ReportTo = Annotated[
    str | None,
    typer.Option(
        help="Trackers to report the training to, with commas between, such as tensorboard. \\[none]",
        rich_help_panel=_TRAIN,
    ),
]
Accumulate = Annotated[
    int | None, typer.Option(help="Split each batch into this many parts. [1]", rich_help_panel=_TRAIN)
]

PaddingFree = Annotated[
    bool | None,
    typer.Option(
        "--padding-free/--no-padding-free",
        help="Compute nothing for padding (BERT-like encoders).",
        rich_help_panel=_TRAIN,
    ),
]
Bf16 = Annotated[
    bool | None, typer.Option("--bf16/--no-bf16", help="Train with bfloat16 matrix products.", rich_help_panel=_TRAIN)
]

Seed = Annotated[int | None, typer.Option(help="Seed of everything random. [0]")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; by default all cores.")]
OutputDir = Annotated[Path, typer.Option(help="The run's folder.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show what the libraries below say.")]
