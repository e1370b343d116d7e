"""What a leaf is when it travels: an adapter and its label, checked before anything is believed.

PEFT's own loader lets a file overwrite the chassis, choose the configuration and hang the process.
Here nothing of a peer's is executed or configures anything: a bundle is a label of fixed fields and
tensors whose exact names and shapes this node computes from its own chassis. Checked with numpy
alone, so no torch is needed to refuse one; adapters are attached in a child process only.
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
from msgspec import Meta, Struct

from .training.chassis import Chassis, open_chassis
from .training.tensors import HEADER_BYTES_MAX, Array, TensorFileError, parse_header
from .training.tensors import unpack as unpack_tensors

LABEL_BYTES_MAX = 64 * 1024
ADAPTER_BYTES_MAX = 256 * 1024 * 1024
_MAGIC = b"groove/bundle/1\n"
_HEAD = struct.Struct("<16sIQ")  # magic, bytes of the label, bytes of the adapter
BUNDLE_BYTES_MAX = _HEAD.size + LABEL_BYTES_MAX + ADAPTER_BYTES_MAX
RANKS = (4, 8, 16, 32)
# Frobenius norm of what an adapter adds to a weight, relative to the weight. After training it is
# 0.01 at most on SmolLM2; the bound stops crude damage, not a subtle one.
GROWTH_MAX = 0.5


class BundleError(Exception):
    """A bundle is refused. The message is a fixed phrase: nothing of a peer's is repeated."""


