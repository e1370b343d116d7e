"""How often strangers may send this node to a door: a state machine that the dialer asks.

An address that only a peer has named may be a victim's, and new names cost a liar nothing. So what
is counted is where the dials go, whoever they were meant for: one an hour that nobody has answered
to a port, a few to a host, and so many in all.
"""

from __future__ import annotations

from collections import deque
from ipaddress import ip_network
from typing import Final

from .multiaddrs import Place, Reach

HOUR_S: Final = 3600.0


class Knocks:
    """Of the last hour; `now` is seconds of any clock that does not go back."""

    def __init__(self, per_hour_max: int, per_host_max: int) -> None:
        self._per_hour_max = per_hour_max
        self._per_host_max = per_host_max
        self._all: deque[float] = deque()  # which bounds the other two
        self._doors: dict[str, float] = {}  # closed until when
        self._hosts: dict[str, list[float]] = {}

    def free_at(self, place: Place, now: float, *, vouched: bool) -> float:
        """From when on the place may be dialled. vouched: this node has reached who named it; for
        the others there is half of what there is in all."""
        self._forget(now)
        limit = self._per_hour_max if vouched else self._per_hour_max // 2
        free = max(now, self._doors.get(_door(place), now))
        if len(self._all) >= limit:
            free = max(free, self._all[len(self._all) - limit] + HOUR_S)
        times = self._hosts.get(_host(place), [])
        # Whoever may name a port of this machine is on it, and needs nobody to knock there.
        if len(times) >= self._per_host_max and place.reach is not Reach.LOOPBACK:
            free = max(free, times[-self._per_host_max] + HOUR_S)
        return free

    def knock(self, place: Place, now: float, pause_s: float = HOUR_S) -> None:
        """It is dialled now. pause_s: until its door is tried again, if nobody answers."""
        self._all.append(now)
        self._doors[_door(place)] = now + pause_s
        self._hosts.setdefault(_host(place), []).append(now)

    def opened(self, place: Place) -> None:
        """Who was meant has answered there."""
        if self._doors.pop(_door(place), None) is not None:
            times = self._hosts.get(_host(place), [])
            del times[-1:]

    def forgive(self) -> None:
        """The network is another one. What was dialled in all still counts."""
        self._doors.clear()
        self._hosts.clear()

    def _forget(self, now: float) -> None:
        if not self._all or now - self._all[0] < HOUR_S:
            return
        while self._all and now - self._all[0] >= HOUR_S:
            self._all.popleft()
        self._doors = {door: until for door, until in self._doors.items() if until > now}
        recent = {host: [t for t in ts if now - t < HOUR_S] for host, ts in self._hosts.items()}
        self._hosts = {host: times for host, times in recent.items() if times}


def _door(place: Place) -> str:
    return f"{place.host} {place.port}"


def _host(place: Place) -> str:
    """An IPv4 address, or the /64 that one machine may have of IPv6."""
    if isinstance(place.host, str) or place.host.version == 4:
        return str(place.host)
    return str(ip_network((place.host, 64), strict=False))
