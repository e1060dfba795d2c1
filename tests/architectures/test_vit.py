"""ViT obeys every law."""

from conformance import Conformance


class TestViT(Conformance):
    family = "vit"
