r"""The text as it reads once its disguises are off, and the way back to where each byte stood.

Taken off: characters without width, combining marks, look-alikes of other scripts, fullwidth and
other compatibility forms, digits of other scripts, `%40`, `\u0040`, `\x40`, `&#64;`, string
literals in pieces (`"AKIA" + "IOSF…"`), continued lines, letters set apart by spaces. Only the
surroundings of what was changed are read again: a text with one `%20` does not cost two scans.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from functools import cache
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from .disguises import CONFUSABLE, ENTITIES, INVISIBLE, MARKS, compatible, compatible_bytes
from .scan import Pattern, compiled

DEPTH_MAX: Final = 3  # `%2540` is folded twice
_REACH: Final = 192  # bytes around a change that are read again
_PIECE_BYTES: Final = 32  # of a string literal in pieces, looked at
_DIGIT = re.compile(rb"[0-9]")
_DRAWN = compiled(r"[0-9@\\]|[\"']/|[a-z][A-Z]|[A-Z][A-Z]")
_TICK_CHANGES: Final = 4096  # between two looks at the clock
GAP: Final = b"\n\0\n"  # between two surroundings, so that nothing spans them

_HEXADECIMAL = r"[0-9A-Fa-f]"
_PLUS = r"\s*(?:\+|\.{1,2}|&|<>|\|\||\\)\s*"
# The last letter of a piece; not that of an escaped line end, with which pieces of prose close.
_LAST = r"(?:[A-Za-mo-z0-9+/=_.@:-]|[^\\]n)"
_ASCII_SIGNS = (
    rf"(?:%{_HEXADECIMAL}{{2}})+"
    rf"|\\{{1,4}}(?:u{_HEXADECIMAL}{{4}}|u\{{{_HEXADECIMAL}{{1,6}}\}}"
    rf"|U{_HEXADECIMAL}{{8}}|x{_HEXADECIMAL}{{2}})"
    rf"|&#\d{{1,7}};|&#[xX]{_HEXADECIMAL}{{1,6}};|&[A-Za-z]{{2,14}};"
    rf"|{_LAST}(?:\"(?:{_PLUS}|\s+)[rbfuRBFU]?\"|'(?:{_PLUS}|\s+)[rbfuRBFU]?')|(?:\\\r?\n[ \t]*)+"
    r"|(?:^|[^A-Za-z0-9@._+-])(?:[A-Za-z0-9@._+-] ){7,}[A-Za-z0-9@._+-]"
    r"|\[(?:\.|dot)\]|\((?:\.|dot)\)|\d{1,3}(?: dot \d{1,3}){3}"
)
_APART = (b"", b" ", b"\t", b"\n", b"'", b'"', b",", b"(", b")")
_ESCAPE = re.compile(rb"\\+[uUx]\{?([0-9A-Fa-f]+)")


def _class(characters: str) -> str:
    return "[" + "".join(rf"\x{{{ord(character):X}}}" for character in characters) + "]"


class _Patterns(NamedTuple):
    ascii: Pattern
    unicode: Pattern
    mixed: Pattern


@cache
def _patterns() -> _Patterns:
    removed = "[" + INVISIBLE + MARKS + "]+"
    likes = _class("".join(CONFUSABLE))
    word = f"[!-~{likes[1:-1]}]"
    return _Patterns(
        Pattern(_ASCII_SIGNS.encode()),
        Pattern(f"{removed}|{_class(''.join(compatible()))}+".encode(), utf8=True),
        Pattern(f"{word}*(?:[A-Za-z0-9@]{likes}|{likes}[A-Za-z0-9@]){word}*".encode(), utf8=True),
    )


_Change = tuple[
    int, int, bytes
]  # from, to, and what stands there once folded; plain, for there are many


class View:
    """A folded text. `original` maps a span of it back, to whole characters of what was folded."""

    def __init__(self, text: bytes, segments: list[tuple[int, int, int, int]]) -> None:
        self.text = text
        self._segments = segments
        self._starts = [segment[0] for segment in segments]

    def original(self, start: int, end: int) -> tuple[int, int]:
        """Where the bytes from `start` to `end` of the view stood."""
        return self._at(start)[0], max(self._at(max(start, end - 1))[1], self._at(start)[1])

    def _at(self, offset: int) -> tuple[int, int]:
        """Where one byte of the view stood, from and to."""
        at, length, stood, width = self._segments[max(0, bisect_right(self._starts, offset) - 1)]
        inside = min(offset - at, length - 1)
        if width % length == 0:  # as it stands, or so many bytes for each
            step = width // length
            return stood + inside * step, stood + (inside + 1) * step
        return stood, stood + width


def folded(text: bytes, tick: Callable[[], None] = lambda: None) -> View | None:
    """The view of a text, or None if nothing in it may be disguised.

    tick is called every few hundred changes; it may raise to end the work.
    """
    changes = _changes(text, tick)
    return _view(text, changes, tick) if changes else None


def _changes(text: bytes, tick: Callable[[], None]) -> list[_Change]:
    patterns = _patterns()
    changes = [
        change
        for match in patterns.ascii.finditer(text, tick)
        if (change := _unescaped(text, *match.span())) is not None
    ]
    if not text.isascii():
        changes += _unicode_changes(text, patterns, tick)
        changes.sort()
    return changes


def _unescaped(text: bytes, start: int, end: int) -> _Change | None:
    found = text[start:end]
    match found[:1]:
        case b"%":
            by = unquote_to_bytes(found)
            return (start, end, by) if _is_text(by) else None
        case b"&":
            return _entity(text, start, end, found)
        case b"\\" if code := _ESCAPE.match(found):
            return _written(text, start, end, _character(int(code[1], 16)))
        case b"\\":
            return (start, end, b"")
        case b"[" | b"(":  # 192[.]168[.]0[.]7, as those write who report an attack
            beside = text[start - 1 : start].isalnum() and text[end : end + 1].isalnum()
            return (start, end, b".") if beside else None
    if b" dot " in found:
        return (start, end, found.replace(b" dot ", b"."))
    if found[-1] in b"\"'":
        if text[end : end + 1] in _APART or not _tokens(text, start, end):
            return None  # the pieces of prose, which no token spans
        return (start + found.index(found[-1:]), end, b"")
    if not found[0:1].isalnum() and found[0] not in b"@._+-":
        start, found = start + 1, found[1:]
    # The only change that keeps some of its bytes: told as one, so that it maps back evenly.
    return (start, end, found.replace(b" ", b"")) if found else None


def _tokens(text: bytes, start: int, end: int) -> bool:
    """True if the pieces on both sides of a break may be those of a token: not two words."""
    low, high = max(0, start - _PIECE_BYTES), min(len(text), end + _PIECE_BYTES)
    return _DRAWN.search(text, low, high) is not None


def _is_text(data: bytes) -> bool:
    if data.isascii() or len(data) == 1:
        return data.isascii()
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _entity(text: bytes, start: int, end: int, found: bytes) -> _Change | None:
    if found[1:2] != b"#":
        by = ENTITIES.get(found[1:-1].decode("ascii"))
        return None if by is None else _written(text, start, end, by.encode())
    code = found[2:-1]
    number = int(code[1:], 16) if code[:1] in b"xX" else int(code)
    return _written(text, start, end, _character(number))


def _written(text: bytes, start: int, end: int, by: bytes) -> _Change | None:
    """The change of an escape that stands for a character, or None if it can disguise nothing.

    JSON escapes whole texts of other scripts, and HTML the quotes and brackets of all prose.
    """
    plain = by if by.isascii() else compatible_bytes().get(by)
    if plain is None:
        return (start, end, by) if by.decode() in CONFUSABLE else None
    if plain in (b"<", b">") or (len(plain) == 1 and plain < b" " and plain not in b"\t\n"):
        return None
    return (start, end, by) if _tells(text, start, end, plain) else None


def _character(code: int) -> bytes:
    if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
        return b"?"
    return chr(code).encode()


def _unicode_changes(
    text: bytes, patterns: _Patterns, tick: Callable[[], None]
) -> Iterator[_Change]:
    table = compatible_bytes()
    for match in patterns.unicode.finditer(text, tick):
        at, end = match.span()
        found = text[at:end]
        plain = table.get(found)
        if plain is not None:  # one character
            if _tells(text, at, end, plain):
                yield (at, end, plain)
            continue
        for character in found.decode():
            width = len(character.encode())
            yield (at, at + width, table.get(character.encode(), b""))
            at += width
    for match in patterns.mixed.finditer(text, tick):
        at = match.start()
        for character in match.group().decode():
            width = len(character.encode())
            if character in CONFUSABLE:
                yield (at, at + width, CONFUSABLE[character].encode())
            at += width


def _tells(text: bytes, at: int, end: int, plain: bytes) -> bool:
    """True if it makes a difference that a character stands for this one of ASCII, or for none."""
    return plain == b"" or plain.isalnum() or plain == b"@" or _between(text, at, end, plain)


def _between(text: bytes, at: int, end: int, plain: bytes) -> bool:
    """True if a mark stands where one of ASCII would make a difference: in a token or a number.

    The quotes and dashes of typeset prose stand beside a space, and would cost it a second scan.
    """
    before, after = text[max(0, at - 2) : at], text[end : end + 2]
    if plain in b"\"'":
        return before[-1:] in b"=:(" or before.strip()[-1:] in (b"=", b":")
    beside = before[-1:].isalnum(), after[:1].isalnum()
    if all(beside) or (plain == b"/" and any(beside)):
        return True
    return _DIGIT.search(before + after) is not None


def _view(text: bytes, changes: list[_Change], tick: Callable[[], None]) -> View:
    pieces: list[bytes] = []
    segments: list[tuple[int, int, int, int]] = []
    size = done = 0

    def add(piece: bytes, start: int, width: int) -> None:
        nonlocal size
        pieces.append(piece)
        segments.append((size, len(piece), start, width))
        size += len(piece)

    for number, (start, end, by) in enumerate(changes):
        if not number % _TICK_CHANGES:
            tick()
        if start < done:
            continue  # two disguises in one place: the next round takes the other off
        if start - done > 2 * _REACH + 64:
            last = _after_word(text, done + _REACH)
            add(text[done:last], done, last - done)
            add(GAP, start, 0)
            done = _before_word(text, start - _REACH)
        if start > done:
            add(text[done:start], done, start - done)
        if by:
            add(by, start, end - start)
        done = end
    last = min(len(text), _after_word(text, done + _REACH))
    if last > done:
        add(text[done:last], done, last - done)
    return View(b"".join(pieces), segments)


def _after_word(text: bytes, at: int) -> int:
    """`at`, or a little later, where no word is cut."""
    space = text.find(b" ", at, at + 32)
    return space if space >= 0 else min(at, len(text))


def _before_word(text: bytes, at: int) -> int:
    space = text.rfind(b" ", max(0, at - 32), at)
    return space if space >= 0 else max(0, at)
