"""Roberta obeys every law."""

from conformance import Conformance


class TestRoberta(Conformance):
    family = "roberta"
