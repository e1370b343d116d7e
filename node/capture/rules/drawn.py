"""Whether a value was drawn by a machine or written by a person: what tells a key from a word."""

from __future__ import annotations

import math
import re
from collections import Counter
from itertools import pairwise

from .scan import ALNUM as _ALNUM
from .scan import compiled

_STANDS_FOR = re.compile(
    rb"(?i)(?:\$"
    rb"|%[({]|<|\{|\*{3,}|\.{3,}|x{4,}|_{3,}|-{3,}|\?{3,}|\[|your|my[_-]|change[_-]?me|dummy|insert|replace"
    rb"|enter|todo|fixme|null\b|none\b|true\b|false\b|nil\b|undefined|process\.env|os\."
    rb"|env\.|env\[|secrets?\."
    rb"|vars?\.|self\.|this\.|config\.|settings\.|args?\.|options?\.|params?\.|ctx\.|req(?:uest)?\."
    rb"|getenv|function\b|lambda\b|new\b|await\b|return\b|\[?(?:redacted|removed|hidden"
    rb"|masked)|(?:foo|bar|baz|test|placeholder|sample|example|abc|123|xxx)[\w.-]{0,3}$)"
)
_EXAMPLE = compiled(
    r"(?i)example|placeholder|your[_-]|x{6,}|\*{4,}|changeme|redacted|abcdefghij|0123456789"
    r"|1234567890"
)
UUID = re.compile(rb"(?i)^[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}$")


def switches(value: bytes) -> int:
    """How often letters and digits follow each other without anything between."""
    return len(re.findall(rb"(?=[A-Za-z][0-9]|[0-9][A-Za-z])", value))


def mixed(value: bytes) -> bool:
    """True if it has small and capital letters."""
    return value.lower() != value and value.upper() != value


def entropy(value: bytes) -> float:
    """Bits per byte of the value's own distribution."""
    counts = Counter(value).values()
    return -sum(n / len(value) * math.log2(n / len(value)) for n in counts)


def dull(value: bytes) -> bool:
    """True for what stands in for a key: a few characters over and over."""
    return len(set(value)) < min(6, max(3, len(value) // 2))


def stands_in(value: bytes) -> bool:
    """True for a variable, a reference or a word in the place of a value."""
    return _STANDS_FOR.match(value) is not None


def exemplary(value: bytes) -> bool:
    """True if the value says of itself that it is none."""
    return _EXAMPLE.search(value) is not None


def is_drawn(value: bytes) -> bool:
    """True for a key of at least 16 characters: letters and digits in no order."""
    if len(value) < 14 or dull(value):
        return False
    return (switches(value) >= 3 and entropy(value) > 3.0) or (
        mixed(value) and entropy(value) > 4.2 and switches(value) >= 1
    )


def jumbled(value: bytes) -> bool:
    """True if small letters, capitals and digits follow each other as in no name."""
    kinds = [1 if 48 <= b <= 57 else 2 if 65 <= b <= 90 else 3 for b in value if b in _ALNUM]
    changes = sum(a != b for a, b in pairwise(kinds))
    return len(kinds) >= 12 and changes >= 0.4 * len(kinds) and entropy(value) > 3.0
