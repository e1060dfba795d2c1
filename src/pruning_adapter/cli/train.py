"""`pruning-adapter train`: prune by the plan and train."""

from pathlib import Path

from pruning_adapter.cli import options as o
from pruning_adapter.cli.session import open_run, prepare_libraries
from pruning_adapter.processes import go_on_alone

__all__ = ["train"]


def train(
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
    method: o.MethodName = None,
    recipe: o.RecipeName = None,
    epochs: o.Epochs = None,
    learning_rate: o.LearningRate = None,
    teacher: o.Teacher = None,
    report_to: o.ReportTo = None,
    accumulate: o.Accumulate = None,
    padding_free: o.PaddingFree = None,
    bf16: o.Bf16 = None,
    seed: o.Seed = None,
    output_dir: o.OutputDir = Path("run"),
    overwrite: o.Overwrite = False,
    threads: o.Threads = None,
    verbose: o.Verbose = False,
) -> None:
    """Prune by plan.json and train at the ranks of ranks.json; writes adapter/ and training.json.

    An interrupted training goes on from its last epoch.
    """
    given = {
        name: value for name, value in locals().items() if name not in ("output_dir", "overwrite", "threads", "verbose")
    }
    from pruning_adapter.cli import show

    prepare_libraries(threads=threads, verbose=verbose, shared=True)
    work = open_run(output_dir, given, step="train", overwrite=overwrite)
    work.train()
    if not go_on_alone():
        return
    show.step(f"Trained: {output_dir}")
