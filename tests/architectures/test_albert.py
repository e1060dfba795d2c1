"""Albert obeys every law."""

from conformance import Conformance


class TestAlbert(Conformance):
    family = "albert"