Hex8 = Annotated[str, Meta(pattern="^[0-9a-f]{16}$")]
Hex16 = Annotated[str, Meta(pattern="^[0-9a-f]{32}$")]
Hex32 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Line = Annotated[str, Meta(max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
Count = Annotated[int, Meta(ge=0, le=2**53)]


class GainFigures(Struct, frozen=True, forbid_unknown_fields=True):
    """Nats per token, to four places: floating sums differ between machines further on."""

    mean: float
    low: float
    high: float


class PreferenceFigures(Struct, frozen=True, forbid_unknown_fields=True):
    """What the preference step came to, on held-out pairs."""

    pairs: Count
    accuracy_before: float
    accuracy_after: float
    gain: GainFigures
    loss_rise: float
    verdict: Line


class EvaluationFigures(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the origin measured. A receiver believes its own evaluation only.

    A figure that has a default is left out of the JSON when it is that: labels from before it was
    known stay the one JSON of their content.
    """

    held_out: Count
    loss: float
    over_parent: GainFigures
    over_style: GainFigures
    over_previous: GainFigures | None
    general_rise: float | None
    verdict: Line
    at: Count
    confidence: float = 0.95  # of the bounds that decided
    attempt: Count = 1
    margin: float = 0.08  # nats per token that the style control had to be beaten by
    answers: Count = 0  # checkable sessions whose answers were generated
    right_before: float | None = None  # rate of right answers: the parent's
    right_after: float | None = None  # and the adapter's
    preference: PreferenceFigures | None = None


class Exposure(Struct, frozen=True, forbid_unknown_fields=True):
    """How well a recipe remembers random numbers that it saw `repeats` times.

    bits: median over the canaries, Carlini et al. 2019; 0 is nothing. recalled: of them, how many
    came out whole.
    """

    repeats: Count
    canaries: Count
    bits: float
    recalled: Count


class Privacy(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Whose sessions are in it, and what was done so that they cannot be read out of it.

    None is always: not measured. Figures that are not known are left out of the JSON, so that
    labels from before they were measured stay the one JSON of their content.
    """

    contributors: Count
    sessions: Count
    canary_exposure: float | None  # of a number seen as often as each text was, in bits
    scrub_rules: Line  # identifies the version of the scrubber's rules
    second_scan: Line = ""  # rules under which a second scan found nothing in what was trained on
    probed: Count | None = None  # training texts that were looked for in the adapter
    verbatim: Count = 0  # of them, how many come out word for word for `verbatim_tokens`
    verbatim_tokens: Count = 0
    longest_run: Count = 0  # tokens of one text that the adapter knows and the chassis does not
    loss_gap: GainFigures | None = None  # nats by which what it saw is told from what it did not
    growth_max: float | None = None  # of a layer: what is added, relative to its weights
    growth_mean: float | None = None
    repeated: float | None = None  # share of the texts that have their commonest phrase in common
    passes: Count = 0  # how often the training saw each text, rounded up
    exposures: Annotated[tuple[Exposure, ...], Meta(max_length=8)] = ()  # the recipe's, once
    exposure_bits_max: float | None = None  # that could have been measured


class Label(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that a bundle says of itself, in words and numbers."""

    format: Annotated[int, Meta(ge=1, le=1)] = 1
    leaf: Hex16
    name: Line
    chassis: Hex8
    adapter: Hex32  # SHA-256 of the adapter's file
    rank: Annotated[int, Meta(ge=1, le=1024)]
    alpha: Annotated[int, Meta(ge=1, le=4096)]
    targets: Annotated[tuple[Line, ...], Meta(min_length=1, max_length=16)]
    method: Line
    dtype: Line
    tokens: Count
    evaluation: EvaluationFigures | None  # None: this is a style control, which nobody judges
    control_root: Annotated[str, Meta(pattern="^([0-9a-f]{64})?$")]  # address of its style control
    control_bytes: Count
    privacy: Privacy
    lineage: Annotated[tuple[Hex16, ...], Meta(max_length=64)]
    licence: Line
    terms: Line


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """An adapter whose form is known to fit its chassis."""

    rank: int
    alpha: int
    targets: tuple[str, ...]
    shapes: dict[str, tuple[int, int]]
    tensors: dict[str, Array]  # views of the file's bytes


@dataclass(frozen=True, slots=True)
class CheckedBundle:
    """A bundle whose form is sound: it may be attached and evaluated, and is not yet trusted."""

    label: Label
    adapter: bytes


def encode_label(label: Label) -> bytes:
    """The one JSON of a label: keys sorted, no spaces."""
    data = msgspec.json.encode(label, order="sorted")
    if len(data) > LABEL_BYTES_MAX:
        raise ValueError(f"label has {len(data)} bytes; at most {LABEL_BYTES_MAX} may travel")
    return data


def decode_label(data: bytes) -> Label:
    """Parse a label; refuses what is not the one JSON of its content."""
    if len(data) > LABEL_BYTES_MAX:
        raise BundleError("label too long")
    try:
        label = msgspec.json.decode(data, type=Label)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BundleError("label of another form") from None
    if msgspec.json.encode(label, order="sorted") != data:
        raise BundleError("label is not canonical")
    return label


def pack(label: bytes, adapter: bytes) -> bytes:
    """Put a label and an adapter into the one blob that peers exchange."""
    if len(label) > LABEL_BYTES_MAX or len(adapter) > ADAPTER_BYTES_MAX:
        raise ValueError(f"label {len(label)} or adapter {len(adapter)} bytes: too large to travel")
    return _HEAD.pack(_MAGIC, len(label), len(adapter)) + label + adapter


def read_label(path: Path) -> Label:
    """The label of a bundle on disk; reads nothing of the adapter. Raises BundleError."""
    with path.open("rb") as file:
        head = file.read(_HEAD.size)
        if len(head) < _HEAD.size:
            raise BundleError("bundle too short")
        magic, label_size, _ = _HEAD.unpack(head)
        if magic != _MAGIC or label_size > LABEL_BYTES_MAX:
            raise BundleError("not a bundle")
        return decode_label(file.read(label_size))


class Parts(NamedTuple):
    """A bundle taken apart, nothing in it believed yet."""

    label: bytes
    adapter: bytes


def unpack(blob: bytes) -> Parts:
    """Take a bundle apart; lengths are checked before anything is copied."""
    if len(blob) < _HEAD.size:
        raise BundleError("bundle too short")
    magic, label_size, adapter_size = _HEAD.unpack_from(blob)
    if magic != _MAGIC:
        raise BundleError("not a bundle")
    if label_size > LABEL_BYTES_MAX:
        raise BundleError("label too long")
    if adapter_size > ADAPTER_BYTES_MAX:
        raise BundleError("adapter too long")
    if len(blob) != _HEAD.size + label_size + adapter_size:
        raise BundleError("bundle of another length than it says")
    middle = _HEAD.size + label_size
    return Parts(blob[_HEAD.size : middle], blob[middle:])


def check_form(blob: bytes, chassis: Path | Chassis) -> CheckedBundle:
    """Check all that can be checked of a bundle without running it; about 0.1 s for 10 MB.

    chassis: the folder of the node's own, or the same opened. Raises BundleError and nothing else
    for what a peer can send.
    """
    opened = chassis if isinstance(chassis, Chassis) else open_chassis(chassis)
    label_bytes, adapter = unpack(blob)
    label = decode_label(label_bytes)
    if label.chassis != opened.tag8.hex():
        raise BundleError("made for another chassis")
    if label.adapter != hashlib.sha256(adapter).hexdigest():
        raise BundleError("adapter is not the one on the label")
    read = read_adapter(adapter, opened, targets=label.targets, rank=label.rank)
    if read.alpha != label.alpha:
        raise BundleError("alpha differs between label and adapter")
    return CheckedBundle(label, adapter)


def read_adapter(
    data: bytes,
    chassis: Chassis,
    *,
    targets: tuple[str, ...] | None = None,
    rank: int | None = None,
) -> AdapterFile:
    """Read an adapter's file, which must hold exactly the tensors that this chassis calls for.

    targets, rank: what the label says; if None, what the file itself says. Raises BundleError.
    """
    try:
        said_rank, alpha, said_targets = _self_description(data)
        if rank not in (None, said_rank) or targets not in (None, said_targets):
            raise BundleError("rank or targets differ between label and adapter")
        shapes = _shapes(chassis, said_rank, alpha, said_targets)
        size = 4 * sum(math.prod(shape) for shape in shapes.values())
        if not size < len(data) <= size + HEADER_BYTES_MAX + 8:
            raise BundleError("adapter of another size than its chassis calls for")
        tensors, _ = unpack_tensors(data, shapes)
    except TensorFileError as error:
        raise BundleError(f"adapter: {error}") from None
    _check_growth(chassis, tensors, alpha / said_rank)
    return AdapterFile(said_rank, alpha, said_targets, shapes, tensors)


_PREFIX, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


def _self_description(data: bytes) -> tuple[int, int, tuple[str, ...]]:
    """Rank and alpha from the metadata, targets from the tensors' names; all still unchecked."""
    header, _ = parse_header(data, len(data))
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict):
        raise BundleError("adapter without rank and alpha")
    numbers = []
    for key in ("rank", "alpha"):
        text = metadata.get(key)
        if not isinstance(text, str) or not (text.isascii() and text.isdigit()) or len(text) > 4:
            raise BundleError("adapter without rank and alpha")
        numbers.append(int(text))
    targets = {name.removesuffix(_A).rsplit(".", 1)[-1] for name in header if name.endswith(_A)}
    return numbers[0], numbers[1], tuple(sorted(targets))


def _shapes(
    chassis: Chassis, rank: int, alpha: int, targets: tuple[str, ...]
) -> dict[str, tuple[int, int]]:
    if rank not in RANKS:
        raise BundleError("rank not allowed")
    if not 1 <= alpha <= 4 * rank:
        raise BundleError("alpha not allowed")
    if not targets or not set(targets) <= set(chassis.targets):
        raise BundleError("targets not allowed")
    return chassis.adapter_shapes(rank, targets)


def _check_growth(chassis: Chassis, tensors: dict[str, Array], scale: float) -> None:
    """Bound what each adapter adds."""
    for growth in growths(chassis, tensors, scale).values():
        if not growth <= GROWTH_MAX:  # also refuses what overflowed to not-a-number
            raise BundleError("adapter changes the chassis too much")


def growths(chassis: Chassis, tensors: dict[str, Array], scale: float) -> dict[str, float]:
    """By module, the norm of what an adapter adds over that of the weight: ||s B A|| / ||W||.

    scale: alpha over rank. B A is never formed.
    """
    found = {}
    for name in tensors:
        if not name.endswith(_A):
            continue
        module = name[len(_PREFIX) : -len(_A)]
        a = tensors[name].astype(np.float64)
        b = tensors[f"{_PREFIX}{module}{_B}"].astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            square = float(((b.T @ b) * (a @ a.T)).sum())
        norm = chassis.linears[module].norm or math.ulp(0.0)  # any addition to nothing is too much
        found[module] = scale * math.sqrt(max(square, 0.0)) / norm
    return found
