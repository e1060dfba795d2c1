"""DeBERTa obeys every law, with projections of its own for positions and with shared ones."""

from conformance import Conformance


class TestDebertaV2(Conformance):
    family = "deberta-v2"


class TestDebertaV3(Conformance):
    family = "deberta-v3"
