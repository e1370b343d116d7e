"""Relays and private swarms over real sockets: who is reached, and what hostile ends get."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from random import Random
from typing import Any

import pytest
import trio
from support_libp2p import (
    assert_answers,
    attacker,
    connect,
    echo,
    next_of,
    running,
    transport,
)

from gossip.libp2p_circuit import (
    HOP,
    STOP,
    HopMessage,
    StopMessage,
    asking,
    calling,
    granted,
    hear,
    limit,
    relayed_connection,
    say,
    stopped,
)
from gossip.libp2p_transport import Libp2pTransport
from gossip.ports import Arrived, Channel, Connected, Disconnected, PeerId
from gossip.relaying import Status
from gossip.transport_config import DialError, DialReason, RelayLimits

pytestmark = pytest.mark.network

CIRCUIT = "/p2p-circuit/p2p/"


@pytest.fixture(autouse=True)
def _collect_now() -> Iterator[None]:
    """Make a socket that a test leaves open fail that test, not whichever runs later."""
    yield
    gc.collect()


async def until(holds: Callable[[], bool]) -> None:
    with trio.fail_after(60):
        while not holds():
            await trio.sleep(0.01)


def relay(**limits: Any) -> Libp2pTransport:
    return transport(relay_for_others=True, relaying=RelayLimits(**limits))


def hidden(*relays: Libp2pTransport, **config: Any) -> Libp2pTransport:
    """A node that asks to be reached through relays."""
    return transport(relay=tuple(each.addresses()[0] for each in relays), **config)


def through(node: Libp2pTransport) -> str:
    return next(each for each in node.addresses() if CIRCUIT in each)


async def reserved(node: Libp2pTransport) -> str:
    await until(lambda: any(CIRCUIT in each for each in node.addresses()))
    return through(node)


async def connected(node: Libp2pTransport, to: Libp2pTransport) -> Connected:
    """The event of one connection, passing over those to relays."""
    while True:
        event: Connected = await next_of(node, Connected)
        if event.peer == to.peer_id():
            return event


async def exchange(a: Libp2pTransport, b: Libp2pTransport) -> None:
    """A frame goes each way."""
    for sender, receiver in ((a, b), (b, a)):
        frame = os.urandom(60_000)
        assert await sender.send(receiver.peer_id(), Channel.SYNC, frame)
        assert await next_of(receiver, Arrived) == Arrived(sender.peer_id(), Channel.SYNC, frame)


# ---- meeting through a relay ---------------------------------------------------------------------


async def test_a_node_with_a_reservation_is_dialled_through_its_relay() -> None:
    middle, bob = relay(), transport()
    async with running(middle, bob):
        alice = hidden(middle)
        async with running(alice):
            address = await reserved(alice)
            assert address == f"{middle.addresses()[0]}{CIRCUIT}{alice.peer_id()}"
            assert await bob.dial(address) == alice.peer_id()
            assert (await connected(bob, alice)).address == address
            seen = await connected(alice, bob)
            assert seen.inbound and "/p2p-circuit" in seen.address
            await exchange(alice, bob)
            assert middle.relayed() == {"reservations": 1, "circuits": 1}


async def test_a_direct_connection_takes_over_from_a_relayed_one_and_no_frame_is_lost() -> None:
    middle, bob = relay(), transport()
    async with running(middle, bob):
        alice = hidden(middle)
        async with running(alice):
            await bob.dial(await reserved(alice))
            await connected(alice, bob)
            await exchange(alice, bob)
            await bob.dial(alice.addresses()[0])
            await exchange(alice, bob)
            await until(lambda: middle.relayed() == {"reservations": 1, "circuits": 0})
            await exchange(alice, bob)
            # With a direct one there, there is no need to go round.
            assert await bob.dial(through(alice)) == alice.peer_id()
            assert middle.relayed() == {"reservations": 1, "circuits": 0}


async def test_a_reservation_is_made_again_after_the_relay_was_restarted() -> None:
    key, bob = os.urandom(32), transport()
    first = transport(key=key, relay_for_others=True)
    async with running(bob) as nursery:
        scope, ended = await nursery.start(in_scope, first)
        address = first.addresses()[0]
        alice = hidden(first)
        await nursery.start(alice.run)
        await reserved(alice)
        scope.cancel()
        await ended.wait()  # its port is free
        await until(lambda: not any(CIRCUIT in each for each in alice.addresses()))
        assert not alice.relays()[0].reserved and alice.relays()[0].why
        again = transport(listen=address.split("/p2p/")[0], key=key, relay_for_others=True)
        await nursery.start(again.run)
        await bob.dial(await reserved(alice))
        await connected(alice, bob)


async def in_scope(node: Libp2pTransport, task_status: Any) -> None:
    """Run a node so that it can be ended by itself, and its end be waited for."""
    ended = trio.Event()
    with trio.CancelScope() as scope:
        async with running(node):
            task_status.started((scope, ended))
            await trio.sleep_forever()
    ended.set()


async def test_a_dial_through_a_relay_says_why_it_failed() -> None:
    middle, plain, bob, alice = relay(), transport(), transport(dial_s=2), transport()
    async with running(middle, plain, bob, alice):
        for at, reason in (
            (middle.addresses()[0], DialReason.NO_RESERVATION),
            (plain.addresses()[0], DialReason.RELAY_REFUSED),
            (f"/ip4/127.0.0.1/tcp/1/p2p/{plain.peer_id()}", DialReason.REFUSED),
        ):
            fresh = transport(dial_s=2)
            async with running(fresh):
                with pytest.raises(DialError) as failed:
                    await fresh.dial(f"{at}{CIRCUIT}{alice.peer_id()}")
                assert failed.value.reason is reason
        asks = hidden(plain)
        async with running(asks):
            await until(lambda: "does not relay" in asks.relays()[0].why)


# ---- what a relay gives away, and what hostile clients get ---------------------------------------


@asynccontextmanager
async def besieged(**limits: Any) -> AsyncIterator[tuple[Libp2pTransport, Any, Any]]:
    """A relay that echoes, an attacker connected to it, and libp2p's id of the relay. At the end
    the relay must answer, and relay, as before."""
    victim = relay(**limits)
    async with running(victim) as nursery:
        nursery.start_soon(echo, victim)
        async with attacker() as host:
            yield victim, host, await connect(host, victim)
        await assert_answers(victim)
        alice, bob = hidden(victim), transport()
        async with running(alice, bob):
            await bob.dial(await reserved(alice))
            await connected(alice, bob)


async def heard(stream: Any, kind: Any) -> Any:
    return await hear(stream, kind, 10)


async def answer(host: Any, victim: Any, request: Any) -> Any:
    stream = await host.new_stream(victim, [HOP])
    await say(stream, request, 10)
    return await heard(stream, HopMessage)


async def test_a_relay_answers_what_is_no_request_with_an_end_and_goes_on() -> None:
    async with besieged() as (victim, host, peer):
        for junk in (
            b"\xff\xff\xff\xff\x7f",  # a length of gigabytes
            b"\x81\x20" + bytes(4097),  # one byte too long
            b"\x05\xff\xff\xff\xff\xff",  # no protobuf
            b"\x02\x08\x63",  # a type that is none
            b"\x02\x08\x02",  # an answer, unasked
            b"\x02\x08\x01",  # a circuit to nobody
            b"\x00",
        ):
            stream = await host.new_stream(peer, [HOP])
            await stream.write(junk)
            with trio.fail_after(30), suppress(Exception):  # an answer, then an end; or a reset
                while await stream.read(4096):
                    pass
        name = PeerId(str(host.get_id()))
        await until(lambda: victim.counts["relay message too long"] == 2)
        assert victim.counts["relay message malformed"] >= 2 and name


async def test_a_reservation_is_for_whoever_asks_and_not_for_whom_it_names() -> None:
    async with besieged() as (_, host, peer):
        someone = transport()
        request = asking()
        request.peer.id = fence_id(someone.peer_id())
        granted_ = await answer(host, peer, request)
        assert granted_.status == Status.OK and granted_.reservation.expire > time.time()
        refused = await answer(host, peer, asking(fence_id(someone.peer_id())))
        assert refused.status == Status.NO_RESERVATION


async def test_no_circuit_leads_back_to_who_asks_or_to_the_relay() -> None:
    async with besieged() as (_, host, peer):
        await answer(host, peer, asking())
        for target in (host.get_id().to_bytes(), peer.to_bytes()):
            said = await answer(host, peer, asking(target))
            assert said.status == Status.PERMISSION_DENIED


async def test_who_asks_all_the_time_is_not_heard() -> None:
    async with besieged(asks_per_min=8) as (_, host, peer):
        said = [(await answer(host, peer, asking())).status for _ in range(6)]
        assert said == [Status.OK] * 4 + [Status.RESOURCE_LIMIT_EXCEEDED] * 2


async def test_a_target_that_takes_no_call_costs_the_caller_a_no_and_the_relay_no_circuit() -> None:
    async with besieged() as (victim, host, peer):
        await answer(host, peer, asking())  # reserved, but it speaks no STOP
        async with attacker() as caller:
            await connect(caller, victim)
            said = await answer(caller, peer, asking(host.get_id().to_bytes()))
            assert said.status == Status.CONNECTION_FAILED
            assert victim.relayed() == {"reservations": 1, "circuits": 0}


async def test_a_host_of_many_names_gives_up_a_circuit_to_another_host() -> None:
    middle, bob = relay(circuits_per_peer_max=2), transport()
    async with running(middle, bob) as nursery:
        alice, names = hidden(middle), [transport() for _ in range(3)]
        async with running(alice, *names):
            address = await reserved(alice)
            for each in names[:2]:
                await each.dial(address)
                await connected(each, alice)
            with pytest.raises(DialError, match="resource limit exceeded"):
                await names[2].dial(address)
            front = await behind(middle, "127.0.0.9", nursery)
            await bob.dial(f"{front}{CIRCUIT}{alice.peer_id()}")
            await connected(bob, alice)
            assert (await next_of(names[0], Disconnected)).peer == alice.peer_id()
            assert names[1].counts == {} and middle.relayed() == {"reservations": 1, "circuits": 2}


async def behind(node: Libp2pTransport, host: str, nursery: trio.Nursery) -> str:
    """An address at which the node sees whoever dials it come from another host."""
    port = int(node.addresses()[0].split("/")[4])

    async def carry(near: trio.SocketStream) -> None:
        far = await trio.open_tcp_stream("127.0.0.1", port, local_address=host)
        async with near, far, trio.open_nursery() as pumps:

            async def pump(source: trio.SocketStream, target: trio.SocketStream) -> None:
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    async for data in source:
                        await target.send_all(data)
                pumps.cancel_scope.cancel()

            pumps.start_soon(pump, near, far)
            pumps.start_soon(pump, far, near)

    serve = partial(trio.serve_tcp, carry, 0, host="127.0.0.1")
    (listener,) = await nursery.start(serve)
    return f"/ip4/127.0.0.1/tcp/{listener.socket.getsockname()[1]}/p2p/{node.peer_id()}"


async def test_a_circuit_ends_when_its_bytes_are_used_up() -> None:
    async with besieged(circuit_bytes_max=200_000, circuit_bytes_per_s=10_000_000) as (
        victim,
        host,
        peer,
    ):
        ended = trio.Event()

        async def swallow(stream: Any) -> None:
            await heard(stream, StopMessage)
            await say(stream, stopped(Status.OK), 10)
            with suppress(Exception):  # its end
                while await stream.read(65_536):
                    pass
            ended.set()

        host.set_stream_handler(STOP, swallow)
        await answer(host, peer, asking())
        async with attacker() as caller:
            await connect(caller, victim)
            stream = await caller.new_stream(peer, [HOP])
            await say(stream, asking(host.get_id().to_bytes()), 10)
            said = await heard(stream, HopMessage)
            assert said.status == Status.OK and said.limit.data == 200_000
            with trio.fail_after(60), suppress(Exception):  # it is reset while we write
                while not ended.is_set():
                    await stream.write(bytes(10_000))
            await until(ended.is_set)
        assert victim.counts["relay: circuit used up"] == 1
        await until(lambda: (victim.relayed() or {})["circuits"] == 0)


async def test_a_silent_circuit_is_ended() -> None:
    async with besieged(circuit_idle_s=0.3) as (victim, host, peer):

        async def sleepy(stream: Any) -> None:
            await heard(stream, StopMessage)
            await say(stream, stopped(Status.OK), 10)
            await trio.sleep_forever()

        host.set_stream_handler(STOP, sleepy)
        await answer(host, peer, asking())
        async with attacker() as caller:
            await connect(caller, victim)
            stream = await caller.new_stream(peer, [HOP])
            await say(stream, asking(host.get_id().to_bytes()), 10)
            assert (await heard(stream, HopMessage)).status == Status.OK
            with trio.fail_after(60), suppress(Exception):  # the end is a reset
                while await stream.read(100):
                    pass
            await until(lambda: (victim.relayed() or {})["circuits"] == 0)


async def test_a_node_that_was_not_asked_to_relay_speaks_no_such_protocol() -> None:
    plain = transport()
    async with running(plain), attacker() as host:
        peer = await connect(host, plain)
        with pytest.raises(Exception, match=r".*"):
            await host.new_stream(peer, [HOP])
        assert plain.relayed() is None


async def test_mutated_messages_are_refused_and_the_relay_goes_on() -> None:
    rng = Random(7)
    async with besieged(asks_per_min=100_000) as (victim, host, peer):
        seeds = [
            asking().SerializeToString(),
            asking(host.get_id().to_bytes()).SerializeToString(),
            calling(host.get_id().to_bytes(), limit(60, 1000)).SerializeToString(),
        ]
        for _ in range(150):
            data = bytearray(rng.choice(seeds))
            for _ in range(rng.randint(1, 4)):
                data.insert(rng.randint(0, len(data)), rng.randrange(256))
                data[rng.randrange(len(data))] = rng.randrange(256)
            for protocol in (HOP, STOP):
                with suppress(Exception):  # a refusal may be a reset, or the connection's end
                    if not host.is_peer_connected(peer):
                        await connect(host, victim)
                    stream = await host.new_stream(peer, [protocol])
                    await stream.write(bytes([len(data)]) + bytes(data))
                    await stream.reset()
        assert sum(victim.counts.values()) > 0


# ---- hostile relays ------------------------------------------------------------------------------


Answering = Callable[[Any], Awaitable[None]]


@asynccontextmanager
async def false_relay(answering: Answering, **config: Any) -> AsyncIterator[tuple[Any, Any]]:
    """A relay of the attacker's, and a victim that asks to be reached through it."""
    async with attacker() as host:
        host.set_stream_handler(HOP, answering)
        victim = transport(relay=(str(host.get_addrs()[0]),), **config)
        async with running(victim) as nursery:
            nursery.start_soon(echo, victim)
            yield host, victim
            await assert_answers(victim)


