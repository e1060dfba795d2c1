"""An embedded default that needs no network: a small encoder from a PyPI package, and a task from a grammar."""

from pruning_adapter.demo.encoder import find_demo_encoder
from pruning_adapter.demo.grammar import make_demo_task

__all__ = ["find_demo_encoder", "make_demo_task"]
