"""Relaying for others, by circuit relay v2, for an owner who has a node that can be dialled.

Off unless asked for. What is carried is Noise from end to end: the relay sees who talks to whom,
how much and when, and nothing else. py-libp2p's own relay lets any peer reserve in another's
name, waits 5 s for a slow reader while the other direction stands still, and has no pace; see
`relaying`.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import trio

from .doorkeeper import account_of
from .libp2p_circuit import (
    STOP,
    CircuitError,
    calling,
    close,
    expect_ok,
    granted,
    hear,
    is_relayed,
    limit,
    named,
    reset,
    say,
)
from .relaying import Circuit, Ledger, Status
from .transport_config import RelayLimits

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of libp2p's own imports; see `libp2p_fence`
    from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, StopMessage

log = logging.getLogger(__name__)

_ASK_S: Final = 10.0
_CALL_S: Final = 10.0  # for the target to take the call
_READ_BYTES: Final = 64 * 1024
_EVERYWHERE: Final = ("/ip4/0.0.0.0/", "/ip6/::/")


@dataclass(slots=True)
class _Activity:
    at: float


class Hop:
    """Answers what clients ask of a relay, in one life of the host."""

    def __init__(
        self, host: Any, limits: RelayLimits, counts: Counter[str], clock: Callable[[], float]
    ) -> None:
        """clock: Unix seconds."""
        self._host = host
        self._limits = limits
        self._counts = counts
        self._clock = clock
        self._own = str(host.get_id())
        self._ledger = Ledger(limits, trio.current_time())
        self._ends: dict[Circuit, trio.Event] = {}  # set when a circuit is to end

    def gone(self, peer: str) -> None:
        """The peer's last direct connection has ended."""
        self._ledger.gone(peer)

    def standing(self) -> dict[str, int]:
        now = trio.current_time()
        return {
            "reservations": self._ledger.reservations(now),
            "circuits": self._ledger.circuits,
        }

    async def serve(self, stream: Any) -> None:
        """Answer one request; of a circuit, carry it to its end."""
        peer_id = stream.muxed_conn.peer_id
        try:
            request = await hear(stream, HopMessage, _ASK_S)
            status = await self._answer(stream, peer_id, request)
        except CircuitError as error:
            self._refuse(peer_id, error.reason)
            await reset(stream)
            return
        if status is not Status.OK:
            self._refuse(peer_id, f"relay: {status.name.lower().replace('_', ' ')}")
            with suppress(CircuitError):
                await say(stream, granted(status), _ASK_S)
        await close(stream)

    async def _answer(self, stream: Any, peer_id: Any, request: Any) -> Status:
        now = trio.current_time()
        if is_relayed(stream.muxed_conn):
            return Status.PERMISSION_DENIED  # a relay through a relay is a way to hide
        if not self._ledger.heard(str(peer_id), now):
            return Status.RESOURCE_LIMIT_EXCEEDED
        if request.type == HopMessage.RESERVE:
            return await self._reserve(stream, peer_id, now)
        if request.type == HopMessage.CONNECT:
            return await self._connect(stream, peer_id, named(request), now)
        return Status.UNEXPECTED_MESSAGE

    async def _reserve(self, stream: Any, peer_id: Any, now: float) -> Status:
        # For whoever holds the connection: the name in the request is the sender's to choose.
        status = self._ledger.reserve(str(peer_id), _host_of(stream), now)
        if status is Status.OK:
            expire = int(self._clock() + self._limits.reservation_s)
            addresses = tuple(
                each.to_bytes()
                for each in self._host.get_addrs()
                if not str(each).startswith(_EVERYWHERE)  # which can be dialled nowhere
            )
            await say(stream, granted(status, expire, addresses), _ASK_S)
            log.info("relay reserved peer=%s", peer_id)
        return status

    async def _connect(self, stream: Any, source: Any, target: Any, now: float) -> Status:
        if str(target) in (str(source), self._own):
            return Status.PERMISSION_DENIED
        circuit = self._ledger.open(str(source), _host_of(stream), str(target), now)
        if isinstance(circuit, Status):
            return circuit
        for other, ended in self._ends.items():
            if other.dropped and not ended.is_set():
                self._counts["relay: circuit dropped for another host's"] += 1
                ended.set()
        self._ends[circuit] = trio.Event()
        try:
            far = await self._call(source, target)
            if far is None:
                return Status.CONNECTION_FAILED
            try:
                yes = granted(Status.OK)
                yes.limit.CopyFrom(self._limit())
                await say(stream, yes, _ASK_S)
                await self._carry(circuit, stream, far)
            finally:
                await reset(far)
        finally:
            del self._ends[circuit]
            self._ledger.close(circuit)
        await reset(stream)
        return Status.OK

    async def _call(self, source: Any, target: Any) -> Any:
        """Open a stream to the target and have its yes; None if it does not take the call."""
        stream = None
        try:
            if not self._host.is_peer_connected(target):
                return None
            with trio.fail_after(_CALL_S):
                stream = await self._host.new_stream(target, [STOP])
            await say(stream, calling(source.to_bytes(), self._limit()), _CALL_S)
            expect_ok(await hear(stream, StopMessage, _CALL_S))
            return stream
        except CircuitError as error:
            log.debug("call not taken target=%s reason=%s", target, error.reason)
        except Exception as error:  # of any kind: the fence
            log.debug("call failed target=%s error=%r", target, error)
        if stream is not None:
            await reset(stream)
        return None

    async def _carry(self, circuit: Circuit, near: Any, far: Any) -> None:
        """Carry both ways until one end ends, is silent, or has used up what it may.

        Streams are ended by resetting them, never by cancelling a write: half a frame would spoil
        the connection for everything else on it.
        """
        activity = _Activity(trio.current_time())
        async with trio.open_nursery() as nursery:
            ended = self._ends[circuit]

            async def pump(source: Any, target: Any) -> None:
                await self._pump(circuit, activity, source, target)
                ended.set()

            nursery.start_soon(pump, near, far)
            nursery.start_soon(pump, far, near)
            while not ended.is_set():
                now = trio.current_time()
                end = min(circuit.ends, activity.at + self._limits.circuit_idle_s)
                if now >= end:
                    break
                with trio.move_on_after(end - now):
                    await ended.wait()
            await reset(near)
            await reset(far)

    async def _pump(self, circuit: Circuit, activity: _Activity, source: Any, target: Any) -> None:
        while True:
            try:
                data = await source.read(_READ_BYTES)
                if not data:
                    return
                activity.at = trio.current_time()
                wait_s = self._ledger.spend(circuit, len(data), activity.at)
                if wait_s is None:
                    self._counts["relay: circuit used up"] += 1
                    return
                await target.write(data)
            except Exception as error:  # of any kind: the fence; mostly a stream's end
                log.debug("circuit ended error=%r", error)
                return
            await trio.sleep(wait_s)

    def _limit(self) -> Any:
        return limit(self._limits.circuit_s, self._limits.circuit_bytes_max)

    def _refuse(self, peer_id: Any, reason: str) -> None:
        self._counts[reason] += 1
        log.info("relay request refused peer=%s reason=%s", peer_id, reason)


def _host_of(stream: Any) -> str:
    """Who pays for what a peer asks: where it is connected from."""
    remote = stream.get_remote_address()
    return account_of(remote[0]) if remote else ""
