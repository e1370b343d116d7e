"""Numbers with a known structure: IPv4 addresses, payment cards, social security numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from .scan import WORD, Label, Scan, Span, compiled

_IPV4 = compiled(r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}(?:/\d{1,2})?")
_VERSION_BEFORE = compiled(
    r"(?i)(?:\bv|(?:versions?|\bver\.?|\brev\.?)[\s:=\"'(]*|\b(?:release|build"
    r"|upgrade[sd]?|firmware|chrome|oid|section|table|figure|chapter|clause|fig\.|sec\.)[ /]"
    r"|[=~<>^]= ?|[\^~]|(?:chrome|safari|firefox|edg|edge|opera|version|webkit)/|@)$"
)
_CARD = compiled(
    r"\d{4}[ .\n/_-]\d{4}[ .\n/_-]\d{4}[ .\n/_-]\d{1,7}|\d{4}[ .\n/_-]\d{6}[ .\n/_-]\d{4,5}"
    r"|\d{4}  \d{4}  \d{4}  \d{4}|\b[2-689]\d{11,18}|\b0\d{11}\b|\b1\d{14}\b"
    r"|\d{4}\r\n\d{4}\r\n\d{4}\r\n\d{4}|\d{8}[ .-]\d{8}|\d{6}[ .-]\d{10,13}"
    r"|\d{4}[ -]\d{5}[ -]\d{6}|\d{4}(?:[ /_-]{3}\d{4}){3}"
)
_CARD_WORD = compiled(
    r"(?i)card|\bcc\b|\bccn?\b|visa|master|amex|american express|maestro|discover|\bpan\b"
    r"|payment|debit|credit|karte|tarjeta|carte|carta|cart[a\xc3]"
    r"|\xd0\xba\xd0\xb0\xd1\x80\xd1\x82|\xe5\x8d\xa1|\xe3\x82\xab\xe3\x83\xbc\xe3\x83\x89"
)
_COUNTER_BEFORE = compiled(
    r"(?i)(?:seq(?:uence)?|size|offset|[pt]id|len(?:gth)?|count(?:er)?|ts|time(?:stamp)?"
    r"|crc|inode|ino|block|nonce|epoch|step|bytes|addr(?:ess)?|ptr|trace_?id|span_?id"
    r"|req(?:uest)?_?id|order|hash|version|build|index|row|rev|serial|uid|gid|nanos|ns|ms"
    r"|us|ticks?|seed|msg_?id|event_?id|user_?id|channel|guild|snowflake|tweet|status"
    r"|id)[\"']?\s?[=:#]\s?[\"']?$"
)
_SSN = compiled(r"\d{3}[ .-]\d{2}[ .-]\d{4}")
_SSN_WORD = (
    r"(?:ssn|ssid|social[ _-]?sec\w{0,10}|social|tax[ _-]?payer[ _-]?id\w*|itin|tax[ _-]?id"
    r"|\btin|s\.s\.n\.?|soc\.? sec\.?)"
)
_SSN_NAMED = compiled(
    r"(?i)" + _SSN_WORD + r"[^\d\n]{0,40}(\d{3}[ ./_-]{0,3}\d{2}[ ./_-]{0,3}\d{4})"
)
_SSN_BEFORE = compiled(r"(?i)\b" + _SSN_WORD)


SHAPES: Final = (_IPV4, _CARD, _SSN, _SSN_NAMED)


def addresses(scan: Scan) -> Iterator[Span]:
    """Yield IPv4 addresses, with the length of a network; no version and no object identifier."""
    text = scan.text
    for match in scan.matches(_IPV4):
        start, end = match.span()
        quad, slash, length = match.group().partition(b"/")
        if slash and (int(length) > 32 or scan.joined_after(end)):
            end -= len(slash + length)  # `10.0.0.1/404.html`
        if not _is_quad(quad) or _goes_on(scan, start, start + len(quad)):
            continue
        if not _VERSION_BEFORE.search(text[max(0, start - 20) : start]):
            yield Span(start, end, Label.IP, "IPv4 address")


def _is_quad(quad: bytes) -> bool:
    parts = quad.split(b".")
    if not all(int(part) < 256 and not (part[:1] == b"0" and len(part) > 1) for part in parts):
        return False
    return parts[0] not in (b"127", b"0", b"255")  # this host, no host, all hosts, a mask


def _goes_on(scan: Scan, start: int, end: int) -> bool:
    """True if more digits and dots, or letters, make it another number."""
    text = scan.text
    if scan.joined_before(start):
        return True
    if text[start - 1 : start] == b"." and start > 1 and text[start - 2] in WORD:
        return True
    if scan.joined_after(end):
        return text[end : end + 1] != b"_"
    return text[end : end + 1] == b"." and text[end + 1 : end + 2].isdigit()


def cards(scan: Scan) -> Iterator[Span]:
    """Yield card numbers: an issuer's range, a length it has, and the check digit of Luhn."""
    text = scan.text
    for match in scan.matches(_CARD):
        start, end = match.span()
        before = text[start - 1 : start]
        if text[end - 1] == 46 or before == b"+" or scan.joined_before(start):
            continue
        if before in (b".", b"-") and text[start - 2 : start - 1].isdigit():
            continue
        end = _card_end(text, start, end)
        if (
            end == 0
            or scan.joined_after(end)
            or (text[end : end + 2].strip(b".-").isdigit() and text[end : end + 1] in b".-")
        ):
            continue
        digits = re.sub(rb"\D", b"", text[start:end])
        grouped = end - start > len(digits)
        if not _issued(digits, named=True, grouped=True):
            continue  # whatever stands before it
        named = _CARD_WORD.search(text[max(0, start - 48) : start]) is not None
        if not named and not grouped and _COUNTER_BEFORE.search(text[max(0, start - 24) : start]):
            continue
        if _issued(digits, named=named, grouped=grouped):
            yield Span(start, end, Label.CREDIT_CARD, "issuer's range and check digit")


