"""Takes what identifies or unlocks out of a text before the text is written anywhere.

Thirteen kinds, ten placeholders: see `Label`. One linear scan finds where something may begin, a
check in code says whether it is, and the union of what was found is replaced. It repeats until
nothing is found, so that scrubbing twice changes nothing. Whatever goes wrong is a ScrubError and
the caller drops the record: a text is kept scrubbed or not at all. Names of people and postal
addresses are not found.
"""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from typing import Any, Final

from . import patterns
from .numbers import Label, Span, is_address, judge

SCRUB_RULES_VERSION: Final = "1"  # rises with every change of what is found
ROUNDS_MAX = 4
PEM_BYTES_MAX = 32_768  # of a private key, from its first line to its last
DEPTH_MAX = 32  # of metadata
NODES_MAX = 20_000

_PRIORITY = {label: rank for rank, label in enumerate(Label)}
_WORD = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")
_ALNUM = _WORD - {ord("_")}
_HEX = frozenset(b"0123456789abcdefABCDEF")
_LOCAL = _WORD | frozenset(b".%+'-") | frozenset(range(0x80, 0x100))  # of an e-mail address
_INNER = _WORD | frozenset(b".-)]}")
_SURROGATES = dict.fromkeys(range(55296, 57344), "�")
_SEVERAL = 3  # turns between letters and digits that no identifier makes


class ScrubError(Exception):
    """The text could not be scrubbed and must not be kept. Holds nothing of the text."""


class PIIScrubber:
    """Replaces personal data and secrets by placeholders, and counts them. Safe from any thread."""

    rules_version: Final = SCRUB_RULES_VERSION

    def __init__(self) -> None:
        self.replaced: Counter[Label] = Counter()  # a figure for the owner, not an exact account

    def scrub(self, text: str) -> str:
        """Return `text` with placeholders; `scrub(scrub(x)) == scrub(x)`.

        Raises ScrubError if the text cannot be made clean. Linear in the length of the text.
        """
        try:
            return self._fixpoint(text)
        except ScrubError:
            raise
        except Exception as problem:  # the rules must never let a text through by failing
            raise ScrubError(f"the rules failed: {type(problem).__name__}") from None

    def scrub_value(self, value: Any) -> Any:
        """Scrub JSON-like data: the keys and values of dicts and lists, to any depth up to 32.

        Raises ScrubError for types that JSON has not, for deeper or for larger data.
        """
        return _Tree(self).walk(value, 0)

    def _fixpoint(self, text: str) -> str:
        # RE2 and the disk want UTF-8, which has no lone surrogates; Python's str may hold them.
        data = (text if text.isascii() else text.translate(_SURROGATES)).encode()
        for _ in range(ROUNDS_MAX):
            spans = _merged(_Pass(data).spans())
            if not spans:
                return data.decode()
            self.replaced.update(label for _, _, label in spans)
            data = _replaced(data, spans)
        if _Pass(data).spans():
            raise ScrubError(f"still not clean after {ROUNDS_MAX} rounds")
        return data.decode()


class _Tree:
    """One walk over metadata, with its budget."""

    def __init__(self, scrubber: PIIScrubber) -> None:
        self._scrubber = scrubber
        self._nodes = 0

    def walk(self, value: Any, depth: int, key: str = "") -> Any:
        self._nodes += 1
        if depth > DEPTH_MAX or self._nodes > NODES_MAX:
            raise ScrubError(f"data deeper than {DEPTH_MAX} or larger than {NODES_MAX} values")
        match value:
            case None | bool():
                return value
            case str():
                return self._text(value, key)
            case int() | float():
                return self._number(value, key)
            case dict():
                return self._dict(value, depth)
            case list() | tuple():
                return [self.walk(item, depth + 1, key) for item in value]
            case _:
                raise ScrubError(f"data of type {type(value).__name__}, expected what JSON has")

    def _dict(self, value: dict[Any, Any], depth: int) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, item in value.items():
            clean = name = self._scrubber.scrub(str(key))
            count = 1
            while clean in out:  # two keys that became one placeholder are still two entries
                count += 1
                clean = f"{name}#{count}"
            out[clean] = self.walk(item, depth + 1, name)
        return out

    def _text(self, value: str, key: str) -> str:
        """Scrub with the key before it, for "api_key" says what its value is."""
        if key:
            head = f"{key}: "
            together = self._scrubber.scrub(head + value)
            if together.startswith(head):
                return together.removeprefix(head)
        return self._scrubber.scrub(value)

    def _number(self, value: int | float, key: str) -> int | float | str:
        """A card number is one also as an integer."""
        whole = isinstance(value, float) and math.isfinite(value) and value.is_integer()
        shown = str(int(value)) if whole else str(value)
        clean = self._text(shown, key)
        return value if clean == shown else clean


