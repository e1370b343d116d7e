"""A private swarm: connections that only holders of one key can begin to read.

What libp2p's specification of private networks says: each end sends a nonce of 24 bytes, and all
after it is XORed with XSalsa20's stream. py-libp2p 0.8.1 has Salsa20 with a nonce of 8 bytes
instead, which no other implementation speaks, and a connection that does not know its addresses.

The stream cipher proves nothing by itself; Noise above it does. It is there so that a stranger
learns nothing and costs little: what he sends first does not decrypt to a protocol's greeting, and
he is refused after 20 bytes instead of at a deadline.
"""

from __future__ import annotations

import os
import struct
import warnings
from typing import Any, Final

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of libp2p's own imports; see `libp2p_fence`
    from Crypto.Cipher import Salsa20
    from libp2p.io.exceptions import IncompleteReadError
    from libp2p.network.connection.raw_connection import RawConnection
    from libp2p.network.exceptions import SwarmException


KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 24
_GREETING: Final = b"\x13/multistream/1.0.0\n"  # both ends' first words
_SIGMA: Final = struct.unpack("<4I", b"expand 32-byte k")
_QUARTERS: Final = (
    *((0, 4, 8, 12), (5, 9, 13, 1), (10, 14, 2, 6), (15, 3, 7, 11)),  # columns
    *((0, 1, 2, 3), (5, 6, 7, 4), (10, 11, 8, 9), (15, 12, 13, 14)),  # rows
)


class SwarmKeyError(SwarmException):  # type: ignore[misc]
    """The other end has another swarm key, or none."""


def cipher(key: bytes, nonce: bytes) -> Any:
    """XSalsa20: Salsa20 under the key that HSalsa20 makes of `key` and the nonce's first part."""
    return Salsa20.new(key=_hsalsa20(key, nonce[:16]), nonce=nonce[16:])


def _hsalsa20(key: bytes, nonce: bytes) -> bytes:
    k, n = struct.unpack("<8I", key), struct.unpack("<4I", nonce)
    x = [_SIGMA[0], *k[:4], _SIGMA[1], *n, _SIGMA[2], *k[4:], _SIGMA[3]]
    for _ in range(10):
        for a, b, c, d in _QUARTERS:
            for to, left, right, turn in ((b, a, d, 7), (c, b, a, 9), (d, c, b, 13), (a, d, c, 18)):
                total = (x[left] + x[right]) & 0xFFFFFFFF
                x[to] ^= ((total << turn) | (total >> (32 - turn))) & 0xFFFFFFFF
    return struct.pack("<8I", x[0], x[5], x[10], x[15], *x[6:10])


class Protected(RawConnection):  # type: ignore[misc]
    """A raw connection under a swarm key."""

    def __init__(self, inner: Any, key: bytes) -> None:
        super().__init__(inner, inner.is_initiator)
        self._inner = inner
        self._key = key
        self._own_nonce = b""
        self._sealing: Any = None
        self._opening: Any = None
        self._expected = _GREETING  # what is still to come of it

    async def write(self, data: bytes) -> None:
        head = b""
        if self._sealing is None:
            head = self._own_nonce = os.urandom(_NONCE_BYTES)
            self._sealing = cipher(self._key, head)
        await self._inner.write(head + self._sealing.encrypt(data))

    async def read(self, n: int | None = None) -> bytes:
        if self._opening is None:
            self._opening = cipher(self._key, await self._nonce())
        data = await self._inner.read(n)
        plain = bytes(self._opening.decrypt(data)) if data else b""
        if self._expected:
            came = plain[: len(self._expected)]
            if not self._expected.startswith(came):
                raise SwarmKeyError("the other end has another swarm key")
            self._expected = self._expected[len(came) :]
        return plain

    async def _nonce(self) -> bytes:
        nonce = b""
        while len(nonce) < _NONCE_BYTES:
            more = await self._inner.read(_NONCE_BYTES - len(nonce))
            nonce += more
            if nonce.startswith(_GREETING):
                raise SwarmKeyError("the other end is of no private swarm")
            if not more:
                raise IncompleteReadError("the other end closed before its first word")
        if nonce == self._own_nonce:  # what follows would decrypt, without the key
            raise SwarmKeyError("the other end sends our own words back")
        return nonce

    async def close(self) -> None:
        await self._inner.close()

    def get_remote_address(self) -> tuple[str, int] | None:
        address: tuple[str, int] | None = self._inner.get_remote_address()
        return address

    def get_transport_addresses(self) -> list[Any]:
        return list(self._inner.get_transport_addresses())

    def get_connection_type(self) -> Any:
        return self._inner.get_connection_type()


def protect(network: Any, key: bytes) -> None:
    """Let a swarm have connections under this key only, direct or relayed, inbound or outbound."""
    if len(key) != KEY_BYTES:
        raise ValueError(f"a swarm key has {KEY_BYTES} bytes, not {len(key)}")
    inbound, outbound = network.upgrade_inbound_raw_conn, network.upgrade_outbound_raw_conn

    async def upgrade_inbound(raw: Any, address: Any) -> Any:
        return await inbound(Protected(raw, key), address)

    async def upgrade_outbound(raw: Any, peer_id: Any, scope: Any = None) -> Any:
        return await outbound(Protected(raw, key), peer_id, scope)

    network.upgrade_inbound_raw_conn = upgrade_inbound
    network.upgrade_outbound_raw_conn = upgrade_outbound
