"""OPT obeys every law."""

from conformance import Conformance
from generation import Generation


class TestOPT(Generation, Conformance):
    family = "opt"
