"""What must be refused: for each rule of the encoding and each cap, bytes that break that alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import support_wire as example
from gossip_kit import NOW_H, keys, leaf, seed
from msgspec.structs import replace

from gossip import hearing
from gossip.envelope import read, seal
from gossip.keys import issue, private_key, public_bytes, verify
from gossip.origin import Claims
from gossip.wire import (
    BYTES_MAX,
    CHUNK_BYTES,
    RECORDS_MAX,
    AddressRecord,
    BundleMessage,
    Card,
    ChunkList,
    Env,
    Fork,
    Head,
    Index,
    KeyDoc,
    PeersMessage,
    Retract,
    SyncMessage,
    Usage,
    WireError,
    decode,
    encode,
)

ROOT = seed("root")
ECHO_GET = b"\x92\xaaecho-get/1\xc4\x20" + ROOT
KINDS: dict[str, Any] = {
    **{kind.__name__: kind for kind in (Env, Head, Retract, KeyDoc, Fork, Card, Usage, Index)},
    "ChunkList": ChunkList,
    "AddressRecord": AddressRecord,
    "sync": SyncMessage,
    "bundle": BundleMessage,
    "peers": PeersMessage,
}
Json = dict[str, Any]


def refusals() -> list[Json]:
    """All that is refused, each with the phrase it is refused with."""
    refused = [_refused("sync", rule, data) for rule, data in _FORMS.items()]
    refused += [_refused(kind, rule, encode(data)) for kind, rule, data in _fields()]
    refused += [_refused(kind, "larger than its cap", data) for kind, data in _oversize()]
    return refused + list(_unopened())


def _refused(kind: str, rule: str, data: bytes) -> Json:
    try:
        decode(data, KINDS[kind])
    except WireError as error:
        return _entry(kind, rule, data, error)
    raise AssertionError(f"accepted: {kind}, {rule}")


def _entry(kind: str, rule: str, data: bytes, error: WireError) -> Json:
    return {
        "name": f"{kind}, {rule}",
        "kind": kind,
        "rule": rule,
        "bytes": _short(data),
        "reason": error.reason,
    }


def _short(data: bytes) -> list[str | int]:
    """Return bytes as parts: text is hexadecimal, a number is so many zero bytes."""
    parts = [(m.group(1).hex(), len(m.group(2))) for m in _ZEROS.finditer(data) if m.group()]
    return [part for pair in parts for part in pair if part] or [""]


_ZEROS = re.compile(rb"(.*?)(\0{32,}|\Z)", re.DOTALL)

# The encoding -------------------------------------------------------------------------------------

_FORMS: dict[str, bytes] = {
    "an empty frame": b"",
    "a frame cut short": ECHO_GET[:-1],
    "an array without its items": b"\x92",
    "a length cut short": b"\x92\xaaecho-get/1\xc5",
    "bytes after the value": ECHO_GET + b"\x00",
    "two values": ECHO_GET * 2,
    "a map": b"\x81\xaaecho-get/1\xc4\x20" + ROOT,
    "a map of 16-bit length": b"\xde\xff\xff",
    "a float for a number": b"\x92\xabcards-get/1\xcb" + bytes(8),
    "a boolean": b"\x92\xaaecho-get/1\xc3",
    "an extension": b"\x92\xaaecho-get/1\xd4\x01\x01",
    "a timestamp": b"\x92\xaaecho-get/1\xd6\xff" + bytes(3) + b"\x01",
    "the byte that MessagePack never uses": b"\x92\xaaecho-get/1\xc1",
    "an array of 32-bit length": b"\xdd\x00\x00\x00\x02\xaaecho-get/1\xc4\x20" + ROOT,
    "an array of 4,294,967,295 items": b"\x95\xa6have/1\xdd\xff\xff\xff\xff",
    "an array of 1,025 items": b"\x95\xa6have/1\xdc\x04\x01",
    "bytes that claim 4 GiB": b"\x92\xaaecho-get/1\xc6\xff\xff\xff\xff",
    "text that claims 4 GiB": b"\x92\xdb\xff\xff\xff\xff",
    "arrays in arrays": b"\x95\xa6have/1" + b"\x91" * 7 + b"\x90",
    "long arrays in arrays": b"\x95\xa6have/1" + b"\xdc\x04\x00" * 100,
    "a type in a long form": b"\x92\xd9\x0aecho-get/1\xc4\x20" + ROOT,
    "a type in text of 16-bit length": b"\x92\xda\x00\x0aecho-get/1\xc4\x20" + ROOT,
    "a short array in a long form": b"\xdc\x00\x02\xaaecho-get/1\xc4\x20" + ROOT,
    "short bytes of 16-bit length": b"\x92\xaaecho-get/1\xc5\x00\x20" + ROOT,
    "short bytes of 32-bit length": b"\x92\xaaecho-get/1\xc6\x00\x00\x00\x20" + ROOT,
    "text for bytes": b"\x92\xaaecho-get/1\xd9\x20" + b"a" * 32,
    "text that is not UTF-8": b"\x92\xaaecho-get/\xff\xc4\x20" + ROOT,
    "bytes for a type": b"\x92\xc4\x0aecho-get/1\xc4\x20" + ROOT,
    "an unknown type": b"\x92\xaaecho-get/2\xc4\x20" + ROOT,
    "a type of the bundle channel": b"\x92\xaalist-get/1\xc4\x20" + ROOT,
    "a number for a type": b"\x92\x01\xc4\x20" + ROOT,
    "no array": b"\xaaecho-get/1",
    "a field too few": b"\x91\xaaecho-get/1",
    "a field too many": b"\x93\xaaecho-get/1\xc4\x20" + ROOT + b"\x00",
    "nil where a value must be": b"\x92\xaaecho-get/1\xc0",
    "a hash of 31 bytes": b"\x92\xaaecho-get/1\xc4\x1f" + ROOT[1:],
    "a hash of 33 bytes": b"\x92\xaaecho-get/1\xc4\x21" + ROOT + b"\x01",
    **{
        f"the number 1 as {name}": encode(example.SYNC["CardsGet"])[:-1] + wide + b"\x01"
        for name, wide in {
            "8 bits": b"\xcc",
            "16 bits": b"\xcd\x00",
            "32 bits": b"\xce" + bytes(3),
            "64 bits": b"\xcf" + bytes(7),
            "signed 8 bits": b"\xd0",
            "signed 64 bits": b"\xd3" + bytes(7),
        }.items()
    },
}


# The fields ---------------------------------------------------------------------------------------


def _fields() -> Iterator[tuple[str, str, list[Any]]]:
    """Structures and messages with one field that may not be so."""
    for name, value, changes in _CHANGES:
        for field, rule, wrong in changes:
            yield name, f"{field}: {rule}", _changed(value, field, wrong)


def _changed(value: Any, field: str, wrong: Any) -> list[Any]:
    plain: list[Any] = list(msgspec.to_builtins(value, builtin_types=(bytes,)))
    tagged = len(plain) - len(value.__struct_fields__)  # the type stands before a message's fields
    plain[value.__struct_fields__.index(field) + tagged] = wrong
    return plain


_DOC, _HEAD, _CARD, _INDEX = example.SIGNING.doc, example.HEAD, example.CARD, example.INDEX
_ROWS, _ENDS = list(_INDEX.rows), list(_INDEX.ended)
_CHANGES: list[tuple[str, Any, list[tuple[str, str, Any]]]] = [
    (
        "Head",
        _HEAD,
        [
            ("origin", "not 32 bytes", ROOT[:16]),
            ("epoch", "0", 0),
            ("epoch", "above 255", 256),
            ("seq", "negative", -1),
            ("seq", "above 63 bits", 1 << 63),
            ("n_live", "above 1,024", 1025),
            ("ts_h", "above 32 bits", 1 << 32),
            ("flags", "above 8 bits", 256),
            ("enc", "not 8 bytes", bytes(7)),
        ],
    ),
    (
        "Retract",
        example.RETRACT,
        [
            ("epoch", "above 255", 256),
            ("leaf", "not 16 bytes", ROOT),
            ("scope", "unknown", 4),
        ],
    ),
    (
        "KeyDoc",
        _DOC,
        [
            ("epoch", "0", 0),
            ("revoked", "an epoch 0", [0]),
            ("revoked", "more than 255", [1] * 256),
            ("pow", "not 0", 1),
            ("sig", "not 64 bytes", bytes(63)),
        ],
    ),
    (
        "Env",
        example.ENV,
        [
            ("type", "empty", ""),
            ("type", "longer than 16", "x" * 17),
            ("payload", "longer than 400", b"x" * 401),
            ("sig", "not 64 bytes", bytes(65)),
        ],
    ),
    (
        "Card",
        _CARD,
        [
            ("stage", "unknown", 4),
            ("op", "unknown", 6),
            ("centroid", "not 384 bytes", bytes(383)),
            ("sessions_log2", "above 63", 64),
            ("parents", "of an adopted leaf", [bytes(80)]),
            ("parents", "more than 8", [leaf(1)] * 9),
            ("growth_q", "above 31 bits", 1 << 31),
            ("scores", "more than 8", [[1, 0]] * 9),
            ("scores", "an unknown evalset", [[6, 0]]),
            ("scores", "three numbers", [[1, 0, 0]]),
            ("bundle", "empty", _changed(example.BUNDLE, "size_bytes", 0)),
            ("bundle", "above 256 MiB", _changed(example.BUNDLE, "size_bytes", (1 << 28) + 1)),
            ("bundle", "rank 0", _changed(example.BUNDLE, "rank", 0)),
            ("bundle", "unknown format", _changed(example.BUNDLE, "format", 2)),
        ],
    ),
    ("Card", example.ADOPTED, [("parents", "adopted from no signed place", [leaf(1)])]),
    ("Usage", example.USAGE, [("routed_log2", "above 63", 64)]),
    (
        "Index",
        _INDEX,
        [
            ("rows", "not ascending", _ROWS[::-1]),
            ("rows", "a leaf twice", [_ROWS[0], _ROWS[0]]),
            ("rows", "a leaf that is ended", [[_ENDS[0].leaf, 1, ROOT]]),
            ("ended", "an unknown reason", [[leaf(3), 1, 6, []]]),
            ("ended", "into more than 8", [[leaf(3), 1, 3, [leaf(1)] * 9]]),
            (
                "rows",
                "more than 1,024 with the ended",
                [[n.to_bytes(16, "big"), 1, bytes(32)] for n in range(1024)],
            ),
        ],
    ),
    (
        "ChunkList",
        example.CHUNKS,
        [
            ("chunk_bytes", "not 262,144", CHUNK_BYTES // 2),
            ("hashes", "one too few", ROOT),
            ("hashes", "not a multiple of 32", ROOT * 2 + b"x"),
        ],
    ),
    (
        "sync",
        example.SYNC["Digest"],
        [
            ("ranges", "none", []),
            ("ranges", "low above high", [[example.HIGH, example.LOW, 0, example.SLOT, b""]]),
            ("ranges", "fewer items than counted", [[example.LOW, example.HIGH, 2, leaf(1), ROOT]]),
            ("ranges", "overlapping", [[example.LOW, example.HIGH, 0, leaf(1), b""]] * 2),
            (
                "ranges",
                "more than 256",
                [[n.to_bytes(16, "big")] * 2 + [0, leaf(1), b""] for n in range(257)],
            ),
        ],
    ),
    (
        "sync",
        example.SYNC["Compare"],
        [
            ("answer", "neither 0 nor 1", 2),
            ("summaries", "an unknown standing", [[leaf(1), 1, 3, 0, leaf(1), b""]]),
        ],
    ),
    ("sync", example.SYNC["CardsGet"], [("cards", "above 32 KiB", bytes(32 * 1025))]),
    ("sync", example.SYNC["Cards"], [("usage", "more than 256", [example.USAGE] * 257)]),
    (
        "bundle",
        example.BUNDLES["ChunkGet"],
        [
            ("indices", "none", []),
            ("indices", "more than 8", [0] * 9),
            ("indices", "above 1,023", [1024]),
        ],
    ),
    (
        "bundle",
        example.BUNDLES["ChunkData"],
        [("data", "empty", b""), ("data", "above 256 KiB", bytes(CHUNK_BYTES + 1))],
    ),
    (
        "AddressRecord",
        example.ADDRESSES,
        [
            ("key", "not 32 bytes", bytes(36)),
            ("places", "none", []),
            ("places", "more than 4", [b"/ip4/198.51.100.7/tcp/4021"] * 5),
            ("places", "an empty one", [b""]),
            ("places", "one above 256 bytes", [b"x" * 257]),
            ("ts_h", "above 32 bits", 1 << 32),
            ("sig", "not 64 bytes", bytes(63)),
        ],
    ),
    ("peers", example.PEERS["PeersGet"], [("count", "above 15", RECORDS_MAX)]),
    (
        "peers",
        example.PEERS["Peers"],
        [("records", "more than 16", [example.ADDRESSES] * (RECORDS_MAX + 1))],
    ),
]


def _oversize() -> Iterator[tuple[str, bytes]]:
    """A value of one byte more than its cap would be refused for its size before it is read."""
    for name, kind in KINDS.items():
        size = BYTES_MAX[kind] + 1
        yield name, b"\xc6" + (size - 5).to_bytes(4, "big") + bytes(size - 5)


# The signatures -----------------------------------------------------------------------------------


def _unopened() -> Iterator[Json]:
    """Envelopes and key documents that have their form, and are not what they say."""
    op, key = example.SIGNING.op, private_key(seed("alice", "root"))
    payload = encode(example.HEAD)
    claims = Claims(example.ORIGIN).with_key(_DOC)

    def head(env: Env) -> Callable[[], object]:
        return lambda: hearing.open_head(read(env, Head), claims)

    def retract(env: Env) -> Callable[[], object]:
        return lambda: hearing.open_retract(read(env, Retract), claims)

    def doc(value: KeyDoc) -> Callable[[], object]:
        return lambda: hearing.open_key(value, example.ORIGIN)

    forged = replace(example.ENV, payload=encode(replace(example.HEAD, n_live=3)))
    other = keys("bob")
    foreign = issue(
        private_key(seed("bob", "root")),
        public_bytes(op),
        epoch=1,
        not_before_h=NOW_H,
        not_after_h=NOW_H,
    )
    later = seal(replace(example.HEAD, epoch=9), op).env
    cases: list[tuple[str, str, Env | KeyDoc | AddressRecord, Callable[[], object]]] = [
        ("Head", "payload changed after signing", forged, head(forged)),
        ("Head", "signed by the root key", env := seal(example.HEAD, key).env, head(env)),
        ("Head", "signed by another's key", env := seal(example.HEAD, other.op).env, head(env)),
        ("Head", "no prefix", env := Env("head/1", payload, op.sign(payload)), head(env)),
        (
            "Head",
            "the prefix of a retraction",
            env := Env("head/1", payload, op.sign(b"groove/retract/1\0" + payload)),
            head(env),
        ),
        ("Head", "of an epoch without a known key", later, head(later)),
        (
            "Head",
            "a retraction in the place of a head",
            example.RETRACT_ENV,
            head(example.RETRACT_ENV),
        ),
        (
            "Head",
            "a payload that is not canonical",
            env := Env("head/1", payload.replace(b"\x02\xce", b"\xcc\x02\xce", 1), bytes(64)),
            head(env),
        ),
        (
            "Retract",
            "of epoch 0, by the operating key",
            env := seal(example.RETRACT_ALL, op).env,
            retract(env),
        ),
        ("KeyDoc", "of another origin", foreign, doc(foreign)),
        ("KeyDoc", "changed after signing", late := replace(_DOC, epoch=3), doc(late)),
    ]
    moved = replace(example.ADDRESSES, places=(b"/ip4/192.0.2.1/tcp/4021",))
    cases.append(("AddressRecord", "changed after signing", moved, lambda: _check(moved)))
    for kind, rule, value, opened in cases:
        try:
            opened()
        except WireError as error:
            yield _entry(f"signed {kind}", rule, encode(value), error)
        else:
            raise AssertionError(f"opened: {kind}, {rule}")


def _check(record: AddressRecord) -> None:
    body = (record.key, record.places, record.ts_h)
    if not verify(record.key, record.sig, b"groove/address/1\0" + encode(body)):
        raise WireError("address record forged")
