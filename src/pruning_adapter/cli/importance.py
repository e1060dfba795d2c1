"""`pruning-adapter importance`: how much each head and neuron matters."""

from pathlib import Path
from typing import Annotated

import typer

from pruning_adapter.cli import options as o
from pruning_adapter.cli.session import open_run, prepare_libraries
from pruning_adapter.processes import go_on_alone

__all__ = ["importance"]


def importance(
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
    recipe: o.RecipeName = None,
    epochs: o.Epochs = None,
    learning_rate: o.LearningRate = None,
    prune_after: o.PruneAfter = None,
    target: o.Target = None,
    teacher: o.Teacher = None,
    report_to: o.ReportTo = None,
    accumulate: o.Accumulate = None,
    padding_free: o.PaddingFree = None,
    bf16: o.Bf16 = None,
    seed: o.Seed = None,
    output_dir: o.OutputDir = Path("run"),
    figure: Annotated[Path | None, typer.Option(help="Also draw it, as PNG or SVG.")] = None,
    overwrite: o.Overwrite = False,
    threads: o.Threads = None,
    verbose: o.Verbose = False,
) -> None:
    """Measure how much each head and neuron matters for a task; writes importance.json.

    Where the recipe prunes after a share of the training (--prune-after), that share comes first; writes start/.
    """
    given = {
        name: value
        for name, value in locals().items()
        if name not in ("output_dir", "figure", "overwrite", "threads", "verbose")
    }
    from pruning_adapter.cli import show

    prepare_libraries(threads=threads, verbose=verbose, shared=True)
    scores = open_run(output_dir, given, step="importance", overwrite=overwrite).measure()
    if not go_on_alone():
        return
    show.value("Importance", scores)
    if figure is not None:
        for kind in scores.kinds:
            # Of two figures the second is named after what it shows.
            scores.draw(figure if kind == scores.kinds[0] else figure.with_stem(f"{figure.stem}-{kind}"), kind=kind)
