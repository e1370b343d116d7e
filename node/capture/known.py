"""Finds the owner's own secrets wherever they occur, also those that were seen once and are gone.

What the machine knows now is searched for exactly, in its usual encodings. Of what it knew at
earlier starts only keyed hashes are on disk: a text's tokens of the same length are hashed and
compared, so that a key that was rotated out of `.env` is still taken out of an old transcript.
A short or guessable value is never written down, not even hashed: a hash of it could be guessed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import ahocorasick_rs
import msgspec
import re2

from node.consent.folders import resolved

from ..home import write_atomic
from .known_sources import entropy, gather, gather_more, keyring_values, limited

if TYPE_CHECKING:
    from ..config import CaptureConfig

log = logging.getLogger(__name__)

FILE = "known_values.json"
KEY_FILE = "known_values.key"  # under GROOVE_HOME/keys
LOOK_S = 10.0  # between two looks into one folder: its `.env` may have changed
LOOKED_MAX = 1_000  # folders whose last look is remembered
STORED_MAX = 5_000  # hashes; the oldest go first
KEYRING_WAIT_S = 2.0
WIDENED_BYTES = 512  # of base64 before and after a find that are taken with it
SHORT_CHARS = 16  # a value shorter than this is found only as a word of its own
BASE64_BYTES_MIN = 12
TABLE_BYTES_MAX = 10_000  # of patterns, searched by table (0.4 GB/s, about 0.5 KB of memory a byte)

_WORD: Final = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")
_BACKSLASH: Final = ord("\\")
_BASE64: Final = _WORD | frozenset(b"+/=-")
# A token that looks drawn: digit, letters, digit, and more. Ordinary text has few, which is what
# makes looking for hashes cheap; a value without such a token is not stored.
_DRAWN: Final = re2.compile(rb"[A-Za-z0-9_-]*[0-9][A-Za-z]{1,8}[0-9][A-Za-z0-9_-]{8,}")
STORED_CHARS_MIN, STORED_CHARS_MAX = 16, 512


def open_known(
    home: Path,
    config: CaptureConfig,
    env: Mapping[str, str],
    folders: Iterable[Path],
    *,
    remember: bool = True,
) -> KnownHere:
    """Gather what is secret here and now, and remember its hashes for later starts.

    remember: if not, nothing is written; what earlier starts remembered is looked for all the same.
    folders: whose `.env` files are read (see `known_folders`); not asked for if it is switched off.
    A home not set up, or with damaged hashes, costs the memory of earlier starts alone.
    """
    if not config.known_values:
        return KnownHere((), None, None, remember=False)
    values = gather(env, folders)
    if config.keyring:  # opening a keyring may start a service, so the owner has to ask for it
        values += keyring_values(config.keyring, wait_s=KEYRING_WAIT_S)
    hashed = None
    if (home / "keys" if remember else home / "keys" / KEY_FILE).exists():
        try:
            hashed = Hashed.open(home)
        except (OSError, ValueError, msgspec.DecodeError) as problem:
            log.warning("known values not remembered reason=%s", type(problem).__name__)
    return KnownHere(values, hashed, env, remember=remember)


class KnownHere:
    """What this machine knows, and knew; learns more as sessions tell in which folders they are.

    `node.capture.scrubber.KnownValues`. Safe from any thread; its repr shows no value.
    """

    def __init__(
        self,
        values: Iterable[str],
        hashed: Hashed | None,
        env: Mapping[str, str] | None,
        *,
        remember: bool,
    ) -> None:
        """env: of the process; None if it is switched off."""
        self._values = list(values)
        self._hashed = hashed
        self._env = env
        self._remember = remember
        self._looked: dict[str, float] = {}
        self._turn = threading.Lock()
        self._known = self._made()

    def __repr__(self) -> str:
        return repr(self._known)

    def spans(self, text: bytes) -> Iterator[tuple[int, int]]:
        """As `Known.spans`."""
        return self._known.spans(text)

    def look_into(self, folder: str | None) -> None:
        """Learn what the `.env` files of a session's folder hold, allowed or not.

        What a folder held before stays known: a transcript may be older than its `.env`.
        """
        if self._env is None or not folder:
            return
        with self._turn:
            now = time.monotonic()
            if now - self._looked.get(folder, float("-inf")) < LOOK_S:
                return
            if len(self._looked) >= LOOKED_MAX:
                self._looked.clear()
            self._looked[folder] = now
            path = resolved(folder)
            more = gather_more(self._env, [path]) if path is not None else ()
            if not set(more) <= set(self._values):
                self._values = limited([*self._values, *more])
                self._known = self._made()

    def _made(self) -> Known:
        if self._hashed is not None:
            self._hashed.meet(self._values, remember=self._remember)
        return Known(self._values, self._hashed)


class Known:
    """Values, and hashes of earlier ones, to be looked for. Its repr shows no value."""

    def __init__(self, values: Iterable[str], hashed: Hashed | None) -> None:
        forms: dict[bytes, _Form] = {}
        for value in values:
            for form in _forms(value):
                forms.setdefault(form.pattern, form)
        self._forms = list(forms.values())
        size = sum(len(pattern) for pattern in forms)
        kind = ahocorasick_rs.Implementation
        self._search = ahocorasick_rs.BytesAhoCorasick(
            list(forms),
            matchkind=ahocorasick_rs.MatchKind.LeftmostLongest,
            implementation=kind.DFA if size <= TABLE_BYTES_MAX else kind.ContiguousNFA,
        )
        self._hashed = hashed if hashed is not None and hashed.gone else None

    def __repr__(self) -> str:
        return f"Known({len(self._forms)} forms)"

    def spans(self, text: bytes) -> Iterator[tuple[int, int]]:
        """Where known values stand in `text`, as byte offsets; in no order, and may overlap."""
        for index, start, end in self._search.find_matches_as_indexes(text):
            match self._forms[index]:
                case _Form(base64=True):
                    yield _widened(text, start, end)
                case _Form(short=True):
                    if not _within_word(text, start, end):
                        yield start, end
                case _:
                    yield start, end
        if self._hashed is not None:
            yield from self._hashed.spans(text)


class _Form(msgspec.Struct, frozen=True):
    """One spelling of a value."""

    pattern: bytes
    base64: bool = False
    short: bool = False

    def __repr__(self) -> str:
        return f"_Form({len(self.pattern)} bytes)"


def _forms(value: str) -> Iterator[_Form]:
    """The value as it is, in a URL, in JSON, and within base64 at each of its three phases."""
    short = len(value) < SHORT_CHARS
    written = {value, quote(value, safe=""), json.dumps(value)[1:-1]}
    written.add(json.dumps(value, ensure_ascii=False)[1:-1])
    for text in sorted(written):
        yield _Form(text.encode("utf-8", "replace"), short=short)
    data = value.encode("utf-8", "replace")
    if len(data) < BASE64_BYTES_MIN:
        return
    for phase in range(3):
        encoded = base64.b64encode(bytes(phase) + data)
        # Only characters that no neighbouring byte has a share in.
        core = encoded[(0, 2, 3)[phase] : (phase + len(data)) * 8 // 6]
        for form in {core, core.translate(bytes.maketrans(b"+/", b"-_"))}:
            yield _Form(form, base64=True)


def _widened(text: bytes, start: int, end: int) -> tuple[int, int]:
    """The whole run of base64 around a find: its first and last characters tell of the value."""
    low, high = max(0, start - WIDENED_BYTES), min(len(text), end + WIDENED_BYTES)
    while start > low and text[start - 1] in _BASE64:
        start -= 1
    while end < high and text[end] in _BASE64:
        end += 1
    return start, end


def _within_word(text: bytes, start: int, end: int) -> bool:
    before = start > 0 and text[start - 1] in _WORD and text[start] in _WORD
    return before or (end < len(text) and text[end] in _WORD and text[end - 1] in _WORD)


class _Stored(msgspec.Struct, frozen=True, array_like=True):
    """A value as it is on disk: its longest drawn token, and the whole, both as keyed hashes."""

    length: int  # of the token
    before: int  # bytes of the value before the token
    after: int
    token: str
    whole: str


class _File(msgspec.Struct, frozen=True):
    format: int
    values: tuple[_Stored, ...]


class Hashed:
    """The values of all starts so far, as keyed hashes; the key lies beside the node's others."""

    def __init__(self, path: Path, key: bytes, stored: tuple[_Stored, ...]) -> None:
        self._path = path
        self._key = key
        self._stored = stored
        self.gone = stored  # of earlier starts, and not known at this one
        self._by_token: dict[tuple[int, str], list[_Stored]] = {}
        self._lengths: frozenset[int] = frozenset()

    @classmethod
    def open(cls, home: Path) -> Hashed:
        """Read the hashes of a home; without their key they are worth nothing and begin anew."""
        path, key_path = home / FILE, home / "keys" / KEY_FILE
        if key_path.exists() and len(key := key_path.read_bytes()) == 32:
            file = msgspec.json.decode(path.read_bytes(), type=_File) if path.exists() else None
            return cls(path, key, file.values if file else ())
        key = secrets.token_bytes(32)
        write_atomic(key_path, key)
        return cls(path, key, ())

    def meet(self, values: Iterable[str], *, remember: bool) -> None:
        """Look for what earlier starts knew and `values` lacks; add what is new, if wished."""
        now = {s: None for value in values if (s := self._of(value.encode("utf-8", "replace")))}
        self.gone = tuple(stored for stored in self._stored if stored not in now)
        by_token: dict[tuple[int, str], list[_Stored]] = {}
        for stored in self.gone:
            by_token.setdefault((stored.length, stored.token), []).append(stored)
        self._by_token = by_token
        fresh = [stored for stored in now if stored not in set(self._stored)]
        if fresh and remember:
            self._stored = (*self._stored, *fresh)[-STORED_MAX:]
            self._write()
        self._lengths = frozenset(stored.length for stored in self.gone)

    def _write(self) -> None:
        try:
            write_atomic(self._path, msgspec.json.encode(_File(1, self._stored)))
        except OSError as problem:  # what is known now is found all the same
            log.warning("known values not remembered reason=%s", problem.strerror)

    def spans(self, text: bytes) -> Iterator[tuple[int, int]]:
        for match in _DRAWN.finditer(text):
            start, end = match.span()
            if end - start in self._lengths:
                yield from self._at(text, start, end)
            escaped = start > 0 and text[start - 1] == _BACKSLASH and text[start] in b"nrt"
            if (
                escaped and end - start - 1 in self._lengths
            ):  # the `n` is a line's end, not a letter
                yield from self._at(text, start + 1, end)

    def _at(self, text: bytes, start: int, end: int) -> Iterator[tuple[int, int]]:
        for stored in self._by_token.get((end - start, self._hash(text[start:end])), ()):
            first, last = start - stored.before, end + stored.after
            if first >= 0 and self._hash(text[first:last]) == stored.whole:
                yield first, last

    def _hash(self, value: bytes) -> str:
        return hashlib.blake2b(value, digest_size=16, key=self._key).hexdigest()

    def _of(self, value: bytes) -> _Stored | None:
        """None for what could be guessed from its hash, and for what has no token to look for."""
        tokens = list(_DRAWN.finditer(value))
        if not tokens:
            return None
        start, end = max((match.span() for match in tokens), key=lambda span: span[1] - span[0])
        token = value[start:end]
        if not STORED_CHARS_MIN <= len(token) <= STORED_CHARS_MAX or entropy(token.decode()) < 3.3:
            return None
        return _Stored(end - start, start, len(value) - end, self._hash(token), self._hash(value))
