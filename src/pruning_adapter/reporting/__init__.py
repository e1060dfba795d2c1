"""What a run found, on one page that needs no network."""

from pruning_adapter.reporting.report import write_report

__all__ = ["write_report"]
