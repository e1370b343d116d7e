"""Which leaf a conversation is with, so that it does not change in the middle of one.

A conversation is known by a keyed hash alone, under a key that this process drew: what stands here
tells nothing of any text, and is gone with the process.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .choosing import Choice

KEPT = 4096  # conversations, those used last
IDLE_S = 3600.0  # after which one that goes on is routed anew


class Conversations:
    """From a conversation to the choice that was made for it."""

    def __init__(
        self, now_s: Callable[[], float], *, kept: int = KEPT, idle_s: float = IDLE_S
    ) -> None:
        self._now_s = now_s
        self._kept = kept
        self._idle_s = idle_s
        self._key = os.urandom(32)
        self._choices: OrderedDict[bytes, tuple[float, Choice]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._choices)

    def get(self, conversation: str) -> Choice | None:
        """The choice of before, if the conversation has not rested for too long."""
        hashed, now_s = self._hashed(conversation), self._now_s()
        at_s, choice = self._choices.get(hashed, (0.0, None))
        if choice is None:
            return None
        if not 0 <= now_s - at_s <= self._idle_s:  # or the clock was set back
            del self._choices[hashed]
            return None
        self._choices[hashed] = now_s, choice
        self._choices.move_to_end(hashed)
        return choice

    def put(self, conversation: str, choice: Choice) -> None:
        hashed = self._hashed(conversation)
        self._choices[hashed] = self._now_s(), choice
        self._choices.move_to_end(hashed)
        while len(self._choices) > self._kept:
            self._choices.popitem(last=False)

    def forget(self, conversation: str) -> None:
        self._choices.pop(self._hashed(conversation), None)

    def _hashed(self, conversation: str) -> bytes:
        data = conversation.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(data, key=self._key, digest_size=16).digest()
