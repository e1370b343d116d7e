"""Peers on the local network, by multicast DNS: off unless the owner asks for it.

Announced are the peer's name of the transport, its port and its addresses on this network, under a
random name and no machine's: nothing of the origin, and nothing that is not said again to whoever
connects. libp2p's own discovery found nobody, so zeroconf is used as it is. It runs threads of its
own, which never touch the loop but by handing over one address at a time, and are joined at the
end; it is imported only when it is used.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from ipaddress import ip_address, ip_network
from typing import Any, Final

import trio

from .addresses import peer_of
from .multiaddrs import AddressError, Place, Reach, Vicinity, parse
from .ports import PeerId

log = logging.getLogger(__name__)

SERVICE: Final = "_groove._tcp.local."
NAMES_MAX: Final = 256  # of services looked into, so that a flood of them costs no more
_LOOKUP_MS: Final = 1500
_RETRY_S: Final = 60.0


class Neighbours:
    """Announces this node and hands over the addresses of others: found(address), in the loop."""

    def __init__(self, peer: PeerId, found: Callable[[str], None]) -> None:
        self._peer = peer
        self._found = found
        self._addresses: tuple[str, ...] = ()
        self._networks: tuple[str, ...] = ()
        self._moved = trio.Event()

    def move(self, addresses: Sequence[str], networks: Sequence[str]) -> None:
        """Say where this node can be dialled, and which networks it lies in."""
        if (tuple(addresses), tuple(networks)) != (self._addresses, self._networks):
            self._addresses, self._networks = tuple(addresses), tuple(networks)
            self._moved.set()

    async def run(self) -> None:
        """Announce and look until cancelled; begin anew when the network is another one."""
        while True:
            self._moved = trio.Event()
            hosts = self._hosts()
            if not hosts:
                await self._moved.wait()
                continue
            try:
                await self._stay(hosts)
            except OSError as problem:  # no multicast here; there may be later
                log.info("no multicast dns hosts=%s problem=%s", hosts, problem)
                with trio.move_on_after(_RETRY_S):
                    await self._moved.wait()

    async def _stay(self, hosts: dict[str, int]) -> None:
        token = trio.lowlevel.current_trio_token()

        def hand_over(address: str) -> None:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(self._found, address)

        radio = await trio.to_thread.run_sync(_Radio, self._peer, hosts, self._networks, hand_over)
        log.info("announced by multicast dns hosts=%s", sorted(hosts))
        try:
            await self._moved.wait()
        finally:
            with trio.CancelScope(shield=True):  # takes no longer than one look-up
                await trio.to_thread.run_sync(radio.close)

    def _hosts(self) -> dict[str, int]:
        """What to announce: this node's direct addresses, loopback only if it has no other."""
        places = [place for place in map(parse, self._addresses) if not place.relay]
        near = [place for place in places if not isinstance(place.host, str)]
        wide = [place for place in near if place.reach is not Reach.LOOPBACK]
        return {str(place.host): place.port for place in wide or near}


class _Radio:
    """One life of zeroconf. Made and closed in a thread, for both wait."""

    def __init__(
        self,
        peer: PeerId,
        hosts: dict[str, int],
        networks: Sequence[str],
        found: Callable[[str], None],
    ) -> None:
        from zeroconf import IPVersion, ServiceBrowser, ServiceInfo, Zeroconf

        self._peer = peer
        self._found = found
        self._near = Vicinity(frozenset(hosts), tuple(ip_network(each) for each in networks))
        self._names: dict[str, None] = {}
        name = secrets.token_hex(8)
        speaking = [host for host in hosts if ip_address(host).version == 4]
        if not speaking:
            raise OSError("no IPv4 address to speak from")
        self._loopback = all(ip_address(host).is_loopback for host in speaking)
        self._zeroconf = Zeroconf(interfaces=speaking, ip_version=IPVersion.V4Only)
        try:
            info = ServiceInfo(
                SERVICE,
                f"{name}.{SERVICE}",
                port=next(iter(hosts.values())),
                addresses=[ip_address(host).packed for host in hosts],
                properties={"peer": peer},
                server=f"{name}.local.",  # else it would be the machine's own name
            )
            self._zeroconf.register_service(info)
            self._browser = ServiceBrowser(self._zeroconf, SERVICE, handlers=[self._changed])
        except BaseException:
            self._zeroconf.close()
            raise

    def close(self) -> None:
        """Take the announcement back, and end the threads."""
        self._browser.cancel()  # closing alone would leave its thread waiting
        self._zeroconf.close()

    def _changed(self, zeroconf: Any, service_type: str, name: str, state_change: Any) -> None:
        """Called by zeroconf, in a thread of its own."""
        if state_change.name == "Removed":
            self._names.pop(name, None)
            return
        if name not in self._names and len(self._names) >= NAMES_MAX:
            return
        self._names[name] = None
        try:
            info = zeroconf.get_service_info(service_type, name, timeout=_LOOKUP_MS)
        except Exception as problem:  # whatever a neighbour has sent
            log.debug("service not understood name=%r problem=%r", name, problem)
            return
        if info is not None:
            for address in addresses_of(info, self._peer, self._near, self._loopback):
                self._found(address)


def addresses_of(info: Any, own: PeerId, near: Vicinity, loopback: bool) -> list[str]:
    """What a neighbour announces, as far as it lies in a network that is ours too and a stranger
    may name it: anybody on this network can say that a node is at a machine that has none.

    info: a `ServiceInfo` of zeroconf, whatever a neighbour has put into it. loopback: believe
    this machine's own peers instead, as one that is on loopback alone.
    """
    peer = (info.properties or {}).get(b"peer") or b""
    found = []
    for host in info.parsed_addresses()[:8]:
        try:
            ip = ip_address(host.partition("%")[0])
            place = Place(f"ip{ip.version}", ip, info.port or 0, None, PeerId(peer.decode("ascii")))
            if peer_of(str(place)) == own:
                return []
        except (AddressError, ValueError):
            continue
        nearby = ip.is_loopback if loopback else near.is_inside(ip)
        if nearby and near.admits(place, Reach.LOOPBACK if loopback else Reach.PRIVATE):
            found.append(str(place))
    return found
