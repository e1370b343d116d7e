"""Notices that the machine has slept, or that its network has become another one.

After either, every wait that was agreed on before means nothing: connections are dead and do not
know it, and peers that did not answer on the old network may answer on the new one. A sleep is seen
by a clock that went on while ours stood still (CLOCK_BOOTTIME, or the time of day, which the owner
may also set; then a look too many does no harm); a new network by the addresses of the interfaces.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_interface
from typing import Final

import trio

log = logging.getLogger(__name__)

LOOK_S: Final = 1.0  # one look costs about 0.2 ms
SLEPT_S_MIN: Final = 5.0  # more than a busy machine's loop is late by


@dataclass(frozen=True, slots=True)
class Woke:
    """slept_s: how long the machine was asleep, 0 if its network alone has changed."""

    slept_s: float
    moved: bool


@dataclass(frozen=True, slots=True)
class Reading:
    """What a look finds.

    awake_s: a clock that stands still in a sleep, as the loop's does; going_s: one that goes on.
    hosts: the addresses of the interfaces. networks: the networks that they lie in.
    """

    awake_s: float
    going_s: float
    hosts: tuple[str, ...] = ()
    networks: tuple[str, ...] = field(default=(), compare=False)


class Wakefulness:
    """Compares each reading with the one before."""

    def __init__(self) -> None:
        self._last: Reading | None = None

    def look(self, reading: Reading) -> Woke | None:
        """Return what has happened since the last reading, if anything has."""
        last, self._last = self._last, reading
        if last is None:
            return None
        slept_s = (reading.going_s - last.going_s) - (reading.awake_s - last.awake_s)
        moved = _told_apart(reading.hosts) != _told_apart(last.hosts)
        if abs(slept_s) < SLEPT_S_MIN and not moved:
            return None
        return Woke(max(0.0, slept_s) if slept_s >= SLEPT_S_MIN else 0.0, moved)


def _told_apart(hosts: tuple[str, ...]) -> frozenset[str]:
    """What changes with the network, and not each day with the privacy addresses of IPv6."""
    found = set()
    for host in hosts:
        ip = ip_address(host)
        if ip.version == 4:
            found.add(host)
        elif not ip.is_link_local:
            found.add(str(ip_interface(f"{host}/64").network))
    return frozenset(found)


def read_now(wall: Callable[[], float] = time.time) -> Reading:
    """Look at the clocks and interfaces of this machine."""
    awake_s = time.clock_gettime(time.CLOCK_MONOTONIC)
    if hasattr(time, "CLOCK_BOOTTIME"):
        going_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    else:  # macOS: its monotonic clock stands still in a sleep, and it has no other but this
        going_s = wall()
    return Reading(awake_s, going_s, *interfaces())


def interfaces() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The IP addresses of this machine, but loopback, and the networks that they lie in."""
    import psutil  # 20 ms that only a running node pays

    hosts, networks = set(), set()
    for addresses in psutil.net_if_addrs().values():
        for each in addresses:
            if each.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            host = each.address.partition("%")[0]
            if ip_address(host).is_loopback:
                continue
            hosts.add(host)
            if each.netmask:
                networks.add(_network(host, each.netmask))
    return tuple(sorted(hosts)), tuple(sorted(networks))


def _network(host: str, netmask: str) -> str:
    bits = int(ip_address(netmask)).bit_count()  # of IPv6 `ipaddress` takes no netmask
    return str(ip_interface(f"{host}/{bits}").network)


class WakeLoop:
    """Looks every second. woke: told of what has happened; looked: of each reading."""

    def __init__(
        self,
        woke: Callable[[Woke], None],
        looked: Callable[[Reading], None] = lambda reading: None,
        *,
        read: Callable[[], Reading] = read_now,
    ) -> None:
        self._woke = woke
        self._looked = looked
        self._read = read
        self._wakefulness = Wakefulness()

    async def run(self) -> None:
        while True:
            reading = self._read()
            self._looked(reading)
            if woke := self._wakefulness.look(reading):
                log.info("machine woke slept_s=%.0f moved=%s", woke.slept_s, woke.moved)
                self._woke(woke)
            await trio.sleep(LOOK_S)
