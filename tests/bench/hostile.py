"""What a hostile peer can do to two nodes that talk to each other, measured at those two.

    python tests/bench/hostile.py [--json FILE|-] [--seconds S] [--frames N] [--cycles N]
                                  [--protocol NAME ...] [--seed N]

For each protocol two nodes, each a process of its own, send each other a broadcast and a frame of
the bulk plane every 100 ms, while a third process, from an address of its own, offers one of them
up to N mutated frames for S seconds, and connects again as often as it is let. Every 4 s the
attacker is stopped for 3 s: what else the machine does is then the same, alone and under attack.

alive              the attacked node is the same process, and the same host in it, as before
still_accepting    a peer that was never there connects and is answered, after the attack
longest_silence_s  without a message of the other honest node, at either of the two
rss_growth_mb      of the attacked node: its largest during the attack against before
honest_p99_ms      of the messages between the two, alone and during the attack, and their ratio
offered, refused   frames and connections of the attacker; what the node refused, by reason

polite_cycles      so many connections, each of a new name, made and closed in good order: what is
                   left of them after; the node lets one address connect as often as it likes here
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import trio

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

MARK = b"\xc1bench"  # no frame of ours begins so: MessagePack has no such type
GAP_S = 0.1
ATTACKER = "127.0.0.66"  # of this machine as all of 127/8, and another address than 127.0.0.1
TASKS = 4  # connections at a time
SETTLE_S = 3.0
ATTACK_S, ALONE_S = 4.0, 3.0
WARM_CYCLES = 200


# ---- an honest node ------------------------------------------------------------------------------


class Tap:
    """The transport as the driver sees it: the measured messages are taken out on their way."""

    def __init__(self, inner: Any, samples: list[tuple[float, float]]) -> None:
        self._inner = inner
        self._samples = samples

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def next_event(self) -> Any:
        while True:
            event = await self._inner.next_event()
            frame = getattr(event, "frame", b"")
            if not frame.startswith(MARK):
                return event
            now = time.monotonic()
            self._samples.append((now, now - float(frame[len(MARK) :])))


async def honest(dial: str, polite: bool) -> None:
    """Run a node. Each line on stdin is a question, answered by a line of JSON."""
    from support_stack import LOOPBACK, Stack

    from gossip.ports import Channel
    from gossip.transport_config import TransportConfig

    samples: list[tuple[float, float]] = []
    rate = {"accept_per_s": 100_000.0, "accept_burst": 1_000_000} if polite else {}
    config = TransportConfig(listen=LOOPBACK, **rate)
    with tempfile.TemporaryDirectory() as folder:
        run = os.urandom(8).hex()
        stack = Stack(
            "node", Path(folder) / "node", run, transport=config, tap=lambda t: Tap(t, samples)
        )

        async def talk() -> None:
            while True:
                stamp = MARK + repr(time.monotonic()).encode()
                await stack.transport.broadcast(stamp)
                for peer in stack.driver.peers():
                    if not polite:
                        await stack.transport.send(peer.peer, Channel.SYNC, stamp)
                await trio.sleep(GAP_S)

        async with stack.running(), trio.open_nursery() as nursery:
            await stack.driver.publish((), (), (), urgent=True)
            if dial:
                stack.knows(dial)
            nursery.start_soon(talk)
            process = psutil.Process()
            print(json.dumps({"address": stack.transport.addresses()[0]}), flush=True)
            async for _ in trio.wrap_file(sys.stdin):
                state = {
                    **stack.transport.standing(),
                    "protocol_refused": dict(stack.driver.refused),
                    "samples": samples,
                    "links": stack.links,
                    "slots": stack.transport._door.connections(),
                    "rss_mb": process.memory_info().rss / 2**20,
                    "fds": process.num_fds(),
                    "threads": threading.active_count(),
                    "cpu_s": sum(process.cpu_times()[:2]),
                }
                print(json.dumps(state), flush=True)
                samples.clear()
            nursery.cancel_scope.cancel()


class Node:
    """An honest node's process, asked from here."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.address = self._line()["address"]

    def ask(self) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write("?\n")
        self._process.stdin.flush()
        return self._line()

    def alive(self) -> bool:
        return self._process.poll() is None

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a node has ended")
        state: dict[str, Any] = json.loads(line)
        return state


