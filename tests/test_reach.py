"""What `doctor` says of the network, and that it is what the running node has seen."""

from __future__ import annotations

import logging
import socket
from contextlib import nullcontext
from typing import Any

import pytest

from gossip.ports import Connected, Disconnected, PeerId
from gossip.relaying import RelayState
from gossip.transport_config import DialError, DialReason
from node.reach import Reach, findings, summary

ALICE = PeerId("12D3KooWR5VJ95ariMWis5mYWnZESbp66nTKwyZWU5CFbndGkGVH")
BOB = PeerId("12D3KooWKqFyiUNqLpmfqTUGxuN3FYasq2m9tEB1Lwhn9aBpGcVY")
RELAY = f"/ip4/11.0.0.1/tcp/4021/p2p/{BOB}"
HOME = f"/ip4/192.168.1.5/tcp/4021/p2p/{ALICE}"
LISTEN = "/ip4/127.0.0.1/tcp/0"
EVERYWHERE = "/ip4/0.0.0.0/tcp/4021"


def node(reach: Reach, *addresses: str) -> dict[str, Any]:
    return {"addresses": list(addresses), "links": {"reach": reach.facts()}}


def reach(
    error: DialError | None = None, relays: tuple[RelayState, ...] = (), **more: Any
) -> Reach:
    async def dial(address: str) -> PeerId:
        if error is not None:
            raise error
        return PeerId(address.rpartition("/")[2])

    return Reach(dial, lambda: 1000.0, lambda: relays, **more)


def said(rows: list[Any], check: str) -> list[tuple[str, str, str]]:
    return [row[1:] for row in rows if row[0] == check]


@pytest.mark.parametrize(
    ("addresses", "seen_from", "verdict", "says"),
    [
        ([HOME], "/ip4/11.0.0.9/tcp/5000", "ok", "from outside: a peer"),
        ([HOME, f"{RELAY}/p2p-circuit/p2p/{ALICE}"], None, "ok", "through a relay"),
        ([HOME], "/ip4/192.168.1.7/tcp/5000", "note", "(a peer of it has connected)"),
        ([HOME], None, "note", "behind a router"),
        ([HOME.replace("192.168.1.5", "11.0.0.5")], None, "note", "unknown"),
        ([HOME.replace("192.168.1.5", "127.0.0.1")], None, "note", "from this machine alone"),
    ],
)
def test_what_is_reachable_is_said_with_how_it_is_known(
    addresses: list[str], seen_from: str | None, verdict: str, says: str
) -> None:
    facts = reach()
    if seen_from is not None:
        facts.linked(Connected(BOB, seen_from, inbound=True))
    ((got, text, advice),) = said(findings(node(facts, *addresses), EVERYWHERE, []), "reachable")
    assert got == verdict and says in text and bool(advice) == (verdict == "note")


def test_neither_an_outbound_nor_a_relayed_link_proves_that_the_node_can_be_reached() -> None:
    facts = reach()
    facts.linked(Connected(BOB, "/ip4/11.0.0.9/tcp/5000"))
    facts.linked(Connected(ALICE, f"{RELAY}/p2p-circuit", inbound=True))
    assert facts.facts()["dialled_from"] is None


def test_a_proof_outlives_the_link_that_gave_it() -> None:
    facts = reach()
    facts.linked(Connected(BOB, "/ip4/11.0.0.9/tcp/5000", inbound=True))
    facts.linked(Disconnected(BOB))
    facts.linked(Connected(BOB, "/ip4/192.168.1.7/tcp/5000", inbound=True))
    assert facts.facts()["dialled_from"] == "public"


def test_a_relay_that_is_not_reserved_is_said_with_the_reason() -> None:
    facts = reach(
        relays=(RelayState(RELAY, True, ""), RelayState(HOME, False, "it has no room for another"))
    )
    good, bad = said(findings(node(facts, HOME), LISTEN, []), "relay")
    assert good[0] == "ok" and bad[0] == "bad"
    assert "no room" in bad[1] and "relay_for_others" in bad[2]


