"""What of the network is reachable, what is not, and what to do: plain facts for the owner.

A running node notes what it sees (`Reach`) in the run file; `doctor` and `peers` read it there
(`findings`). Nothing is asked of a server on the internet: that somebody from outside has connected
is the only proof that he can, so before that it is a guess, and said to be one.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any, Final, Literal

from gossip.multiaddrs import CIRCUIT, AddressError, parse
from gossip.multiaddrs import Reach as Far
from gossip.ports import Connected, Disconnected, PeerId
from gossip.transport_config import DialError, DialReason

log = logging.getLogger(__name__)

_OUTCOMES_MAX: Final = 512
_ADVICE: Final = {
    DialReason.WRONG_SWARM_KEY: "ask for a new invitation, then `groove-node peers join`",
    DialReason.WRONG_PEER: "its keys or its address have changed: ask for a new invitation",
    DialReason.BANNED: "it is dialled again when its ban ends; the log says what it has sent",
    DialReason.FULL: "raise connections_max under [mesh.transport]",
    DialReason.NO_RESERVATION: "it is off, or at another relay: ask for a new invitation",
    DialReason.RELAY_REFUSED: "ask whoever runs the relay, or reach the peer by another",
    DialReason.REFUSED: "nothing listens there: does the peer run, and is its port forwarded?",
    DialReason.NO_ROUTE: "is this machine online? Else the address is of another network",
    DialReason.HANDSHAKE: "no node listens there, or one of a private swarm",
    DialReason.NO_ANSWER: "it is off, or a router or firewall drops it: let both use a relay",
    DialReason.NO_ADDRESS: "groove-node peers remove, then add it again",
}

_EXAMPLES: Final = [  # of documents: nobody has these
    ip_network(each)
    for each in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")
]

Verdict = Literal["ok", "note", "bad"]
Row = tuple[str, Verdict, str, str]  # check, verdict, finding, what to do


@dataclass(frozen=True, slots=True)
class _Outcome:
    """How the last dial of a peer went. reason: None if it was reached."""

    address: str
    at_s: float
    reason: DialReason | None


class Reach:
    """What one running node has seen of the network.

    dial: the transport's. relays: (relay, whether reserved, why not) of each relay that it uses.
    carried: what it relays for others; None if it does not. named: whether a peer is one of the
    owner's, of whom the log says why they are not reached.
    """

    def __init__(
        self,
        dial: Callable[[str], Awaitable[PeerId]],
        clock: Callable[[], float],
        relays: Callable[[], Iterable[Any]] = tuple,
        carried: Callable[[], Mapping[str, int] | None] = lambda: None,
        named: Callable[[PeerId], bool] = lambda peer: False,
    ) -> None:
        self._dial = dial
        self._clock = clock
        self._relays = relays
        self._carried = carried
        self._named = named
        self._logged: dict[str, DialReason] = {}  # by address: one of several may fail otherwise
        self._outcomes: dict[PeerId, _Outcome] = {}
        self._came_from: Far | None = None  # as far away as any that has dialled this node
        self._links: dict[PeerId, Connected] = {}

    async def dial(self, address: str) -> PeerId:
        """Dial, and remember how it went. Raises DialError."""
        try:
            peer = await self._dial(address)
        except DialError as error:
            if error.reason is not DialReason.NOT_RUNNING:
                self._note(address, error.reason)
            raise
        self._note(address, None)
        return peer

    def linked(self, event: Connected | Disconnected) -> None:
        match event:
            case Connected(peer, address, inbound):
                self._links[peer] = event
                if inbound and CIRCUIT not in address:
                    far = _far(address)
                    self._came_from = max(self._came_from or far, far)
            case Disconnected(peer):
                self._links.pop(peer, None)

    def facts(self) -> dict[str, Any]:
        """For the run file."""
        return {
            "dialled_from": None if self._came_from is None else self._came_from.name.lower(),
            "links": [
                {"peer": each.peer, "inbound": each.inbound, "relayed": CIRCUIT in each.address}
                for each in self._links.values()
            ],
            "relays": [
                {"relay": each.relay, "reserved": each.reserved, "why": each.why}
                for each in self._relays()
            ],
            "carried": self._carried(),
            "dialled": [
                {
                    "peer": peer,
                    "address": outcome.address,
                    "at": int(outcome.at_s),
                    "why": outcome.reason,
                    "advice": _ADVICE.get(outcome.reason, "") if outcome.reason else "",
                }
                for peer, outcome in self._outcomes.items()
            ],
        }

    def _note(self, address: str, reason: DialReason | None) -> None:
        peer = PeerId(address.rpartition("/p2p/")[2])
        self._log(peer, address, reason)
        self._outcomes.pop(peer, None)
        self._outcomes[peer] = _Outcome(address, self._clock(), reason)
        if len(self._outcomes) > _OUTCOMES_MAX:
            del self._outcomes[next(iter(self._outcomes))]

    def _log(self, peer: PeerId, address: str, reason: DialReason | None) -> None:
        """The first failure of an owner's peer at an address, and each change of its reason."""
        if reason is None:
            self._logged.pop(address, None)
        elif self._logged.get(address) is not reason and self._named(peer):
            self._logged[address] = reason
            log.info("peer not reached peer=%s address=%s reason=%s", peer, address, reason.value)
            if len(self._logged) > _OUTCOMES_MAX:
                del self._logged[next(iter(self._logged))]


def is_example(address: str) -> bool:
    """True of a multiaddr that leads nowhere, for it is of a range that documents use."""
    try:
        host = parse(address).host
    except AddressError:
        return False
    return not isinstance(host, str) and any(host in network for network in _EXAMPLES)


