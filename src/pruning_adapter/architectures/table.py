"""The table of supported families, for the README."""

from pruning_adapter.architectures.registry import registered

__all__ = ["supported_table"]


def supported_table() -> str:
    """The registered families as a Markdown table."""
    lines = ["| family | `model_type` | what can be pruned | for example |", "| --- | --- | --- | --- |"]
    for spec in registered():
        types = ", ".join(f"`{name}`" for name in spec.model_types)
        lines.append(f"| {spec.family} | {types} | heads, neurons | {', '.join(spec.examples)} |")
    return "\n".join(lines)
