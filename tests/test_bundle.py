"""A bundle that is not exactly what the chassis calls for is refused, with a fixed phrase."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import msgspec
import numpy as np
import pytest
import tiny_llama
from hypothesis import given
from hypothesis import strategies as st

from leaves.bundle import (
    BundleError,
    Privacy,
    check_form,
    decode_label,
    encode_label,
    pack,
    read_adapter,
    unpack,
)
from leaves.model import Evaluation, Instant, Interval, LeafId, Verdict
from leaves.training import tensors
from leaves.training.chassis import Chassis, open_chassis
from leaves.training.package import Origin, package

TARGETS = ("q_proj", "up_proj")
GAIN = Interval(0.51234567, 0.4, 0.6)
EVALUATION = Evaluation(40, 2.0, GAIN, GAIN, None, 0.001, True, Verdict.BETTER, Instant(1))
ORIGIN = Origin(
    leaf=LeafId("ab" * 16),
    name="graph theory",
    method="sft",
    dtype="bfloat16",
    tokens=9000,
    privacy=Privacy(contributors=1, sessions=128, canary_exposure=None, scrub_rules="13/1"),
    terms="prompts and open-weight outputs",
)


@cache
def chassis() -> Chassis:
    return open_chassis(tiny_llama.build(Path(mkdtemp(prefix="groove-test-"))))


def arrays(rank: int = 4, targets: tuple[str, ...] = TARGETS) -> dict[str, Any]:
    random = np.random.Generator(np.random.PCG64(1))
    shapes = chassis().adapter_shapes(rank, targets)
    return {name: random.normal(0, 0.02, shape).astype("<f4") for name, shape in shapes.items()}


def adapter(rank: str = "4", alpha: str = "8", **changes: Any) -> bytes:
    return tensors.pack(arrays() | changes, {"format": "pt", "rank": rank, "alpha": alpha})


def bundle(file: bytes | None = None) -> bytes:
    return package(file or adapter(), chassis(), ORIGIN, EVALUATION, control_root="cd" * 32)


def relabelled(change: Callable[[dict[str, Any]], None], file: bytes | None = None) -> bytes:
    """A bundle whose label was changed by hand and is still canonical."""
    parts = unpack(bundle())
    label = json.loads(parts.label)
    if file is not None:
        label["adapter"] = hashlib.sha256(file).hexdigest()
    change(label)
    return pack(msgspec.json.encode(label, order="sorted"), file or parts.adapter)


def reheaded(change: Callable[[dict[str, Any]], None]) -> bytes:
    """An adapter whose header was changed by hand."""
    file = adapter()
    (length,) = struct.unpack("<Q", file[:8])
    header = json.loads(file[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + file[8 + length :]


def first(header: dict[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = header[sorted(name for name in header if name != "__metadata__")[0]]
    return entry


def test_a_bundle_made_here_is_accepted_by_its_own_check() -> None:
    checked = check_form(bundle(), chassis().path)
    assert checked.label.rank == 4 and checked.label.targets == TARGETS
    assert checked.label.evaluation is not None
    assert checked.label.evaluation.over_style.mean == 0.5123
    assert checked.adapter == adapter()
    assert unpack(bundle()) == (encode_label(checked.label), checked.adapter)


def test_the_same_content_is_the_same_bytes() -> None:
    assert bundle() == bundle()
    assert tensors.pack(dict(reversed(arrays().items()))) == tensors.pack(arrays())


def test_the_library_reads_what_we_write() -> None:
    from safetensors.numpy import load, save

    read = load(adapter())
    assert read.keys() == arrays().keys()
    assert all((read[name] == value).all() for name, value in arrays().items())
    assert tensors.unpack(save(arrays()), chassis().adapter_shapes(4, TARGETS))[1] == {}


@pytest.mark.parametrize(
    ("blob", "reason"),
    [
        (lambda: b"", "bundle too short"),
        (lambda: b"x" * 100, "not a bundle"),
        (lambda: bundle()[:-1], "bundle of another length than it says"),
        (lambda: bundle() + b"x", "bundle of another length than it says"),
        (
            lambda: struct.pack("<16sIQ", b"groove/bundle/1\n", 2**32 - 1, 0),
            "label too long",
        ),
        (
            lambda: struct.pack("<16sIQ", b"groove/bundle/1\n", 0, 2**63),
            "adapter too long",
        ),
        (lambda: relabelled(lambda x: x.update(chassis="00" * 8)), "made for another chassis"),
        (
            lambda: relabelled(lambda x: x.update(adapter="00" * 32)),
            "adapter is not the one on the label",
        ),
        (
            lambda: relabelled(lambda x: x.update(rank=8)),
            "rank or targets differ between label and adapter",
        ),
        (
            lambda: relabelled(lambda x: x.update(targets=["q_proj"])),
            "rank or targets differ between label and adapter",
        ),
        (
            lambda: relabelled(lambda x: x.update(alpha=9)),
            "alpha differs between label and adapter",
        ),
        (lambda: relabelled(lambda x: x.update(rank=True)), "label of another form"),
        (lambda: relabelled(lambda x: x.update(extra=1)), "label of another form"),
        (lambda: relabelled(lambda x: x.update(name="a\nb")), "label of another form"),
        (lambda: pack(b" " + unpack(bundle()).label, adapter()), "label is not canonical"),
        (lambda: pack(b"[" * 60_000, adapter()), "label of another form"),
    ],
)
def test_a_bundle_is_refused(blob: Callable[[], bytes], reason: str) -> None:
    with pytest.raises(BundleError) as refused:
        check_form(blob(), chassis())
    assert str(refused.value) == reason


NAME = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
OTHER = NAME.replace("lora_A", "lora_B")


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (lambda: b"", "adapter: no header"),
        (lambda: struct.pack("<Q", 2**63) + b"{}", "adapter: header too long"),
        (lambda: struct.pack("<Q", 900) + b"{}", "adapter: header past the end"),
        (
            lambda: struct.pack("<Q", 900_000) + b"[" * 900_000,
            "adapter: header is not JSON",
        ),
        (
            lambda: struct.pack("<Q", 16) + b'{"a":{},"a":{}} ',
            "adapter: duplicate key in the header",
        ),
        (lambda: tensors.pack(arrays()), "adapter without rank and alpha"),
        (lambda: adapter(rank="20000"), "adapter without rank and alpha"),
        (lambda: adapter(alpha="nan"), "adapter without rank and alpha"),
        (lambda: adapter(rank="5"), "rank not allowed"),
        (lambda: adapter(rank="8"), "adapter of another size than its chassis calls for"),
        (lambda: adapter(alpha="9999"), "alpha not allowed"),
        (lambda: adapter(alpha="0"), "alpha not allowed"),
        (
            lambda: adapter(**{"base_model.model.model.embed_tokens.weight": np.ones((512, 64))}),
            "adapter: tensor names differ from the expected",
        ),
        (
            lambda: adapter(**{"base_model.model.model.norm.weight": np.ones(1)}),
            "adapter: tensor names differ from the expected",
        ),
        (
            lambda: adapter(**{NAME: arrays()[NAME].T}),
            "adapter: type or shape differs from the expected",
        ),
        (lambda: adapter(**{NAME: np.full((4, 64), np.nan)}), "adapter: a number is not finite"),
        (lambda: adapter(**{NAME: np.full((4, 64), np.inf)}), "adapter: a number is not finite"),
        (
            lambda: adapter(**{NAME: np.full((4, 64), 3e38), OTHER: np.full((64, 4), 3e38)}),
            "adapter changes the chassis too much",
        ),
        (
            lambda: adapter(**{name: value * 60 for name, value in arrays().items()}),
            "adapter changes the chassis too much",
        ),
        (
            lambda: reheaded(lambda h: first(h).update(dtype="F64")),
            "adapter: type or shape differs from the expected",
        ),
        (
            lambda: reheaded(lambda h: first(h).update(shape=[True, 64])),
            "adapter: type or shape differs from the expected",
        ),
        (
            lambda: reheaded(lambda h: first(h).update(data_offsets=[0, 1 << 60])),
            "adapter: tensors overlap or leave a gap",
        ),
        (
            lambda: reheaded(lambda h: first(h).update(data_offsets=[4, 1028])),
            "adapter: tensors overlap or leave a gap",
        ),
        (
            lambda: reheaded(lambda h: first(h).update(data_offsets=[-1, 2])),
            "adapter: offsets are not two integers",
        ),
        (
            lambda: reheaded(lambda h: first(h).update(more=1)),
            "adapter: entry of another form",
        ),
        (lambda: adapter() + b"tail", "adapter: bytes after the last tensor"),
        (lambda: adapter()[:-4], "adapter: tensor past the end"),
        (
            lambda: tensors.pack(
                {"base_model.model.x.(a+)+!.lora_A.weight": np.ones(1)}, {"rank": "4", "alpha": "8"}
            ),
            "targets not allowed",
        ),
    ],
)
def test_an_adapter_is_refused(file: Callable[[], bytes], reason: str) -> None:
    with pytest.raises(BundleError) as refused:
        read_adapter(file(), chassis())
    assert str(refused.value) == reason


@given(data=st.data())
def test_no_change_of_bytes_brings_another_adapter_in(data: st.DataObject) -> None:
    blob = bytearray(bundle())
    head = len(blob) - 2000 if data.draw(st.booleans()) else 2500
    for _ in range(data.draw(st.integers(1, 4))):
        blob[data.draw(st.integers(0, head))] = data.draw(st.integers(0, 255))
    try:
        checked = check_form(bytes(blob), chassis())
    except BundleError:
        return
    # What is left is a label of other words; the card that names the bundle is signed, not it.
    assert checked.adapter == adapter()
    assert encode_label(checked.label) == unpack(bytes(blob)).label


@given(st.binary(max_size=400))
def test_a_label_of_any_bytes_is_parsed_or_refused(data: bytes) -> None:
    with pytest.raises(BundleError):
        decode_label(data)


_JSON = st.none() | st.integers() | st.floats() | st.text() | st.lists(st.integers(), max_size=3)


@given(st.dictionaries(st.text(), _JSON | st.dictionaries(st.text(), _JSON, max_size=3)))
def test_a_header_of_any_json_is_refused(header: dict[str, Any]) -> None:
    text = json.dumps({"__metadata__": {"rank": "4", "alpha": "8"}} | header).encode()
    with pytest.raises(BundleError):
        read_adapter(struct.pack("<Q", len(text)) + text + b"\x00" * 9000, chassis())


def test_what_is_too_large_to_travel_is_not_packed() -> None:
    with pytest.raises(ValueError, match="too large to travel"):
        pack(b"x" * (64 * 1024 + 1), b"")
