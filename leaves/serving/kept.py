"""The last few texts stay read: a conversation's next turn begins with all that was said before.

Reading a prompt is most of the wait for a first token. What is kept is keys and values in memory,
within the bytes that all answers have together; whoever needs those gets them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .stepping import Stepper

TEXTS_MAX = 8
TOKENS_MIN = 16  # of a beginning in common that is worth looking for


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """A text that was read under an adapter, or under none."""

    bundle: str | None
    tokens: Sequence[int] = field(repr=False)
    memory: Any = field(repr=False)
    bytes: int  # reserved for it


class KeptTexts:
    """Those that ended last."""

    def __init__(self, stepper: Stepper) -> None:
        self._stepper = stepper
        self._texts: list[Kept] = []  # the last is the latest

    def keep(self, text: Kept) -> int:
        """Keep a text; returns the bytes that are free for it again."""
        if len(text.tokens) < TOKENS_MIN or not self._stepper.rewinds:
            return text.bytes
        self._texts.append(text)
        return self._texts.pop(0).bytes if len(self._texts) > TEXTS_MAX else 0

    def find(self, bundle: str | None, tokens: Sequence[int]) -> Kept | None:
        """The text that begins as these tokens do, for longest; None if none does for long."""
        found, most = None, TOKENS_MIN - 1
        for text in self._texts:
            if text.bundle == bundle and (length := in_common(text.tokens, tokens)) > most:
                found, most = text, length
        return found

    def take(
        self, known: Kept | None, tokens: Sequence[int], tokens_max: int
    ) -> tuple[list[int], Any]:
        """The beginning of these tokens that is read already, and the memory that holds it.

        Of all tokens the last is left to be read, for what follows it is not kept.
        """
        if known is None:
            return [], self._stepper.memory(tokens_max)
        self._texts.remove(known)
        length = min(in_common(known.tokens, tokens), len(tokens) - 1)
        self._stepper.rewind(known.memory, length, tokens_max)
        return list(tokens[:length]), known.memory

    def let_go(self, wanted: int, *, but: Kept | None) -> int:
        """Forget the texts that ended longest ago, for so many bytes; returns their bytes."""
        freed = 0
        for text in list(self._texts):
            if freed >= wanted:
                break
            if text is not but:
                self._texts.remove(text)
                freed += text.bytes
        return freed


def in_common(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens with which both begin."""
    for index, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return index
    return min(len(one), len(other))
