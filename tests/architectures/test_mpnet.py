"""MPNet obeys every law."""

from conformance import Conformance


class TestMPNet(Conformance):
    family = "mpnet"