def summary(node: Mapping[str, Any]) -> str:
    """The network in a line, for `status`. node: the run file's."""
    facts = node.get("links", {}).get("reach", {})
    direct = [each for each in node["addresses"] if CIRCUIT not in each]
    relayed = len(direct) < len(node["addresses"])
    linked = len(node["peers"])
    parts = [f"{linked} peer{'s' * (linked != 1)} linked"]
    _, verdict, text, _ = _reachable(facts, direct, relayed, "")
    outside = "yes" if verdict == "ok" else "not known yet" if text.startswith("unknown") else "no"
    parts.append(f"reachable from outside: {outside}")
    if node.get("read", {}).get("swarm"):
        parts.append("private swarm")
    if relays := facts.get("relays"):
        parts.append("relay reserved" if any(x["reserved"] for x in relays) else "no relay answers")
    failing = {each["peer"] for each in facts.get("dialled", ()) if each["why"]}
    if not linked and failing:
        parts.append("`groove-node doctor` says why peers are not reached")
    return "; ".join(parts)


def _is_loopback(address: str) -> bool:
    """Of what to listen on; "everywhere" is not."""
    try:
        host = parse(address).host
    except AddressError:
        return False
    return not isinstance(host, str) and host.is_loopback


def _far(address: str) -> Far:
    try:
        return parse(address).reach
    except AddressError:
        return Far.LOOPBACK  # the least that it can prove


# ---- for `doctor` --------------------------------------------------------------------------------


def findings(node: Mapping[str, Any] | None, listen: str, owners: Iterable[str]) -> list[Row]:
    """What the network looks like. node: the run file's, None if no node runs; listen: where it is
    to listen; owners: the peers that the owner has named."""
    if node is None:
        return [_port(listen)]
    facts = node.get("links", {}).get("reach", {})
    relayed = [each for each in node["addresses"] if CIRCUIT in each]
    direct = [each for each in node["addresses"] if CIRCUIT not in each]
    rows: list[Row] = [("port", "note", "not listening now", "look again in a minute")]
    if direct:
        rows = [("port", "ok", f"listening at {direct[0]}", "")]
    listen = node.get("read", {}).get("listen", listen)  # `run --listen` goes before the file
    rows.append(_reachable(facts, direct, bool(relayed), listen))
    rows += [_relay(each) for each in facts.get("relays", ())]
    if carried := facts.get("carried"):
        text = f"relays for others: {carried['reservations']} reserved, {carried['circuits']} open"
        rows.append(("relay", "ok", text, ""))
    return rows + _peers(facts, list(owners))


def _port(listen: str) -> Row:
    """Whether a node could listen, tried."""
    try:
        place = parse(listen)
    except AddressError as problem:
        return ("port", "bad", str(problem), "mend `listen` under [mesh.transport] in groove.toml")
    family = socket.AF_INET6 if place.kind == "ip6" else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((str(place.host), place.port))
        except OSError as problem:
            text = f"{listen} cannot be listened on: {problem.strerror}"
            advice = "end what listens there, or choose another `listen` under [mesh.transport]"
            return ("port", "bad", text, advice)
    return ("port", "ok", f"{listen} is free", "")


def _reachable(facts: Mapping[str, Any], direct: list[str], relayed: bool, listen: str) -> Row:
    came_from = facts.get("dialled_from")
    if came_from == "public":
        return ("reachable", "ok", "from outside: a peer of another network has connected", "")
    if relayed:
        return ("reachable", "ok", "from outside, through a relay", "")
    reaches = [_far(each) for each in direct if not is_example(each)]
    port = parse(direct[0]).port if direct else 0
    if Far.PUBLIC in reaches:
        text = "unknown: this machine has a public address, and nobody has dialled it yet"
        return ("reachable", "note", text, f"let TCP port {port} through the firewall, if any")
    if Far.PRIVATE in reaches:
        proven = (
            "a peer of it has connected" if came_from == "private" else "nobody has dialled yet"
        )
        text = f"only from the local network ({proven}): this machine stands behind a router"
        advice = (
            f"forward TCP port {port} of the router here and name it by `announce`, "
            "or name a node that relays by `relay`, both under [mesh.transport]"
        )
        return ("reachable", "note", text, advice)
    text = "from this machine alone: the node listens on loopback"
    if _is_loopback(listen):  # the owner's will, and nothing to mend
        return ("reachable", "ok", f"{text}, as `listen` says", "")
    return ("reachable", "note", text, 'listen = "/ip4/0.0.0.0/tcp/4021" under [mesh.transport]')


def _relay(state: Mapping[str, Any]) -> Row:
    name = state["relay"].rpartition("/p2p/")[2][-8:]
    if state["reserved"]:
        return ("relay", "ok", f"reserved at {name}", "")
    text = f"not reserved at {name}: {state['why']}"
    return ("relay", "bad", text, f"is {state['relay']} running, with relay_for_others = true?")


def _peers(facts: Mapping[str, Any], owners: list[str]) -> list[Row]:
    links = {each["peer"]: each for each in facts.get("links", ())}
    dialled = {each["peer"]: each for each in facts.get("dialled", ())}
    away = [peer for peer in owners if peer not in links]
    rows: list[Row] = []
    if owners:
        text = f"{len(owners) - len(away)} of {len(owners)} that you have named are connected"
        if relayed := sum(each["relayed"] for each in links.values()):
            text += f", {relayed} through a relay"
        rows.append(("peers", "note" if away else "ok", text, ""))
    for peer in away:
        last = dialled.get(peer)
        if last is None or last["why"] is None:
            rows.append(("peers", "note", f"{peer[-8:]}: not dialled yet", ""))
        else:
            text = f"{peer[-8:]}: {last['why']} at {last['address']}"
            rows.append(("peers", "note", text, last["advice"]))
    return rows
