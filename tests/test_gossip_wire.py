"""What may cross the wire, and the refusal of all else."""

from __future__ import annotations

from typing import Any

import msgpack
import msgspec
import pytest
import second_decoder
from gossip_kit import card, keys, leaf, seed
from hypothesis import given
from hypothesis import strategies as st

from gossip import canonical
from gossip.envelope import seal
from gossip.wire import (
    BUNDLE_FRAME_BYTES_MAX,
    BYTES_MAX,
    CHUNK_BYTES,
    SYNC_FRAME_BYTES_MAX,
    Bundle,
    BundleMessage,
    Card,
    Cards,
    CardsGet,
    ChunkData,
    ChunkGet,
    ChunkList,
    Compare,
    Delta,
    Digest,
    Echo,
    EchoGet,
    Ended,
    Env,
    EvalSet,
    Fork,
    Format,
    Gone,
    Have,
    Head,
    Index,
    KeyDoc,
    ListData,
    ListGet,
    Manifest,
    NotHere,
    Op,
    PairedScore,
    Range,
    Reason,
    Retract,
    Row,
    Scope,
    Score,
    Stage,
    Standing,
    Summary,
    SyncMessage,
    TableGet,
    Usage,
    WireError,
    decode,
    decode_bundle,
    decode_sync,
    encode,
    to_log2,
    to_q,
)

ROOT = seed("root")
SLOT = ROOT[:16]
HEAD = Head(ROOT, 1, 1 << 35, 0, bytes(32), ROOT, 3, 488_888, 489_056, 1, bytes(8), bytes(32))
RETRACT = Retract(ROOT, 1, leaf(1), 488_888, Scope.PUBLISH)
SIGNING = keys("alice")
ENV = seal(HEAD, SIGNING.op).env
BUNDLE = Bundle(
    *(ROOT, 1_000_000, bytes(8), 8, (PairedScore(EvalSet.HELD_OUT_LOSS, 15_000, 16_000),)),
    *(Format.LORA_SAFETENSORS, ROOT),
)
CARD = msgspec.structs.replace(
    card(1), scores=(Score(EvalSet.GAIN_LOW, -7),), bundle=BUNDLE, parents=(leaf(2),)
)
USAGE = Usage(ROOT, leaf(1), 2_909, 5, 4)
ENDED = Ended(leaf(3), 2, Reason.MERGED, (leaf(1),))
INDEX = Index((Row(leaf(1), 1, ROOT),), (ENDED,))

SYNC: list[SyncMessage] = [
    Have((SIGNING.doc,), (ENV,), (seal(RETRACT, SIGNING.op).env,), (Fork(ENV, ENV),)),
    Digest((Range(bytes(16), SLOT, 1, SLOT, ROOT),)),
    Compare((Summary(SLOT, 1, Standing.SOUND, 5, SLOT, SLOT),), 1),
    EchoGet(ROOT),
    Echo(ROOT, SIGNING.doc, ENV),
    Echo(ROOT, None, None),
    TableGet(ROOT, ROOT, bytes(32)),
    Delta(ENV, 4, ROOT, (CARD,), (ENDED,), (USAGE,)),
    Manifest(ENV, INDEX, (CARD,), (USAGE,)),
    CardsGet(ROOT, ROOT, ROOT, 0),
    Cards(ROOT, ROOT, (CARD,), ()),
    Gone(ROOT, ROOT),
]
BUNDLES: list[BundleMessage] = [
    ListGet(ROOT),
    ListData(ROOT, b"label"),
    ChunkGet(ROOT, (0, 5)),
    ChunkData(ROOT, 3, b"x" * CHUNK_BYTES),
    NotHere(ROOT),
]
PLAIN: list[Any] = [
    ENV,
    HEAD,
    RETRACT,
    Retract(ROOT, 0, None, 1, Scope.TRAIN),
    SIGNING.doc,
    CARD,
    USAGE,
    INDEX,
    Fork(ENV, ENV),
    ChunkList(CHUNK_BYTES + 1, CHUNK_BYTES, bytes(64)),
]


@pytest.mark.parametrize("message", SYNC, ids=lambda m: type(m).__name__)
def test_a_message_comes_back_as_it_was_sent(message: SyncMessage) -> None:
    assert decode_sync(encode(message)) == message


@pytest.mark.parametrize("message", BUNDLES, ids=lambda m: type(m).__name__)
def test_a_bundle_message_comes_back_as_it_was_sent(message: BundleMessage) -> None:
    frame = encode(message)
    assert decode_bundle(frame) == message
    assert len(frame) < BUNDLE_FRAME_BYTES_MAX


@pytest.mark.parametrize("value", PLAIN, ids=lambda v: type(v).__name__)
def test_a_structure_comes_back_as_it_was_encoded(value: Any) -> None:
    assert decode(encode(value), type(value)) == value


