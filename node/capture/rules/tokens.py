"""Keys that say by their first letters what they are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from .drawn import dull, entropy, exemplary, jumbled, mixed, switches
from .scan import ALNUM, WORD, Label, Scan, Span, compiled

# The opening of a key, a space, and what must follow at least. The openings are those that their
# issuers document; what follows is long enough that no word of prose matches.
_FORMS = r"""
(?:sk|pk|rk|ek|sess|pat|ak|uk|key|org)[_-](?:live|test|prod|proj|sandbox)[_-] [A-Za-z0-9_-]{12}
(?:sk|pk|rk|ek|sess|pat|ak)[_-](?:ant|or|svcacct|admin|api\d*|v\d)[_-] [A-Za-z0-9_-]{12}
(?:sk|pk|rk)[_-] [A-Za-z0-9_-]{16}
whsec_ [A-Za-z0-9+/=]{20}
(?:pi|seti|cs)_ (?:live_|test_)?[A-Za-z0-9]{14,40}_secret_[A-Za-z0-9]{8}
sq0[a-z]{3}- [A-Za-z0-9_-]{20}
EAA [A-Za-z0-9_-]{50}
shp(?:at|ss|ca|pa|ua|rt|tka)_ [0-9A-Za-z]{30}
shippo_(?:live|test)_ [0-9A-Fa-f]{30}
sm_[aps]at_ [A-Za-z0-9]{16}
[ps]at\. [A-Za-z0-9_-]{22}\.[A-Za-z0-9]{24}\.[A-Za-z0-9]{20}
FLW(?:SECK|PUBK)(?:_TEST)?- [A-Za-z0-9-]{12}
access_token\$(?:production|sandbox)\$ [0-9a-z]{16}\$[0-9a-f]{16}
rzp_(?:live|test)_ [A-Za-z0-9]{14}
duffel_(?:live|test)_ [A-Za-z0-9=_-]{30}
EZ[AT]K [A-Za-z0-9]{50}
AQE[a-z] [A-Za-z0-9+/]{60}
access-(?:sandbox|development|production)- [0-9a-f]{8}-[0-9a-f-]{12}
APP_USR- [0-9a-f-]{16}
gh[pousr]_ [A-Za-z0-9_]{20}
github_pat_ \w{20}
v1\. (?:[0-9a-f]{40}|0-[0-9a-f]{24}-)
gl[a-z]{2,6}- [A-Za-z0-9_.=-]{20}
GR1348941 [A-Za-z0-9_-]{20}
npm_ [A-Za-z0-9]{30}
pypi- [A-Za-z0-9_-]{40}
rubygems_ [0-9a-f]{40}
oy2 [a-z0-9]{43}
cio [A-Za-z0-9]{32}
CLOJARS_ [A-Za-z0-9]{40}
dckr_(?:pat|oat)_ [A-Za-z0-9_-]{20}
A[KR]CTD [A-Za-z0-9]{30}
AKCp [A-Za-z0-9]{40}
cmVmd [A-Za-z0-9]{59}
AT[AC]TT3 [A-Za-z0-9_=-]{50}
ATBB [A-Za-z0-9_=-]{24}
sq[pua]_ [0-9a-f]{38}
(?:sgp|sgo|slk)_ [A-Za-z0-9_]{30}
bk(?:ua|aj)_ [A-Za-z0-9._-]{30}
CCIPAT_ [A-Za-z0-9_]{25}
HRKU- [A-Za-z0-9_-]{30}
rnd_ [A-Za-z0-9]{24}
(?:vc[pirkl]|vercel_blob_rw)_ [A-Za-z0-9_]{24}
nfp_ [A-Za-z0-9_]{30}
fo1_ [A-Za-z0-9_-]{36}
fm[12][ar]?_ [A-Za-z0-9+/=_-]{50}
(?:ntn|secret)_ [A-Za-z0-9]{40}
b\.AAAAAQ [A-Za-z0-9_+/=-]{60}
dapi [0-9a-f]{32}
pul- [0-9a-f]{32}
tfp_ [A-Za-z0-9_-]{40}
AIza [A-Za-z0-9_-]{30}
ya29\. [A-Za-z0-9_-]{20}
1//0 [A-Za-z0-9_-]{30}
GOCSPX- [A-Za-z0-9_-]{20}
GOOG [A-Z0-9]{20}
AQ\.Ab [A-Za-z0-9_-]{30}
do[opr]_v1_ [0-9a-f]{40}
LTAI [A-Za-z0-9]{16}
AKID [A-Za-z0-9]{28}
bce-v3/ALTAK- [A-Za-z0-9]{16}
(?:t1|ajet)\. [A-Za-z0-9_-]{5,}={0,2}\.[A-Za-z0-9_-]{80}
AQVN [A-Za-z0-9_-]{30}
YC [A-Za-z0-9_-]{38}
cf[a-z]{1,2}t_ [A-Za-z0-9]{30}
SCW [A-Z0-9]{17}
hcloud_ [A-Za-z0-9]{40}
nvapi- [A-Za-z0-9_-]{30}
ABSK [A-Za-z0-9+/=]{60}
SK [0-9A-Fa-f]{32}
bedrock-api-key- [A-Za-z0-9+/=]{20}
hv[sbr]\. [A-Za-z0-9_-]{20}
(?:AGE-SECRET-KEY-|age-secret-key-)1 [0-9A-Za-z]{40}
dp\.(?:pt|st|ct|sa|scim|audit)\. [A-Za-z0-9_.-]{30}
ops_eyJ [A-Za-z0-9+/=]{40}
A3- [A-Z0-9]{6}-[A-Z0-9]{5,11}-[A-Z0-9]{5}
akp_ [A-Za-z0-9]{24}
tskey-[a-z]{1,20}- [A-Za-z0-9-]{10}
xox[a-z]- [A-Za-z0-9-]{10}
xapp-\d- [A-Za-z0-9-]{10}
xoxe\.xox[bp]-\d- [A-Za-z0-9-]{20}
SG\. [A-Za-z0-9_-]{16}
(?:pub)?key- [0-9a-f]{32}
x(?:keys|smtps)ib- [0-9a-f]{40}
(?:S[KA]|AC) [0-9a-f]{32}
mfa\. [A-Za-z0-9_-]{80}
PMA[KT]- [A-Za-z0-9-]{20}
mlsn\. [0-9a-f]{40}
hf_ [A-Za-z0-9]{30}
api_org_ [A-Za-z0-9]{30}
gsk_ [A-Za-z0-9]{30}
r8_ [A-Za-z0-9]{30}
pplx- [A-Za-z0-9]{30}
xai- [A-Za-z0-9]{40}
tvly- [A-Za-z0-9-]{20}
jina_ [A-Za-z0-9_]{30}
pcsk_ [A-Za-z0-9_]{30}
fw_ [A-Za-z0-9]{20}
tgp_v1_ [A-Za-z0-9_-]{30}
csk- [a-z0-9]{30}
lsv2_(?:pt|sk)_ [0-9a-f]{24}
(?:ant|anthropic|openai|mistral|cohere|together|groq|deepseek|replicate)[_-] [A-Za-z0-9_-]{32}
glc_ [A-Za-z0-9+/=]{30}
glsa_ [A-Za-z0-9]{30}
lin_(?:api|oauth|wh)_ [A-Za-z0-9]{30}
figdr?_ [A-Za-z0-9_-]{30}
sntry[a-z]_ [A-Za-z0-9+/=_-]{30}
ph[cxs]_ [A-Za-z0-9]{30}
dt0[a-z]\d\d\. [A-Za-z0-9]{20}
NR(?:AK|JS|II|AA|AL|BR|SP|IQ)- [A-Za-z0-9-]{15}
pscale_(?:tkn|pw|oauth)_ [A-Za-z0-9_.=-]{30}
[ps]k\.eyJ [A-Za-z0-9._-]{40}
sbp_ [0-9a-f]{40}
sb_(?:secret|publishable)_ [A-Za-z0-9_-]{20}
napi_ [a-z0-9]{40}
CFPAT- [A-Za-z0-9_-]{40}
pat-(?:na|eu)\d- [0-9a-f-]{30}
pnu_ [A-Za-z0-9]{36}
p8e- [A-Za-z0-9]{32}
(?:sdk|mob|api)- [0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}
zpka_ [A-Za-z0-9_]{30}
waka_ [0-9a-f-]{30}
ory_[a-z]{2}_ [A-Za-z0-9_-]{30}
amzn\.mws\. [0-9a-f-]{30}
amzn1\.(?:oa2-cs|application-oa2-client)\. [a-z0-9.]{32}
Atza\| [A-Za-z0-9_+/=-]{30}
sl\. (?:u\.)?[A-Za-z0-9_=-]{80}
fio-u- [A-Za-z0-9_=-]{40}
eyJ (?:hbGci|0eXAi|raWQi|lbmMi|jdHki|4NXQ)[A-Za-z0-9_-]{10}
eyJ [A-Za-z0-9_-]{8,160}\.(?:eyJ|[A-Za-z0-9_-]{24})
v[234]\.(?:local|public)\. [A-Za-z0-9_-]{40}
"""
# Forms that begin with anything and have their mark inside; the mark is looked for first.
_INNER = (
    (b".atlasv1.", compiled(r"[A-Za-z0-9]{14}\.atlasv1\.[A-Za-z0-9_=-]{50,80}")),
    (b".apps.googleu", compiled(r"\d{8,14}-[a-z0-9]{32}\.apps\.googleusercontent\.com")),
    (b":AA", compiled(r"\d{8,10}:AA[A-Za-z0-9_-]{33}")),
    (b"NRAL", compiled(r"[0-9a-f]{36}NRAL")),
    (b"Q~", compiled(r"[A-Za-z0-9_~.-]{3}\dQ~[A-Za-z0-9_~.-]{31,34}")),
    (b"pat", compiled(r"pat[A-Za-z0-9]{14}\.[0-9a-f]{64}")),
    (b"re_", compiled(r"re_[A-Za-z0-9]{8}_[A-Za-z0-9]{16,32}")),
    (b":", compiled(r"1/\d{16}:[0-9a-f]{32}")),
    (b".", compiled(r"st?\.[0-9A-Za-z]{24}(?:\.[0-9a-f]{20,64})?")),
)
_CENTRE = compiled(r"-us\d{1,2}")  # after 32 hexadecimal digits; to count those first is slow
_HEXADECIMAL = re.compile(rb"[0-9a-f]{32}")
_MARK = compiled(
    r"\.atlasv1\.|\.apps\.googleusercontent\.com|:AA[A-Za-z0-9_-]{20}|[0-9a-f]-us\d|[0-9a-f]NRAL"
    r"|\dQ~|\.[A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{27}|pat[A-Za-z0-9]{14}\.|1/\d{16}:[0-9a-f]|re_[A-Za-z0-9]{8}_|st?\.[0-9A-Za-z]{24}"
)
_DOTTED = compiled(r"\.[A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{27}")
_PREFIX = WORD | {45}
_DOTTED_REST = re.compile(rb"[A-Za-z0-9_-]*")
_PAIRS = [form.split(" ") for form in _FORMS.split("\n") if form]
_OPENING = compiled(r"(" + "|".join(opening for opening, _ in _PAIRS) + r")[A-Za-z0-9_.=+/|$-]{10}")
_KNOWN = compiled("|".join(opening + rest for opening, rest in _PAIRS))
_FORM_BYTES_MAX = 256
_JUDGED_BYTES = 160
_WEAK = re.compile(
    rb"(?i)(?:live|test|secret|ak|uk|fw|key|org|pat|ph[cxs]|re_|st\.|s\.|1//|YC|cio|v1\.|EAA|AC|oy2"
    rb"|openai|anthropic|mistral|cohere|together|groq|deepseek|replicate)"
)
_AWS = compiled(
    r"(?:A3T[A-Z0-9]|AKIA|ASIA|ABIA|ACCA|AROA|AIDA|AGPA|ANPA|ANVA|AIPA|APKA|ASCA)[A-Z0-9]{16}"
)
_AWS_NEAR = compiled(r"(?:A3T[A-Z0-9]|AKIA|ASIA)[A-Z0-9]{16}[^A-Za-z0-9/+]{1,3}([A-Za-z0-9/+]{40})")
_HEADER = compiled(
    r"(?i)(?:bearer|basic|token|apikey|negotiate|ntlm|ssws"
    r"|hmac)[ \t:]{1,3}[\"']?([A-Za-z0-9._~+/-]{12})"
)
_HEADER_REST = re.compile(rb"[A-Za-z0-9._~+/-]*=*")
_REST = re.compile(rb"[A-Za-z0-9_+/=-]*(?:[.|$~][A-Za-z0-9_=-]+)*")

SHAPES: Final = (_AWS, _HEADER, _MARK)


def find(scan: Scan) -> Iterator[Span]:
    """Yield every key with a known opening."""
    yield from _known(scan)


def seldom(scan: Scan) -> Iterator[Span]:
    """Yield every key of a form that is not told by its opening, and authorization headers."""
    yield from _aws(scan)
    yield from _headers(scan)
    yield from _marked(scan)


def _aws(scan: Scan) -> Iterator[Span]:
    text = scan.text
    for match in scan.matches(_AWS):
        if not scan.joined(*match.span()) and not dull(match.group()[4:]):
            yield scan.span(match, Label.AWS_KEY, "prefix of an AWS key")
    if b"KIA" in text or b"ASIA" in text:
        for match in scan.matches(_AWS_NEAR):
            if not scan.joined_after(match.end()):
                yield scan.span(match, Label.AWS_KEY, "beside an AWS key", 1)


def _headers(scan: Scan) -> Iterator[Span]:
    text = scan.text
    for match in scan.matches(_HEADER):
        start, end = match.start(), match.end()
        rest = _HEADER_REST.match(text, end)
        last = rest.end() if rest else end
        if not scan.joined_before(start, ALNUM) and _authorises(text, start, match.start(1), last):
            yield Span(start, last, Label.API_KEY, "authorization header")


def _known(scan: Scan) -> Iterator[Span]:
    text, done = scan.text, 0
    for match in scan.matches(_OPENING):
        start = match.start()
        if start < done or scan.joined_before(start, ALNUM) or _dashed(text, start):
            continue
        form = _KNOWN.match(text, start, start + _FORM_BYTES_MAX)
        if form is None or dull(form.group()[4:24]):
            continue
        rest = _REST.match(text, form.end(), start + _JUDGED_BYTES)
        end = _unmarked(text, form.end(), rest.end() if rest else form.end())
        if not _is_key(text[start : min(end, start + 72)], match.group(1)):
            done = form.end()
            continue
        if end - start >= _JUDGED_BYTES and (rest := _REST.match(text, end)):
            end = _unmarked(text, end, rest.end())
        done = end
        prefix = text[start : start + 3].decode("latin-1")
        yield Span(start, done, Label.API_KEY, f"known prefix {prefix}…")


def _marked(scan: Scan) -> Iterator[Span]:
    text = scan.text
    spans = [
        match.span() for mark, pattern in _INNER if mark in text for match in scan.matches(pattern)
    ]
    if b"-us" in text:
        spans += [
            (match.start() - 32, match.end())
            for match in scan.matches(_CENTRE)
            if _HEXADECIMAL.fullmatch(text, max(0, match.start() - 32), match.start())
        ]
    for start, end in spans:
        if not scan.joined(start, end, ALNUM) and switches(text[start:end]) >= 3:
            yield Span(start, end, Label.API_KEY, "known form of a key")
    for match in scan.matches(_DOTTED):
        start = scan.back(match.start(), _PREFIX, 28)
        if (
            24 <= match.start() - start <= 28
            and text[start] in b"MNO"
            and jumbled(text[start : match.start()])
        ):
            rest = _DOTTED_REST.match(text, match.end())
            yield Span(
                start, rest.end() if rest else match.end(), Label.API_KEY, "known form of a key"
            )


def _dashed(text: bytes, start: int) -> bool:
    """True inside a name with dashes, `task-list`, where an opening is only a syllable."""
    return (
        start > 1
        and text[start - 1] in b"-"
        and text[start - 2] in ALNUM
        and text[start - 2] not in b"nrt"
    )


def _unmarked(text: bytes, least: int, end: int) -> int:
    while end > least and text[end - 1] in b"./$|~":
        end -= 1
    return end


def _is_key(value: bytes, opening: bytes) -> bool:
    """True unless it is a name that happens to begin so: sk-learn-something, test_a_function."""
    body = value[len(opening) :]
    if exemplary(value):
        return False
    if _WEAK.match(value):
        return switches(body) >= 3 and entropy(body) > 3.0
    longest = max(re.split(rb"[_-]", body), key=len)
    return switches(body) >= 1 or jumbled(body[:40]) or len(longest) >= 24


def _authorises(text: bytes, start: int, first: int, last: int) -> bool:
    value = text[first : min(last, first + 512)]
    if exemplary(value) or dull(value):
        return False
    word = text[start : start + 6].lower()
    drawn = switches(value) + (value.endswith(b"=") or (mixed(value) and entropy(value) > 3.2))
    if word in (b"bearer", b"basic ", b"basic\t"):
        if (value.isalpha() and value.islower()) or (value.istitle() and value.isalpha()):
            return False  # "basic functionality", "Bearer authentication"
        return drawn >= 1 or len(value) >= 24
    return len(value) >= 16 and switches(value) >= 3 and entropy(value) > 3.0
