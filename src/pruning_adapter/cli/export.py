"""`pruning-adapter export`: the merged model in other formats."""

from pathlib import Path
from typing import Annotated

import typer

from pruning_adapter.cli import options as o
from pruning_adapter.cli.session import prepare_libraries

__all__ = ["export"]


def export(
    onnx: Annotated[bool, typer.Option("--onnx", help="As ONNX, checked against torch; writes model.onnx.")] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="As ONNX with 8-bit weights as well; writes model-int8.onnx.")
    ] = False,
    model: Annotated[
        Path | None, typer.Option(help="A folder that save_pruned wrote. [merged/ in the run's folder]")
    ] = None,
    output_dir: o.OutputDir = Path("run"),
    overwrite: o.Overwrite = False,
    threads: o.Threads = None,
    verbose: o.Verbose = False,
) -> None:
    """Export merged/ to other runtimes. onnxruntime serves the ONNX files without torch."""
    from pruning_adapter.cli import show
    from pruning_adapter.errors import CheckpointError, OutputError

    if not (onnx or int8):
        raise OutputError("Say what to export: --onnx, --int8, or both.")
    source = model or output_dir / "merged"
    if not source.is_dir():
        raise CheckpointError(f"{source} is no folder. Run `pruning-adapter merge` first, or name one with --model.")
    plain, small = output_dir / "model.onnx", output_dir / "model-int8.onnx"
    there = [path for path in (plain, small) if path.exists()]
    if there and not overwrite:
        raise OutputError(f"{there[0]} exists already; replace it with --overwrite.")
    prepare_libraries(threads=threads, verbose=verbose)
    from pruning_adapter.checkpoint import load_pruned
    from pruning_adapter.checkpoint.onnx_export import export_onnx, quantize_onnx

    difference = export_onnx(load_pruned(source), plain)
    show.step(f"ONNX: {plain} ({plain.stat().st_size / 1e6:.1f} MB; logits within {difference:.1g} of torch's)")
    if int8:
        quantize_onnx(plain, small)
        show.step(f"ONNX, 8-bit weights: {small} ({small.stat().st_size / 1e6:.1f} MB)")
    if not onnx:
        plain.unlink()
