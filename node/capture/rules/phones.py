"""Telephone numbers: with a country's code, in the American form, and any that a word announces."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Final

from .scan import ALNUM, WORD, Found, Label, Scan, Span, any_of, compiled

_EXACT_MAX = 100  # numbers of one text that the library judges; it is slow, and more are then taken

_EXTENSION = r"(?:[ ,;]{0,2}(?:x|ext\.?|extension|#|;ext=|Durchwahl)[ .:]{0,2}\d{1,6})?"
_INTERNATIONAL = compiled(
    r"(?:(?:\+|\(\+|\b011[ -])[ (]{0,2}[1-9]\d{0,3}\)?|\b00 ?[1-9]\d{0,2}[ ./-]{1,2})"
    r"(?:[ \xa0\xc2./-]{0,3}\(?\d{1,12}\)?){1,7}" + _EXTENSION
)
_AMERICAN = compiled(
    r"(?:\+?1[ .-]?)?(?:\([2-9]\d\d\)[ .-]{0,2}[2-9]\d\d[ .-]\d{4}"
    r"|[2-9]\d\d-[2-9]\d\d-\d{4}|[2-9]\d\d\.[2-9]\d\d\.\d{4}"
    r"|[2-9]\d\d [2-9]\d\d[ -]\d{4}|[2-9]\d\d/[2-9]\d\d-\d{4}"
    r"|[2-9]\d\d - [2-9]\d\d - \d{4})" + _EXTENSION
)
# A trunk zero and three or more groups: how most of the world writes a number at home.
_TRUNK = compiled(r"(?:\(0|\b0)[1-9]\d{0,3}\)?[ /-]{1,2}\d{2,4}(?:[ -]\d{2,4}){1,3}")
_NOUNS = (
    r"(?:(?:tele|smart|i)?phone\w{0,10}|\bph[.: ]|tel\w{0,12}"
    r"|t[\xc3\xa9e]{1,2}l[\xc3\xa9e]{1,2}ph\w{0,6}|tel[\xc3\xa9e]{1,2}fono|mob(?:ile"
    r"|il)?\w{0,8}|m[o\xc3\xb3]{1,2}vil|cell(?:ular|phone)?s?\b|celular|fax\w{0,8}"
    r"|whats ?app|signal\b|sms|msisdn|handy\w{0,6}|portable\b|rufnummer|anruf\w{0,3}|hotline"
    r"|helpline|landline|desk|pager|viber|callback|caller(?: ?id)?|kontakt\w{0,8}"
    r"|contact\w{0,8}"
    r"|\xe7\x94\xb5\xe8\xaf\x9d|\xe9\x9b\xbb\xe8\xa9\xb1|\xe6\x89\x8b\xe6\x9c\xba"
    r"|\xe6\x89\x8b\xe6\xa9\x9f"
    r"|\xd1\x82\xd0\xb5\xd0\xbb(?:\xd0\xb5\xd1\x84\xd0\xbe\xd0\xbd)?\w{0,3}"
    r"|\xec\xa0\x84\xed\x99\x94)"
)
_VERBS = (
    r"(?:call(?:ed|ing|s)?|dial(?:l?ed|l?ing)?|r[ai]ng|text(?:ed)?|reach(?:ed|able)?"
    r"|messages? (?:to|from)|answering|registered|appeler?|rufen?|llamar?|(?:\bmy|our"
    r"|her|his|their|your|home|work|office|new|old) (?:num\w{0,4}|nr)\.?(?: is| was)?)"
)
# What stands between a word and its number: how much is judged afterwards, for counting it here
# would make the automaton large.
_BETWEEN = r"[^\d\n+(]*(?:\n[ \t]*)?"
_NAMED = compiled(
    r"(?i)(?:"
    + _NOUNS
    + r"|"
    + _VERBS
    + r"\b)"
    + _BETWEEN
    + r"(\+?\(?\+?\d[\d() ./\xa0\xc2-]{2,24}\d)"
    + _EXTENSION
)
_WORD_BEFORE = re.compile(
    rb"(?i)(?:"
    + (_NOUNS + r"|" + _VERBS).encode("latin-1")
    + rb"\b)[^\d\n+(]{0,26}(?:\n[ \t]{0,8})?$"
)
_AFTER = compiled(
    r"(?i)(\+?\(?\d[\d() ./-]{4,20}\d)[ ,-]{1,3}\(?(?:office|fax|mobile|cell|desk|home|phone"
    r"|work|tel)\b"
)
SHAPES: Final = (_INTERNATIONAL, _AMERICAN, _TRUNK)
_ANY_NAMED = any_of(_NAMED, _AFTER)
# Names so plain that a short number after them is one too: `phone: 62808`.
_SHORT = re.compile(
    rb"(?i)^(?:(?:tele|smart|i)?phone|tel\w*|mob\w*|cell|fax|whats ?app|sms|call (?:me|us|him|her)"
    rb"|contact|handy|rufn\w*|\xd1\x82|[\xe7-\xec])[^\w\n]{0,2}(?:\w{0,3}num\w{0,4}|nummer|no|nr)?"
    rb"\.?[\"']?\s?(?:(?:is|at|was|on)\b|[:=#\s]|\. )*[\s\"']{0,4}$"
)
_DATE = re.compile(
    rb"(?:19|20)\d\d([-./ ])\d{1,2}\1\d{1,2}(?!\d)|\d{1,2}([-./])\d{1,2}\2(?:19|20)\d\d"
    rb"|\d{1,2}\.\d{1,2}\.\d{1,2}$|(?:[1-9]\d{0,2}\.){2}[1-9]?\d{1,2}$|(?:\d{1,3}\.){3}\d{1,3}$|\d+\.\d+$|(?:19"
    rb"|20)\d\d ?[-/] ?(?:19|20)\d\d$|\d{1,4}/\d{1,4}$"
)
_SUM = re.compile(rb" ?[=*] ?\d")
_DECIMAL = re.compile(rb"\+\d+\.\d+$")


def find(scan: Scan) -> Iterator[Span]:
    """Yield numbers that their form tells."""
    text = scan.text
    asked = 0
    for match in scan.matches(_INTERNATIONAL):
        start, end = _fitted(text, *match.span())
        if _before_number(scan, start) or scan.joined_after(end):
            continue
        if _DECIMAL.match(text, start, end) or _is_term(text, start, end):
            continue
        digits = re.sub(rb"\D", b"", re.split(rb"[a-zA-Z#;]", text[start:end])[0])
        if text[start : start + 1] in b"+(":
            asked += 1
            if not _is_possible(digits, exact=asked <= _EXACT_MAX):
                continue
        else:
            digits = digits[3:] if digits.startswith(b"011") else digits[2:]
            if not 8 <= len(digits) <= 14 or not _spaced(text[start:end]):
                continue
        yield Span(start, end, Label.PHONE, "number with a country's code")
    yield from _grouped(scan)


def announced(scan: Scan) -> Iterator[Span]:
    """Yield numbers that a word beside them calls so."""
    if scan.has(_ANY_NAMED):
        yield from _announced(scan)


def _grouped(scan: Scan) -> Iterator[Span]:
    for match in scan.matches(_AMERICAN):
        start, end = match.span()
        if not _before_number(scan, start) and not _after_number(scan, end):
            yield Span(start, end, Label.PHONE, "form of an American number")
    for match in scan.matches(_TRUNK):
        start, end = match.span()
        if (
            9 <= _digits(match.group()) <= 12
            and not _before_number(scan, start)
            and not _after_number(scan, end)
        ):
            yield Span(start, end, Label.PHONE, "groups after a trunk zero")


def _announced(scan: Scan) -> Iterator[Span]:
    for match in scan.matches(_NAMED):
        if span := _named(scan, match):
            yield span
    for match in scan.matches(_AFTER):
        start, end = match.span(1)
        if (
            7 <= _digits(match.group(1)) <= 15
            and not _before_number(scan, start)
            and not _DATE.match(match.group(1))
        ):
            yield Span(start, end, Label.PHONE, "named number")


def _named(scan: Scan, match: Found) -> Span | None:
    text = scan.text
    start, end = _fitted(text, *match.span(1))
    word = _WORD_BEFORE.search(text, max(0, start - 64, match.start()), start)
    if word is None:
        return None
    if (
        scan.joined_before(word.start(), ALNUM)
        and not text[word.start() : word.start() + 1].isupper()
    ):
        return None
    number, between = text[start:end], text[word.start() : start]
    if _counted(number) or _SUM.match(text, end) or text[word.start() - 1 : word.start()] == b"`":
        return None
    if b"  " in number:
        number = number.partition(b"  ")[0]
        end = start + len(number)
    count = _digits(number)
    if (
        not 4 <= count <= 16
        or _DATE.match(number)
        or _after_number(scan, end)
        or (b" - " in number and count < 9)
    ):
        return None
    if text[start - 1 : start] in b"-.$#" or text[start - 1 : start].isalpha():
        return None
    if b"[" in between and not _goes_along(between, number, count):
        return None
    least = 4 if _SHORT.search(between) else 7
    if count < least or (count < 7 and number[:2] in (b"19", b"20") and count == 4):
        return None
    if (
        not _SHORT.search(between)
        and len(number) == count
        and count < 9
        and not number.startswith(b"0")
    ):
        return None
    if end == match.end(1):
        end = match.end()  # with its extension
    return Span(start, end, Label.PHONE, "named number")


def _is_term(text: bytes, start: int, end: int) -> bool:
    """True for what is added in a formula: `3306971 + 2999007604624*I`."""
    if text[end : end + 1] == b"*":
        return True
    return (
        text[start - 1 : start] == b" "
        and text[start : start + 2] == b"+ "
        and (text[start - 2 : start - 1] in b"0123456789)]I")
    )


def _counted(number: bytes) -> bool:
    """True for a sum or a row of counts: `742 / 106`, `2 3 4 5 6 7`."""
    groups = re.findall(rb"\d+", number)
    if b" / " in number or number in b"01234567890":
        return True
    return sum(len(group) == 1 for group in groups) >= 4


def _goes_along(between: bytes, number: bytes, count: int) -> bool:
    """False for a bare count or a time after a number that was replaced already.

    `tel [PHONE] or 030 1234567` goes on, `tel [PHONE], 1700000000` does not.
    """
    return b"[PHONE]" not in between or len(number) > count or number.startswith((b"0", b"+"))


def _fitted(text: bytes, start: int, end: int) -> tuple[int, int]:
    """Without the punctuation after it."""
    while end > start and text[end - 1] in b" .-/(\xa0\xc2":
        end -= 1
    opened = text[start:end].rfind(b"(")
    if opened > 0 and b")" not in text[start + opened : end]:
        return _fitted(text, start, start + opened)
    if text[start : start + 1] == b"(" and b")" not in text[start:end]:
        start += 1
    return start, end


def _before_number(scan: Scan, start: int) -> bool:
    """True if a word or a longer number goes on before `start`."""
    text = scan.text
    if scan.joined_before(start) or text[start - 1 : start] == b"+":
        return True
    return text[start - 1 : start] in (b".", b"-", b"/") and start > 1 and text[start - 2] in WORD


def _after_number(scan: Scan, end: int) -> bool:
    text = scan.text
    if scan.joined_after(end):
        return True
    return text[end : end + 1] in (b"-", b".", b"/", b":") and text[end + 1 : end + 2].isdigit()


def _spaced(number: bytes) -> bool:
    return re.search(rb"\d[ ./()-]{1,3}\d+[ ./()-]{1,3}\d", number) is not None


def _digits(number: bytes) -> int:
    return sum(48 <= byte <= 57 for byte in number)


@lru_cache(maxsize=4096)
def _is_possible(digits: bytes, *, exact: bool) -> bool:
    """True if some country has numbers of this length behind this code."""
    if not 7 <= len(digits) <= 17 or len(set(digits)) < 3:
        return False
    if not exact:
        return True
    import phonenumbers  # two thirds of a second, and most texts hold no number

    try:
        number = phonenumbers.parse("+" + digits.decode("ascii"))
    except phonenumbers.NumberParseException:
        return False
    return bool(phonenumbers.is_possible_number(number)) or bool(
        8 <= len(digits) <= 16 and number.country_code and digits[2:3] == b"0"
    )
