"""HTML pages from templates."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pruning_adapter.errors import OutputError
from pruning_adapter.storage import write_text

__all__ = ["write_page"]


def write_page(path: Path, template: str, content: Mapping[str, Any]) -> None:
    """Fill a template of this package and write it to `path`. What is filled in is escaped.

    Raises:
        OutputError: Jinja2 is missing, or the file cannot be written.
    """
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise OutputError(
            f'Cannot write {path}: Jinja2 is not installed. Install it with: pip install "pruning-adapter[report]"'
        ) from error
    environment = Environment(
        loader=PackageLoader("pruning_adapter.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    write_text(path, environment.get_template(template).render(content))
