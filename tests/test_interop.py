"""Our nodes and a peer on js-libp2p that was written from docs/protocol.md alone."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import gossip_kit
import make_wire_vectors
import pytest
import support_wire as example
import trio
from support_interop import (
    FOLDER,
    PATIENCE_S,
    OrderFailedError,
    js_peer,
    link,
    node_program,
    ours,
)

from gossip import wire
from gossip.events import LeafRetracted
from gossip.wire import BundleMessage, PeersMessage, SyncMessage

pytestmark = [pytest.mark.network, pytest.mark.interop]


@pytest.fixture(autouse=True)
def _collect_now() -> Iterator[None]:
    """Make a socket that a test leaves open fail that test, not whichever runs later."""
    yield
    gc.collect()


def leaves(*numbers: int) -> list[bytes]:
    return [gossip_kit.leaf(number) for number in numbers]


async def test_js_reads_every_vector_and_refuses_what_must_be_refused() -> None:
    program = [node_program(), str(FOLDER / "vectors.mjs"), str(make_wire_vectors.PATH)]
    done = await trio.run_process(program, capture_stdout=True, capture_stderr=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    vectors = json.loads(make_wire_vectors.PATH.read_text())
    del vectors["about"]
    vectors["frames on a stream"] = vectors.pop("frames")["on a stream"]
    assert json.loads(done.stdout) == {part: len(cases) for part, cases in vectors.items()}


async def test_js_accepts_and_refuses_the_same_bytes_as_ours() -> None:
    chance = Random(2026)
    examples = example.encodings()
    frames = [frame for _, frame in examples]
    cases = [(kind, example.mutated(chance, frame, frames)) for kind, frame in examples * 60]
    names = {SyncMessage: "sync", BundleMessage: "bundle", PeersMessage: "peers"}
    lines = [f"{names.get(kind) or kind.__name__} {data.hex()}" for kind, data in cases]
    done = await trio.run_process(
        [node_program(), str(FOLDER / "accepts.mjs")],
        stdin="\n".join(lines).encode(),
        capture_stdout=True,
    )
    read = [answer == b"1" for answer in done.stdout.split()]
    ours_read = [_accepts(kind, data) for kind, data in cases]
    assert len(read) == len(cases)
    assert [line for line, a, b in zip(lines, read, ours_read, strict=True) if a != b] == []
    assert 0.01 < sum(read) / len(read) < 0.99


def _accepts(kind: Any, data: bytes) -> bool:
    try:
        wire.decode(data, kind)
    except wire.WireError:
        return False
    return True


@pytest.mark.parametrize("dialing", ["js", "ours"])
async def test_either_side_dials_and_both_agree_on_noise_and_yamux(
    tmp_path: Path, dialing: str
) -> None:
    async with ours(tmp_path, "alice") as [a], js_peer() as js:
        if dialing == "js":
            await js.order("dial", address=a.address)
        else:
            assert await a.transport.dial(js.address) == js.id
        await a.has_peers(1)
        await js.heard("connected", peer=a.id)
        shown = await js.order("connection", peer=a.id)
        assert (shown["encryption"], shown["multiplexer"]) == ("/noise", "/yamux/1.0.0")
        assert shown["direction"] == ("outbound" if dialing == "js" else "inbound")
        assert {"/groove/sync/1", "/groove/bundle/1", "/meshsub/1.1.0"} <= {*shown["protocols"]}
        await js.order("ping", peer=a.id)


async def test_urgent_messages_pass_both_ways_and_each_side_checks_the_signature(
    tmp_path: Path,
) -> None:
    async with ours(tmp_path, "alice") as [a], js_peer("--urgent-only") as js:
        await link(js, a)
        await a.driver.retract(gossip_kit.leaf(1))
        heard = await js.heard("retracted", origin=a.origin, leaf=gossip_kit.leaf(1).hex())
        assert heard["urgent"]  # there is no other way here

        author = await js.order(
            "author",
            root_seed=gossip_kit.seed("second", "root").hex(),
            op_seed=gossip_kit.seed("second", "op").hex(),
        )
        await js.order("retract", leaf=gossip_kit.leaf(2).hex())
        await a.until(LeafRetracted(bytes.fromhex(author["origin"]), gossip_kit.leaf(2)))
        assert not a.driver.refused
        assert js.refusals() == []


async def test_a_message_has_the_same_id_on_both_sides_and_comes_once(tmp_path: Path) -> None:
    async with ours(tmp_path, "alice", "bob") as [a, b], js_peer() as js:
        await a.transport.dial(b.address)
        await link(js, a, b)
        for number in range(5):
            await a.driver.retract(gossip_kit.leaf(number))
        urgent = await js.heard_all(5, "urgent")
        frames = [bytes.fromhex(one["frame"]) for one in urgent]
        assert [one["id"] for one in urgent] == [
            hashlib.sha256(frame).digest()[:20].hex() for frame in frames
        ]
        assert len({*frames}) == 5


async def test_each_side_tells_the_other_where_it_can_be_dialled(tmp_path: Path) -> None:
    async with ours(tmp_path, "alice", "bob") as [a, b], js_peer() as js:
        await link(js, a, b)
        for node in (a, b):
            with trio.fail_after(PATIENCE_S):
                while not node.learned:
                    await trio.sleep(0.02)
            assert (js.id, (js.address,)) in [(each.peer, each.addresses) for each in node.learned]
        await b.transport.dial(a.address)
        await a.meets(b.id)
        await js.order("ask_peers", peer=a.id)
        introduced = await js.heard("introduced", peer=a.id, by=a.id)
        assert introduced["places"] == [a.address.split("/p2p/")[0]]
        assert not a.driver.refused and not b.driver.refused
        assert js.refusals() == []


async def test_an_urgent_message_crosses_js_by_gossipsub_alone(tmp_path: Path) -> None:
    async with ours(tmp_path, "alice", "bob") as [a, b], js_peer("--urgent-only") as js:
        await link(js, a, b)
        await a.driver.retract(gossip_kit.leaf(1))
        await b.until(LeafRetracted(a.keys.origin, gossip_kit.leaf(1)))
        [stats] = b.driver.peers()
        assert (stats.peer, set(stats.bytes_in)) == (js.id, {"urgent"})


async def test_js_alone_between_two_nodes_carries_news_and_tables(tmp_path: Path) -> None:
    async with ours(tmp_path, "alice", "bob") as [a, b], js_peer() as js:
        await link(js, a, b)
        await a.driver.publish((gossip_kit.card(1), gossip_kit.card(2)), (), (), urgent=True)
        await b.holds(a.keys.origin, *leaves(1, 2))
        await a.driver.publish((gossip_kit.card(1, version=2), gossip_kit.card(3)), (), ())
        await b.holds(a.keys.origin, *leaves(1, 3))
        await a.driver.retract(gossip_kit.leaf(1))
        await b.until(LeafRetracted(a.keys.origin, gossip_kit.leaf(1)))
        assert not a.driver.refused and not b.driver.refused
        assert js.refusals() == []


async def test_what_js_alone_remembers_reaches_who_comes_later(tmp_path: Path) -> None:
    async with js_peer() as js:
        async with ours(tmp_path, "alice") as [a]:
            await link(js, a)
            cards = [gossip_kit.card(number) for number in range(200)]  # more than one frame
            await a.driver.publish(cards, (), ())
            await a.driver.retract(gossip_kit.leaf(7))
            await js.heard("held", origin=a.origin)
            await js.heard("retracted", origin=a.origin)
        await js.heard("disconnected", peer=a.id)
        async with ours(tmp_path, "bob") as [b]:
            await link(js, b)
            await b.holds(a.keys.origin, *leaves(*(n for n in range(200) if n != 7)))
            assert not b.driver.refused
        assert js.refusals() == []


async def test_js_signs_a_table_of_its_own_and_two_nodes_take_it(tmp_path: Path) -> None:
    async with ours(tmp_path, "alice", "bob") as [a, b], js_peer() as js:
        await link(js, a)
        await b.transport.dial(a.address)
        author = await js.order(
            "author",
            root_seed=gossip_kit.seed("js", "root").hex(),
            op_seed=gossip_kit.seed("js", "op").hex(),
        )
        origin = bytes.fromhex(author["origin"])
        await js.order("ask_echo")
        await js.heard("echo", origin=author["origin"], peer=a.id, seq="0")
        await js.order("publish", leaves=[leaf.hex() for leaf in leaves(1, 2)])
        for node in (a, b):
            await node.holds(origin, *leaves(1, 2))
        await js.order("publish", leaves=[leaf.hex() for leaf in leaves(2, 3, 4)])
        for node in (a, b):
            await node.holds(origin, *leaves(2, 3, 4))
        assert not a.driver.refused
        assert js.refusals() == []


async def test_a_bundle_goes_from_ours_to_js_and_from_js_to_who_never_met_ours(
    tmp_path: Path,
) -> None:
    data = Random(7).randbytes(3_000_000)
    async with js_peer() as js:
        async with ours(tmp_path, "alice") as [a]:
            root = await a.driver.add_bundle(data)
            await link(js, a)
            got = await js.order("fetch", root=root.hex(), size_bytes=len(data), holders=[a.id])
            assert got["sha256"] == hashlib.sha256(data).hexdigest()
            assert got["sources"] == {a.id: len(data)}
        async with ours(tmp_path, "bob") as [b]:
            await link(js, b)
            result = await b.driver.fetch(root, len(data))
            assert result.path.read_bytes() == data
            assert set(result.sources) == {js.id}
            assert not b.driver.refused
        assert js.refusals() == []


async def test_js_killed_in_mid_transfer_leaves_clean_tables_and_another_goes_on(
    tmp_path: Path,
) -> None:
    data = Random(8).randbytes(12_000_000)
    (tmp_path / "bundle").write_bytes(data)
    async with ours(tmp_path, "alice") as [a], js_peer() as first, js_peer() as second:
        for js in (first, second):
            await js.order("dial", address=a.address)
            offered = await js.order("offer", path=str(tmp_path / "bundle"))
        await a.has_peers(2)
        root = bytes.fromhex(offered["root"])

        def progress(here: int, _: int) -> None:
            if here > 1_000_000:
                first.kill()

        with trio.fail_after(PATIENCE_S):
            result = await a.driver.fetch(root, len(data), progress=progress)
        assert result.path.read_bytes() == data
        assert set(result.sources) == {first.id, second.id}
        await a.has_peers(1)
        [left] = a.driver.peers()
        assert left.peer == second.id
        assert (a.transport.lives, a.transport.counts["host died"]) == (1, 0)
        assert not a.driver.refused


async def test_js_with_the_swarm_key_is_in_and_without_it_is_kept_out(tmp_path: Path) -> None:
    key = "5a" * 32
    async with (
        ours(tmp_path, "alice", swarm_key=key) as [a],
        js_peer("--swarm-key", key) as member,
        js_peer() as stranger,
    ):
        await link(member, a)
        await a.driver.publish((gossip_kit.card(1),), (), ())
        await member.heard("held", origin=a.origin)
        with pytest.raises(OrderFailedError):
            await stranger.order("dial", address=a.address)
        assert [stats.peer for stats in a.driver.peers()] == [member.id]


async def test_two_nodes_meet_through_a_relay_on_js(tmp_path: Path) -> None:
    async with (
        js_peer("--relay") as js,
        ours(tmp_path, "alice", relay=(js.address,)) as [a],
        ours(tmp_path, "bob") as [b],
    ):
        await a.meets(js.id)
        with trio.fail_after(PATIENCE_S):
            while not (relayed := [at for at in a.transport.addresses() if "circuit" in at]):
                await trio.sleep(0.02)
        assert await b.transport.dial(relayed[0]) == a.id
        await a.driver.publish((gossip_kit.card(1),), (), ())
        await b.holds(a.keys.origin, *leaves(1))


async def test_js_is_reached_by_ours_through_a_relay_of_ours(tmp_path: Path) -> None:
    async with (
        ours(tmp_path, "relay", relay_for_others=True) as [relay],
        ours(tmp_path, "alice") as [a],
        js_peer() as js,
    ):
        await js.order("listen", address=f"{relay.address}/p2p-circuit")
        at = f"{relay.address}/p2p-circuit/p2p/{js.id}"
        assert await a.transport.dial(at) == js.id
        await a.meets(js.id)
        await a.driver.publish((gossip_kit.card(1),), (), ())
        await js.heard("held", origin=a.origin)


@pytest.mark.parametrize(
    "habit",
    [("--piece-bytes", "7"), ("--one-frame",), ("--idle-ms", "150")],
    ids=["seven bytes at a time", "a stream for each frame", "silent streams are reset"],
)
async def test_the_habits_of_another_implementation_cost_nothing(
    tmp_path: Path, habit: tuple[str, ...]
) -> None:
    data = Random(9).randbytes(5_000)
    (tmp_path / "bundle").write_bytes(data)
    async with ours(tmp_path, "alice") as [a], js_peer("--sync-ms", "300", *habit) as js:
        await link(js, a)
        await a.driver.publish((gossip_kit.card(1),), (), ())
        await js.heard("held", origin=a.origin, leaves=[gossip_kit.leaf(1).hex()])
        await js.order("identify_push")
        await js.order("ping", peer=a.id)
        offered = await js.order("offer", path=str(tmp_path / "bundle"))
        await a.driver.fetch(bytes.fromhex(offered["root"]), len(data))
        await js.heard("round", number=3)  # longer than a silent stream lives
        await a.driver.publish((gossip_kit.card(2),), (), ())
        await js.heard("held", origin=a.origin, leaves=[gossip_kit.leaf(2).hex()])
        assert len(a.driver.peers()) == 1
        assert not a.driver.refused


async def test_a_hung_up_connection_is_made_anew_and_nothing_is_lost(tmp_path: Path) -> None:
    async with ours(tmp_path, "alice") as [a], js_peer() as js:
        for number in (1, 2, 3):
            await link(js, a)
            await a.driver.publish((gossip_kit.card(number),), (), ())
            await js.heard("held", origin=a.origin, leaves=[gossip_kit.leaf(number).hex()])
            await js.order("hang_up", peer=a.id)
            await a.has_peers(0)
        assert not a.driver.refused
