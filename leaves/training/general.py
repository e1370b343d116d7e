"""Text of other kinds than any leaf's sessions, to see that an adapter does not spoil the chassis.

The language reference that every Python carries in `pydoc_data`: prose and code, not questions and
answers. It is on each machine, so that a rise of its loss means the same everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

from ..ports import Example
from .preprocess import stable

_CHARS = (200, 600)  # of a passage: long enough to have a context, short enough to be cheap


@cache
def general_examples(count: int = 64) -> tuple[Example, ...]:
    """Passages to be continued: the first half of each is the prompt, the rest the completion.

    One of each topic while there are topics, then the topics' others.
    """
    from pydoc_data.topics import topics

    firsts: list[Example] = []
    others: list[Example] = []
    for name in sorted(topics, key=stable):
        for number, passage in enumerate(_passages(name, topics[name])):
            (others if number else firsts).append(passage)
    return tuple((firsts + others)[:count])


def _passages(name: str, text: str) -> Iterator[Example]:
    for paragraph in re.split(r"\n\s*\n", text):
        line = " ".join(paragraph.split())
        if _CHARS[0] <= len(line) <= _CHARS[1]:
            middle = line.find(" ", len(line) // 2)
            yield Example(f"general/{name}", line[:middle], line[middle + 1 :], name)
