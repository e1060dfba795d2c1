"""Llama and the decoders built like it obey every law; Gemma with multi-query attention."""

from conformance import Conformance
from generation import Generation


class TestLlama(Generation, Conformance):
    family = "llama"


class TestSmolLM3(Generation, Conformance):
    family = "smollm3"


class TestMistral(Generation, Conformance):
    family = "mistral"


class TestQwen2(Generation, Conformance):
    family = "qwen2"


class TestQwen3(Generation, Conformance):
    family = "qwen3"


class TestGemma(Generation, Conformance):
    family = "gemma"


class TestGemma2(Generation, Conformance):
    family = "gemma2"
