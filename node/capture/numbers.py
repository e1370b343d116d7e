"""What a run of digits may be: an address, a card, a social security number, a telephone number.

The scan of `scrubber.py` finds runs; this judges one. It works on a window of bounded size with
the standard library's regular expressions, because these rules need to look around; every pattern
here has bounded repetition, so a hostile run costs time in proportion to its length.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from enum import StrEnum

CONTEXT = 48  # bytes before a run in which a word can say what it is
AFTER = 16  # bytes after it: an extension, or what shows that it goes on


class Label(StrEnum):
    """What a span holds; the value is the specification's placeholder without its brackets."""

    PRIVATE_KEY = "PRIVATE_KEY"
    REDACTED_URL = "REDACTED_URL"
    AWS_KEY = "AWS_KEY"
    API_KEY = "API_KEY"
    EMAIL = "EMAIL"
    CREDIT_CARD = "CREDIT_CARD"
    SSN = "SSN"
    PHONE = "PHONE"
    IP = "IP"
    FILE_PATH = "FILE_PATH"


Span = tuple[int, int, Label]

_IPV4 = re.compile(rb"(?<![\w.])((?:\d{1,3}\.){3}\d{1,3})(?:/\d{1,2})?(?!\w|\.\d)")
_VERSION_BEFORE = re.compile(
    rb"(?i)(?:\bv|(?:versions?|\bver\.?)[\s:=\"'(]*|\b(?:release|build|upgrade[sd]?) "
    rb"|[=~<>^]= ?|[\^~])$"
)
_SSN = re.compile(rb"(?<![\w.-])(\d{3})([- .])(\d{2})\2(\d{4})(?!\w|[-.]\d)")
_SSN_BARE = re.compile(rb"(?<![\w.-])(\d{3})()(\d{2})(\d{4})(?!\w|[-.]\d)")
_SSN_WORD = re.compile(rb"(?i)\bssn|social[ _-]?sec|\bsocial\b|tax.?payer|\bitin\b")
_CARD = re.compile(rb"(?<![\w.-])\d(?:[ -]?\d){11,18}(?!\w|[-.]\d)")
_CARD_WORD = re.compile(rb"(?i)card|\bcc\b|visa|master|amex|maestro|\bpan\b")
_INTERNATIONAL = re.compile(
    rb"(?<![\w+])(?:\+ ?|00(?=[1-9]))\(?[1-9]\d{0,3}\)?(?:[ .\-/]{0,2}\(?\d{1,5}\)?){1,7}"
)
_AMERICAN = re.compile(
    rb"(?<![\w.+/-])(?:\+?1[ .-]?)?(?:\([2-9]\d\d\) ?|[2-9]\d\d([ .-]))[2-9]\d\d[ .-]\d{4}"
    rb"(?: ?(?:x|ext\.? ?|# ?)\d{1,6})?(?!\w|[-.]\d)"
)
_NATIONAL = re.compile(
    rb"(?<![\w.+-])\(?\d{1,5}\)?(?:[ .\-/]{0,2}\(?\d{1,5}\)?){1,6}(?: ?(?:x|ext\.? ?)\d{1,6})?"
    rb"(?!\w|[-.]\d)"
)
_PHONE_WORD = re.compile(
    rb"(?i)phone|\btel\b|telefon|mobile|\bcell|\bfax\b|\bcall|whatsapp|\bsms\b|\bdial|contact"
    rb"|\bdesk\b|\bring\b|messages? (?:to|from)|\btext\b|answering|\breach\b|number (?:is|was)\b"
)
_PHONE_AFTER = re.compile(rb"(?i)^[ ,-]{0,2}\(?(?:office|fax|mobile|cell|desk|home|phone|work)\b")
_DATE = re.compile(
    rb"(?:19|20)\d\d([-./ ])\d{1,2}\1\d{1,2}(?!\d)|\d{1,2}([-./])\d{1,2}\2(?:19|20)\d\d"
)


def judge(text: bytes, start: int, end: int) -> Iterator[Span]:
    """Yield what stands in the run text[start:end]; spans may overlap and may end beyond it."""
    low = max(0, start - CONTEXT)
    window = text[low : end + AFTER]
    before = text[low:start]
    first, last = start - low, end - low
    for found_start, found_end, label in (
        *_addresses(window, first),
        *_cards(window, first, before),
        *_security_numbers(window, first, before),
        *_phones(window, first, last, before),
    ):
        if found_start < last:
            yield found_start + low, found_end + low, label


