"""What follows from the bytes of a frame alone, worked out once for frames that come again.

The same news comes from several peers, and in a simulation the same frame reaches a thousand
replicas. Bytes always mean the same: what they were found to say is remembered here, as the verdict
on a signature is in `keys.verify`, and nothing else is. Replicas may share one memory.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Final, get_args

from .envelope import TYPES as RECORD_TYPES
from .envelope import Sealed, read
from .hearing import Said, by_origin
from .wire import Delta, Echo, Env, Have, Head, Manifest, SyncMessage, WireError, decode_sync

TYPES: Final = frozenset(kind.__struct_config__.tag for kind in get_args(SyncMessage))
RECORDS: Final = frozenset(RECORD_TYPES.values())


class Frame:
    """A message. Without slots: what follows from it is worked out when it is first asked for."""

    def __init__(self, data: bytes) -> None:
        """Raises WireError if the bytes are no message."""
        self.message: SyncMessage = decode_sync(data)

    @cached_property
    def said(self) -> Mapping[bytes, Said]:
        """What is said of each origin, not verified. Raises WireError."""
        match self.message:
            case Have():
                return by_origin(self.message)
            case Echo(_, key, head):
                keys, heads = (key,) if key else (), (head,) if head else ()
                return by_origin(Have(keys, heads, (), ()))
            case _:
                return {}

    @cached_property
    def head(self) -> Sealed[Head]:
        """The head that a table came with. Raises WireError."""
        if not isinstance(self.message, Delta | Manifest):
            raise WireError("no table")
        return read(self.message.head, Head)


def is_newer(data: bytes) -> bool:
    """True if a frame that was refused is of a type, or a version of one, that is not known here.

    A node of a later release may send it, and is not to be cut off for that.
    """
    try:
        first, size = (data[0], data[1]) if len(data) > 1 else (0, 0)
        tag = data[2 : 2 + (size & 0x1F)].decode("ascii")
    except UnicodeDecodeError:
        return False
    return first & 0xF0 == 0x90 and size & 0xE0 == 0xA0 and _is_newer(tag, TYPES)


def has_newer(data: bytes) -> bool:
    """True if a known message has a record in it of a type, or a version, that is not known."""
    try:
        message = decode_sync(data)
    except WireError:
        return False
    match message:
        case Have(_, heads, retracts, forks):
            envs = [*heads, *retracts, *(env for fork in forks for env in (fork.a, fork.b))]
        case Delta(head) | Manifest(head) | Echo(_, _, Env() as head):
            envs = [head]
        case _:
            return False
    return any(_is_newer(env.type, RECORDS) for env in envs)


def _is_newer(tag: str, known: Collection[str]) -> bool:
    name, _, version = tag.partition("/")
    return bool(name) and version.isdecimal() and tag not in known


class Memory:
    """The frames that were read last, as many as have room. What is no message is not kept."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._frames: dict[bytes, Frame] = {}

    def read(self, data: bytes) -> Frame:
        """Return what a frame says. Raises WireError."""
        if (frame := self._frames.get(data)) is None:
            frame = Frame(data)
            self._frames[data] = frame
            self._bytes += len(data)
            while self._bytes > self._bytes_max:
                oldest = next(iter(self._frames))
                del self._frames[oldest]
                self._bytes -= len(oldest)
        return frame