def _merged(spans: list[Span]) -> list[Span]:
    """The union of the spans, in order; where several meet, the label that comes first stands."""
    merged: list[Span] = []
    for start, end, label in sorted(spans):
        if merged and start < merged[-1][1]:
            first, last, other = merged[-1]
            merged[-1] = (first, max(last, end), min(label, other, key=_PRIORITY.__getitem__))
        else:
            merged.append((start, end, label))
    return merged


def _replaced(data: bytes, spans: list[Span]) -> bytes:
    pieces: list[bytes] = []
    done = 0
    for start, end, label in spans:
        while end < len(data) and data[end] & 0xC0 == 0x80:
            end += 1  # never cut a character in two
        pieces += (data[done:start], f"[{label}]".encode())
        done = end
    pieces.append(data[done:])
    return b"".join(pieces)


class _Pass:
    """One scan of one text. Each judge returns where the scan goes on."""

    def __init__(self, text: bytes) -> None:
        self._text = text
        self._found: list[Span] = []
        self._value_end = 0  # end of the last value of a telling name
        self._no_pem_end = 0  # no end of a private key begins before

    def spans(self) -> list[Span]:
        position = 0
        while match := patterns.CANDIDATE.search(self._text, position):
            start, end = match.span()
            judge_one = getattr(self, f"_{patterns.KINDS[match.lastindex - 1]}")
            after = judge_one(start, end)
            assert after > position
            position = after
        return self._found

    def _add(self, start: int, end: int, label: Label) -> int:
        self._found.append((start, end, label))
        return end

    def _back(self, start: int, allowed: frozenset[int], most: int) -> int:
        """Where a candidate really begins whose first digits a run of numbers took before it."""
        low = max(0, start - most)
        while start > low and self._text[start - 1] in allowed:
            start -= 1
        return start

    def _past_word(self, start: int) -> int:
        """The end of the word that begins or goes on at `start`."""
        end = start + 1
        while end < len(self._text) and self._text[end] in _ALNUM:
            end += 1
        return end

    def _joined(self, start: int, end: int) -> bool:
        """True if a word goes on before or after the span."""
        text = self._text
        return (start > 0 and text[start - 1] in _WORD) or (end < len(text) and text[end] in _WORD)

    def _pem(self, start: int, end: int) -> int:
        limit = end + PEM_BYTES_MAX
        if closing := patterns.PEM_END.search(self._text, max(end, self._no_pem_end), limit):
            return self._add(start, closing.end(), Label.PRIVATE_KEY)
        self._no_pem_end = limit - 64  # one that the limit cuts is met by the next search
        rest = patterns.PEM_REST.match(self._text, end)
        return self._add(start, rest.end() if rest else end, Label.PRIVATE_KEY)

    def _url(self, start: int, end: int) -> int:
        rest = patterns.URL_REST.match(self._text, end, end + patterns.URL_BYTES_MAX)
        if rest is None:
            return end
        body = rest.group().rstrip(b".,:;!?*_")
        if body.endswith(b")") and b"(" not in body:
            body = body.rstrip(b").,")
        return self._add(start, end + len(body), Label.REDACTED_URL) if _opens(body) else end

    def _token(self, start: int, end: int) -> int:
        value = self._text[start:end]
        if start > 0 and self._text[start - 1] in _ALNUM:
            return self._past_word(start)
        drawn = value[2:3] not in b"_-" or _turns(value) > 0 or _mixed(value)  # sk-, pk_, rk_
        if _dull(value) or not drawn:
            return start + 2
        rest = patterns.TOKEN_REST.match(self._text, end)
        return self._add(start, rest.end() if rest else end, Label.API_KEY)

    def _aws(self, start: int, end: int) -> int:
        if self._joined(start, end):
            return start + 4
        return self._add(start, end, Label.AWS_KEY)

    def _bearer(self, start: int, end: int) -> int:
        rest = patterns.BEARER_REST.match(self._text, end)
        last = rest.end() if rest else end
        value = self._text[start : min(last, end + patterns.VALUE_BYTES)].split(None, 1)[1]
        if _turns(value) < 2 and len(value) < 24:
            return start + 5
        return self._add(start, last, Label.API_KEY)

    def _path(self, start: int, end: int) -> int:
        rest = patterns.PATH_REST.match(self._text, end)
        inner = start > 0 and self._text[start - 1] in _INNER  # `src/home/x`, `site.com/home/x`
        if rest is None or inner:
            return end
        return self._add(start, end + len(rest.group().rstrip(b".!\\")), Label.FILE_PATH)

    def _keyword(self, start: int, end: int) -> int:
        """The value after a telling name; the scan goes on at the value, which may be a URL."""
        if end < self._value_end:
            return end
        value = patterns.VALUE.match(self._text, end, end + patterns.VALUE_BYTES)
        if value is None:
            return end
        body = value.group().rstrip(b".:\\")
        after = self._text[end + len(body) : end + len(body) + 1]
        name = self._text[max(0, start - 24) : end].lower()
        quoted = self._text[end - 1 : end] in (b'"', b"'", b"`")
        if after != b"(" and _unlocks(body, name, quoted):
            aws = len(body) == 40 and (b"aws" in name or b"secretaccess" in name.replace(b"_", b""))
            whole = patterns.VALUE.match(self._text, end)
            self._value_end = end + len(whole.group().rstrip(b".:\\") if whole else body)
            self._add(end, self._value_end, Label.AWS_KEY if aws else Label.API_KEY)
        return end

    def _email(self, start: int, end: int) -> int:
        """The candidate begins at the sign: what stands before it is read backwards."""
        first = self._back(start, _LOCAL, 254)  # the longest of RFC 5321
        local = self._text[first:start].lstrip(b".'%+-")
        suffix = self._text[start:end].rpartition(b".")[2].lower()
        if not local or local == b"git" or suffix in patterns.FILE_SUFFIXES:
            return end
        return self._add(start - len(local), end, Label.EMAIL)

    def _hexadecimal(self, start: int, end: int) -> int:
        start = self._back(start, _HEX, 128)
        line = self._text.rfind(b"\n", max(0, start - 96), start) + 1 or max(0, start - 96)
        before, after = self._text[line:start], self._text[end : end + 32]
        named = patterns.SECRET_BEFORE.search(before)
        plain = end - start in (40, 64, 96, 128)
        exempt = plain and (patterns.HASH_BEFORE.search(before) or patterns.HASH_AFTER.match(after))
        if exempt and not named:
            return end
        return self._add(start, end, Label.API_KEY)

    def _ipv6(self, start: int, end: int) -> int:
        text, start = self._text, self._back(start, _HEX, 4)
        if start > 0 and text[start] != ord(":") and text[start - 1] in _WORD:
            start = text.index(b":", start)
        if end < len(text) and text[end] in _WORD:
            return end
        for first, last in ((start, end), (start + 1, end), (start, end - 1), (start + 1, end - 1)):
            candidate = text[first:last].rstrip(b".")
            if _is_ipv6(candidate):
                zone = patterns.ZONE.match(text, last)
                return self._add(first, zone.end() if zone else first + len(candidate), Label.IP)
        return end

    def _number(self, start: int, end: int) -> int:
        self._found.extend(judge(self._text, start, end))
        return end


