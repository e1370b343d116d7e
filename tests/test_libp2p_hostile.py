"""Inputs that end or deafen a stock py-libp2p host: after each, the transport answers as before."""

from __future__ import annotations

import gc
import os
import struct
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio
from support_libp2p import (
    assert_answers,
    attacker,
    connect,
    echo,
    link,
    muxer_of,
    next_of,
    peer_name,
    running,
    transport,
)

from gossip import libp2p_fence as fence
from gossip.libp2p_transport import Libp2pTransport
from gossip.ports import FRAME_BYTES_MAX, Arrived, Channel, Connected

pytestmark = pytest.mark.network


@pytest.fixture(autouse=True)
def _collect_now() -> Iterator[None]:
    """Make a socket that a test leaves open fail that test, not whichever runs later."""
    yield
    gc.collect()


MESHSUB = "/meshsub/1.1.0"
SYNC = "/groove/sync/1"
RSA = 0  # the key type's number


@asynccontextmanager
async def attacked(**limits: Any) -> AsyncIterator[tuple[Libp2pTransport, Any, Any]]:
    """A victim that echoes, an attacker connected to it, and libp2p's id of the victim. At the
    end the victim must answer a fresh peer, without having been restarted."""
    victim = transport(**limits)
    async with running(victim) as nursery:
        nursery.start_soon(echo, victim)
        async with attacker() as host:
            peer = await connect(host, victim)
            yield victim, host, peer
            await assert_answers(victim)


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


async def send_rpc(host: Any, peer: Any, data: bytes) -> Any:
    stream = await host.new_stream(peer, [MESHSUB])
    await stream.write(varint(len(data)) + data)
    return stream


async def ended(stream: Any) -> None:
    """Wait until the victim has ended the stream, and so has dealt with what came on it."""
    with trio.fail_after(60):
        with suppress(Exception):  # a reset is an end too
            while await stream.read(65536):
                pass