def saying(*messages: Any) -> Answering:
    async def answering(stream: Any) -> None:
        await heard(stream, HopMessage)
        for message in messages:
            await say(stream, message, 10)
        await stream.close()

    return answering


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (granted(Status.RESERVATION_REFUSED), "it has no room for another"),
        (granted(Status.PERMISSION_DENIED), "it does not relay for this node"),
        (asking(), "relay answered with no status"),
        (HopMessage(type=HopMessage.STATUS), "relay said no"),
        (HopMessage(type=HopMessage.STATUS, status=9999), "relay said no"),  # type: ignore[arg-type]
    ],
)
async def test_a_relay_that_does_not_grant_is_said_to_and_asked_again_later(
    message: Any, why: str
) -> None:
    async with false_relay(saying(message)) as (_, victim):
        await until(lambda: victim.relays()[0].why == why)
        assert all(CIRCUIT not in each for each in victim.addresses())


@pytest.mark.parametrize("expire", [1, 2**63, 2**64 - 1])
async def test_a_grant_with_an_end_that_makes_no_sense_is_a_grant_for_a_while(expire: int) -> None:
    async with false_relay(saying(granted(Status.OK, expire))) as (_, victim):
        await reserved(victim)


async def test_a_relay_that_answers_with_noise_or_not_at_all_is_no_relay() -> None:
    async def noise(stream: Any) -> None:
        await stream.write(os.urandom(5000))
        await stream.close()

    async with false_relay(noise) as (_, victim):
        await until(lambda: victim.relays()[0].why.startswith("relay"))