def _is_ipv6(candidate: bytes) -> bool:
    """An address by form, and not `::`, a time of day, or the scope of a name such as `a::b`."""
    if candidate.count(b":") < 2 or not is_address(candidate):
        return False
    groups = [group for group in candidate.split(b":") if group]
    if len(groups) <= 2 and max(map(len, groups), default=0) <= 2:
        return False  # `a[1::2]`; the loopback ::1 tells nothing of anybody
    return len(groups) > 3 or any(byte in b"0123456789" for byte in candidate)


def _opens(body: bytes) -> bool:
    """True if a URL, from its host on, carries what lets its holder in."""
    authority = body.split(b"/", 1)[0]
    if patterns.URL_USERINFO.match(body) or (b"@" in authority and authority.find(b"@") >= 20):
        return True
    if patterns.URL_SECRET_PATH.match(body):
        return True
    return any(
        not patterns.PLACEHOLDER.match(value) for value in patterns.URL_PARAMETER.findall(body)
    )


def _turns(value: bytes) -> int:
    """How often letters and digits follow each other: many in a key, few in a name."""
    kinds = [48 <= byte <= 57 for byte in value if byte in _WORD]
    return sum(a != b for a, b in pairwise(kinds))


def _mixed(value: bytes) -> bool:
    return value.lower() != value and value.upper() != value


def _dull(value: bytes) -> bool:
    """True for what stands in for a key: a few characters over and over."""
    return len(set(value[4:20])) < 4


def _entropy(value: bytes) -> float:
    counts = Counter(value).values()
    return -sum(n / len(value) * math.log2(n / len(value)) for n in counts)


def _unlocks(value: bytes, name: bytes, quoted: bool) -> bool:
    """True if the value of a telling name looks drawn rather than written."""
    if len(value) < 6 or patterns.PLACEHOLDER.match(value) or b"://" in value or _dull(value):
        return False
    path = (
        value.startswith(b"/") and len(value) != 40
    )  # so long is an AWS secret, also with a slash
    if path or value.startswith(b"-----") or value.isdigit():
        return False
    turns, mixed = _turns(value), _mixed(value)
    if b"passw" in name or b"pwd" in name or b"passphrase" in name:
        return turns >= 1 and (quoted or not value.isalnum() or turns >= 2)
    if len(value) < 12:
        return turns >= 2 and mixed and quoted
    if len(value) < 20:
        return turns >= _SEVERAL and _entropy(value) > 2.8
    return (turns >= _SEVERAL or (mixed and _entropy(value) > 4.0)) and _entropy(value) > 3.0