def test_no_structure_is_deeper_than_the_wire_allows() -> None:
    for message in (*SYNC, *BUNDLES, *PLAIN):
        second_decoder.walk(encode(message))


def test_the_largest_signed_objects_keep_to_their_caps() -> None:
    most = 0x7FFF_FFFF_FFFF_FFFF
    head = Head(ROOT, 255, most, most, ROOT, ROOT, 1024, 2**32 - 1, 2**32 - 1, 255, bytes(8), ROOT)
    env = seal(head, SIGNING.op).env
    assert len(encode(env)) <= BYTES_MAX[Env]
    assert len(encode(Fork(env, env))) <= BYTES_MAX[Fork]
    assert len(encode(HEAD)) < 200
    assert len(encode(CARD)) < 600


# Refusals -----------------------------------------------------------------------------------------

ECHO_GET = b"\x92\xaaecho-get/1\xc4\x20" + ROOT
REFUSED = {
    "nothing": (b"", "cut short"),
    "a cut frame": (ECHO_GET[:-1], "cut short"),
    "an array without its items": (b"\x92", "cut short"),
    "a cut length": (b"\x91\xc5", "cut short"),
    "a byte too many": (ECHO_GET + b"\x00", "trailing bytes"),
    "a map": (b"\x81\x01\x01", "forbidden type"),
    "a long map": (b"\xde\xff\xff", "forbidden type"),
    "a float": (b"\x91\xcb" + bytes(8), "forbidden type"),
    "a boolean": (b"\x91\xc3", "forbidden type"),
    "an extension": (b"\x91\xd4\x01\x01", "forbidden type"),
    "a timestamp": (b"\x91\xd6\xff" + bytes(4), "forbidden type"),
    "the byte that is never used": (b"\x91\xc1", "forbidden type"),
    "an array of 32-bit length": (b"\xdd\xff\xff\xff\xff", "forbidden type"),
    "text of 16-bit length": (b"\x91\xda\x00\x01a", "forbidden type"),
    "an array of too many items": (b"\xdc\xff\xff", "array too long"),
    "arrays in arrays": (b"\x91" * 7 + b"\x90", "too deep"),
    "long arrays in arrays": (b"\xdc\x04\x00" * 1000, "too deep"),
    "an unknown type": (b"\x92\xa6nope/1\xc0", "wrong fields"),
    "a number for a type": (b"\x92\x01\xc4\x20" + ROOT, "wrong fields"),
    "bytes of the wrong length": (b"\x92\xaaecho-get/1\xc4\x1f" + ROOT[1:], "wrong fields"),
    "a field too many": (b"\x93\xaaecho-get/1\xc4\x20" + ROOT + b"\x00", "wrong fields"),
    "a field too few": (b"\x91\xaaecho-get/1", "wrong fields"),
    "text that is not UTF-8": (b"\x92\xaaecho-get/\xff\xc4\x20" + ROOT, "wrong fields"),
    "text for bytes": (b"\x92\xaaecho-get/1\xd9\x20" + b"a" * 32, "wrong fields"),
    "nil where a value is": (b"\x92\xaaecho-get/1\xc0", "wrong fields"),
    "a long form of a short length": (b"\x92\xaaecho-get/1\xc5\x00\x20" + ROOT, "not canonical"),
    "a long form of the type": (b"\x92\xd9\x0aecho-get/1\xc4\x20" + ROOT, "not canonical"),
    "a long form of an array": (b"\xdc\x00\x02\xaaecho-get/1\xc4\x20" + ROOT, "not canonical"),
    "a frame too large": (b"\xc6" + bytes(SYNC_FRAME_BYTES_MAX), "too large"),
}

