"""Bart obeys every law."""

from conformance import Conformance
from generation import Generation


class TestBart(Generation, Conformance):
    family = "bart"
