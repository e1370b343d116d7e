"""Jobs and answers between this process and its own children, as plain data.

Not pickle: reading a pickle runs what it says. Here a message holds numbers, texts, arrays,
tuples, lists, mappings, and by their names functions, dataclasses and enumerations; reading one
calls nothing but a dataclass's own constructor. An array that is memory-mapped goes as the name
of its file; what carries messages between machines can ask for arrays to be set aside instead.
"""

from __future__ import annotations

import importlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import partial
from types import BuiltinFunctionType, FunctionType
from typing import IO, Any, TypeAlias

import msgspec
import numpy as np

from leaves.ports import Progress

Array: TypeAlias = np.ndarray[Any, Any]

HEAD = struct.Struct(">Q")  # before each message: its bytes
PIECE_BYTES = 1 << 24
ASIDE_BYTES_MIN = 1 << 16  # of an array that is worth a way of its own

Aside = list[Array]  # arrays of a message that travel beside it


class FrameError(TypeError):
    """A value that cannot be sent; the message says of what kind."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a child is asked to do."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Done:
    value: Any


@dataclass(frozen=True, slots=True)
class Raised:
    """An exception of a job: its class, as module:name, and what it said."""

    kind: str
    message: str

    @classmethod
    def of(cls, problem: Exception) -> Raised:
        return cls(_name(type(problem)), str(problem))

    def error(self) -> Exception:
        """The exception itself if it is one of Python's own, else a RuntimeError that names it."""
        module, _, name = self.kind.partition(":")
        found = getattr(importlib.import_module("builtins"), name, None)
        if module == "builtins" and isinstance(found, type) and issubclass(found, Exception):
            try:
                return found(self.message)
            except TypeError:  # one that wants more than a message
                pass
        return RuntimeError(f"{self.kind}: {self.message}")


Answer = Progress | Done | Raised


def send(pipe: IO[bytes], message: Job | Answer) -> None:
    """Write one message, or nothing: raises FrameError if a value is of no known kind."""
    data = packed(message)
    for part in (memoryview(HEAD.pack(len(data))), memoryview(data)):
        done = 0
        while done < len(part):  # an unbuffered pipe may take less than it is given
            done += pipe.write(part[done:])
    pipe.flush()


def receive(pipe: IO[bytes]) -> Any:
    """Read one message; None at the end, or if it ends within a message."""
    head = _read(pipe, HEAD.size)
    if len(head) < HEAD.size:
        return None
    wanted = HEAD.unpack(head)[0]
    data = _read(pipe, wanted)
    return unpacked(data) if len(data) == wanted else None


def packed(message: Job | Answer, aside: Aside | None = None) -> bytes:
    """Return a message as bytes; raises FrameError if a value is of no known kind.

    aside: takes up every large array, whole or memory-mapped, so that it need not be copied into
    the bytes. An array that occurs twice is taken up once.
    """
    return msgspec.msgpack.encode(_plain(message, aside))


def unpacked(data: bytes | bytearray, aside: Sequence[Array] = ()) -> Any:
    """Return the message; `aside` holds the arrays that were taken up, in their order."""
    return _real(msgspec.msgpack.decode(data), aside)


def _read(pipe: IO[bytes], wanted: int) -> bytearray:
    data = bytearray()
    while len(data) < wanted:
        piece = pipe.read(min(wanted - len(data), PIECE_BYTES))
        if not piece:
            break
        data += piece
    return data


