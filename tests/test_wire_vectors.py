"""`docs/wire-vectors.json`, read by who knows only docs/protocol.md.

Nothing of gossip is used but to see that the file is up to date: signatures, trees, tables on their
way, conflicts and a whole round of reconciliation are written here a second time (the encoding and
the rules of the fields in `support_spec`), with plain msgpack, hashlib and Ed25519.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from functools import cache
from typing import Any

import make_wire_vectors
import msgpack
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from support_spec import CAPS, LAYOUTS, USAGES, NotSoError, fits, must, opened

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


# Structures and messages --------------------------------------------------------------------------


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


@pytest.mark.parametrize("case", _plain_refusals(), ids=lambda case: case["name"])
def test_what_must_be_refused_breaks_a_rule_of_the_specification(case: Json) -> None:
    with pytest.raises(NotSoError):
        opened(_joined(case["bytes"]), case["kind"])


def test_there_is_a_refusal_for_every_kind_and_every_reason() -> None:
    refused = VECTORS["refused"]
    assert len({case["name"] for case in refused}) == len(refused) >= 60
    assert {case["kind"].split()[-1] for case in refused} == set(CAPS)
    assert {case["reason"] for case in refused} == {
        *("too large", "malformed", "wrong fields", "not canonical"),
        *("wrong type", "bad signature", "record without its key", "key of another origin"),
        "address record forged",
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
    if "peer" in case:  # an identity multihash of the key as libp2p's protobuf, in base58
        assert case["peer"] == base58(b"\x00\x24\x08\x01\x12\x20" + raw(case["public"]))


def base58(data: bytes) -> str:
    """Without leading zeros but the first byte's, as here."""
    digits, number = "", int.from_bytes(data, "big")
    while number:
        number, digit = divmod(number, 58)
        digits = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"[digit] + digits
    return "1" * (len(data) - len(data.lstrip(b"\0"))) + digits


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
    ids=lambda case: case["name"],
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
        if kind == "AddressRecord":
            *body, signature = opened(data, kind)
            signer = Ed25519PublicKey.from_public_bytes(body[0])
            signer.verify(signature, b"groove/address/1\0" + msgpack.packb(body))
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


# Tables on their way ------------------------------------------------------------------------------


@pytest.mark.parametrize("case", VECTORS["transfers"][:-1], ids=lambda case: case["name"])
def test_who_has_the_table_before_is_given_what_it_takes_to_have_the_next(case: Json) -> None:
    old, head = _head(raw(case["held"])), _head(raw(case["head"]))
    rows, ended = opened(raw(case["index"]), "Index")
    assert tree([msgpack.packb(row) for row in rows + ended]) == old["root"]
    known = {sha256(data): opened(data, "Card") for data in map(raw, case["cards"])}
    usage: list[Any] = []
    for message in case["messages"]:
        kind, *fields = opened(raw(message), "sync")
        lacking = [row[2] for row in rows if row[2] not in known]
        match kind:
            case "table-get/1":
                assert fields == [head["origin"], head["id"], old["id"]]
                continue
            case "cards-get/1":
                assert fields == [head["origin"], head["id"], b"".join(lacking), 0]
                continue
            case "delta/1":
                env, seq, root, cards, ends, usage = fields
                assert (seq, root) == (old["seq"], old["root"])
                rows, ended = _patched(rows, ended, cards, ends)
            case "manifest/1":
                env, (rows, ended), cards, usage = fields
                assert cards == []  # who has a table lacks few of them, and will say which
            case "cards/1":
                *named, cards, _ = fields
                assert named == [head["origin"], head["id"]]
                env = msgpack.unpackb(raw(case["head"]))
        assert msgpack.packb(env) == raw(case["head"])
        known |= {sha256(msgpack.packb(card)): card for card in cards}
    assert tree([msgpack.packb(row) for row in rows + ended]) == head["root"]
    assert len(rows) == head["n"]
    assert [known[row[2]][:2] for row in rows] == [row[:2] for row in rows]
    assert head["usage"] == (sha256(msgpack.packb(usage)) if usage else bytes(32))


def _patched(rows: Any, ended: Any, puts: Any, ends: Any) -> tuple[list[Any], list[Any]]:
    """Rows and ended rows, after a delta: a leaf that is put is not ended, and the other way."""
    live = {row[0]: row for row in rows}
    over = {end[0]: end for end in ended}
    for card in puts:
        over.pop(card[0], None)
        live[card[0]] = [card[0], card[1], sha256(msgpack.packb(card))]
    for end in ends:
        live.pop(end[0], None)
        over[end[0]] = end
    return [live[leaf] for leaf in sorted(live)], [over[leaf] for leaf in sorted(over)]


def test_a_table_that_is_too_much_for_one_frame_comes_in_pieces_without_a_gap() -> None:
    case = VECTORS["transfers"][-1]
    head, env = _head(raw(case["head"])), msgpack.unpackb(raw(case["head"]))
    cards = _numbered(raw(case["card"]), case["count"], leaf_at=0, version_at=1)
    usage = _numbered(raw(case["usage"]), case["usage_count"], leaf_at=1)
    hashes = [sha256(msgpack.packb(card)) for card in cards]
    rows = [[*card[:2], name] for card, name in zip(cards, hashes, strict=True)]
    assert tree([msgpack.packb(row) for row in rows]) == head["root"]
    assert sha256(msgpack.packb(usage)) == head["usage"]
    at, named = 0, [head["origin"], head["id"]]
    for step in case["messages"]:
        part = cards[at : at + step["cards"]] if "cards" in step else []
        match step["type"]:
            case "table-get/1":
                fields = [*named, bytes(32)]
            case "cards-get/1":
                fields = [*named, b"".join(hashes[at:]), step["usage"]]
                part = []
            case "manifest/1":
                fields = [env, [rows, []], part, usage[: step["usage"]]]
            case "cards/1":
                fields = [*named, part, usage[: step["usage"]]]
        at += len(part)
        frame = msgpack.packb([step["type"], *fields])
        assert len(frame) == step["bytes"] <= 65_536
        assert sha256(frame).hex() == step["sha256"]
    assert at == len(cards)
    assert {step["usage"] for step in case["messages"] if step["type"] == "cards/1"} == {0, 256}


def _numbered(data: bytes, count: int, *, leaf_at: int, version_at: int | None = None) -> list[Any]:
    """Copies of a value, numbered from 0."""
    made = []
    for n in range(count):
        value = msgpack.unpackb(data)
        value[leaf_at] = n.to_bytes(16, "big")
        if version_at is not None:
            value[version_at] = n
        made.append(value)
    return made


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
    names = "origin epoch seq prev_seq prev root n ts exp flags enc usage"
    fields = opened(opened(env, "Env")[1], "Head")
    return dict(zip(names.split(), fields, strict=True)) | {"id": sha256(env)}


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
