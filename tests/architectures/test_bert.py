"""Bert obeys every law."""

from conformance import Conformance


class TestBert(Conformance):
    family = "bert"
