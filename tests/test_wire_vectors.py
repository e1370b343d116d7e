"""`docs/wire-vectors.json`, read by who knows only docs/protocol.md.

Nothing of gossip is used but to see that the file is up to date: the encoding, the rules of the
fields, signatures, trees, conflicts and a whole round of reconciliation are written here a second
time, with plain msgpack, hashlib and Ed25519.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any

import make_wire_vectors
import msgpack
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

Json = dict[str, Any]
VECTORS: Json = json.loads(make_wire_vectors.PATH.read_text())


def each(part: str, label: str = "name") -> Any:
    cases = VECTORS[part]
    names = [f"{n} {case.get(label, '')}".strip() for n, case in enumerate(cases)]
    return pytest.mark.parametrize("case", cases, ids=names)


def raw(text: str) -> bytes:
    return bytes.fromhex(text)


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def test_the_file_is_what_the_code_makes_today() -> None:
    assert make_wire_vectors.text() == make_wire_vectors.PATH.read_text(), (
        "run tests/make_wire_vectors.py and look at what changed"
    )


# The encoding, from the tables of docs/protocol.md ------------------------------------------------


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
}
BUNDLE_TYPES = {"list-get/1", "list/1", "chunk-get/1", "chunk/1", "not-here/1"}


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
    if kind in ("sync", "bundle"):
        must(isinstance(value[0], str) and value[0] in LAYOUTS and "/" in value[0])
        must((value[0] in BUNDLE_TYPES) == (kind == "bundle"))
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


def shown(value: Any) -> Any:
    """A decoded value as the file writes it."""
    if isinstance(value, bytes):
        return value.hex()
    return [shown(item) for item in value] if isinstance(value, list) else value


def bare(fields: Any) -> Any:
    """Named fields as the list of their values."""
    match fields:
        case dict():
            return [bare(value) for value in fields.values()]
        case list():
            return [bare(value) for value in fields]
    return fields


@each("structures")
def test_a_structure_reads_as_its_fields_say(case: Json) -> None:
    data = raw(case["encoding"])
    assert shown(opened(data, case["structure"])) == bare(case["fields"])
    assert sha256(data).hex() == case["sha256"]
    assert CAPS[case["structure"]] == case["at_most"]


@each("messages")
def test_a_message_reads_as_its_fields_say(case: Json) -> None:
    data = raw(case["encoding"])
    kind, *fields = opened(data, case["plane"])
    assert (kind, shown(fields)) == (case["type"], bare(case["fields"]))
    assert sha256(data).hex() == case["sha256"]


def test_every_type_of_the_specification_has_a_vector() -> None:
    named = {case["structure"] for case in VECTORS["structures"]}
    named |= {case["type"] for case in VECTORS["messages"]}
    assert named == set(LAYOUTS)


def _plain_refusals() -> list[Json]:
    return [case for case in VECTORS["refused"] if not case["kind"].startswith("signed")]


@pytest.mark.parametrize(
    "case", _plain_refusals(), ids=lambda case: f"{case['kind']} {case['rule']}"
)
def test_what_must_be_refused_breaks_a_rule_of_the_specification(case: Json) -> None:
    with pytest.raises(NotSoError):
        opened(_joined(case["bytes"]), case["kind"])


def test_there_is_a_refusal_for_every_kind_and_every_reason() -> None:
    refused = VECTORS["refused"]
    assert len(refused) >= 60
    assert {case["kind"].split()[-1] for case in refused} == set(CAPS)
    assert {case["reason"] for case in refused} == {
        *("too large", "malformed", "wrong fields", "not canonical"),
        *("wrong type", "bad signature", "record without its key", "key of another origin"),
    }


def _joined(parts: list[str | int]) -> bytes:
    return b"".join(raw(part) if isinstance(part, str) else bytes(part) for part in parts)


# Keys and signatures ------------------------------------------------------------------------------


@each("keys")
def test_a_key_follows_from_its_seed(case: Json) -> None:
    public = Ed25519PrivateKey.from_private_bytes(raw(case["seed"])).public_key()
    assert public.public_bytes_raw().hex() == case["public"]
    if "origin" in case:
        assert sha256(raw(case["public"])).hex() == case["origin"]


@each("signatures")
def test_a_signature_is_over_the_prefix_and_the_payload(case: Json) -> None:
    key = Ed25519PrivateKey.from_private_bytes(raw(case["seed"]))
    assert key.sign(raw(case["prefix"]) + raw(case["payload"])).hex() == case["signature"]
    if "envelope" in case:
        kind, payload, signature = opened(raw(case["envelope"]), "Env")
        assert raw(case["prefix"]) == b"groove/" + kind.encode() + b"\0"
        assert (payload.hex(), signature.hex()) == (case["payload"], case["signature"])
        assert sha256(raw(case["envelope"])).hex() == case["id"]


@cache
def _public(name: str) -> Ed25519PublicKey:
    known = {case["name"]: raw(case["public"]) for case in VECTORS["keys"]}
    return Ed25519PublicKey.from_public_bytes(known[name])


@pytest.mark.parametrize(
    "case",
    [case for case in VECTORS["refused"] if case["kind"].startswith("signed")],
    ids=lambda case: f"{case['kind']} {case['rule']}",
)
def test_what_is_not_signed_as_it_must_be_does_not_open(case: Json) -> None:
    kind, data = case["kind"].split()[-1], _joined(case["bytes"])
    with pytest.raises((NotSoError, InvalidSignature)):
        if kind == "KeyDoc":
            *body, signature = opened(data, kind)
            assert len(body) == 7
            must(body[0] == _public("root").public_bytes_raw())
            _public("root").verify(signature, b"groove/keydoc/1\0" + msgpack.packb(body))
            return
        type_, payload, signature = opened(data, "Env")
        must(type_ == f"{kind.lower()}/1")
        epoch = opened(payload, kind)[1]
        must(epoch in (0, 1))  # the keys that are known
        signer = _public("op of epoch 1" if epoch else "root")
        signer.verify(signature, b"groove/" + type_.encode() + b"\0" + payload)


# What a head vouches for --------------------------------------------------------------------------


def tree(leaves: list[bytes]) -> bytes:
    """The definition of RFC 6962 §2.1."""
    if not leaves:
        return sha256(b"")
    if len(leaves) == 1:
        return sha256(b"\0" + leaves[0])
    k = 1 << (len(leaves) - 1).bit_length() - 1
    return sha256(b"\1" + tree(leaves[:k]) + tree(leaves[k:]))


@each("merkle", "none")
def test_a_merkle_root_is_that_of_the_definition(case: Json) -> None:
    assert tree([raw(leaf) for leaf in case["leaves"]]).hex() == case["root"]


@each("tables", "n_live")
def test_a_table_root_is_over_the_rows_then_the_ended(case: Json) -> None:
    rows, ended = opened(raw(case["index"]), "Index")
    cards = [opened(raw(card["card"]), "Card") for card in case["cards"]]
    hashes = {card["hash"]: sha256(raw(card["card"])).hex() for card in case["cards"]}
    assert all(said == is_ for said, is_ in hashes.items())
    assert sorted(c[0] for c in cards) == [row[0] for row in rows]
    assert {row[2].hex() for row in rows} == set(hashes)
    assert sorted(map(msgpack.packb, ended)) == sorted(raw(end) for end in case["ended"])
    assert tree([msgpack.packb(row) for row in rows + ended]).hex() == case["table_root"]
    assert len(rows) == case["n_live"]


@each("usage", "none")
def test_a_usage_hash_is_over_the_array_of_rows_or_zeros(case: Json) -> None:
    data = raw(case["encoding"])
    fits(rows := msgpack.unpackb(data), USAGES)
    assert case["usage"] == (sha256(data).hex() if rows else "00" * 32)


@each("bundles", "size_bytes")
def test_a_bundles_root_is_the_hash_of_its_chunk_list(case: Json) -> None:
    data = bytes(n % 251 for n in range(case["size_bytes"]))
    chunks = [data[at : at + 2**18] for at in range(0, len(data), 2**18)]
    listed = msgpack.packb([len(data), 2**18, b"".join(map(sha256, chunks))])
    assert listed.hex() == case["chunk_list"]
    assert sha256(listed).hex() == case["root"]


# Rules of one origin ------------------------------------------------------------------------------


@each("conflicts")
def test_two_heads_conflict_as_the_rule_says(case: Json) -> None:
    a, b = raw(case["a"]), raw(case["b"])
    assert _conflict(a, b) == _conflict(b, a) == case["conflict"]
    if case["conflict"]:
        assert case["proof"] == (b"\x92" + b"".join(sorted((a, b), key=sha256))).hex()


def _conflict(a: bytes, b: bytes) -> bool:
    low, high = sorted((_head(a), _head(b)), key=lambda head: head["seq"])
    if a == b or low["epoch"] != high["epoch"]:
        return False
    if low["seq"] == high["seq"] or high["prev_seq"] < low["seq"]:
        return True
    return bool(high["prev_seq"] == low["seq"] and high["prev"] != low["id"])


def _head(env: bytes) -> Json:
    names = ("origin", "epoch", "seq", "prev_seq", "prev", "root", "n", "ts", "exp", "flags", "enc")
    fields = opened(opened(env, "Env")[1], "Head")
    return dict(zip(names, fields, strict=False)) | {"id": sha256(env)}


@each("bounds", "never")
def test_a_head_is_refused_or_put_off_as_the_rules_say(case: Json) -> None:
    [doc] = [c["fields"] for c in VECTORS["structures"] if c["structure"] == "KeyDoc"]
    head, now_h = _head(raw(case["head"])), case["now_s"] // 3600
    never = (
        not head["ts"] <= head["exp"] <= head["ts"] + 168
        or head["prev_seq"] >= head["seq"]
        or not doc["not_before_h"] <= head["ts"] <= doc["not_after_h"]
    )
    not_yet = head["ts"] > now_h + 1 or head["seq"] >> 16 > now_h + 24
    assert never == (case["never"] is not None)
    assert (not_yet and not never) == (case["not_yet"] is not None)


@each("sequence", "next")
def test_a_sequence_number_follows_the_last_and_the_hour(case: Json) -> None:
    assert case["next"] == max(case["last"] + 1, case["now_s"] // 3600 << 16)


# Reconciliation -----------------------------------------------------------------------------------


@each("summaries")
def test_a_summary_follows_from_what_is_held(case: Json) -> None:
    keys, heads, retracts, forks = _held(case["held"])
    epochs = [doc[1] for doc in keys]
    epoch = max(epochs, default=0)
    slot = raw(case["origin"])[:16]
    if len(set(epochs)) < len(epochs):
        expected = [slot, 0, 2, 0, bytes(16), b""]
    else:
        forked = any(_head(msgpack.packb(fork[0]))["epoch"] == epoch for fork in forks)
        frozen = forked or any(epoch in doc[5] for doc in keys)
        stand = [_head(env) for env in map(msgpack.packb, heads)] if not frozen else []
        named = [msgpack.packb(record) for record in (*keys, *retracts)]
        ids = b"".join(sorted(sha256(record)[:16] for record in named))
        seq, head = (stand[0]["seq"], stand[0]["id"][:16]) if stand else (0, bytes(16))
        expected = [slot, epoch, int(frozen), seq, head, ids]
    assert msgpack.packb(expected).hex() == case["encoding"]
    assert shown(expected) == bare(case["summary"])
    assert (slot + sha256(raw(case["encoding"]))[:16]).hex() == case["item"]


def _held(frames: list[str]) -> tuple[list[Any], ...]:
    """All keys, heads, retractions and forks in some `have/1`."""
    messages = [opened(raw(frame), "sync") for frame in frames]
    return tuple([record for m in messages for record in m[part]] for part in range(1, 5))


@each("answers", "mine")
def test_an_answer_gives_what_the_other_lacks_and_each_record_with_a_key_to_open_it(
    case: Json,
) -> None:
    held = {one["name"]: _held(one["held"]) for one in VECTORS["summaries"]}
    mine, theirs = (_records(held[case[side]]) for side in ("mine", "theirs"))
    keys, *records = _held(case["given"])
    assert _records((keys, *records)) <= mine
    known = {doc[1] for doc in keys + held[case["theirs"]][0]}
    for env in records[0] + records[1]:
        assert opened(env[1], "Head" if env[0] == "head/1" else "Retract")[1] in known
    if mine <= theirs:
        assert not case["given"]
    if case["mine"] == "nothing":
        assert case["asks_back"] or not theirs


def _records(held: tuple[list[Any], ...]) -> set[bytes]:
    return {msgpack.packb(record) for part in held for record in part}


@each("fingerprints", "none")
def test_a_fingerprint_is_the_hash_of_the_sum_and_the_count(case: Json) -> None:
    assert fingerprint([raw(item) for item in case["items"]]).hex() == case["fingerprint"]


def fingerprint(items: list[bytes]) -> bytes:
    total = sum(int(item.hex(), 16) for item in items) & (1 << 256) - 1
    return sha256(total.to_bytes(32, "big") + len(items).to_bytes(4, "big"))[:16]


@each("rounds", "none")
def test_a_round_goes_as_the_specification_says(case: Json) -> None:
    opener, answerer = ([raw(item) for item in case[side]] for side in ("opener", "answerer"))
    whole = _range(opener, bytes(16), b"\xff" * 16, listed=len(opener) <= 32)
    message: bytes | None = msgpack.packb(["digest/1", [whole]])
    found: set[bytes] = set()
    for n, step in enumerate(case["steps"]):
        assert message == raw(step["message"])
        slots, ranges = _answer(opener if n % 2 else answerer, opened(message, "sync")[1])
        assert [slot.hex() for slot in slots] == step["slots_found"]
        found |= set(slots)
        message = msgpack.packb(["digest/1", ranges]) if ranges else None
    assert message is None
    assert found == {item[:16] for item in set(opener) ^ set(answerer)}


def _answer(items: list[bytes], theirs: list[Any]) -> tuple[list[bytes], list[Any]]:
    slots: list[bytes] = []
    ranges: list[Any] = []
    for low, high, count, print_, listed in theirs:
        mine = items[bisect_left(items, low) : bisect_right(items, high + b"\xff" * 16)]
        if print_ == fingerprint(mine):
            continue
        if len(listed) == 32 * count:
            shown_ = {listed[at : at + 32] for at in range(0, len(listed), 32)}
            slots += sorted({item[:16] for item in shown_ ^ set(mine)})
        elif len(mine) <= 32:
            ranges.append(_range(mine, low, high, listed=True))
        else:
            ranges += _sixteenths(mine, low, high)
    return slots, ranges


def _sixteenths(mine: list[bytes], low: bytes, high: bytes) -> Iterator[Any]:
    size = -(-len(mine) // 16)
    parts = [mine[at : at + size] for at in range(0, len(mine), size)]
    for part, after in zip(parts, [*parts[1:], None], strict=True):
        end = high if after is None else (int(after[0][:16].hex(), 16) - 1).to_bytes(16, "big")
        yield _range(part, low, end, listed=False)
        low = after[0][:16] if after else low


def _range(items: list[bytes], low: bytes, high: bytes, *, listed: bool) -> list[Any]:
    return [low, high, len(items), fingerprint(items), b"".join(items) if listed else b""]


@each("tags")
def test_an_encoders_tag_follows_from_its_description(case: Json) -> None:
    assert sha256(case["text"].encode())[:8].hex() == case["tag"]


# Frames -------------------------------------------------------------------------------------------


def test_a_frame_on_a_stream_has_its_length_before_it() -> None:
    for case in VECTORS["frames"]["on a stream"]:
        frame = raw(case["frame"])
        assert case["bytes"] == f"{len(frame):08x}" + frame.hex()


@pytest.mark.parametrize(("what", "records"), [("600 retractions", 600), ("900 summaries", 900)])
def test_what_is_too_much_for_one_frame_is_split_and_nothing_is_left_out(
    what: str, records: int
) -> None:
    parts = VECTORS["frames"][what]
    assert len(parts) > 1
    assert sum(part["records"] for part in parts) == records
    assert all(part["bytes"] <= 65_536 for part in parts)
