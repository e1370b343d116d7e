"""Long unbroken runs of letters and digits: hexadecimal secrets, keys of the common form, base64.

One scan finds them all; most of what ordinary text has of them, hashes and long names, is told
apart by a few comparisons.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from . import hexes
from .drawn import entropy, exemplary, is_drawn, mixed, switches
from .scan import RANK, WORD, Label, Scan, Span, compiled

DEPTH_MAX: Final = 3  # of base64 in base64
_PRINTABLE: Final = bytes(range(32, 127)) + b"\t\n\r"
# The first digit of four stands for the first six bits of three bytes: those that text begins with.
_FIRST: Final = b"CDIJKLMNOPQRSTUVWXYZabcdefwxyz0123456789"
_RUN = compiled(r"[A-Za-z0-9+/]{20,}")
_WRAPPED = re.compile(
    rb"(?:[A-Za-z0-9+/]{40,80}(?:\r?\n|\\n))+[A-Za-z0-9+/]{1,80}(?![A-Za-z0-9+/])"
)
_HEXADECIMAL = re.compile(rb"[0-9A-Fa-f]{40,}")
# A short word, a mark, and twenty letters and digits in no order: what most issuers have agreed on.
_PREFIX = WORD | {45}
_NO_KEY = re.compile(
    rb"(?i)^(?:sha\d*|md5|blake\w*|crc\d*|uuid|guid|id|img|image|build|commit|rev|chunk|hash"
    rb"|data|asset|css|js|v\d+|x86|i\d86|amd64|arm64|win\d*|utf\d*|base\d*|index|main"
    rb"|vendor|runtime|h1|git|integrity|refs?)(?:[_-]|$)"
)
_SERVICE = compiled(
    r"(?i)(?:"
    r"adafruit|adobe|airtable|algolia|alibaba|amplitude|asana|atlassian|auth0|azure"
    r"|beamer|bitbucket|bitly|bittrex|braintree|brevo|bugsnag|buildkite|circleci"
    r"|clickup|cloudflare|cloudinary|cockroach|codecov|coinbase|confluent|consul"
    r"|contentful|databricks|datadog|deepl|digitalocean|discord|docusign|drone ?ci|dropbox"
    r"|duffel|dynatrace|easypost|elastic|etsy|facebook|fastly|figma|finicity|finnhub"
    r"|firebase|flickr|flutterwave|freshbooks|freshdesk|gitea|github|gitlab|gitter"
    r"|gocardless|grafana|harness|heroku|honeycomb|hubspot|huggingface|infura|intercom"
    r"|jenkins|jfrog|artifactory|jira|kraken|kucoin|launchdarkly|linear|linkedin|lob|looker"
    r"|mailchimp|mailgun|mailjet|mandrill|mapbox|mattermost|maxmind|messagebird"
    r"|microsoft_?teams|mixpanel|mongodb|netlify|new[_ -]?relic|ngrok|notion|npm"
    r"|nytimes|okta|onelogin|openai|opsgenie"
    r"|pagerduty|paypal|pinecone|plaid|planetscale|postman|privateai|pulumi|pusher"
    r"|quickbooks|rapidapi|razorpay|readme|revenuecat|rollbar|salesforce|sauce ?labs"
    r"|segment|sendbird|sendgrid"
    r"|sendinblue|sentry|shippo|shodan|shopify|sidekiq|slack|snyk|sonar\w{0,4}|spotify"
    r"|square(?:space)?|stripe|sumo(?:logic)?|supabase|surge|tailscale|telegram"
    r"|terraform|travis|trello|twilio|twitch"
    r"|twitter|typeform|unsplash|vercel|virustotal|wakatime|weather(?:api)?|webex"
    r"|wordpress|yandex|youtube|zapier|zendesk|zoom"
    r")[\w.-]{0,24}\\{0,2}[\"'`]?[\])]?\s{0,3}(?:=>|:=|[:=])\s{0,3}\\{0,2}[\"'`]?$"
)


_ASSIGNS = (b"=", b":", b'"', b"'", b"`", b" ")


def find(
    scan: Scan, rules: Callable[[Scan], Iterable[Span]], depth: int = DEPTH_MAX
) -> Iterator[Span]:
    """Yield the runs that are secrets, and those in whose text the rules find something."""
    text, done = scan.text, 0
    for match in scan.matches(_RUN):
        start, end = match.span()
        run = match.group()
        if end - start >= 40:
            if _HEXADECIMAL.fullmatch(run):
                if hexes.is_secret(text, start, end):
                    yield Span(start, end, Label.API_KEY, "long run of hexadecimal digits")
                continue
            for found in _HEXADECIMAL.finditer(run):
                first, last = start + found.start(), start + found.end()
                if hexes.is_secret(text, first, last):
                    yield Span(first, last, Label.API_KEY, "long run of hexadecimal digits")
        if run[:2] == b"0x" and 62 <= end - start <= 70 and is_drawn(run):
            yield Span(start, end, Label.API_KEY, "number as long as a key")
        elif text[start - 1 : start] in (b"_", b"-") and (span := _prefixed(scan, start, end)):
            yield span
        elif (
            end - start <= 64 and text[start - 1 : start] in _ASSIGNS and _serves(text, start, run)
        ):
            yield Span(start, end, Label.API_KEY, "value of a service's name")
        if start < done:
            continue
        if (
            end - start >= 40
            and text[end : end + 1] in b"\r\n\\"
            and (whole := _WRAPPED.match(text, start))
        ):
            done = end = whole.end()
        if span := _encoded(scan, start, end, rules, depth):
            yield span


def _serves(text: bytes, start: int, run: bytes) -> bool:
    """True for a drawn value after the name of a service: `twilio = "…"`."""
    if _HEXADECIMAL.match(run) or not is_drawn(run):
        return False
    return _SERVICE.search(text[max(0, start - 64) : start]) is not None


def _prefixed(scan: Scan, start: int, end: int) -> Span | None:
    text, body = scan.text, scan.text[start : min(end, start + 256)]
    if not mixed(body) and not (len(body) >= 24 and switches(body) >= 6):
        return None
    if switches(body) < 3 or entropy(body) < 3.4 or b"/" in body or b"+" in body:
        return None
    first = scan.back(start - 1, _PREFIX, 24)
    if first == start - 1 or _NO_KEY.match(text[first:start]) or exemplary(body):
        return None
    word = scan.back(start, WORD, 200)
    if text[word : word + 2] == b"_Z":
        return None  # a mangled name of C++
    if text[first - 1 : first] in (b"/", b".", b"=", b"+") or text[end : end + 1] in (b"/", b"."):
        return None
    return Span(first, end, Label.API_KEY, "form of a key with a prefix")


def _encoded(
    scan: Scan, start: int, end: int, rules: Callable[[Scan], Iterable[Span]], depth: int
) -> Span | None:
    hidden = _decoded(scan.text[start:end])
    if hidden is None:
        return None
    inner = scan.within(hidden)
    spans = list(rules(inner))
    if depth > 1:
        spans += find(inner, rules, depth - 1)
    if not spans:
        return None
    first = min(spans, key=lambda span: RANK[span.label])
    while scan.text[end : end + 1] == b"=":
        end += 1
    return Span(start, end, first.label, f"base64 of: {first.reason}")


def _decoded(run: bytes) -> bytes | None:
    """The text in a run, or None if it is none."""
    if run[:24:4].translate(None, _FIRST):
        return None  # the common case: a hash or a name
    if b"\n" in run or b"\\" in run:
        run = run.replace(b"\\n", b"").replace(b"\r", b"").replace(b"\n", b"")
    if len(run) % 4 == 1:
        run = run[:-1]
    try:
        text = binascii.a2b_base64(run + b"=" * (-len(run) % 4))
    except binascii.Error:
        return None
    if text.isascii():
        return text if not text.translate(None, _PRINTABLE) else None
    try:
        readable = text.decode()
    except UnicodeDecodeError:
        return None
    return text if readable.replace("\n", "").isprintable() else None
