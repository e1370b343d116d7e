"""What the endpoint did since the node started: plain counters, for `status` and for /metrics."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from .spread import Spread

ASKS = ("chat", "completions", "messages", "relay")  # routes whose caller waits for a model


class Counts:
    """One for the process. Every failure and every fallback has a cause that is counted."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()  # (route's name, status)
        self.answered: Counter[str] = Counter()  # leaf, chassis, starter, upstream
        self.fallbacks: Counter[str] = Counter()  # by cause: encoder_busy, no_table, adapter, ...
        self.failures: Counter[str] = Counter()  # by cause: upstream_down, backend, malformed, ...
        self.refused: Counter[str] = Counter()  # by cause: token, host, origin, method, size, ...
        self.aborted = 0  # answers that the client did not wait for
        self.streams = 0  # open now
        self.first_byte: defaultdict[str, Spread] = defaultdict(Spread)  # by route's name, seconds
        self.took: defaultdict[str, Spread] = defaultdict(Spread)  # to the last byte

    def asked(self) -> tuple[int, int]:
        """How many answers were asked for so far, and how many are being given now."""
        return sum(n for (name, _), n in self.requests.items() if name in ASKS), self.streams

    def facts(self) -> dict[str, Any]:
        """As plain data, sorted."""
        return {
            "requests": {
                f"{name} {status}": n for (name, status), n in sorted(self.requests.items())
            },
            "answered": dict(sorted(self.answered.items())),
            "fallbacks": dict(sorted(self.fallbacks.items())),
            "failures": dict(sorted(self.failures.items())),
            "refused": dict(sorted(self.refused.items())),
            "aborted": self.aborted,
            "streams": self.streams,
        }
