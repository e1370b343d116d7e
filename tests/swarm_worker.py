"""A process that holds some nodes of a swarm, and is told by lines of JSON what they shall do.

`bench/swarm.py` and `soak.py` start it. Orders come on the standard input, one a line, with `at`
for the node; what happens goes to the standard output, with `t`, the machine's monotonic clock,
which all processes share. It ends when its input does.

    python tests/swarm_worker.py RUN FOLDER [--links N] [--owners] NAME...

told without an order  up (address, origin), table (origin, seq), retracted (origin)
know ADDRESSES         dial them
publish VERSION        a table whose first leaf is mature and of this version -> published, signed
retract LEAF           -> retracted at all
feed HEADS PER_S       have a peer of this node publish for so many new origins -> fed
links                  -> links
heard                  -> heard: of each origin, when by broadcast and when its table stood
view                   -> view: a hash of all that the node holds, and how many origins
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import gossip_kit  # noqa: E402
import msgspec  # noqa: E402
import trio  # noqa: E402
from support_stack import LOOPBACK, Stack, keys_now  # noqa: E402

from gossip.addresses import Source  # noqa: E402
from gossip.core import Replica  # noqa: E402
from gossip.events import LeafRetracted, OriginChanged  # noqa: E402
from gossip.keys import origin_of  # noqa: E402
from gossip.libp2p_transport import Libp2pTransport  # noqa: E402
from gossip.ports import Arrived, Channel, TransportEvent  # noqa: E402
from gossip.transport_config import TransportConfig  # noqa: E402
from gossip.wire import (  # noqa: E402
    HOUR_S,
    Bundle,
    Card,
    EvalSet,
    Format,
    Have,
    PairedScore,
    Stage,
    WireError,
    decode_sync,
    encode,
)

LEAVES = 5  # of a table


class Tap:
    """The transport, with a note of which origins were heard of by broadcast, and when."""

    def __init__(self, transport: Libp2pTransport) -> None:
        self._inner = transport
        self.urgent: dict[str, float] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def next_event(self) -> TransportEvent:
        event = await self._inner.next_event()
        if isinstance(event, Arrived) and event.channel is None:
            try:
                message = decode_sync(event.frame)
            except WireError:
                return event
            if isinstance(message, Have):
                for doc in message.keys:
                    self.urgent.setdefault(origin_of(doc).hex(), time.monotonic())
        return event


class Member:
    """One node, with what it has heard and when."""

    def __init__(self, name: str, folder: Path, run: str, links: int) -> None:
        taps: list[Tap] = []

        def tap(transport: Libp2pTransport) -> Any:
            taps.append(Tap(transport))
            return taps[0]

        self.stack = Stack(name, folder, run, links_wanted=links, tap=tap)
        self.tap = taps[0]
        self.stood: dict[str, float] = {}  # origin -> when its first table was whole

    async def follow(self) -> None:
        """Tell of all that changes here."""
        name, replica = self.stack.name, self.stack.replica
        async for change in self.stack.changes:
            now = time.monotonic()
            match change:
                case OriginChanged(origin):
                    head = replica.view(origin).head
                    if head is not None:
                        self.stood.setdefault(origin.hex(), now)
                        tell("table", at=name, origin=origin.hex(), seq=head.seq, t=now)
                case LeafRetracted(origin, leaf):
                    what = leaf.hex() if leaf else ""
                    tell("retracted", at=name, origin=origin.hex(), leaf=what, t=now)

    async def obey(self, order: dict[str, Any]) -> None:
        name, driver = self.stack.name, self.stack.driver
        match order["do"]:
            case "know":
                source = Source(order.get("source", Source.LEARNED))
                self.stack.knows(*order["addresses"], source=source)
            case "publish":
                tell("asked", at=name, t=time.monotonic())
                await driver.publish(table(name, order["version"]), (), (), urgent=True)
            case "retract":
                tell("asked", at=name, t=time.monotonic())
                await driver.retract(leaf(name, order["leaf"]))
            case "feed":
                await feed(self.stack, order["heads"], order["per_s"])
                tell("fed", at=name)
            case "links":
                tell("links", at=name, links=self.stack.links)
            case "heard":
                tell("heard", at=name, urgent=self.tap.urgent, stood=self.stood)
            case "view":
                tell("view", at=name, **view(self.stack.replica))


def tell(what: str, **more: Any) -> None:
    sys.stdout.write(json.dumps({"told": what, **more}) + "\n")
    sys.stdout.flush()


def view(replica: Replica) -> dict[str, Any]:
    """All that a node holds of all origins, as a hash."""
    origins = replica.origins()
    whole = hashlib.sha256()
    for origin in origins:
        view = replica.view(origin)
        whole.update(encode_view(view))
    return {"hash": whole.hexdigest(), "origins": len(origins)}


def encode_view(view: Any) -> bytes:
    return msgspec.msgpack.encode(
        (view.origin, int(view.standing), view.head, view.cards, view.ended, view.retracted)
    )


# ---- what is published --------------------------------------------------------------------------


def leaf(name: str, number: int) -> bytes:
    return gossip_kit.seed("leaf", name, number)[:16]


def table(name: str, version: int) -> tuple[Card, ...]:
    """A table of leaves of which the first is mature; its bundle is another in each version."""
    cards = [
        msgspec.structs.replace(gossip_kit.card(number), leaf=leaf(name, number), version=version)
        for number in range(LEAVES)
    ]
    root = gossip_kit.seed("bundle", name, version)
    scores = (PairedScore(EvalSet.HELD_OUT_LOSS, 15_000, 17_500),)
    offered = Bundle(root, 18_000_000, bytes(8), 16, scores, Format.LORA_SAFETENSORS, root)
    mature = msgspec.structs.replace(cards[0], stage=Stage.MATURE, bundle=offered)
    return (mature, *cards[1:])


async def feed(stack: Stack, heads: int, per_s: float) -> None:
    """Be a peer of this node that tells, and broadcasts, the first heads of many origins."""
    transport = Libp2pTransport(os.urandom(32), TransportConfig(listen=LOOPBACK))
    async with trio.open_nursery() as nursery:
        await nursery.start(transport.run)
        nursery.start_soon(_ignore, transport)
        node = await transport.dial(stack.transport.addresses()[0])
        await trio.sleep(3)  # until the node's gossipsub has taken this peer in
        began = trio.current_time()
        hour = int(time.time()) // HOUR_S
        for number in range(heads):
            by = keys_now(f"{stack.name}/fed/{number}")
            cards = table(f"fed/{number}", 1)
            times = {"seq": hour << 16, "ts_h": hour, "exp_h": hour + 168}
            head, whole = gossip_kit.signed(*cards, by=by, **times)
            await trio.sleep_until(began + number / per_s)
            have = encode(gossip_kit.have(head, by=by))
            # Together, so that the node can serve the table as soon as others hear of the head.
            sent = await transport.send(node, Channel.SYNC, have)
            sent &= await transport.send(
                node, Channel.SYNC, encode(gossip_kit.manifest(head, whole))
            )
            assert sent, "the node takes no more of its peer"
            await transport.broadcast(have)
        await trio.sleep(5)
        nursery.cancel_scope.cancel()


async def _ignore(transport: Libp2pTransport) -> None:
    while True:
        await transport.next_event()


# ---- the process --------------------------------------------------------------------------------


@asynccontextmanager
async def members(arguments: argparse.Namespace) -> AsyncIterator[dict[str, Member]]:
    folder = Path(arguments.folder)
    folder.mkdir(exist_ok=True)
    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        found = {}
        for name in arguments.names:
            member = Member(name, folder / name, arguments.run, arguments.links)
            await stack.enter_async_context(member.stack.running())
            nursery.start_soon(member.follow)
            found[name] = member
            origin, address = member.stack.keys.origin.hex(), member.stack.transport.addresses()[0]
            tell("up", at=name, address=address, origin=origin)
        yield found
        nursery.cancel_scope.cancel()


async def work(arguments: argparse.Namespace) -> None:
    async with members(arguments) as found, trio.open_nursery() as nursery:
        while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            order = json.loads(line)
            nursery.start_soon(found[order["at"]].obey, order)
        nursery.cancel_scope.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("folder")
    parser.add_argument("names", nargs="+")
    parser.add_argument("--links", type=int, default=8)
    trio.run(work, parser.parse_args())


if __name__ == "__main__":
    main()
