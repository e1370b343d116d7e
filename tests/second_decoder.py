"""A second reading of the wire, which shares no decoder with the first.

The first lets the type lead (`gossip.canonical`). Here the headers are walked without knowing the
type, then everything is built by another library, then converted, then compared with its shortest
form. That both accept the same is a property that the tests check.
"""

from __future__ import annotations

from typing import Any, Final

import msgpack
import msgspec

from gossip.wire import BYTES_MAX, WireError

DEPTH_MAX: Final = 6
ITEMS_MAX: Final = 1024


def decode(data: bytes, kind: Any) -> Any:
    """Parse the one encoding of a `kind`, or raise WireError with the rule that was broken."""
    if len(data) > BYTES_MAX[kind]:
        raise WireError("too large")
    walk(data)
    try:
        value = msgspec.convert(msgpack.unpackb(data, use_list=False), kind)
    except (msgspec.ValidationError, UnicodeDecodeError):
        raise WireError("wrong fields") from None
    if msgpack.packb(msgspec.to_builtins(value, builtin_types=(bytes,))) != data:
        raise WireError("not canonical")
    return value


def _fixed_sizes() -> list[int]:
    """The size of an item by its first byte, where that byte says all; else 0."""
    sizes = [0] * 256
    for code in (*range(0x80), *range(0xE0, 0x100), 0xC0):  # small integers, nil
        sizes[code] = 1
    for code in range(0xCC, 0xD4):  # integers of 1, 2, 4, 8 bytes, unsigned then signed
        sizes[code] = 1 + (1 << (code & 3))
    for length in range(32):  # short text
        sizes[0xA0 | length] = 1 + length
    return sizes


_FIXED: Final = _fixed_sizes()
_BLOB: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1}  # bin8, bin16, bin32, str8: bytes of length
_ARRAY: Final = {0xDC: 2} | {0x90 | items: 0 for items in range(16)}  # array16, short arrays


def walk(data: bytes) -> None:
    """Raise WireError at what the wire forbids: other types, depth, length, a torn or long end."""
    at, end = 0, len(data)
    left = [1]  # items still to come in each array that is open
    while left:
        if left[-1] == 0:
            left.pop()
            continue
        left[-1] -= 1
        if at >= end:
            raise WireError("cut short")
        code = data[at]
        if size := _FIXED[code]:
            at += size
        elif (width := _BLOB.get(code)) is not None:
            at += 1 + width + int.from_bytes(data[at + 1 : at + 1 + width], "big")
        elif (width := _ARRAY.get(code)) is not None:
            items = int.from_bytes(data[at + 1 : at + 1 + width], "big") if width else code & 0x0F
            if items > ITEMS_MAX:
                raise WireError("array too long")
            if len(left) > DEPTH_MAX:
                raise WireError("too deep")
            left.append(items)
            at += 1 + width
        else:
            raise WireError("forbidden type")
    if at != end:
        raise WireError("cut short" if at > end else "trailing bytes")