@contextmanager
def child(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, __file__, *arguments]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        yield process
    finally:
        with suppress(BrokenPipeError, ValueError):
            process.communicate(timeout=20)
        process.kill()


# ---- the attack ----------------------------------------------------------------------------------


async def attack(protocol: str, address: str, seed: int, frames: int, seconds: float) -> None:
    """Offer mutated frames, over several connections at a time; print what came of it."""
    from support_fuzz import Offered, bombard

    os.nice(10)  # it would have a machine of its own: it is not to take the nodes' share of this
    total = Offered()

    async def one(number: int) -> None:
        offered = await bombard(
            protocol,
            address,
            seed=seed * TASKS + number,
            frames=frames // TASKS,
            seconds=seconds,
            source=ATTACKER,
        )
        total.frames += offered.frames
        total.connections += offered.connections
        total.refused += offered.refused

    async with trio.open_nursery() as nursery:
        for number in range(TASKS):
            nursery.start_soon(one, number)
    print(json.dumps([total.frames, total.connections, total.refused]))


async def still_accepting(address: str) -> bool:
    """Whether a node that was never there connects and learns what the attacked one published."""
    from support_stack import Stack

    with tempfile.TemporaryDirectory() as folder, trio.move_on_after(20):
        fresh = Stack("fresh", Path(folder) / "fresh", os.urandom(8).hex())
        async with fresh.running():
            fresh.knows(address)
            while not {*fresh.replica.origins()} - {fresh.keys.origin}:
                await trio.sleep(0.05)
            return True
    return False


def p99_ms(latencies: list[float]) -> float:
    ordered = sorted(latencies)
    return round(1000 * ordered[int(len(ordered) * 0.99)], 2) if ordered else float("nan")


def longest_gap_s(arrived: list[float], since: float, until: float) -> float:
    return max(b - a for a, b in pairwise([since, *sorted(arrived), until]))


class Watch:
    """Asks both nodes twice a second, alone and under attack alike: to be asked costs them too."""

    def __init__(self, victim: Node, other: Node) -> None:
        self._nodes = (victim, other)
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self.arrived: tuple[list[float], list[float]] = ([], [])  # when, at either node
        self.latencies: dict[bool, list[float]] = {False: [], True: []}  # under attack: True
        self.peak_mb = 0.0

    def until(self, end: float, *, attacked: bool, process: subprocess.Popen[str]) -> None:
        """Look on until then, or until the attacker has ended."""
        while time.monotonic() < end and process.poll() is None:
            self.look(attacked)

    def look(self, attacked: bool = False) -> dict[str, Any]:
        """Return the victim's state."""
        time.sleep(0.5)
        states = [node.ask() for node in self._nodes]
        for arrived, state in zip(self.arrived, states, strict=True):
            arrived += [at for at, _ in state["samples"]]
            self.latencies[attacked] += [latency for _, latency in state["samples"]]
        self.peak_mb = max(self.peak_mb, states[0]["rss_mb"])
        return states[0]


def measured(protocol: str, seed: int, frames: int, seconds: float) -> dict[str, Any]:
    """Attack one of two nodes by one protocol."""
    with child("--role", "honest") as a, child_dialling(a) as (victim, other):
        while not (victim.ask()["links"] and other.ask()["links"]):
            time.sleep(0.1)
        time.sleep(SETTLE_S)
        watch = Watch(victim, other)
        before = watch.look()
        watch.forget()
        arguments = ("--protocol", protocol, "--address", victim.address, "--seed", str(seed))
        limits = ("--frames", str(frames), "--seconds", str(seconds * (1 + ALONE_S / ATTACK_S)))
        began = time.monotonic()
        with child("--role", "attacker", *arguments, *limits) as attacker:
            while attacker.poll() is None:
                watch.until(time.monotonic() + ATTACK_S, attacked=True, process=attacker)
                attacker.send_signal(signal.SIGSTOP)
                watch.until(time.monotonic() + ALONE_S, attacked=False, process=attacker)
                attacker.send_signal(signal.SIGCONT)
            ended = time.monotonic()
            state = victim.ask()
            assert attacker.stdout is not None
            offered, connections, refused = json.loads(attacker.stdout.read())
        accepting = trio.run(still_accepting, victim.address)
        after = victim.ask()
        normal, under = p99_ms(watch.latencies[False]), p99_ms(watch.latencies[True])
        return {
            "alive": victim.alive() and after["lives"] == 1,
            "still_accepting": accepting,
            "longest_silence_s": round(
                max(longest_gap_s(each, began, ended) for each in watch.arrived), 2
            ),
            "rss_growth_mb": round(watch.peak_mb - before["rss_mb"], 1),
            "honest_p99_ms": [normal, under],
            "honest_p99_ratio": round(under / normal, 2),
            "honest_messages": [len(watch.latencies[False]), len(watch.latencies[True])],
            "attack_s": round(ended - began, 1),
            "victim_cpu_pct": round(100 * (state["cpu_s"] - before["cpu_s"]) / (ended - began)),
            "offered": {"frames": offered, "connections": connections, "not_let_in": refused},
            "refused": after["counts"] | after["protocol_refused"],
        }


