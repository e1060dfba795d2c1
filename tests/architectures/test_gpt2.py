"""GPT2 obeys every law."""

from conformance import Conformance
from generation import Generation


class TestGPT2(Generation, Conformance):
    family = "gpt2"
