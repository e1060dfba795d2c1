"""Phi3 obeys every law."""

from conformance import Conformance
from generation import Generation


class TestPhi3(Generation, Conformance):
    family = "phi3"
