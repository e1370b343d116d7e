"""The heads that stood before, for a while: a second history may meet the first there.

Two branches of one key exclude each other only where they come within one link (`origin.conflict`).
Compared with the newest head alone, a branch that was signed in between goes unnoticed; compared
with the last sixteen, it seldom does. Of an honest chain no two heads conflict. Nothing of this is
stored: it widens what is found out, and what is not found out here is found out elsewhere.
"""

from __future__ import annotations

from typing import Final

from .envelope import Signed
from .wire import Head

PER_ORIGIN: Final = 16
HEADS_MAX: Final = 16_384  # of all origins, about 1 KB each


class Recent:
    """The last heads of each origin, the newest last."""

    def __init__(self) -> None:
        self._heads: dict[bytes, tuple[Signed[Head], ...]] = {}
        self._count = 0

    def of(self, origin: bytes, epoch: int) -> tuple[Signed[Head], ...]:
        return tuple(one for one in self._heads.get(origin, ()) if one.value.epoch == epoch)

    def add(self, head: Signed[Head]) -> None:
        """Remember a head that another has replaced."""
        origin = head.value.origin
        before = self._heads.pop(origin, ())
        self._heads[origin] = (*before, head)[-PER_ORIGIN:]
        self._count += len(self._heads[origin]) - len(before)
        while self._count > HEADS_MAX:
            self._count -= len(self._heads.pop(next(iter(self._heads))))

    def forget(self, origin: bytes) -> None:
        self._count -= len(self._heads.pop(origin, ()))
