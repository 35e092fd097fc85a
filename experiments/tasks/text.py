"""A language model's task: the next character of a text that Python itself ships."""

from __future__ import annotations

import platform
import string

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from ..errors import InputError
from .goals import NextCharacter
from .task import Task

LENGTH = 32
"""Characters that a network sees at once."""
CHARACTERS = 2**17
"""Largest number of characters of the text, so that an epoch takes seconds on a processor."""
ALPHABET = "".join(sorted(set(string.printable) - set("\t\r\x0b\x0c")))
"""Characters with a number of their own, from 1 on; 0 is any other character."""


def text() -> Task:
    """The next character of Python's own help texts, `pydoc_data.topics`; eight tenths train, one validates, one tests.

    Topics repeat each other's paragraphs. Each is taken once, so that no paragraph of the test part is trained on. The
    texts differ between versions of Python: compare bits within one version.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise InputError(f"the task text needs pydoc_data, a part of Python that is missing here ({error})") from error

    whole = "\n\n".join(distinct_paragraphs(topics))[:CHARACTERS]
    train, validation = 8 * len(whole) // 10, 9 * len(whole) // 10
    return Task(
        "text",
        windows(whole[:train]),
        windows(whole[validation:]),
        validation=windows(whole[train:validation]),
        goal=NextCharacter(len(ALPHABET) + 1),
        description=f"the help texts of Python {platform.python_version()}, {len(whole):,} characters, "
        f"in windows of {LENGTH}; other versions have other texts",
        epochs=8,
        batch=32,
        learning_rate=1e-2,
        measured=256,
    )


def distinct_paragraphs(topics: dict[str, str]) -> list[str]:
    """The paragraphs in the order of the topics' names, each once; white space does not make them differ."""
    paragraphs: dict[str, str] = {}
    for _, topic in sorted(topics.items()):
        for paragraph in topic.split("\n\n"):
            paragraphs.setdefault(" ".join(paragraph.split()), paragraph)
    paragraphs.pop("", None)
    return list(paragraphs.values())


def encoded(text: str) -> Tensor:
    """(characters,) numbers of the text's characters."""
    numbers = {character: number for number, character in enumerate(ALPHABET, start=1)}
    return torch.tensor([numbers.get(character, 0) for character in text], dtype=torch.int64, device="cpu")


def windows(text: str, length: int = LENGTH) -> TensorDataset:
    """Pairs of a window and the same window one character later, side by side without overlap; the rest is left out."""
    numbers = encoded(text)
    used = (len(numbers) - 1) // length * length
    return TensorDataset(numbers[:used].view(-1, length), numbers[1 : used + 1].view(-1, length))
