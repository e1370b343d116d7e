"""What hostile bytes cost, and what signed ones do.

    python tests/bench/mesh_wire.py [--json FILE|-] [--inputs N]

fuzz            inputs: mutated encodings of every structure and message, through their decoders;
                escaped: exceptions but WireError; slowest_ms: CPU time of the slowest, and of the
                known worst frames; alloc_mb: most allocated by these and by the 200 slowest
replica         the same mutations as frames to a replica: what escaped `handle`
differential    inputs given to both decoders, and on how many they disagree
garbage         refused a second by a replica, by class; garbage_per_s is the slowest class
garbage_large   the same, and MB a second, for frames of 55 to 64 KiB that lack their last byte
signature_per_s one bit flipped so that the form is right: refused after the signature check
objects_per_s   signed heads, keys and retractions, each new, taken in by a replica on one core
verify_us       one Ed25519 verification

All times are CPU time of this process.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

import second_decoder  # noqa: E402
import support_wire as example  # noqa: E402
from gossip_kit import ALICE, NOW_H, NOW_S, keys, leaf, replica  # noqa: E402
from msgspec.structs import replace  # noqa: E402

from gossip import keys as gossip_keys  # noqa: E402
from gossip import merkle, wire  # noqa: E402
from gossip.config import GossipConfig  # noqa: E402
from gossip.core import Replica  # noqa: E402
from gossip.envelope import seal  # noqa: E402
from gossip.events import PeerUp, Received, Refused  # noqa: E402
from gossip.keys import verify  # noqa: E402
from gossip.wire import (  # noqa: E402
    SYNC_FRAME_BYTES_MAX,
    ZERO8,
    ZERO32,
    Have,
    Head,
    Retract,
    Scope,
    SyncMessage,
    WireError,
    encode,
)

SEED = 6
EXAMPLES = example.encodings()
FRAMES = [frame for _, frame in EXAMPLES]
HEAD_FRAME = encode(Have((example.SIGNING.doc,), (example.ENV,), (), ()))
GARBAGE = 20_000  # frames of each class
UNLIMITED = GossipConfig(signatures_s_max=1_000_000, signatures_burst=1_000_000_000)


# Fuzzing ------------------------------------------------------------------------------------------


def fuzz(inputs: int) -> dict[str, Any]:
    """Time each input; afterwards weigh the slowest and the worst that are known."""
    chance = Random(f"{SEED}/fuzz")
    escaped, accepted, slowest = 0, 0, [(0, b"", None)]
    times: list[int] = []
    for _ in range(inputs):
        kind, frame = chance.choice(EXAMPLES)
        data = example.mutated(chance, frame, FRAMES)
        began = time.thread_time_ns()
        try:
            wire.decode(data, kind)
            accepted += 1
        except WireError:
            pass
        except Exception:
            escaped += 1
        took = time.thread_time_ns() - began
        times.append(took)
        if took > slowest[-1][0]:
            slowest = sorted([*slowest, (took, data, kind)], key=lambda s: -s[0])[:200]
    hostile = [(data, SyncMessage) for data in example.hostile().values()]
    worst = [(data, kind) for _, data, kind in slowest if kind] + hostile
    return {
        "inputs": inputs,
        "accepted": accepted,
        "escaped": escaped,
        "slowest_ms": round(max(max(times) / 1e6, *(_decode_ms(*one) for one in hostile)), 3),
        "median_us": round(statistics.median(times) / 1e3, 2),
        "alloc_mb": round(max(_alloc_mb(*one) for one in worst), 3),
    }


def _decode(data: bytes, kind: Any) -> None:
    with suppress(WireError):
        wire.decode(data, kind)


def _decode_ms(data: bytes, kind: Any) -> float:
    return min(_timed(lambda: _decode(data, kind)) for _ in range(5)) * 1e3


def _alloc_mb(data: bytes, kind: Any) -> float:
    tracemalloc.start()
    _decode(data, kind)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most / 2**20


def fuzz_replica(inputs: int) -> dict[str, Any]:
    """What no decoder refuses goes all the way: a replica has to stand anything."""
    chance = Random(f"{SEED}/replica")
    frames = [encode(message) for message in example.SYNC.values()]
    escaped = 0
    for n in range(inputs):
        if n % 100 == 0:  # or one proof of a fork would spare it all that comes after
            node = connected()
        data = example.mutated(chance, chance.choice(frames), FRAMES)
        try:
            node.handle(Received(ALICE, data, NOW_S))
        except Exception:
            escaped += 1
    return {"inputs": inputs, "escaped": escaped}


def differential(inputs: int) -> dict[str, Any]:
    chance = Random(f"{SEED}/differential")
    disagree = 0
    for _ in range(inputs):
        kind, frame = chance.choice(EXAMPLES)
        data = example.mutated(chance, frame, FRAMES)
        disagree += _read(wire.decode, data, kind) != _read(second_decoder.decode, data, kind)
    return {"inputs": inputs, "disagree": disagree}


def _read(decode: Any, data: bytes, kind: Any) -> Any:
    try:
        return decode(data, kind)
    except WireError:
        return None


# Garbage ------------------------------------------------------------------------------------------


def garbage() -> dict[str, Callable[[Random], bytes]]:
    """A maker of frames for each class; all are about as long as a head is, or as they may be."""
    many, echo = b"\xdc\x04\x00", encode(example.SYNC["EchoGet"])
    oversize = bytes(SYNC_FRAME_BYTES_MAX + 1)
    wide = (b"\xcc", b"\xcd\x00", b"\xce\x00\x00\x00", b"\xd0")
    count = HEAD_FRAME.index(b"\xc4\x20") + 34  # the epoch, after the root key
    assert HEAD_FRAME[count] == 1
    lengths = (b"\xdd\xff\xff\xff\xff", b"\xdc\xff\xff", b"\xc6\xff\xff\xff\xff")
    return {
        "random": lambda chance: chance.randbytes(chance.randint(1, 600)),
        "random_after_type": lambda chance: b"\x95\xa6have/1" + chance.randbytes(400),
        "unknown_type": lambda chance: HEAD_FRAME.replace(b"/1", b"/%d" % chance.randint(2, 9), 1),
        "truncated": lambda chance: HEAD_FRAME[: chance.randrange(len(HEAD_FRAME))],
        "trailing": lambda chance: HEAD_FRAME + chance.randbytes(chance.randint(1, 90)),
        "flipped": lambda chance: _flipped(chance, form_is_right=False),
        "oversize": lambda chance: oversize,
        "deep": lambda chance: b"\x95\xa6have/1" + many * chance.randint(7, 900) + echo,
        "claimed_lengths": lambda chance: HEAD_FRAME[:8] + chance.choice(lengths) + HEAD_FRAME[9:],
        "not_shortest": lambda chance: (
            HEAD_FRAME[:count] + chance.choice(wide) + HEAD_FRAME[count:]
        ),
    }


def large() -> dict[str, bytes]:
    """Frames that are as they should be almost to their end, and long."""
    hostile = example.hostile()
    return {name: hostile[name][:-1] for name in ("keys", "envelopes", "an index", "cards")}


def _flipped(chance: Random, *, form_is_right: bool) -> bytes:
    """A head with one bit flipped, of which a decoder can tell, or cannot."""
    while True:
        at = chance.randrange(len(HEAD_FRAME) * 8)
        data = bytearray(HEAD_FRAME)
        data[at // 8] ^= 1 << at % 8
        have = _read(wire.decode, bytes(data), SyncMessage)
        payload = isinstance(have, Have) and _read(wire.decode, have.heads[0].payload, Head)
        sound = bool(payload) and have.heads[0].type == "head/1"
        if sound == form_is_right:
            return bytes(data)


def refused_per_s(frames: Sequence[bytes]) -> float:
    node = connected()
    events = [Received(ALICE, frame, NOW_S) for frame in frames]
    gc.collect()
    began = time.process_time()
    told = [node.handle(event) for event in events]
    took = time.process_time() - began
    assert all(any(isinstance(e, Refused) for e in effects) for effects in told)
    return len(frames) / took


def distinct(make: Callable[[Random], bytes], count: int) -> list[bytes]:
    chance = Random(f"{SEED}/garbage")
    return [make(chance) for _ in range(count)]


def signature_per_s() -> float:
    frames = distinct(lambda chance: _flipped(chance, form_is_right=True), 2_000)
    gossip_keys.verify.cache_clear()
    return refused_per_s(list(dict.fromkeys(frames)))


def connected() -> Replica:
    node = replica("bob", UNLIMITED)
    node.handle(PeerUp(ALICE, NOW_S))
    return node


# Signed objects -----------------------------------------------------------------------------------


def objects_per_s(origins: int = 400, retracted: int = 4) -> float:
    """A key and a head of each origin, and some retractions: each object is verified and held."""
    events: list[Received] = []
    for n in range(origins):
        by = keys(f"origin {n}")
        head = Head(
            *(by.origin, 1, NOW_H << 16, 0, ZERO32, merkle.root([]), 0),
            *(NOW_H, NOW_H + 168, 0, ZERO8, ZERO32),
        )
        gone = [Retract(by.origin, 1, leaf(i), NOW_H, Scope.PUBLISH) for i in range(retracted)]
        envs = tuple(seal(retract, by.op).env for retract in gone)
        frames = [Have((by.doc,), (seal(head, by.op).env,), (), ()), Have((), (), envs, ())]
        events += [Received(ALICE, encode(frame), NOW_S) for frame in frames]
    node = connected()
    gossip_keys.verify.cache_clear()
    gc.collect()
    began = time.process_time()
    for event in events:
        node.handle(event)
    took = time.process_time() - began
    held = [node.view(name) for name in node.origins()]
    assert sum(len(view.retracted) for view in held) == origins * retracted
    return origins * (2 + retracted) / took


def verify_us(count: int = 3_000) -> float:
    signed = [
        seal(replace(example.HEAD, seq=n + 1, prev_seq=n), example.SIGNING.op) for n in range(count)
    ]
    gossip_keys.verify.cache_clear()
    public = example.SIGNING.doc.op
    began = time.process_time()
    for one in signed:
        assert verify(public, one.env.sig, b"groove/head/1\0" + one.env.payload)
    return (time.process_time() - began) / count * 1e6


def _timed(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def measure(inputs: int) -> dict[str, Any]:
    classes = {
        name: round(refused_per_s(distinct(make, GARBAGE))) for name, make in garbage().items()
    }
    big = {name: (refused_per_s([frame] * 300), len(frame)) for name, frame in large().items()}
    return {
        "fuzz": fuzz(inputs),
        "replica": fuzz_replica(inputs // 10),
        "differential": differential(inputs // 4),
        "garbage": classes,
        "garbage_per_s": min(classes.values()),
        "garbage_large": {
            name: {"per_s": round(rate), "mb_per_s": round(rate * size / 1e6)}
            for name, (rate, size) in big.items()
        },
        "signature_per_s": round(signature_per_s()),
        "objects_per_s": round(objects_per_s()),
        "verify_us": round(verify_us(), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", default="-", help="a file, or - for standard output")
    parser.add_argument("--inputs", type=int, default=1_000_000)
    arguments = parser.parse_args()
    text = json.dumps(measure(arguments.inputs), indent=2)
    if arguments.json == "-":
        print(text)
    else:
        Path(arguments.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