def _addresses(window: bytes, first: int) -> Iterator[Span]:
    for match in _IPV4.finditer(window, first):
        before = window[max(0, match.start() - 16) : match.start()]
        if is_address(match[1]) and not _VERSION_BEFORE.search(before):
            yield *match.span(), Label.IP


def is_address(candidate: bytes) -> bool:
    """True if the bytes are an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(candidate.decode("ascii"))
    except ValueError:
        return False
    return True


def _security_numbers(window: bytes, first: int, before: bytes) -> Iterator[Span]:
    named = _SSN_WORD.search(before) is not None
    for match in _SSN.finditer(window, first):
        if _is_security_number(match) and (named or match[2] == b"-"):
            yield *match.span(), Label.SSN
    if named:
        for match in _SSN_BARE.finditer(window, first):
            if _is_security_number(match):
                yield *match.span(), Label.SSN


def _is_security_number(match: re.Match[bytes]) -> bool:
    """The areas 000, 666 and 900-999, the group 00 and the serial 0000 were never given out."""
    area, group, serial = match[1], match[3], match[4]
    given = area not in (b"000", b"666") and area < b"900"
    return given and group != b"00" and serial != b"0000"


def _cards(window: bytes, first: int, before: bytes) -> Iterator[Span]:
    named = _CARD_WORD.search(before) is not None
    position = first
    while match := _CARD.search(window, position):
        end = _card_end(match.group(), named)
        if end:
            yield match.start(), match.start() + end, Label.CREDIT_CARD
        # Try again from the next group: "12345 4111 1111 1111 1111" holds one card.
        gap = re.search(rb"[ -]", match.group())
        position = match.start() + (end or (gap.end() if gap else len(match.group())))
    if position == first and not named:
        return
    # A card followed by more digits ("… 05/27") is longer than any card: take whole groups only.
    for match in re.finditer(rb"(?<![\w.-])\d{4}(?:[ -]\d{4}){3}(?!\w)", window[first:]):
        if _card_end(match.group(), named):
            yield match.start() + first, match.end() + first, Label.CREDIT_CARD


def _card_end(candidate: bytes, named: bool) -> int:
    """Length of the card number at the start of `candidate`, or 0 if there is none."""
    groups = re.findall(rb"\d+", candidate)
    separators = set(re.findall(rb"[ -]", candidate))
    for count in range(len(groups), 0, -1):
        taken = groups[:count]
        if count > 1 and (len(taken[0]) != 4 or len(separators) > 1 or max(map(len, taken)) > 6):
            continue
        digits = b"".join(taken)
        if _issued(digits, named) and _luhn(digits):
            return len(digits) + count - 1
    return 0


def _issued(digits: bytes, named: bool) -> bool:
    """True if an issuer's range begins so and has numbers of this length (ISO/IEC 7812)."""
    two, length = int(digits[:2]), len(digits)
    if len(set(digits)) == 1:
        return False
    match digits[:1]:
        case b"4":
            return length in (13, 16, 18, 19)
        case b"3" if two in (34, 37):
            return length == 15
        case b"3":
            return two in (30, 35, 36, 38, 39) and length in (14, 16, 19)
        case b"2" if 22 <= two <= 27:
            return length == 16
        case b"5" if 51 <= two <= 55:
            return length == 16
        case b"6" if length >= 16:
            return True
        case b"5" | b"6" | b"8":
            return named
        case _:
            return named and length == 15 and digits[:4] in (b"1800", b"2131")


def _luhn(digits: bytes) -> bool:
    total = 0
    for index, digit in enumerate(reversed(digits)):
        value = digit - 48
        if index % 2:
            value = value * 2 - 9 if value > 4 else value * 2
        total += value
    return total % 10 == 0


def _phones(window: bytes, first: int, last: int, before: bytes) -> Iterator[Span]:
    named = _PHONE_WORD.search(before) is not None or _PHONE_AFTER.search(window[last:]) is not None
    for match in _INTERNATIONAL.finditer(window, first):
        signed = match.group().startswith(b"+")
        if 8 <= _digits(match.group()) <= 16 and (signed or named):
            yield *_trimmed(match), Label.PHONE
    for match in _AMERICAN.finditer(window, first):
        yield *match.span(), Label.PHONE
    if named:
        for match in _NATIONAL.finditer(window, first):
            if 7 <= _digits(match.group()) <= 17 and not _DATE.match(match.group()):
                yield *_trimmed(match), Label.PHONE


def _trimmed(match: re.Match[bytes]) -> tuple[int, int]:
    return match.start(), match.start() + len(match.group().rstrip(b" .-/("))


def _digits(text: bytes) -> int:
    return sum(48 <= byte <= 57 for byte in text)
