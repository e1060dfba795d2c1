"""GPTNeoX obeys every law."""

from conformance import Conformance
from generation import Generation


class TestGPTNeoX(Generation, Conformance):
    family = "gpt_neox"
