"""`pruning-adapter export`: the merged model in other forms."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pruning_adapter.cli import options as o
from pruning_adapter.cli.session import hold_folder, prepare_libraries

__all__ = ["export"]

_FOLDERS, _FILES = "Folders for Transformers without this package", "Files for other runtimes"


def export(
    stock: Annotated[
        bool,
        typer.Option(
            "--stock",
            help="At the dense model's sizes, with zeros: loads in any Transformers, and saves nothing; writes stock/.",
            rich_help_panel=_FOLDERS,
        ),
    ] = False,
    uniform_heads: Annotated[
        bool,
        typer.Option(
            "--uniform-heads",
            help="With an ordinary smaller config, where all blocks kept equally many units; writes uniform/.",
            rich_help_panel=_FOLDERS,
        ),
    ] = False,
    transformers4: Annotated[
        bool,
        typer.Option(
            "--transformers4",
            help="As small as it is, for Transformers 4 (BERT and its kin); writes transformers4/.",
            rich_help_panel=_FOLDERS,
        ),
    ] = False,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="As ONNX, checked against torch; writes model.onnx.", rich_help_panel=_FILES)
    ] = False,
    int8: Annotated[
        bool,
        typer.Option("--int8", help="As ONNX with 8-bit weights; writes model-int8.onnx.", rich_help_panel=_FILES),
    ] = False,
    torch_export: Annotated[
        bool,
        typer.Option(
            "--torch-export",
            help="As a program of torch.export, checked against torch; writes model.pt2.",
            rich_help_panel=_FILES,
        ),
    ] = False,
    model: Annotated[
        Path | None, typer.Option(help="A folder that save_pruned wrote. \\[merged/ in the run's folder]")
    ] = None,
    output_dir: o.OutputDir = Path("run"),
    overwrite: o.Overwrite = False,
    threads: o.Threads = None,
    verbose: o.Verbose = False,
) -> None:
    """Export merged/ to what loads it without this package. What loads where: docs/loads-anywhere.md."""
    from pruning_adapter.errors import CheckpointError, OutputError

    # First of all: of several processes only one may look at, and hold, the folder.
    prepare_libraries(threads=threads, verbose=verbose)
    folders = {"stock": stock, "uniform": uniform_heads, "transformers4": transformers4}
    files = {"model.onnx": onnx, "model-int8.onnx": int8, "model.pt2": torch_export}
    wanted = [output_dir / name for name, chosen in (folders | files).items() if chosen]
    if not wanted:
        raise OutputError(
            "Say what to export: --stock, --uniform-heads, --transformers4, --onnx, --int8, --torch-export, or several."
        )
    source = model or output_dir / "merged"
    if not source.is_dir():
        raise CheckpointError(f"{source} is no folder. Run `pruning-adapter merge` first, or name one with --model.")
    there = [path for path in wanted if path.exists()]
    if there and not overwrite:
        raise OutputError(f"{there[0]} exists already; replace it with --overwrite.")
    hold_folder(output_dir)
    from pruning_adapter.checkpoint import load_pruned

    loaded = load_pruned(source)
    for name, chosen in folders.items():
        if chosen:
            _write_folder(name, loaded, output_dir / name, source)
    if torch_export:
        _write_program(loaded, output_dir / "model.pt2")
    if onnx:
        _write_onnx(loaded, output_dir / "model.onnx")
    if int8:
        _write_int8(loaded, output_dir / "model-int8.onnx", output_dir / "model.onnx" if onnx else None)


def _write_folder(form: str, model: Any, folder: Path, source: Path) -> None:
    from pruning_adapter.checkpoint import save_for_transformers4, save_stock, save_uniform
    from pruning_adapter.cli import show

    if form == "transformers4":
        save_for_transformers4(model, folder, files_from=source)
        show.step(f"For Transformers 4: {folder} ({_size(folder)})")
        return
    difference = (save_stock if form == "stock" else save_uniform)(model, folder, files_from=source)
    agreed = f"{_size(folder)}; logits within {difference:.1g}"
    if form == "stock":
        show.step(f"Padded with zeros: {folder} ({agreed}). It loads anywhere and saves nothing: no memory, no time.")
    else:
        show.step(f"Of uniform size: {folder} ({agreed})")


def _write_program(model: Any, path: Path) -> None:
    from pruning_adapter.checkpoint.torch_export import export_program
    from pruning_adapter.cli import show

    difference = export_program(model, path)
    show.step(f"torch.export: {path} ({_size(path)}; logits within {difference:.1g} of eager torch's)")


def _write_onnx(model: Any, path: Path) -> None:
    from pruning_adapter.checkpoint.onnx_export import export_onnx
    from pruning_adapter.cli import show

    difference = export_onnx(model, path)
    show.step(f"ONNX: {path} ({_size(path)}; logits within {difference:.1g} of torch's)")


def _write_int8(model: Any, path: Path, plain: Path | None) -> None:
    """Args:
    model: what is exported.
    path: where to.
    plain: its ONNX file, if that was written just now.
    """
    from pruning_adapter.checkpoint.onnx_export import export_onnx, quantize_onnx
    from pruning_adapter.cli import show
    from pruning_adapter.storage import replace_file

    with replace_file(path) as aside:
        if plain is None:
            export_onnx(model, aside)
        quantize_onnx(plain or aside, aside)
    show.step(f"ONNX, 8-bit weights: {path} ({_size(path)})")


def _size(path: Path) -> str:
    files = [path] if path.is_file() else list(path.glob("*.safetensors"))
    return f"{sum(file.stat().st_size for file in files) / 1e6:.1f} MB"
