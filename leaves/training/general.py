"""Text of other kinds than any leaf's sessions, to see that an adapter does not spoil the chassis.

The language reference that every Python carries in `pydoc_data`: prose and code, not questions and
answers. It is on each machine, so that a rise of its loss means the same everywhere.
"""

from __future__ import annotations

import re
from functools import cache

from ..ports import Example
from .preprocess import stable

_CHARS = (200, 600)  # of a passage: long enough to have a context, short enough to be cheap


@cache
def general_examples(count: int = 20) -> tuple[Example, ...]:
    """Passages to be continued: the first half of each is the prompt, the rest the completion."""
    from pydoc_data.topics import topics

    passages = []
    for name in sorted(topics, key=stable):
        for paragraph in re.split(r"\n\s*\n", topics[name]):
            text = " ".join(paragraph.split())
            if _CHARS[0] <= len(text) <= _CHARS[1]:
                middle = text.find(" ", len(text) // 2)
                passages.append(Example(f"general/{name}", text[:middle], text[middle + 1 :], name))
                break
        if len(passages) == count:
            break
    return tuple(passages)
