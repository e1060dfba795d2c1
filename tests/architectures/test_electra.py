"""Electra obeys every law."""

from conformance import Conformance


class TestElectra(Conformance):
    family = "electra"
