"""Text from templates."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pruning_adapter.errors import OutputError
from pruning_adapter.storage import write_text

__all__ = ["fill_template", "write_page"]


def write_page(path: Path, template: str, content: Mapping[str, Any]) -> None:
    """Fill an HTML template of this package and write it to `path`. What is filled in is escaped.

    Raises:
        OutputError: Jinja2 is missing, or the file cannot be written.
    """
    write_text(path, fill_template(template, content, purpose=f"write {path}"))


def fill_template(template: str, content: Mapping[str, Any], *, purpose: str) -> str:
    """Fill a template of this package. In HTML what is filled in is escaped.

    Args:
        template: its file name.
        content: its variables, all of them.
        purpose: what could not be done without Jinja2.

    Raises:
        OutputError: Jinja2 is missing.
    """
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise OutputError(
            f'Cannot {purpose}: Jinja2 is not installed. Install it with: pip install "pruning-adapter[report]"'
        ) from error
    environment = Environment(
        loader=PackageLoader("pruning_adapter.reporting"),
        autoescape=template.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(content)
