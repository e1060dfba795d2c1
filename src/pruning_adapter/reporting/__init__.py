"""What a run found: one page that needs no network, and the card of the model that it made."""

from pruning_adapter.reporting.card import write_card, write_cards
from pruning_adapter.reporting.report import write_report

__all__ = ["write_card", "write_cards", "write_report"]
