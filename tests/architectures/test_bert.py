"""BERT, RoBERTa, XLM-R, CamemBERT and ELECTRA obey every law."""

from conformance import Conformance


class TestBert(Conformance):
    family = "bert"


class TestRoberta(Conformance):
    family = "roberta"


class TestXlmRoberta(Conformance):
    family = "xlm-roberta"


class TestCamembert(Conformance):
    family = "camembert"


class TestElectra(Conformance):
    family = "electra"
