"""What the parent asks of the child that answers, and what the child says: frames on pipes.

A prompt travels here and nowhere else: it touches no file, no argument and no log.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import IO, Any

import msgspec
from msgspec import Struct

HEAD = struct.Struct(">I")  # before each message: its bytes
MESSAGE_BYTES_MAX = 64 << 20  # far above what a request may hold


class Start(Struct, frozen=True, tag="start"):
    """The first order: what the child may use, and for what."""

    chassis: str
    threads: int
    adapters_resident: int
    memory_bytes: int  # of keys and values, for all answers together
    dtype: str | None = None  # None: whichever this CPU is faster in


class Wanted(Struct, frozen=True):
    """An adapter: its bundle's address, and the file in which the bundle lies."""

    bundle: str
    path: str


class Begin(Struct, frozen=True, tag="begin"):
    """Answer. Either messages or prompt is given."""

    id: int
    tokens_max: int
    messages: tuple[Mapping[str, Any], ...] = ()
    prompt: str | None = None
    adapter: Wanted | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None

    def __repr__(self) -> str:
        return f"Begin(id={self.id})"  # never a text


class Warm(Struct, frozen=True, tag="warm"):
    """Have an adapter at hand; answered by `Begun`, or `Refused`."""

    id: int
    adapter: Wanted


class Cancel(Struct, frozen=True, tag="cancel"):
    """Nobody waits for this answer any more. Nothing is said of it from then on."""

    id: int


Order = Start | Begin | Warm | Cancel


class Ready(Struct, frozen=True, tag="ready"):
    """The chassis is loaded."""

    dtype: str
    context: int  # tokens that a prompt and its answer may have together
    process: int = 0


class Begun(Struct, frozen=True, tag="begun"):
    """The adapter is on, the prompt is not too long: an answer will come."""

    id: int
    prompt_tokens: int = 0
    resident: int = 0  # adapters in memory


class Made(Struct, frozen=True, tag="made"):
    """More of an answer. With `finish`, which is stop or length, there is no more."""

    id: int
    tokens: int  # of the answer, so far
    text: str = ""
    finish: str | None = None

    def __repr__(self) -> str:
        return f"Made(id={self.id}, tokens={self.tokens})"


class Refused(Struct, frozen=True, tag="refused"):
    """No answer, for a cause that the child knows. adapter: it is the adapter's fault."""

    id: int
    kind: str
    message: str
    status: int = 502
    adapter: bool = False


class Broken(Struct, frozen=True, tag="broken"):
    """The child ends. details: the kind of error, never what it said, which may quote a text."""

    details: str


Saying = Ready | Begun | Made | Refused | Broken


def frame(message: Order | Saying) -> bytes:
    data = msgspec.msgpack.encode(message)
    return HEAD.pack(len(data)) + data


_orders = msgspec.msgpack.Decoder(Order)
_sayings = msgspec.msgpack.Decoder(Saying)


def order_of(data: bytes | bytearray) -> Order:
    order: Order = _orders.decode(data)
    return order


def saying_of(data: bytes | bytearray) -> Saying:
    saying: Saying = _sayings.decode(data)
    return saying


def frames_of(data: bytearray) -> Iterator[bytes]:
    """Take whole messages off the front of what came of a pipe; ValueError for one too long."""
    while len(data) >= HEAD.size:
        end = HEAD.size + HEAD.unpack_from(data)[0]
        if end > MESSAGE_BYTES_MAX:
            raise ValueError(f"a message of {end} bytes")
        if len(data) < end:
            return
        message = bytes(data[HEAD.size : end])
        del data[:end]
        yield message


def read_frame(pipe: IO[bytes]) -> bytes | None:
    """One message; None at the end, or if it ends within a message."""
    head = pipe.read(HEAD.size)
    if len(head) < HEAD.size:
        return None
    (wanted,) = HEAD.unpack(head)
    data = pipe.read(wanted)
    return data if len(data) == wanted else None
