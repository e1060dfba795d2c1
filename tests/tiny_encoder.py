"""A tiny random BERT with a tokenizer of its own, saved as a folder, and tiny tasks that it can learn."""

import os
import random
from pathlib import Path

import torch
from transformers import BertTokenizer

from tiny import make_model

__all__ = ["WORDS", "make_texts", "save_tiny_encoder", "save_tiny_tokenizer"]

WORDS = 45


def save_tiny_encoder(folder: Path) -> Path:
    """3 blocks x 4 heads, and a tokenizer of 45 words."""
    folder.mkdir(parents=True)
    save_tiny_tokenizer(folder)
    tiny = make_model("bert", dtype=torch.float32, max_position_embeddings=128, pad_token_id=0)
    tiny.save_pretrained(folder)
    return folder


def save_tiny_tokenizer(folder: Path) -> BertTokenizer:
    """Of 45 words, in a folder that is there."""
    # A name of its own, for two processes may be at it.
    vocabulary = folder / f"vocabulary-{os.getpid()}"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(WORDS))]
    vocabulary.write_text("\n".join(words) + "\n", encoding="utf-8")
    tokenizer = BertTokenizer(vocab=str(vocabulary), model_max_length=128)
    tokenizer.save_pretrained(folder)
    vocabulary.unlink()
    return tokenizer


def make_texts(seed: str, count: int, classes: int) -> list[tuple[str, int]]:
    """Texts with words of their own for every class, and the class."""
    generator = random.Random(seed)
    found: list[tuple[str, int]] = []
    for number in range(count):
        place = number % classes
        words = (f"w{generator.randrange(10) + 10 * place}" for _ in range(generator.randrange(3, 9)))
        found.append((" ".join(words), place))
    return found
