"""DistilBert obeys every law."""

from conformance import Conformance


class TestDistilBert(Conformance):
    family = "distilbert"