def field(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def key_message(kind: int, data: bytes) -> bytes:
    return b"\x08" + varint(kind) + field(2, data)


def rsa_bomb() -> bytes:
    """A DER private key of 16 kbit that takes the parser seconds, where a public key belongs."""

    def integer(value: int) -> bytes:
        body = value.to_bytes(value.bit_length() // 8 + 1, "big")
        return b"\x02\x82" + struct.pack(">H", len(body)) + body

    p = int.from_bytes(os.urandom(2040), "big") | 1 | 1 << 16319
    body = b"".join(map(integer, (0, 3 * p, 65537, 5, p, 3, 1, 1, 1)))
    return b"\x30\x82" + struct.pack(">H", len(body)) + body


def urgent_message(sender: bytes, key: bytes, data: bytes = b"x") -> bytes:
    topic = fence.URGENT_TOPIC.encode()
    fields = [(1, sender), (2, data), (3, os.urandom(8)), (4, topic), (5, bytes(64)), (6, key)]
    return b"".join(field(number, value) for number, value in fields)


def hashed_id(key: bytes) -> bytes:
    import hashlib

    return b"\x12\x20" + hashlib.sha256(key).digest()


# ---- streams -------------------------------------------------------------------------------------


async def test_invalid_protobuf_on_the_pubsub_stream() -> None:
    async with attacked() as (_, host, peer):
        for junk in (b"\xff" * 20, b"\x0a\xff\xff\xff\xff\x0f", b"\x12\x03abc"):
            await ended(await send_rpc(host, peer, junk))


async def test_a_length_without_end_or_above_the_limit_on_the_pubsub_stream() -> None:
    async with attacked() as (_, host, peer):
        for junk in (b"\xff" * 12, varint(1 << 30) + b"x"):
            stream = await host.new_stream(peer, [MESHSUB])
            await stream.write(junk)
            await ended(stream)


async def test_protocol_negotiation_in_invalid_utf8() -> None:
    async with attacked() as (_, host, peer):
        for before in (b"", b"\x13/multistream/1.0.0\n"):
            stream = await host.get_network().new_stream(peer)
            await stream.write(before + b"\x04\xff\xfe\xfd\n")
            await ended(stream)


@pytest.mark.parametrize(
    "key", [b"\xff\xff\xff", b"", key_message(1, b"short"), b"\x08\x63\x12\x00"]
)
async def test_a_broadcast_with_a_bad_key(key: bytes) -> None:
    async with attacked() as (_, host, peer):
        message = urgent_message(hashed_id(key), key)
        await send_rpc(host, peer, field(2, message))
        await send_rpc(host, peer, field(2, urgent_message(b"\x99" * 7, key)))
        await trio.sleep(0.1)


async def test_frames_that_are_none() -> None:
    async with attacked(frame_s=0.2) as (victim, host, peer):
        too_large = struct.pack(">I", FRAME_BYTES_MAX + 1)
        for junk in (too_large, b"\0\0\0\0", b"\xff" * 64, b"\0\0", b"\0\0\0\x09half"):
            for protocol in (SYNC, "/groove/bundle/1"):
                stream = await host.new_stream(peer, [protocol])
                await stream.write(junk)
                await ended(stream)
        assert victim.counts["frame too large"] == 4
        assert victim.counts["frame empty"] == 2
        assert victim.counts["frame too slow"] == 4


async def test_a_new_stream_takes_the_place_of_the_one_before() -> None:
    async with attacked() as (_, host, peer):
        last = await host.new_stream(peer, [SYNC])
        for _ in range(10):
            await last.write(b"\0\0\0\x09half")
            before, last = last, await host.new_stream(peer, [SYNC])
            await ended(before)
        await last.write(b"\0\0\0\x05whole")


async def test_a_fault_in_a_stream_handler_of_ours() -> None:
    async with attacked() as (victim, host, peer):

        async def faulty(stream: Any) -> None:
            raise ZeroDivisionError

        assert victim._life is not None
        victim._life.host.set_stream_handler("/groove/faulty/1", faulty)
        with suppress(Exception):  # the reset may be here before the protocol is agreed on
            await ended(await host.new_stream(peer, ["/groove/faulty/1"]))


async def test_unknown_protocols_and_streams_that_say_nothing() -> None:
    async with attacked() as (_, host, peer):
        for _ in range(30):
            await host.get_network().new_stream(peer)
        with pytest.raises(Exception, match="failed to open a stream"):
            await host.new_stream(peer, ["/no/such/thing/1"])


# ---- keys ----------------------------------------------------------------------------------------


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes of each key that reaches the parser of RSA keys, which may take seconds for it."""
    from Crypto.PublicKey import RSA

    sizes: list[int] = []
    parse = RSA.import_key

    def counted(data: Any, passphrase: str | None = None) -> RSA.RsaKey:
        sizes.append(len(data))
        return parse(data, passphrase)

    monkeypatch.setattr(RSA, "import_key", counted)
    return sizes


def test_a_long_rsa_key_is_refused_unparsed_wherever_it_is_parsed(parsed: list[int]) -> None:
    from libp2p.crypto.rsa import RSAPublicKey
    from libp2p.crypto.rsa import create_new_key_pair as rsa_pair
    from libp2p.crypto.serialization import deserialize_public_key

    bomb = rsa_bomb()
    for parse in (RSAPublicKey.from_bytes, lambda b: deserialize_public_key(key_message(RSA, b))):
        with pytest.raises(ValueError, match="refused"):
            parse(bomb)
    assert parsed == []
    honest = rsa_pair(2048).public_key
    assert deserialize_public_key(honest.serialize()).serialize() == honest.serialize()
    assert len(parsed) == 1


async def test_rsa_bombs_in_broadcasts(parsed: list[int]) -> None:
    async with attacked() as (_, host, peer):
        key = key_message(RSA, rsa_bomb())
        bombs = b"".join(field(2, urgent_message(hashed_id(key), key)) for _ in range(40))
        await send_rpc(host, peer, bombs)
    assert parsed == []


async def test_an_rsa_bomb_as_identity_in_the_handshake(parsed: list[int]) -> None:
    from libp2p.crypto.keys import KeyPair
    from libp2p.security.noise.transport import Transport as Noise

    class Bomb:
        def serialize(self) -> bytes:
            return key_message(RSA, bomb)

    bomb = rsa_bomb()
    async with attacked() as (victim, _, _), attacker() as host:
        upgrader = host.get_network().upgrader.security_multistream
        private = host.get_private_key()
        noise = Noise(KeyPair(private, Bomb()), noise_privkey=fence.x25519_pair().private_key)
        # The attacker's own parts read their public key from the private one.
        noise.libp2p_privkey = type(
            "Key", (), {"get_public_key": lambda self: Bomb(), "sign": lambda self, d: bytes(64)}
        )()
        upgrader.transports[fence.NOISE] = noise
        for _ in range(3):
            with pytest.raises(Exception):  # noqa: B017
                await connect(host, victim)
                stream = await host.new_stream(fence.peer_of(victim.addresses()[0]), [SYNC])
                await stream.read(1)
    assert parsed == []


# ---- memory --------------------------------------------------------------------------------------


async def test_prunes_of_topics_nobody_joined_are_not_kept() -> None:
    async with attacked() as (victim, host, peer):
        assert victim._life is not None
        router = victim._life.pubsub.router
        for topic in (b"t" * 100_000, fence.URGENT_TOPIC.encode()):
            prune = field(4, field(1, topic) + b"\x18" + varint(1 << 40))
            await send_rpc(host, peer, field(3, prune))
        with trio.fail_after(60):
            while fence.URGENT_TOPIC not in router.back_off:
                await trio.sleep(0.01)
        assert set(router.back_off) == {fence.URGENT_TOPIC}
        assert set(router.graft_flood_tracking[host.get_id()]) == {fence.URGENT_TOPIC}
        for until in router.back_off[fence.URGENT_TOPIC].values():
            assert until <= time.time() + 3601


async def test_peers_named_in_a_prune_are_not_dialled() -> None:
    async with attacked() as (victim, host, peer):
        decoy = transport()
        async with running(decoy), attacker() as other:
            signed = other.get_peerstore().get_local_record().marshal_envelope()
            named = field(2, field(1, other.get_id().to_bytes()) + field(2, signed))
            prune = field(4, field(1, fence.URGENT_TOPIC.encode()) + named + b"\x18\x01")
            await send_rpc(host, peer, field(3, prune))
            await trio.sleep(0.3)
            assert victim._life is not None
            assert not victim._life.host.get_peerstore().has_peer(other.get_id())


async def test_broadcasts_of_the_past_are_not_kept() -> None:
    victim, guest = transport(), transport()
    async with running(victim, guest):
        await link(guest, victim)
        assert guest._life is not None and victim._life is not None
        victim_id = fence.peer_of(victim.addresses()[0])
        await guest._life.pubsub.wait_for_mesh(victim_id, fence.URGENT_TOPIC)
        for number in range(10):
            await guest.broadcast(b"%d" % number)
            await next_of(victim, Arrived)
        for node in (guest, victim):
            assert node._life is not None
            assert not node._life.pubsub.router.equivocation_detection


async def test_a_peer_that_has_frozen_is_given_up_and_one_that_is_merely_silent_is_not() -> None:
    async with attacked(health_check_s=0.2, health_answer_s=0.5) as (victim, host, peer):
        silent = transport()
        async with running(silent):
            await silent.dial(victim.addresses()[0])

            async def frozen(data: bytes) -> None:
                await trio.sleep_forever()

            muxer = muxer_of(host, peer)
            muxer._write_frame = frozen
            assert victim._life is not None
            with trio.fail_after(60):
                while victim._life.host.is_peer_connected(host.get_id()):
                    await trio.sleep(0.05)
            del muxer._write_frame
            assert victim.counts["silent and does not answer"] == 1
            assert victim._life.host.is_peer_connected(fence.id_of(silent.peer_id()))


async def test_subscriptions_to_other_topics_are_not_kept() -> None:
    async with attacked() as (victim, host, peer):
        assert victim._life is not None
        await send_rpc(host, peer, field(1, b"\x08\x01" + field(2, b"t" * 100_000)))
        await trio.sleep(0.1)
        assert set(victim._life.pubsub.peer_topics) <= {fence.URGENT_TOPIC}


def test_unparsable_identify_addresses_are_not_kept() -> None:
    import libp2p.identity.update as update

    assert update._safe_parse_multiaddr_cached(b"\xff" * 200) is None
    assert update._safe_parse_multiaddr_cached(b"\x04" + bytes(1_000_000)) is None
    assert not hasattr(update._safe_parse_multiaddr_cached, "cache_info")
    parsed = update._safe_parse_multiaddr_cached(bytes.fromhex("047f000001060fa1"))
    assert str(parsed) == "/ip4/127.0.0.1/tcp/4001"


# ---- floods --------------------------------------------------------------------------------------


async def test_a_flood_of_broadcasts_is_cut_to_its_forwarders_budget() -> None:
    victim = transport(urgent_burst=10, urgent_per_s=0.0)  # none given back while the test runs
    loud = transport(urgent_queue_max=200)
    async with running(victim, loud):
        await link(loud, victim)
        assert loud._life is not None and victim._life is not None
        victim_id = fence.peer_of(victim.addresses()[0])
        await loud._life.pubsub.wait_for_mesh(victim_id, fence.URGENT_TOPIC)
        came: list[bool] = []
        within_budget = victim._life.pubsub._within_budget

        def noted(forwarder: Any) -> bool:
            came.append(within_budget(forwarder))
            return came[-1]

        victim._life.pubsub._within_budget = noted
        for number in range(60):
            await loud.broadcast(b"%d" % number)
        for _ in range(10):
            await next_of(victim, Arrived)
        with trio.fail_after(60):
            while len(came) < 40:  # libp2p itself may lose some of the sixty
                await trio.sleep(0.01)
        with trio.move_on_after(0.5) as quiet:
            await next_of(victim, Arrived)
        assert quiet.cancelled_caught and sum(came) == 10


async def counted(victim: Libp2pTransport, reason: str) -> None:
    with trio.fail_after(60):
        while not victim.counts[reason]:
            await trio.sleep(0.01)


@pytest.mark.parametrize(
    ("rpc", "reason"),
    [
        (b"\xff" * 20, "broadcast frame is no protobuf"),
        (field(2, urgent_message(hashed_id(b""), b"")), "broadcast badly signed"),
        (field(2, field(2, b"x") + field(4, b"other")), "broadcast of another topic"),
        (field(2, field(4, fence.URGENT_TOPIC.encode())), "broadcast empty or too large"),
    ],
)
async def test_a_broadcast_that_cannot_be_sound_is_blamed_on_its_forwarder(
    rpc: bytes, reason: str
) -> None:
    async with attacked() as (victim, host, peer):
        await send_rpc(host, peer, rpc)
        await counted(victim, reason)
        assert victim.refused_of(peer_name(host)) == {reason: 1}


async def test_a_frame_of_broadcasts_that_does_not_come_to_its_end() -> None:
    async with attacked(frame_s=0.2) as (victim, host, peer):
        stream = await host.new_stream(peer, [MESHSUB])
        await stream.write(varint(100) + b"half")
        await ended(stream)
        assert victim.counts["broadcast frame too slow"] == 1


async def test_one_peer_has_a_few_streams_of_broadcasts() -> None:
    async with attacked() as (victim, host, peer):
        for _ in range(8):
            with suppress(Exception):  # those too many are reset
                await host.new_stream(peer, [MESHSUB])
        await counted(victim, "too many streams of broadcasts")


async def test_a_peer_that_asks_for_too_many_broadcasts_gets_no_more() -> None:
    async with attacked() as (victim, host, peer):
        wanted = b"".join(field(1, os.urandom(20)) for _ in range(1000))
        await send_rpc(host, peer, field(3, field(2, wanted)))
        await counted(victim, "asked for too many broadcasts")


async def test_offers_of_other_topics_leave_nothing() -> None:
    async with attacked() as (victim, host, peer):
        assert victim._life is not None
        router = victim._life.pubsub.router
        offers = [field(1, field(1, b"t%d" % n) + field(2, os.urandom(20))) for n in range(50)]
        grafts = [field(3, field(1, b"t%d" % n)) for n in range(50)]
        await send_rpc(host, peer, field(3, b"".join(offers + grafts)))
        ours = field(1, field(1, fence.URGENT_TOPIC.encode()) + field(2, os.urandom(20)))
        await send_rpc(host, peer, field(3, ours))
        with trio.fail_after(60):
            while not router.ihave_message_limits[host.get_id()]:
                await trio.sleep(0.01)
        assert set(router.ihave_message_limits[host.get_id()]) == {fence.URGENT_TOPIC}


async def test_nobody_waits_for_a_peer_that_reads_no_broadcasts() -> None:
    victim, guest = transport(), transport(urgent_per_s=1000.0)
    async with running(victim, guest), attacker() as host:

        async def unread(stream: Any) -> None:
            await trio.sleep_forever()

        host.set_stream_handler(MESHSUB, unread)
        peer = await connect(host, victim)
        topic = fence.URGENT_TOPIC.encode()
        await send_rpc(host, peer, field(1, b"\x08\x01" + field(2, topic)))
        await guest.dial(victim.addresses()[0])
        for _ in range(2):
            await next_of(victim, Connected)
        assert victim._life is not None
        for reader in (host.get_id(), fence.id_of(guest.peer_id())):
            await victim._life.pubsub.wait_for_mesh(reader, fence.URGENT_TOPIC, timeout=60)
        for number in range(120):
            await victim.broadcast(b"%d" % number + bytes(16_000))
            await next_of(guest, Arrived)  # within a minute, or it fails


async def test_a_frame_in_many_small_packets_is_read_to_its_end() -> None:
    async with attacked() as (victim, host, peer):
        stream = await host.new_stream(peer, [MESHSUB])
        junk = field(1, b"\x08\x01" + field(2, b"t" * 400))
        for byte in varint(len(junk)) + junk:
            await stream.write(bytes([byte]))
        bad = b"\xff" * 20
        await stream.write(varint(len(bad)) + bad)
        await counted(victim, "broadcast frame is no protobuf")


async def test_a_broadcast_too_large_goes_no_further() -> None:
    victim, guest = transport(urgent_bytes_max=1000), transport(urgent_bytes_max=5000)
    async with running(victim, guest):
        await link(guest, victim)
        assert guest._life is not None
        victim_id = fence.peer_of(victim.addresses()[0])
        await guest._life.pubsub.wait_for_mesh(victim_id, fence.URGENT_TOPIC)
        with pytest.raises(ValueError, match="at most 5000 bytes"):
            await guest.broadcast(bytes(5001))
        await guest.broadcast(bytes(1001))
        await guest.broadcast(bytes(1000))
        assert (await next_of(victim, Arrived)).frame == bytes(1000)


async def test_a_peer_that_floods_one_channel_does_not_silence_another_peer() -> None:
    victim, guest = transport(inbox_frames_max=2), transport()
    async with running(victim, guest), attacker() as host:
        peer = await connect(host, victim)
        await guest.dial(victim.addresses()[0])
        for _ in range(2):
            await next_of(victim, Connected)
        stream = await host.new_stream(peer, [SYNC])
        await stream.write(b"".join(b"\0\0\0\x05flood" for _ in range(2000)))
        await guest.send(victim.peer_id(), Channel.SYNC, b"me too")
        for seen in range(200):
            event = await next_of(victim, Arrived)
            if event.peer == guest.peer_id():
                break
            assert event.peer == peer_name(host)
            if seen > 20:
                await trio.sleep(0.002)  # a slow reader, so that both have frames waiting
        else:
            pytest.fail("the flood went first")
