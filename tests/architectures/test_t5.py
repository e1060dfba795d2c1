"""T5 obeys every law, with the plain feed-forward and with Flan-T5's gated one."""

from conformance import Conformance
from generation import Generation


class TestT5(Generation, Conformance):
    family = "t5"


class TestFlanT5(Generation, Conformance):
    family = "flan-t5"
