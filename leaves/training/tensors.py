"""Safetensors without torch: bytes that depend on nothing but their content, and a strict reader.

The library's loader trusts the header; ours is given the exact names and shapes to expect and
refuses the rest before it looks at a number. The writer sorts, so equal tensors are equal bytes.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HEADER_BYTES_MAX = 1 << 20
TENSORS_MAX = 4096
Shape = tuple[int, ...]
Array = NDArray[np.float32]
_DTYPES: Mapping[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2"),
}  # fmt: skip


class TensorFileError(ValueError):
    """The bytes are not the safetensors that were expected; the message is a fixed phrase."""


def _header(shapes: Mapping[str, Shape], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    offset = 0
    for name in sorted(shapes):
        end = offset + 4 * math.prod(shapes[name])
        entries[name] = {
            "dtype": "F32",
            "shape": list(shapes[name]),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def pack(tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return the file's bytes: float32, little endian, tensors by name."""
    head = _header({name: array.shape for name, array in tensors.items()}, metadata or {})
    body = [np.ascontiguousarray(tensors[name], dtype="<f4").tobytes() for name in sorted(tensors)]
    return head + b"".join(body)


def write_stream(
    path: Path, shapes: Mapping[str, Shape], load: Callable[[str], Array], metadata: dict[str, str]
) -> None:
    """Write a file too large to hold: `load` gives one tensor at a time, asked for by name."""
    with path.open("xb") as file:
        file.write(_header(shapes, metadata))
        for name in sorted(shapes):
            array = np.ascontiguousarray(load(name), dtype="<f4")
            assert array.shape == shapes[name], f"{name}: {array.shape}, not {shapes[name]}"
            file.write(array.data)
        file.flush()
        os.fsync(file.fileno())


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise TensorFileError("duplicate key in the header")
    return dict(pairs)


def parse_header(blob: bytes | memoryview, size: int) -> tuple[dict[str, Any], int]:
    """Return the header's object and where the tensors begin. `size` is that of the whole file."""
    if len(blob) < 8:
        raise TensorFileError("no header")
    (length,) = struct.unpack("<Q", blob[:8])
    if length > HEADER_BYTES_MAX:
        raise TensorFileError("header too long")
    if 8 + length > size or len(blob) < 8 + length:
        raise TensorFileError("header past the end")
    try:
        header = json.loads(bytes(blob[8 : 8 + length]), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        if isinstance(error, TensorFileError):
            raise
        raise TensorFileError("header is not JSON") from error
    if not isinstance(header, dict):
        raise TensorFileError("header is not an object")
    if len(header) > TENSORS_MAX + 1:
        raise TensorFileError("too many tensors")
    return header, 8 + length


def unpack(blob: bytes, expected: Mapping[str, Shape]) -> tuple[dict[str, Array], dict[str, str]]:
    """Return exactly the tensors expected, without copying, and the metadata.

    Refuses another name, shape or type, an overlap, a gap, a tail, and what is not finite.
    """
    header, start = parse_header(blob, len(blob))
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(type(v) is str for v in metadata.values()):
        raise TensorFileError("metadata is not text")
    if header.keys() != expected.keys():
        raise TensorFileError("tensor names differ from the expected")
    tensors, at = {}, 0
    for name, begin, end in _in_order(header, expected):
        if begin != at or end - begin != 4 * math.prod(expected[name]):
            raise TensorFileError("tensors overlap or leave a gap")
        at = end
        if start + end > len(blob):
            raise TensorFileError("tensor past the end")
        array = np.frombuffer(blob, "<f4", (end - begin) // 4, start + begin)
        if not np.isfinite(array).all():
            raise TensorFileError("a number is not finite")
        tensors[name] = array.reshape(expected[name])
    if start + at != len(blob):
        raise TensorFileError("bytes after the last tensor")
    return tensors, metadata


def _in_order(
    header: Mapping[str, Any], expected: Mapping[str, Shape]
) -> list[tuple[str, int, int]]:
    spans = []
    for name, entry in header.items():
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise TensorFileError("entry of another form")
        offsets = entry["data_offsets"]
        if entry["dtype"] != "F32" or entry["shape"] != list(expected[name]):
            raise TensorFileError("type or shape differs from the expected")
        if not _integers(entry["shape"]) or not _integers(offsets) or len(offsets) != 2:
            raise TensorFileError("offsets are not two integers")
        spans.append((name, offsets[0], offsets[1]))
    return sorted(spans, key=lambda span: span[1:])


def _integers(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


class Weights:
    """A chassis' weight files, mapped: shapes at once, numbers on demand. Trusted local files."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.shapes: dict[str, Shape] = {}
        self._where: dict[str, tuple[mmap.mmap, str, int]] = {}
        for path in files:
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            (length,) = struct.unpack("<Q", mapped[:8])
            if length > 64 << 20:
                raise TensorFileError("header too long")
            header = json.loads(mapped[8 : 8 + length])
            header.pop("__metadata__", None)
            for name, entry in header.items():
                self.shapes[name] = tuple(entry["shape"])
                self._where[name] = (mapped, entry["dtype"], 8 + length + entry["data_offsets"][0])

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.shapes))

    def array(self, name: str) -> Array:
        """One tensor as float32; a view of the file if that is its type."""
        mapped, dtype, offset = self._where[name]
        if dtype not in _DTYPES:
            raise TensorFileError(f"{name} is {dtype}; a chassis holds F32, F16 or BF16")
        shape = self.shapes[name]
        array = np.frombuffer(mapped, _DTYPES[dtype], math.prod(shape), offset).reshape(shape)
        if dtype == "BF16":
            return (array.astype(np.uint32) << 16).view(np.float32)
        return array.astype(np.float32, copy=False)