def _plain(value: Any, aside: Aside | None) -> Any:
    """Return `value` in numbers, texts, bytes and lists; a list begins with what it stands for."""
    if value is None or isinstance(value, bool | bytes) or type(value) in (int, float, str):
        return value
    match value:
        case Enum():
            return ["enum", _name(type(value)), _plain(value.value, aside)]
        case np.ndarray():
            return _plain_array(value, aside)
        case np.generic():
            return _plain(value.item(), aside)
        case tuple() | list() | range():
            kind = "tuple" if isinstance(value, tuple) else "list"
            if all(type(x) is str for x in value):  # a million ids go as they are
                return [f"{kind} of texts", list(value)]
            return [kind, *(_plain(x, aside) for x in value)]
        case dict():
            return ["dict", *([_plain(k, aside), _plain(v, aside)] for k, v in value.items())]
        case partial():
            parts = (value.func, value.args, value.keywords)
            return ["partial", *(_plain(part, aside) for part in parts)]
        case FunctionType() | BuiltinFunctionType():
            return ["name", _name(value)]
    if isinstance(value, type):
        return ["name", _name(value)]
    if is_dataclass(value):
        held = [_plain(getattr(value, field.name), aside) for field in fields(value)]
        return ["dataclass", _name(type(value)), *held]
    raise FrameError(f"a {type(value).__qualname__} cannot be sent between processes")


def _real(value: Any, aside: Sequence[Array]) -> Any:
    if not isinstance(value, list):
        return value
    match value:
        case ["enum", str(name), held]:
            return _found(name, Enum)(_real(held, aside))
        case ["array", str(dtype), list(shape), bytes(data)]:
            return np.frombuffer(bytearray(data), dtype).reshape(shape)
        case ["mapped", str(path), str(dtype), int(offset), list(shape)]:
            return np.memmap(path, dtype, "r", offset, tuple(shape)).view(np.ndarray)
        case ["aside", int(at)]:
            return aside[at]
        case ["tuple of texts", list(texts)]:
            return tuple(texts)
        case ["list of texts", list(texts)]:
            return texts
        case ["tuple", *held]:
            return tuple(_real(x, aside) for x in held)
        case ["list", *held]:
            return [_real(x, aside) for x in held]
        case ["dict", *pairs]:
            return {_real(k, aside): _real(v, aside) for k, v in pairs}
        case ["partial", fn, args, keywords]:
            return partial(_real(fn, aside), *_real(args, aside), **_real(keywords, aside))
        case ["name", str(name)]:
            return _found(name, object)
        case ["dataclass", str(name), *held]:
            made: Any = _found(name, object)
            if not is_dataclass(made):
                raise FrameError(f"{name} is no dataclass")
            names = [field.name for field in fields(made)]
            build: Any = made
            return build(**dict(zip(names, (_real(x, aside) for x in held), strict=True)))
        case _:
            raise FrameError(f"a message of kind {value[:1]!r} is not known")


def _plain_array(array: Any, aside: Aside | None) -> list[Any]:
    if array.dtype.hasobject:
        raise FrameError("an array of objects cannot be sent between processes")
    if aside is not None and array.nbytes >= ASIDE_BYTES_MIN:
        at = next((at for at, held in enumerate(aside) if held is array), len(aside))
        if at == len(aside):
            aside.append(array)
        return ["aside", at]
    base = array
    while base is not None and not (isinstance(base, np.memmap) and base.filename):
        base = getattr(base, "base", None)
    shape = list(array.shape)
    if base is not None and array.size and array.flags.c_contiguous and not base.flags.writeable:
        offset = array.ctypes.data - base.ctypes.data + base.offset
        return ["mapped", str(base.filename), array.dtype.str, int(offset), shape]
    return ["array", array.dtype.str, shape, np.ascontiguousarray(array).tobytes()]


def _name(named: Any) -> str:
    """Return module:name of a function or class of a module; raises FrameError for others."""
    name = f"{named.__module__}:{named.__qualname__}"
    try:
        found = _found(name, object)
    except (AttributeError, ImportError):
        found = None
    if found is not named:
        raise FrameError(f"{name} is not found by its name in a module")
    return name


def _found(name: str, kind: type) -> Any:
    module, _, path = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    if kind is not object and not (isinstance(found, type) and issubclass(found, kind)):
        raise FrameError(f"{name} is no {kind.__qualname__}")
    return found
