"""ModernBert obeys every law."""

from conformance import Conformance


class TestModernBert(Conformance):
    family = "modernbert"