# The rule that the second decoder finds broken, and the first one's phrases for it.
PHRASES = {
    "too large": {"too large"},
    "cut short": {"malformed", "wrong fields"},
    "trailing bytes": {"malformed"},
    "forbidden type": {"malformed", "wrong fields"},
    "array too long": {"malformed", "wrong fields"},
    "too deep": {"wrong fields"},
    "wrong fields": {"malformed", "wrong fields"},
    "not canonical": {"not canonical"},
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_the_one_encoding_is_refused_with_its_reason(case: str) -> None:
    frame, rule = REFUSED[case]
    with pytest.raises(WireError) as refused:
        second_decoder.decode(frame, SyncMessage)
    assert refused.value.reason == rule
    with pytest.raises(WireError) as refused:
        decode_sync(frame)
    assert refused.value.reason in PHRASES[rule]


@pytest.mark.parametrize(
    "wide",
    [
        b"\xcc\x05",
        b"\xcd\x00\x05",
        b"\xce\x00\x00\x00\x05",
        b"\xcf" + bytes(7) + b"\x05",
        b"\xd0\x05",
    ],
)
def test_a_number_is_accepted_in_its_shortest_form_only(wide: bytes) -> None:
    row = encode(Row(leaf(1), 5, ROOT))
    assert canonical.decode(row, Row) == Row(leaf(1), 5, ROOT)
    with pytest.raises(WireError, match="not canonical"):
        canonical.decode(row.replace(b"\x05\xc4\x20", wide + b"\xc4\x20"), Row)


def test_rows_out_of_order_or_twice_are_refused() -> None:
    low, high = sorted((leaf(1), leaf(2)))
    rows = Row(low, 1, ROOT), Row(high, 1, ROOT)
    ends = Ended(low, 1, Reason.DORMANT, ()), Ended(high, 1, Reason.DORMANT, ())
    bad = [
        [rows[::-1], ()],
        [(rows[0], rows[0]), ()],
        [(), ends[::-1]],
        [rows, ends[:1]],
    ]
    for index in bad:
        with pytest.raises(WireError, match="wrong fields"):
            decode(encode(index), Index)
    with pytest.raises(ValueError, match="too many rows"):
        Index(rows * 512, ends)


def test_a_parent_must_be_a_leaf_or_for_an_adopted_one_a_signed_place() -> None:
    def of(op: Op, parent: bytes) -> bytes:
        fields = list(msgspec.to_builtins(CARD, builtin_types=(bytes,)))
        fields[3], fields[8] = op, [parent]
        return encode(fields)

    assert decode(of(Op.ADOPT, bytes(80)), Card).op is Op.ADOPT
    for op, parent in ((Op.ADOPT, bytes(16)), (Op.SPLIT, bytes(80)), (Op.BIRTH, b"")):
        with pytest.raises(WireError, match="wrong fields"):
            decode(of(op, parent), Card)


def test_a_chunk_list_has_one_hash_for_each_chunk() -> None:
    for size, hashes in ((1, 64), (CHUNK_BYTES + 1, 32), (1, 31)):
        with pytest.raises(WireError, match="wrong fields"):
            decode(encode([size, CHUNK_BYTES, bytes(hashes)]), ChunkList)


def test_ranges_must_ascend_and_not_overlap() -> None:
    low, high = bytes(16), b"\xff" * 16
    for ranges in (
        [[high, low, 0, low, b""]],
        [[low, high, 2, low, ROOT]],
        [[low, high, 0, low, b""], [high, high, 0, low, b""]],
    ):
        with pytest.raises(WireError, match="wrong fields"):
            decode_sync(encode(["digest/1", ranges]))


# Properties ---------------------------------------------------------------------------------------

JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.binary(max_size=40),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=12,
)


@given(st.binary(max_size=200))
def test_bytes_are_decoded_or_refused_and_nothing_else(data: bytes) -> None:
    for door in (decode_sync, decode_bundle):
        try:
            door(data)
        except WireError as error:
            assert error.reason


@given(JUNK, st.sampled_from(["have/1", "digest/1", "compare/1", "delta/1", "cards-get/1"]))
def test_well_formed_junk_is_refused(junk: Any, kind: str) -> None:
    items = junk if isinstance(junk, list) else [junk]
    with pytest.raises(WireError):
        decode_sync(msgpack.packb([kind, *items[:1], b"no"]))


@given(st.sampled_from(SYNC), st.data())
def test_a_turned_bit_gives_another_message_or_a_refusal(
    message: SyncMessage, data: st.DataObject
) -> None:
    frame = bytearray(encode(message))
    at = data.draw(st.integers(0, len(frame) * 8 - 1))
    frame[at // 8] ^= 1 << at % 8
    turned = bytes(frame)
    first: Any
    try:
        first = decode_sync(turned)
    except WireError:
        first = None
    assert first != message


@given(st.integers(0, 2**70))
def test_a_count_falls_into_the_bucket_of_its_power_of_two(count: int) -> None:
    bucket = to_log2(count)
    assert 0 <= bucket <= 63
    if 0 < count < 2**62:
        assert 2 ** (bucket - 1) <= count < 2**bucket


def test_a_real_number_becomes_ten_thousandths_and_stays_in_32_bits() -> None:
    assert [to_q(1.23456), to_q(-0.5), to_q(1e9)] == [12_346, -5_000, 0x7FFF_FFFF]


def test_stages_and_scopes_keep_their_numbers() -> None:
    # They are on other machines' disks: a number may be added, never changed.
    assert [stage.value for stage in Stage] == [1, 2, 3]
    assert [scope.value for scope in Scope] == [1, 2, 3]
    assert KeyDoc.__struct_fields__[-1] == "sig"