@contextmanager
def child_dialling(first: subprocess.Popen[str]) -> Iterator[tuple[Node, Node]]:
    victim = Node(first)
    with child("--role", "honest", "--address", victim.address) as second:
        yield victim, Node(second)


# ---- politeness ----------------------------------------------------------------------------------


async def connect_and_close(address: str, cycles: int) -> int:
    """Make that many connections, each with a new name, and close each in good order."""
    import support_fuzz as by_hand

    target, left, failed = by_hand.target_of(address), iter(range(cycles)), 0

    async def one() -> None:
        nonlocal failed
        for _ in left:
            try:
                async with by_hand.tcp(target, ATTACKER) as stream:
                    with trio.fail_after(20):
                        raw = by_hand.RawConnection(by_hand.TrioTCPStream(stream), True)
                        secure = await by_hand.shake(raw, target, by_hand.fence.ed25519_pair())
                        await secure.write(by_hand.yamux(by_hand.GO_AWAY, 0, 0, 0))
                        with suppress(Exception):
                            while await secure.read():
                                pass
            except Exception:
                failed += 1

    async with trio.open_nursery() as nursery:
        for _ in range(TASKS):
            nursery.start_soon(one)
    return failed


def polite(cycles: int) -> dict[str, Any]:
    """Connect and close, and see what is left of it."""
    with child("--role", "polite") as process:
        node = Node(process)
        trio.run(connect_and_close, node.address, WARM_CYCLES)
        time.sleep(SETTLE_S)
        before = node.ask()
        began = time.monotonic()
        failed = trio.run(connect_and_close, node.address, cycles)
        taken_s = time.monotonic() - began
        time.sleep(SETTLE_S)
        accepting = trio.run(still_accepting, node.address)
        time.sleep(SETTLE_S)
        after = node.ask()
        return {
            "cycles": cycles,
            "failed": failed,
            "per_s": round(cycles / taken_s, 1),
            "alive": node.alive() and after["lives"] == 1,
            "still_accepting": accepting,
            "slots": after["slots"],
            "fds": [before["fds"], after["fds"]],
            "threads": [before["threads"], after["threads"]],
            "rss_mb": [round(before["rss_mb"], 1), round(after["rss_mb"], 1)],
            "rss_growth_mb": round(after["rss_mb"] - before["rss_mb"], 1),
            "refused": after["counts"],
        }


# ---- the command ---------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", default="-", help="a file, or - for standard output")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each attack")
    parser.add_argument("--frames", type=int, default=100_000, help="offered at most in each")
    parser.add_argument("--cycles", type=int, default=10_000, help="polite connections; 0: none")
    parser.add_argument("--protocol", action="append", help="default: all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--role", choices=("honest", "polite", "attacker"), help=argparse.SUPPRESS)
    parser.add_argument("--address", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    match given.role:
        case "honest" | "polite":
            trio.run(honest, given.address, given.role == "polite")
            return
        case "attacker":
            what = (given.protocol[0], given.address, given.seed, given.frames, given.seconds)
            trio.run(attack, *what)
            return
    from support_fuzz import PROTOCOLS

    figures: dict[str, Any] = {}
    for protocol in PROTOCOLS if given.protocol is None else given.protocol:
        figures[protocol] = measured(protocol, given.seed, given.frames, given.seconds)
        print(protocol, json.dumps(figures[protocol]), file=sys.stderr, flush=True)
    if given.cycles:
        figures["polite_cycles"] = polite(given.cycles)
    text = json.dumps(figures, indent=2)
    if given.json == "-":
        print(text)
    else:
        Path(given.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