def _card_end(text: bytes, start: int, end: int) -> int:
    """The end of the longest number from `start`, or 0: groups that follow are no part."""
    groups = [match.span() for match in re.finditer(rb"\d+", text[start:end])]
    for count in range(len(groups), 0, -1):
        last = groups[count - 1][1]
        digits = sum(b - a for a, b in groups[:count])
        if 12 <= digits <= 19 and _luhn(re.sub(rb"\D", b"", text[start : start + last])):
            return start + last
    return 0


def _issued(digits: bytes, *, named: bool, grouped: bool) -> bool:
    """True if an issuer's range begins so and has numbers of this length (ISO/IEC 7812)."""
    length, two, four = len(digits), int(digits[:2]), int(digits[:4])
    if len(set(digits)) == 1:
        return False
    match digits[:1]:
        case b"4":
            return length in (13, 16) or (length in (18, 19) and named)
        case b"3" if two in (34, 37):
            return length == 15
        case b"3" if two in (36, 38, 39) or 3000 <= four <= 3059 or four == 3095:
            return length == 14 or (named and 14 <= length <= 19)
        case b"3" if 3528 <= four <= 3589:
            return length == 16 or (named and length == 19)
        case b"2" if 2200 <= four <= 2204 or 2221 <= four <= 2720:
            return length == 16
        case b"5" if 51 <= two <= 55:
            return length == 16
        case b"6" if four == 6011 or 644 <= four // 10 <= 649 or two in (62, 65):
            return length == 16 or (length in (17, 18, 19) and (named or two == 62))
        case b"8" if two in (81, 82):
            return (length == 16 and grouped) or length == 19 or named
        case b"6" | b"5" if two in (50, 56, 57, 58, 60, 61, 63, 64, 66, 67, 68, 69):
            return named or (length == 16 and grouped)
        case b"9" if four == 9792:
            return length == 16
        case _:
            return named


def _luhn(digits: bytes) -> bool:
    odd = digits[-1::-2]
    even = digits[-2::-2]
    total = sum(odd) - 48 * len(odd)
    for digit in even:
        value = (digit - 48) * 2
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def security_numbers(scan: Scan) -> Iterator[Span]:
    """Yield numbers in dashes, and in any form where a word before says what they are."""
    text = scan.text
    for match in scan.matches(_SSN):
        start, end = match.span()
        dashes = text[start + 3 : start + 4] + text[start + 6 : start + 7]
        if dashes[0] != dashes[1] or not _is_given(match.group(), named=False):
            continue
        if dashes == b"  " and not _SSN_BEFORE.search(text[max(0, start - 48) : start]):
            continue
        if not _runs_on(scan, start, end):
            yield Span(start, end, Label.SSN, "form of a security number")
    for match in scan.matches(_SSN_NAMED):
        start, end = match.span(1)
        named = not scan.joined_before(match.start(), WORD - {95})
        if named and not _runs_on(scan, start, end) and _is_given(match.group(1), named=True):
            yield Span(start, end, Label.SSN, "named security number")


def _runs_on(scan: Scan, start: int, end: int) -> bool:
    text = scan.text
    if scan.joined(start, end):
        return True
    before, after = text[start - 1 : start], text[end : end + 2]
    if before in (b"-", b".") and start > 1 and text[start - 2] in WORD:
        return True
    return after[:1] in (b"-", b".") and after[1:].isalnum()


def _is_given(number: bytes, *, named: bool) -> bool:
    """The areas 000, 666 and 900-999, the group 00 and the serial 0000 were never given out.

    Areas from 900 are those of taxpayers without a security number, where a word says so.
    """
    digits = re.sub(rb"\D", b"", number)
    area, group, serial = digits[:3], digits[3:5], digits[5:]
    given = area not in (b"000", b"666") and (area < b"900" or named)
    return given and group != b"00" and serial != b"0000" and len(set(digits)) > 1
