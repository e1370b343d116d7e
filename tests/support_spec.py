"""The encoding and the rules of the fields, written a second time from docs/protocol.md alone."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgpack


def u(high: int, low: int = 0) -> Any:
    return ("int", low, high)


def b(high: int, low: int | None = None) -> Any:
    return ("bytes", high if low is None else low, high)


def many(item: Any, high: int, low: int = 0) -> Any:
    return ("many", item, low, high)


def opt(item: Any) -> Any:
    return ("opt", item)


U8, U32, U63, I32, LOG2 = u(255), u(2**32 - 1), u(2**63 - 1), u(2**31 - 1, -(2**31)), u(63)
EPOCH, SIZE, INDEX32, ANSWER = u(255, 1), u(2**28, 1), u(1023), u(1)
SCORE, PAIRED = (u(5, 1), I32), (u(5, 1), I32, I32)
ENV = (("text", 1, 16), b(400, 0), b(64))
HEAD = (b(32), EPOCH, U63, U63, b(32), b(32), u(1024), U32, U32, U8, b(8), b(32))
KEYDOC = (b(32), EPOCH, b(32), U32, U32, many(EPOCH, 255), u(0), b(64))
FORK = (ENV, ENV)
BUNDLE = (b(32), SIZE, b(8), u(1024, 1), many(PAIRED, 8), u(1, 1), b(32))
CARD = (
    *(b(16), U32, u(3, 1), u(5, 1), b(384), LOG2, b(8), b(8)),
    *(many(b(80, 0), 8), I32, many(SCORE, 8), opt(BUNDLE)),
)
ADDRESS = (b(32), many(b(256, 1), 4, 1), U32, b(64))
USAGE = (b(32), b(16), U32, LOG2, LOG2)
ROW, ENDED = (b(16), U32, b(32)), (b(16), U32, u(5, 1), many(b(16), 8))
INDEX = (many(ROW, 1024), many(ENDED, 1024))
RANGE = (b(16), b(16), U32, b(16), b(32 * 1024, 0))
SUMMARY = (b(16), U8, u(2), U63, b(16), b(16 * (255 + 1024), 0))
CARDS, USAGES, ENVS = many(CARD, 1024), many(USAGE, 256), many(ENV, 1024)
LAYOUTS: dict[str, Any] = {
    "Env": ENV,
    "Head": HEAD,
    "Fork": FORK,
    "KeyDoc": KEYDOC,
    "Card": CARD,
    "Usage": USAGE,
    "Retract": (b(32), U8, opt(b(16)), U32, u(3, 1)),
    "Index": INDEX,
    "ChunkList": (SIZE, u(2**18, 2**18), b(32 * 1024, 32)),
    "have/1": (many(KEYDOC, 1024), ENVS, ENVS, many(FORK, 1024)),
    "digest/1": (many(RANGE, 256, 1),),
    "compare/1": (many(SUMMARY, 1024), ANSWER),
    "echo-get/1": (b(32),),
    "echo/1": (b(32), opt(KEYDOC), opt(ENV)),
    "table-get/1": (b(32), b(32), b(32)),
    "delta/1": (ENV, U63, b(32), CARDS, many(ENDED, 1024), USAGES),
    "manifest/1": (ENV, INDEX, CARDS, USAGES),
    "cards-get/1": (b(32), b(32), b(32 * 1024, 0), ANSWER),
    "cards/1": (b(32), b(32), CARDS, USAGES),
    "gone/1": (b(32), b(32)),
    "list-get/1": (b(32),),
    "list/1": (b(32), b(65_536, 0)),
    "chunk-get/1": (b(32), many(INDEX32, 8, 1)),
    "chunk/1": (b(32), INDEX32, b(2**18, 1)),
    "not-here/1": (b(32),),
    "AddressRecord": ADDRESS,
    "peers-get/1": (u(15),),
    "peers/1": (many(ADDRESS, 16),),
}
CAPS = {
    "Env": 512,
    "Head": 400,
    "Retract": 200,
    "KeyDoc": 1024,
    "Fork": 1040,
    "Card": 1024,
    "Usage": 128,
    "Index": 61_440,
    "ChunkList": 33_792,
    "sync": 65_536,
    "bundle": 327_680,
    "AddressRecord": 1200,
    "peers": 24_576,
}
PLANES = {
    "bundle": {"list-get/1", "list/1", "chunk-get/1", "chunk/1", "not-here/1"},
    "peers": {"peers-get/1", "peers/1"},
}
PLANES["sync"] = {name for name in LAYOUTS if "/" in name}.difference(*PLANES.values())


class NotSoError(Exception):
    """Bytes that are not what the specification says."""


def must(holds: bool) -> None:
    if not holds:
        raise NotSoError


def opened(data: bytes, kind: str) -> list[Any]:
    """Return the fields of a structure, or of a message of a plane after its type."""
    must(len(data) <= CAPS[kind])
    try:
        value = msgpack.unpackb(data)
    except ValueError as error:
        raise NotSoError from error
    must(isinstance(value, list) and len(value) > 0)
    if kind in PLANES:
        must(isinstance(value[0], str) and value[0] in PLANES[kind])
        kind, value = value[0], [value[0], *value[1:]]
        fits(value[1:], LAYOUTS[kind])
    else:
        fits(value, LAYOUTS[kind])
    must(msgpack.packb(value) == data)
    return value


def fits(value: Any, layout: Any) -> None:
    match layout:
        case ("int", low, high):
            must(type(value) is int and low <= value <= high)
        case ("bytes", low, high):
            must(type(value) is bytes and low <= len(value) <= high)
        case ("text", low, high):
            must(type(value) is str and low <= len(value) <= high)
        case ("opt", item):
            if value is not None:
                fits(value, item)
        case ("many", item, low, high):
            must(type(value) is list and low <= len(value) <= high)
            for one in value:
                fits(one, item)
        case _:
            must(type(value) is list and len(value) == len(layout))
            for one, part in zip(value, layout, strict=True):
                fits(one, part)
            _beyond_fields(value, layout)


def _beyond_fields(value: list[Any], layout: Any) -> None:
    """What the types of single fields do not say."""
    if layout is CARD:
        must(all(len(parent) == (80 if value[3] == 5 else 16) for parent in value[8]))
    elif layout is INDEX:
        live, ended = [row[0] for row in value[0]], [end[0] for end in value[1]]
        must(len(live) + len(ended) <= 1024 and not set(live) & set(ended))
        must(all(a < b for part in (live, ended) for a, b in pairwise(part)))
    elif layout is RANGE:
        must(value[0] <= value[1] and len(value[4]) in (0, 32 * value[2]))
    elif layout is LAYOUTS["digest/1"]:
        must(all(a[1] < b[0] for a, b in pairwise(value[0])))
    elif layout is LAYOUTS["ChunkList"]:
        must(len(value[2]) == 32 * -(-value[0] // 2**18))
