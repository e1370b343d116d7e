"""URLs that let their holder in: a password before the host, a token after the question mark."""

from __future__ import annotations

import re
from collections.abc import Iterator

from .drawn import stands_in
from .scan import Label, Scan, Span, any_of, compiled

BYTES_MAX = 4096  # what is longer is cut there, and its tail scanned as text
_SCHEME = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+.-")
_START = rb"[^\s\"'<>`\\^{}|]"
_REST = re.compile(rb"(?:\\/|\\u0026|" + _START + rb"|\{[\w.-]{0,40}\})+")

_USERINFO = compiled(
    r"://[^\s/?#\"'<>@`]{0,256}[:][^\s/?#\"'<>`]{0,256}@|://[^\s/?#\"'<>@`:]{20,512}@"
)
_CREDENTIALS = re.compile(rb"://([^\s/?#\"'<>`@:]*)(?::([^\s?#\"'<>`]*))?@")
_NAMES = (
    r"[\w.%\[\]-]{0,24}(?:token|secret|passw|passwd|pwd|api_?-?key|apikey|auth|signature"
    r"|credential|jwt|session|sess_?id"
    r"|access_?key|otp|webhook|invite|magic|passcode|password|subscription-key"
    r"|private)[\w\]-]{0,24}"
    r"|(?:[\w.-]{0,24}[_.-])?(?:key|sig|sign|code|sid|hash|ticket|pass|hmac|pin|st|tk|tok"
    r"|k|auth|state|nonce|verify|reset|confirm)"
)
_PARAMETER = compiled(
    r"(?i)(?:[?&#;]|&amp;|%26|%3F|\\u0026)(?:" + _NAMES + r")(?:=|%3D)([^&#\s\"'<>`;\\]{4,})"
)
_WEAK = re.compile(
    rb"(?i)[?&#;](?:[\w.-]*[_.-])?(?:key|hash|code|pin|st|tk|k|state|nonce|sign|pass|verify"
    rb"|confirm|reset|sid)="
)
_WORDS = re.compile(rb"[A-Z]+(?:_[A-Z]+)*|[a-z]{1,12}(?:[_-][a-z]{1,12})*")
_PATHS = compiled(
    r"(?i)(?:hooks\.slack(?:-gov)?\.com/(?:services|workflows|triggers)/\w"
    r"|discord(?:app)?\.com/api/(?:v\d+/)?webhooks/\d|api\.telegram\.org/(?:file/)?bot\d"
    r"|webhook\.office\.com/webhook|hooks\.zapier\.com/hooks/|chat\.googleapis\.com/v1/spaces/"
    r"|hook\.(?:[a-z0-9]+\.)?make\.com/\w|hooks\.airtable\.com/|maker\.ifttt\.com/trigger/"
    r"|ingest\.sentry\.io/|open\.(?:feishu|larksuite)\.(?:cn|com)/open-apis/bot|logic\.azure\.com"
    r"|oapi\.dingtalk\.com/robot/send|qyapi\.weixin\.qq\.com/cgi-bin/webhook"
    r"|/(?:invite|reset|verify|confirm|unsubscribe|magic|activate|share|recover"
    r"|password[_-]?reset|reset[_-]?password|secret|token|private|auth|login|join"
    r"|s)/[A-Za-z0-9_.~-]{20,})"
)


_ANY = any_of(_USERINFO, _PARAMETER, _PATHS)


def find(scan: Scan) -> Iterator[Span]:
    """Yield every URL with something in it that opens; once each, in no order between kinds."""
    if b"://" not in scan.text and b":\\/\\/" not in scan.text:
        return
    if scan.has(_ANY):
        yield from _with_userinfo(scan)
        yield from _with_parameter(scan)
        yield from _with_path(scan)


def _whole(text: bytes, at: int) -> tuple[int, int] | None:
    """The URL around `at`, or None if there is none."""
    low = max(0, at - BYTES_MAX)
    slashes = max(text.rfind(b"://", low, at + 3), text.rfind(b":\\/\\/", low, at + 5))
    if slashes < 0:
        return None
    start = slashes
    floor = max(0, slashes - 32)
    while start > floor and text[start - 1] in _SCHEME:
        start -= 1
    while start < slashes and not 65 <= text[start] <= 122:
        start += 1
    rest = _REST.match(text, slashes + 1, slashes + BYTES_MAX)
    if start == slashes or rest is None or rest.end() < at:
        return None
    return start, _trimmed(text, slashes, rest.end())


def _trimmed(text: bytes, slashes: int, end: int) -> int:
    """Without the punctuation of the sentence that the URL stands in."""
    while end > slashes + 3 and text[end - 1] in b".,:;!?*)]\\":
        if text[end - 1 : end] == b")" and b"(" in text[slashes:end]:
            break
        end -= 1
    return end


def _with_userinfo(scan: Scan) -> Iterator[Span]:
    text, done = scan.text, 0
    for match in scan.matches(_USERINFO):
        at = match.start()
        if at < done:
            continue
        given = _CREDENTIALS.match(text, at, match.end())
        if given is None or not _lets_in(given[1], given[2]):
            continue
        if whole := _around(text, at, match.end()):
            done = whole[1]
            yield Span(*whole, Label.REDACTED_URL, "password in a URL")


def _around(text: bytes, at: int, least: int) -> tuple[int, int] | None:
    whole = _whole(text, at)
    if whole is not None:
        return whole[0], max(whole[1], least)
    return None


def _lets_in(user: bytes, password: bytes | None) -> bool:
    if password is None:
        return len(user) >= 20 and sum(48 <= byte <= 57 for byte in user) >= 2
    return bool(password) and not stands_in(password) and password not in (b"pass", b"password")


def _with_parameter(scan: Scan) -> Iterator[Span]:
    text, done = scan.text, 0
    for match in scan.matches(_PARAMETER):
        start, end = match.span()
        if start < done:
            continue
        value = match.group(1)
        if (
            stands_in(value)
            or _WORDS.fullmatch(value)
            or (_WEAK.match(text, start) and not _telling(value))
        ):
            continue
        if whole := _whole(text, start):
            done = max(whole[1], start + 1)
            if whole[1] > start:
                yield Span(
                    whole[0],
                    max(whole[1], _trimmed(text, start, end)),
                    Label.REDACTED_URL,
                    "token in a URL",
                )


def _telling(value: bytes) -> bool:
    """True for the value of a parameter that as often holds a word or a page's name."""
    digits = sum(48 <= byte <= 57 for byte in value)
    return len(value) >= 6 and (digits >= 2 or len(value) >= 20)


def _with_path(scan: Scan) -> Iterator[Span]:
    done = 0
    for match in scan.matches(_PATHS):
        start, end = match.span()
        if start < done:
            continue
        last = match.group().rpartition(b"/")[2]
        if match.group().startswith(b"/") and not (
            len(last) >= 20 and sum(48 <= c <= 57 for c in last) >= 3
        ):
            continue
        if (whole := _whole(scan.text, start)) and whole[1] > end - 1:
            done = whole[1]
            yield Span(*whole, Label.REDACTED_URL, "secret path of a URL")
