"""Two decoders read the wire alike, and nothing a peer sends costs either time or memory."""

from __future__ import annotations

import tracemalloc
from random import Random
from typing import Any

import msgspec
import numpy as np
import pytest
import second_decoder
import support_wire as example
from gossip_kit import card, leaf, seed
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from gossip import wire
from gossip.wire import (
    BYTES_MAX,
    CHUNK_BYTES,
    CHUNKS_MAX,
    EPOCH_MAX,
    RETRACTS_MAX,
    SYNC_FRAME_BYTES_MAX,
    BundleMessage,
    Card,
    ChunkData,
    ChunkList,
    Compare,
    Ended,
    Env,
    EvalSet,
    Index,
    KeyDoc,
    PairedScore,
    Reason,
    Row,
    Score,
    SyncMessage,
    UsageRows,
    WireError,
    encode,
)
from node import mesh

EXAMPLES = example.encodings()
FRAMES = [frame for _, frame in EXAMPLES]
MIB = 1024 * 1024


def read(decode: Any, data: bytes, kind: Any) -> Any:
    """The value, or None if it was refused; anything but a refusal is passed on."""
    try:
        return decode(data, kind)
    except WireError:
        return None


@settings(max_examples=1500, deadline=None)
@given(st.integers(0, 2**48))
def test_two_decoders_accept_the_same_and_refuse_the_same(number: int) -> None:
    chance = Random(number)
    kind, frame = chance.choice(EXAMPLES)
    data = example.mutated(chance, frame, FRAMES)
    assert read(wire.decode, data, kind) == read(second_decoder.decode, data, kind), data.hex()


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80), st.sampled_from(FRAMES), st.integers(0, 60))
def test_two_decoders_agree_on_bytes_that_begin_well(tail: bytes, frame: bytes, at: int) -> None:
    data = frame[:at] + tail
    for kind in (SyncMessage, BundleMessage):
        assert read(wire.decode, data, kind) == read(second_decoder.decode, data, kind)


@pytest.mark.parametrize(("kind", "frame"), EXAMPLES, ids=range(len(EXAMPLES)))
def test_two_decoders_agree_on_each_example_cut_at_any_byte(kind: Any, frame: bytes) -> None:
    assert wire.decode(frame, kind) == second_decoder.decode(frame, kind)
    for end in range(len(frame)):
        assert read(wire.decode, frame[:end], kind) is None
        assert read(second_decoder.decode, frame[:end], kind) is None


@pytest.mark.parametrize("case", example.hostile())
def test_the_frames_that_cost_most_take_less_than_a_mebibyte(case: str) -> None:
    data = example.hostile()[case]
    assert SYNC_FRAME_BYTES_MAX // 2 < len(data) <= SYNC_FRAME_BYTES_MAX
    first = read(wire.decode, data, SyncMessage)
    assert first == read(second_decoder.decode, data, SyncMessage)
    tracemalloc.start()
    try:
        read(wire.decode, data, SyncMessage)
        assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "claim",
    [
        b"\xdd\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff\xa6have/1",
        b"\x95\xa6have/1\xdd\xff\xff\xff\xff",
        b"\x95\xa6have/1\xdc\xff\xff",
        b"\x95\xa6have/1" + b"\xdc\x04\x00" * 1024,
        b"\x92\xaaecho-get/1\xc6\xff\xff\xff\xff",
        b"\x95\xa6have/1\x90\x91\x93\xdb\xff\xff\xff\xff",
        b"\x92\xdb\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
    ],
    ids=bytes.hex,
)
def test_a_length_that_is_only_claimed_makes_no_room(claim: bytes) -> None:
    read(wire.decode, claim, SyncMessage)  # the decoder itself is built once
    tracemalloc.start()
    try:
        assert read(wire.decode, claim, SyncMessage) is None
        assert tracemalloc.get_traced_memory()[1] < 4096
    finally:
        tracemalloc.stop()


def test_no_array_on_the_wire_is_without_a_cap() -> None:
    for kind in (*BYTES_MAX, UsageRows):
        for node in _array_nodes(msgspec.inspect.type_info(kind)):
            assert node.max_length is not None and node.max_length <= wire.ITEMS_MAX


def _array_nodes(node: Any) -> list[Any]:
    match node:
        case msgspec.inspect.UnionType(types):
            return [found for one in types for found in _array_nodes(one)]
        case msgspec.inspect.StructType(fields=fields):
            return [found for field in fields for found in _array_nodes(field.type)]
        case msgspec.inspect.VarTupleType(item):
            return [node, *_array_nodes(item)]
    return []


# Sizes --------------------------------------------------------------------------------------------