async def call(host: Any, victim: Libp2pTransport, message: Any) -> Any:
    peer = fence_peer(victim)
    if not host.is_peer_connected(peer):
        await connect(host, victim)
    stream = await host.new_stream(peer, [STOP])
    await say(stream, message, 10)
    return stream


async def test_a_call_from_a_peer_that_is_no_relay_of_ours_is_refused() -> None:
    victim = transport()
    async with running(victim) as nursery, attacker() as host:
        nursery.start_soon(echo, victim)
        stream = await call(host, victim, calling(b"\0" * 38, limit(60, 1000)))
        assert (await heard(stream, StopMessage)).status == Status.PERMISSION_DENIED
        assert victim.counts["relayed call refused"] == 1
        await assert_answers(victim)


async def test_calls_that_make_no_sense_are_refused() -> None:
    async with false_relay(saying(granted(Status.OK, int(time.time()) + 600))) as (host, victim):
        await reserved(victim)
        own, relay_id = fence_id(victim.peer_id()), host.get_id().to_bytes()
        for message, status in (
            (stopped(Status.OK), Status.UNEXPECTED_MESSAGE),
            (calling(own, limit(60, 1000)), Status.PERMISSION_DENIED),
            (calling(relay_id, limit(60, 1000)), Status.PERMISSION_DENIED),
        ):
            stream = await call(host, victim, message)
            assert (await heard(stream, StopMessage)).status == status
        for name in (b"", b"x" * 65):
            stream = await call(host, victim, calling(name, limit(60, 1000)))
            with pytest.raises(Exception, match="relay"):
                await heard(stream, StopMessage)


