"""When a node's nights are: a window of local time, and this node's own moment within it.

Nodes of one time zone must not all begin at the same minute, and nobody must be able to compute
when a certain node begins. So the moment is drawn by a secret of the node from the date: steady
through restarts, another one each night, unguessable from outside.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import re
from dataclasses import dataclass

from leaves.model import Instant

ALWAYS = "always"
PATTERN = r"^(always|([01]\d|2[0-3]):[0-5]\d-(([01]\d|2[0-3]):[0-5]\d|24:00))$"
RESERVE_MIN = 60  # of a window, its half at most: a night that began at its end would get nothing
_DAY_MIN = 1440
_PARTS = re.compile(r"(\d\d):(\d\d)-(\d\d):(\d\d)")


@dataclass(frozen=True, slots=True)
class Window:
    """Some hours of each day, by the clock on the wall. Both in minutes: opens < 1440."""

    opens_min: int
    long_min: int

    @classmethod
    def parse(cls, text: str) -> Window | None:
        """Read "01:00-05:00"; one that ends before it begins spans midnight. None: "always".

        Raises ValueError of a text that is neither, or a window of no length.
        """
        if text == ALWAYS:
            return None
        parts = _PARTS.fullmatch(text) if re.match(PATTERN, text) else None
        if parts is None:
            raise ValueError(f'expected "HH:MM-HH:MM" or "{ALWAYS}", not {text!r}')
        hours_a, minutes_a, hours_b, minutes_b = map(int, parts.groups())
        opens, closes = hours_a * 60 + minutes_a, hours_b * 60 + minutes_b
        if opens == closes:
            raise ValueError(f"{text!r} has no length; a whole day is 00:00-24:00")
        return cls(opens, (closes - opens) % _DAY_MIN or _DAY_MIN)


@dataclass(frozen=True, slots=True)
class Night:
    """One night's window. It is named by the local date on which it opens."""

    date: str  # ISO
    opens: Instant
    starts: Instant  # this node's own moment
    closes: Instant


def night(
    window: Window, day: datetime.date, secret: bytes, zone: datetime.tzinfo | None = None
) -> Night:
    """The night that opens on a day. zone: None is the machine's own.

    A wall time that a change to summer time skips is the moment as many minutes later; of one that
    there is twice, the first.
    """
    midnight = datetime.datetime.combine(day, datetime.time(), zone)
    opens = _instant(midnight + datetime.timedelta(minutes=window.opens_min))
    closes = _instant(midnight + datetime.timedelta(minutes=window.opens_min + window.long_min))
    if closes <= opens:  # the clock jumped over its end
        closes = Instant(opens + window.long_min * 60)
    spread_s = max(1, closes - opens - 60 * min(RESERVE_MIN, window.long_min // 2))
    starts = Instant(opens + drawn(secret, day.isoformat(), spread_s))
    return Night(day.isoformat(), opens, starts, closes)


def around(
    window: Window, now: Instant, secret: bytes, zone: datetime.tzinfo | None = None
) -> tuple[Night, Night]:
    """The night that opened last, and the one that opens next."""
    today = datetime.datetime.fromtimestamp(now, zone).date()
    # Two days to each side: a change of zone can skip a whole one.
    days = (today + datetime.timedelta(days=n) for n in range(-3, 4))
    nights = sorted((night(window, day, secret, zone) for day in days), key=lambda x: x.opens)
    last = [each for each in nights if each.opens <= now]
    coming = [each for each in nights if each.opens > now]
    return last[-1], coming[0]


def drawn(secret: bytes, what: str, below: int) -> int:
    """A steady number in [0, below) that nobody without the secret can tell."""
    digest = hmac.digest(secret, what.encode(), hashlib.sha256)
    return int.from_bytes(digest[:8]) % below


def _instant(wall: datetime.datetime) -> Instant:
    return Instant(int(wall.timestamp()))
