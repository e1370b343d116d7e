"""How long one fetch may last: peers who answer nothing, or little, must not keep it for ever.

Only time counts in which peers could have given something: not while a fetch is held, waits for
the budget or for this node's own disk.
"""

from __future__ import annotations

from dataclasses import dataclass

from .exchange_events import ExchangeConfig

NO_PROGRESS = "no progress"
TOO_SLOW = "too slow"


@dataclass(slots=True)
class Patience:
    """One fetch's."""

    at: float  # up to when time was counted
    idle_s: float = 0.0  # since a list or a new chunk came
    spent_s: float = 0.0  # in all

    def pass_to(self, now: float, *, counts: bool) -> None:
        passed = max(0.0, now - self.at)
        self.at = now
        if counts:
            self.idle_s += passed
            self.spent_s += passed

    def came(self) -> None:
        """Something new has come."""
        self.idle_s = 0.0

    def at_end(self, size_bytes: int, config: ExchangeConfig) -> str | None:
        """Why the fetch ends now, or None if it may go on."""
        if self.idle_s >= config.idle_s_max:
            return NO_PROGRESS
        if self.spent_s >= config.spare_s + size_bytes / config.bytes_s_least:
            return TOO_SLOW
        return None