@pytest.mark.parametrize("reason", [each for each in DialReason if each is not DialReason.OTHER])
async def test_why_an_own_peer_is_not_there_is_said_with_what_to_do(reason: DialReason) -> None:
    facts = reach(DialError("x", reason))
    with pytest.raises(DialError):
        await facts.dial(RELAY)
    rows = said(findings(node(facts, HOME), LISTEN, [BOB]), "peers")
    assert rows[0][1] == "0 of 1 that you have named are connected"
    if reason in (DialReason.THIS_NODE, DialReason.NOT_RUNNING):
        return  # no fault of the peer's
    assert reason.value in rows[1][1] and RELAY in rows[1][1] and rows[1][2]


async def test_a_peer_that_is_linked_is_counted_and_of_many_others_only_so_much_is_kept() -> None:
    facts = reach()
    for number in range(600):
        await facts.dial(f"/ip4/11.0.0.1/tcp/1/p2p/peer{number}")
    facts.linked(Connected(BOB, f"{RELAY}/p2p-circuit/p2p/{BOB}"))
    assert len(facts.facts()["dialled"]) == 512
    (row,) = said(findings(node(facts, HOME), LISTEN, [BOB]), "peers")
    assert row == ("ok", "1 of 1 that you have named are connected, 1 through a relay", "")


def test_a_node_that_is_to_listen_on_loopback_gets_no_note_for_it() -> None:
    here = HOME.replace("192.168.1.5", "127.0.0.1")
    ((got, _, advice),) = said(findings(node(reach(), here), LISTEN, []), "reachable")
    assert (got, advice) == ("ok", "")
    started = {**node(reach(), here), "read": {"listen": LISTEN}}  # by `run --listen`
    ((got, _, advice),) = said(findings(started, EVERYWHERE, []), "reachable")
    assert (got, advice) == ("ok", "")


def test_an_address_of_a_document_is_no_public_one() -> None:
    for host in ("192.0.2.5", "198.51.100.5", "203.0.113.5"):
        rows = findings(node(reach(), HOME.replace("192.168.1.5", host)), EVERYWHERE, [])
        ((_, text, _),) = said(rows, "reachable")
        assert "public" not in text


async def test_the_log_says_once_why_an_own_peer_is_not_reached_and_again_when_that_changes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    reasons = [
        *(DialReason.REFUSED, DialReason.REFUSED, DialReason.NO_ANSWER),
        *(None, DialReason.NO_ANSWER),
    ]

    async def dial(address: str) -> PeerId:
        if reason := turn.pop(0):
            raise DialError("x", reason)
        return BOB

    caplog.set_level(logging.INFO, "node.reach")
    for named, said_so in ((True, 3), (False, 0)):
        caplog.clear()
        turn = list(reasons)
        facts = Reach(dial, lambda: 1000.0, named=lambda peer, named=named: named)  # type: ignore[misc]
        for reason in reasons:
            with pytest.raises(DialError) if reason else nullcontext():
                await facts.dial(RELAY)
        assert len(caplog.records) == said_so


async def test_status_tells_the_network_in_a_line() -> None:
    facts = reach(DialError("x", DialReason.REFUSED), (RelayState(RELAY, True, ""),))
    with pytest.raises(DialError):
        await facts.dial(RELAY)
    told = {**node(facts, HOME), "peers": [], "read": {"swarm": "0123456789abcdef"}}
    assert summary(told) == (
        "0 peers linked; reachable from outside: no; private swarm; relay reserved; "
        "`groove-node doctor` says why peers are not reached"
    )


def test_what_is_carried_for_others_is_said() -> None:
    facts = reach(carried=lambda: {"reservations": 2, "circuits": 1})
    ((_, text, _),) = said(findings(node(facts, HOME), LISTEN, []), "relay")
    assert text == "relays for others: 2 reserved, 1 open"


def test_without_a_node_the_port_is_tried() -> None:
    assert findings(None, LISTEN, [])[0][:2] == ("port", "ok")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (row,) = findings(None, f"/ip4/127.0.0.1/tcp/{port}", [])
    assert row[:2] == ("port", "bad") and "cannot be listened on" in row[2]
    assert findings(None, "localhost:4021", [])[0][1] == "bad"