async def test_a_relay_that_calls_and_then_says_nothing_holds_only_so_many_calls() -> None:
    grant = saying(granted(Status.OK, int(time.time()) + 600))
    async with false_relay(grant, dial_s=3) as (host, victim):
        await reserved(victim)
        said = []
        for number in range(34):
            message = calling(fence_id(transport().peer_id()), limit(60, 1000))
            said.append((await heard(await call(host, victim, message), StopMessage)).status)
            assert number < 40
        assert said == [Status.OK] * 32 + [Status.RESOURCE_LIMIT_EXCEEDED] * 2


async def test_a_relay_cannot_pass_itself_or_another_off_as_the_peer_dialled() -> None:
    """It says that the circuit stands, and answers in it itself."""
    wanted = transport()

    async with attacker() as host:

        async def answering(stream: Any) -> None:
            await heard(stream, HopMessage)
            await say(stream, granted(Status.OK), 10)
            raw = relayed_connection(stream, str(host.get_addrs()[0]), initiator=False)
            with suppress(Exception):  # the dialler ends it
                await host.get_network().upgrade_inbound_raw_conn(raw, host.get_addrs()[0])

        host.set_stream_handler(HOP, answering)
        bob = transport(dial_s=5)
        async with running(bob) as nursery:
            nursery.start_soon(echo, bob)
            with pytest.raises(DialError) as failed:
                await bob.dial(f"{host.get_addrs()[0]}{CIRCUIT}{wanted.peer_id()}")
            assert failed.value.reason is DialReason.WRONG_PEER
            await assert_answers(bob)