MOST = 2**63 - 1
LARGE = PairedScore(EvalSet.GENERAL_RISE, -(2**31), -(2**31))
BUNDLE = replace(
    example.BUNDLE, size_bytes=CHUNK_BYTES * CHUNKS_MAX, rank=1024, scores=(LARGE,) * 8
)
HEAD = replace(
    example.HEAD,
    epoch=255,
    seq=MOST,
    prev_seq=MOST - 1,
    n_live=1024,
    flags=255,
    ts_h=2**32 - 1,
    exp_h=2**32 - 1,
)
ENV = Env("head/1", encode(HEAD), bytes(64))
LARGEST: dict[str, tuple[Any, int]] = {
    "Env": (ENV, 300),
    "Head": (HEAD, 220),
    "Retract": (replace(example.RETRACT, epoch=255, ts_h=2**32 - 1), 70),
    "KeyDoc": (replace(example.SIGNING.doc, revoked=tuple(range(1, EPOCH_MAX + 1))), 600),
    "Fork": (wire.Fork(ENV, ENV), 600),
    "Card": (
        replace(
            *(example.CARD,),
            version=2**32 - 1,
            growth_q=-(2**31),
            bundle=BUNDLE,
            parents=(leaf(1),) * 8,
            scores=(Score(EvalSet.GENERAL_RISE, -(2**31)),) * 8,
        ),
        1024,
    ),
    "Usage": (replace(example.USAGE, week=2**32 - 1, routed_log2=63, accepted_log2=63), 64),
    "ChunkList": (ChunkList(CHUNK_BYTES * CHUNKS_MAX, CHUNK_BYTES, bytes(32 * CHUNKS_MAX)), 33_000),
}


@pytest.mark.parametrize("name", LARGEST)
def test_the_largest_of_a_structure_keeps_to_its_cap(name: str) -> None:
    value, size_bytes = LARGEST[name]
    data = encode(value)
    assert len(data) <= size_bytes <= BYTES_MAX[type(value)]
    assert wire.decode(data, type(value)) == value


def test_an_adopted_card_with_all_that_may_be_in_it_fits_with_two_parents_and_a_bundle() -> None:
    parents = (bytes(80),) * 2
    value = replace(LARGEST["Card"][0], op=wire.Op.ADOPT, parents=parents, scores=())
    assert len(encode(value)) <= BYTES_MAX[Card]


def test_an_index_of_all_rows_fits_into_one_message_with_its_head() -> None:
    rows = tuple(Row(n.to_bytes(16, "big"), 2**32 - 1, seed(n)) for n in range(1024))
    index = Index(rows, ())
    assert len(encode(index)) <= BYTES_MAX[Index]
    assert len(encode(wire.Manifest(ENV, index, (), ()))) <= SYNC_FRAME_BYTES_MAX


def test_a_summary_of_all_keys_and_retractions_fits_into_a_message() -> None:
    full = replace(example.SUMMARY, seq=MOST, ids=bytes(16 * (EPOCH_MAX + RETRACTS_MAX)))
    assert len(encode(Compare((full,), 1))) <= SYNC_FRAME_BYTES_MAX


def test_a_whole_chunk_fits_into_a_frame() -> None:
    chunk = ChunkData(seed("root"), CHUNKS_MAX - 1, bytes(CHUNK_BYTES))
    assert len(encode(chunk)) < BYTES_MAX[BundleMessage]


def test_a_usual_head_and_card_are_as_small_as_is_said() -> None:
    signed, plain = encode(example.ENV), encode(card(1))
    bundled = encode(replace(card(1), bundle=example.BUNDLE))
    ended = encode(Ended(leaf(1), 9, Reason.DORMANT, ()))
    assert len(signed) <= 260
    assert len(plain) <= 480
    assert len(bundled) <= 600
    assert len(encode(Row(leaf(1), 9, seed("card")))) <= 54
    assert len(ended) <= 22
    assert len(encode(example.USAGE)) <= 64
    assert len(encode(example.SIGNING.doc)) <= 160 < BYTES_MAX[KeyDoc]


@pytest.mark.parametrize(
    "shape", ["smooth", "one component above all", "a mean of a few", "tiny numbers"]
)
def test_a_centroid_of_bytes_points_where_the_one_of_floats_does(shape: str) -> None:
    chance = np.random.default_rng(7)
    for _ in range(200):
        vector = chance.standard_normal(384)
        match shape:
            case "one component above all":
                vector[5] = np.linalg.norm(vector) / 2
            case "a mean of a few":
                vector = np.abs(vector) + chance.standard_normal((20, 384)).mean(axis=0)
            case "tiny numbers":
                vector = vector * 1e-12
        sent = np.frombuffer(mesh.quantised(vector.astype(np.float32)), np.int8).astype(np.float64)
        cosine = sent @ vector / np.linalg.norm(sent) / np.linalg.norm(vector)
        assert cosine >= 0.9995
