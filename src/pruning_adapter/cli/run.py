"""`pruning-adapter run`: the whole way."""

from pathlib import Path
from typing import Annotated

import typer

from pruning_adapter.cli import options as o
from pruning_adapter.cli.session import begin_run, prepare_libraries
from pruning_adapter.processes import go_on_alone

__all__ = ["run"]


def run(
    model: o.ModelName = None,
    revision: o.Revision = None,
    demo: o.Demo = False,
    task: o.Task = None,
    data_dir: o.DataDir = None,
    train_file: o.TrainFile = None,
    validation_file: o.ValidationFile = None,
    text_columns: o.TextColumns = None,
    label_column: o.LabelColumn = None,
    train_rows: o.TrainRows = None,
    scorer: o.ScorerName = None,
    units: o.Units = None,
    order: o.Order = None,
    reduction: o.Reduction = None,
    examples: o.Examples = None,
    stop_when_stable: o.StopWhenStable = None,
    preset: o.Preset = None,
    keep_heads: o.KeepHeads = None,
    keep_ratio: o.KeepRatio = None,
    threshold: o.Threshold = None,
    keep_params: o.KeepParams = None,
    keep_macs: o.KeepMacs = None,
    keep_bytes: o.KeepBytes = None,
    keep_latency: o.KeepLatency = None,
    length: o.Length = None,
    dtype: o.Dtype = None,
    latency_table: o.LatencyTable = None,
    multiple_of: o.MultipleOf = None,
    grouping: o.Grouping = None,
    normalization: o.Normalization = None,
    allow_empty_blocks: o.AllowEmptyBlocks = None,
    reconstruct: o.Reconstruct = None,
    target: o.Target = None,
    top_blocks: o.TopBlocks = None,
    high_rank: o.HighRank = None,
    low_rank: o.LowRank = None,
    rank_budget: o.RankBudget = None,
    method: o.MethodName = None,
    recipe: o.RecipeName = None,
    epochs: o.Epochs = None,
    learning_rate: o.LearningRate = None,
    prune_after: o.PruneAfter = None,
    teacher: o.Teacher = None,
    report_to: o.ReportTo = None,
    accumulate: o.Accumulate = None,
    padding_free: o.PaddingFree = None,
    bf16: o.Bf16 = None,
    seed: o.Seed = None,
    output_dir: o.OutputDir = Path("run"),
    overwrite: o.Overwrite = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run stopped.")] = False,
    threads: o.Threads = None,
    verbose: o.Verbose = False,
) -> None:
    """Measure, prune, train, merge, evaluate and report.

    Examples:

        pruning-adapter run --demo

        pruning-adapter run --model google-bert/bert-base-uncased --task rte --keep-ratio 0.7

        pruning-adapter run --model google-bert/bert-base-uncased --task rte --keep-macs 0.5 --reconstruct lstsq

        pruning-adapter run --model ./encoder --train-file train.csv --validation-file dev.csv
        --text-columns question,answer --label-column label
    """
    given = {
        name: value
        for name, value in locals().items()
        if name not in ("output_dir", "overwrite", "resume", "threads", "verbose")
    }
    from pruning_adapter.cli import show

    prepare_libraries(threads=threads, verbose=verbose, shared=True)
    work = begin_run(output_dir, given, overwrite=overwrite, resume=resume)
    show.task(work.data, work.settings.model_id)
    if work.method == "prune-lora":
        show.value("Importance", work.measure())
        plan, ranks = work.plan()
        show.value("Plan", f"{plan}\n{ranks}")
    show.step("Training")
    work.train()
    if not go_on_alone():
        return
    show.step("Merging and evaluating")
    work.merge()
    show.result(work.evaluate())
    show.step(f"Report: {work.report()}")
