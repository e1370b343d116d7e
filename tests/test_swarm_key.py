"""Private swarms: members connect, outsiders do not, and cost nothing that lasts."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

import pytest
import trio
from support_libp2p import link, next_of, running, transport
from test_relay import connected, exchange, hidden, reserved, until

from gossip.ports import Connected
from gossip.swarm_key import cipher
from gossip.transport_config import DialError, DialReason

pytestmark = pytest.mark.network

KEY, OTHER = "11" * 32, "22" * 32


async def test_members_of_a_swarm_connect_and_know_each_others_addresses() -> None:
    a, b = transport(swarm_key=KEY), transport(swarm_key=KEY)
    async with running(a, b):
        await a.dial(b.addresses()[0])
        assert (await next_of(a, Connected)).address.startswith("/ip4/127.0.0.1/tcp/")
        assert (await next_of(b, Connected)).inbound
        await exchange(a, b)


@pytest.mark.parametrize("outsiders_key", ["", OTHER])
async def test_an_outsider_is_refused_both_ways_at_once(outsiders_key: str) -> None:
    member, outsider = transport(swarm_key=KEY), transport(swarm_key=outsiders_key)
    async with running(member, outsider):
        for dialling, dialled in ((member, outsider), (outsider, member)):
            with trio.fail_after(8), pytest.raises(DialError) as failed:  # not at the deadline
                await dialling.dial(dialled.addresses()[0])
            if dialling is member or outsiders_key:
                assert failed.value.reason is DialReason.WRONG_SWARM_KEY


async def test_outsiders_leave_no_place_taken() -> None:
    victim = transport(swarm_key=KEY, connections_max=4)
    async with running(victim):
        for _ in range(12):
            outsider = transport()
            async with running(outsider):
                with pytest.raises(DialError):
                    await outsider.dial(victim.addresses()[0])
        member = transport(swarm_key=KEY)
        async with running(member):
            with trio.fail_after(60):
                while True:  # all come from one address, which has to wait a little by now
                    with suppress(DialError):
                        await link(member, victim)
                        break
                    await trio.sleep(0.2)


async def test_who_sends_everything_back_is_refused_both_ways_at_once() -> None:
    """Its bytes are under the key, and begin as a member's do."""
    member = transport(swarm_key=KEY)

    async def mirror(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            async for data in stream:
                await stream.send_all(data)

    async with running(member) as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, mirror, 0, host="127.0.0.1"))
        at = f"/ip4/127.0.0.1/tcp/{listener.socket.getsockname()[1]}"
        with trio.fail_after(8), pytest.raises(DialError) as failed:  # not at the deadline
            await member.dial(f"{at}/p2p/{transport().peer_id()}")
        assert failed.value.reason is DialReason.WRONG_SWARM_KEY
        port = int(member.addresses()[0].split("/")[4])
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            with trio.fail_after(3):
                await mirror(stream)
        await until(lambda: bool(member.counts["handshake failed"]))


async def test_members_meet_through_a_relay_of_their_swarm_and_no_other() -> None:
    middle = transport(relay_for_others=True, swarm_key=KEY)
    async with running(middle):
        alice, bob = hidden(middle, swarm_key=KEY), transport(swarm_key=KEY)
        stranger = hidden(middle)
        async with running(alice, bob, stranger):
            await bob.dial(await reserved(alice))
            await connected(alice, bob)
            await exchange(alice, bob)
            await until(lambda: stranger.relays()[0].why != "not asked yet")
            assert not stranger.relays()[0].reserved


def test_the_cipher_of_a_swarm_is_xsalsa20() -> None:
    """The test vector of the cipher's author."""
    key = bytes.fromhex("1b27556473e985d462cd51197a9a46c76009549eac6474f206c4ee0844f68389")
    nonce = bytes.fromhex("69696ee955b62b73cd62bda875fc73d68219e0036b7a0b37")
    stream = "eea6a7251c1e72916d11c2cb214d3c252539121d8e234e652d651fa4c8cff880"
    assert cipher(key, nonce).encrypt(bytes(32)).hex() == stream
