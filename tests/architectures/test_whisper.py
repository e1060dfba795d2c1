"""Whisper obeys every law."""

from conformance import Conformance
from generation import Generation


class TestWhisper(Generation, Conformance):
    family = "whisper"