async def test_a_relay_that_changes_one_byte_of_what_it_carries_only_ends_the_connection() -> None:
    alice_calls: list[Any] = []
    async with attacker() as host:

        async def answering(stream: Any) -> None:
            request = await heard(stream, HopMessage)
            if request.type == HopMessage.RESERVE:
                await say(stream, granted(Status.OK, int(time.time()) + 600), 10)
                return
            far = await host.new_stream(alice_calls[0], [STOP])
            source = stream.muxed_conn.peer_id.to_bytes()
            await say(far, calling(source, limit(60, 10_000_000)), 10)
            await heard(far, StopMessage)
            await say(stream, granted(Status.OK), 10)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(carry, far, stream, 1 << 62)
                nursery.start_soon(carry, stream, far, 150_000)

        host.set_stream_handler(HOP, answering)
        alice, bob = transport(relay=(str(host.get_addrs()[0]),)), transport()
        async with running(alice, bob) as nursery:
            alice_calls.append(fence_peer(alice))
            await bob.dial(await reserved(alice))
            await connected(alice, bob)
            await connected(bob, alice)
            await bob.send(alice.peer_id(), Channel.BUNDLE, bytes(300_000))
            while (await next_of(bob, Disconnected)).peer != alice.peer_id():
                pass
            await bob.dial(alice.addresses()[0])
            await connected(alice, bob)
            nursery.start_soon(echo, alice)
            await assert_answers(alice)


async def carry(source: Any, target: Any, flip_at: int) -> None:
    """Pass bytes on, one of them changed."""
    passed = 0
    with suppress(Exception):  # either end's
        while data := bytearray(await source.read(65_536)):
            if passed <= flip_at < passed + len(data):
                data[flip_at - passed] ^= 1
            passed += len(data)
            await target.write(bytes(data))
    for each in (source, target):
        with suppress(Exception):
            await each.reset()


def fence_peer(node: Libp2pTransport) -> Any:
    from gossip import libp2p_fence as fence

    return fence.peer_of(node.addresses()[0])


def fence_id(peer: PeerId) -> bytes:
    """A peer's name as it stands in a relay's messages."""
    from libp2p.peer.id import ID

    raw: bytes = ID.from_string(peer).to_bytes()
    return raw
