"""The candidates of the scrubber: one alternation for google-re2, and the tables of its checks.

Every alternative is only where something may begin; whether it is one is judged in `scrubber.py`.
RE2 has no lookaround, which is why, and why it is linear on any input.
"""

from __future__ import annotations

import re

import re2

# Known openings of keys. What follows must be long enough that no word of prose matches, and no
# longer: the check extends it. See `_ALTERNATIVES` for the reason.
_TOKENS = (
    r"(?:sk|pk|rk)[_-][A-Za-z0-9_-]{16}",
    r"gh[pousr]_[A-Za-z0-9]{20}",
    r"github_pat_\w{20}",
    r"gl[a-z]{2,6}-[A-Za-z0-9_.=-]{20}",
    r"xox[a-z]-[A-Za-z0-9-]{10}",
    r"xapp-\d-[A-Za-z0-9-]{10}",
    r"xoxe\.xox[bp]-\d-[A-Za-z0-9-]{20}",
    r"SG\.[A-Za-z0-9_-]{16}",
    r"AIza[A-Za-z0-9_-]{30}",
    r"ya29\.[A-Za-z0-9_-]{20}",
    r"GOCSPX-[A-Za-z0-9_-]{20}",
    r"npm_[A-Za-z0-9]{30}",
    r"pypi-[A-Za-z0-9_-]{40}",
    r"hf_[A-Za-z]{30}",
    r"api_org_[A-Za-z]{30}",
    r"do[opr]_v1_[0-9a-f]{40}",
    r"shp(?:at|ss|ca|pa)_[0-9A-Za-z]{30}",
    r"sq0[a-z]{3}-[A-Za-z0-9_-]{20}",
    r"EAAA[A-Za-z0-9_-]{50}",
    r"(?:AGE-SECRET-KEY-|age-secret-key-)1[0-9A-Za-z]{40}",
    r"hv[sbr]\.[A-Za-z0-9_-]{20}",
    r"tskey-[a-z]{1,20}-[A-Za-z0-9-]{10}",
    r"glc_[A-Za-z0-9+/=]{30}",
    r"glsa_[A-Za-z0-9]{30}",
    r"lin_(?:api|oauth)_[A-Za-z0-9]{30}",
    r"figd_[A-Za-z0-9_-]{30}",
    r"dckr_(?:pat|oat)_[A-Za-z0-9_-]{20}",
    r"whsec_[A-Za-z0-9+/=]{20}",
    r"SK[0-9a-f]{32}",
    r"key-[0-9a-f]{32}",
    r"PMAK-[0-9a-f]{20}",
    r"rubygems_[0-9a-f]{40}",
    r"dp\.(?:pt|st|ct|sa|scim|audit)\.[A-Za-z0-9_.-]{30}",
    r"sntry[su]_[A-Za-z0-9+/=_-]{30}",
    r"cf[a-z]{1,2}t_[A-Za-z0-9]{30}",
    r"nvapi-[A-Za-z0-9_-]{30}",
    r"gsk_[A-Za-z0-9]{30}",
    r"r8_[A-Za-z0-9]{30}",
    r"pplx-[A-Za-z0-9]{30}",
    r"(?:secret|ntn)_[A-Za-z0-9]{40}",
    r"ph[cx]_[A-Za-z0-9]{30}",
    r"dapi[0-9a-f]{32}",
    r"dt0[a-z]\d\d\.[A-Z0-9]{20}",
    r"NRAK-[A-Z0-9]{20}|NRJS-[0-9a-f]{15}|NRII-[A-Za-z0-9-]{25}",
    r"pscale_(?:tkn|pw|oauth)_[A-Za-z0-9_.=-]{30}",
    r"shippo_(?:live|test)_[0-9a-f]{30}",
    r"sgp_[A-Za-z0-9_]{30}",
    r"(?:FLWSECK|FLWPUBK)(?:_TEST)?-[A-Za-z0-9-]{12}",
    r"xkeysib-[0-9a-f]{40}",
    r"eyJ[A-Za-z0-9_-]{17}",
    r"sl\.[A-Za-z0-9_=-]{80}",
    r"duffel_(?:live|test)_[A-Za-z0-9_=-]{30}",
    r"[A-Za-z0-9]{14}\.atlasv1\.[A-Za-z0-9_=-]{50}",
    r"A[KR]CTD[A-Za-z0-9]{30}|AKCp[A-Za-z0-9]{40}|ATATT3[A-Za-z0-9_=-]{50}",
    r"b\.AAAAAQ[A-Za-z0-9_+/=-]{100}",
    r"ops_eyJ[A-Za-z0-9+/=]{40}",
)
_AWS = r"(?:A3T[A-Z0-9]|AKIA|ASIA|ABIA|ACCA|AROA|AIDA|AGPA|ANPA|ANVA|AIPA)[A-Z0-9]{16}"
_KEYWORD = (
    r"(?i:passw(?:or)?d|passwd|passphrase|pwd|secret|token|api[_-]?key|access[_-]?key"
    r"|auth[_-]?key|private[_-]?key|signing[_-]?key|encryption[_-]?key|account[_-]?key"
    r"|[_-]key|credentials?|client[_-]?id|licen[cs]e[_-]?key|auth(?:orization)?|[_-]sid"
    r"|api[_-]?id|app[_-]?id|seed|salt|cookie|session)"
    r"[A-Za-z0-9_.\]-]{0,24}\\?[\"']?\s{0,3}(?:=>|:=|\|\|?:|[:=])\s{0,3}\\?[\"'`]?"
)

# The name of a group is the name of the method of `scrubber._Pass` that judges its candidates.
# Among alternatives that begin at one place the first wins: the more telling come first. An
# alternative has no unbounded part unless it eats all it has read: RE2 follows such a part to its
# end before it settles for a later match, and does so again for each match in between.
_ALTERNATIVES = (
    ("pem", r"-{2,6} ?BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)? ?-{2,6}"),
    ("url", r"[A-Za-z][A-Za-z0-9+.-]{0,30}:/{2}"),
    ("token", "|".join(_TOKENS)),
    ("aws", _AWS),
    ("bearer", r"(?i:bearer|basic)\s{1,3}[A-Za-z0-9._~+/-]{12}"),
    (
        "path",
        r"/(?:Users|home)/|(?i:[A-Z]:(?:\\{1,2}|/)(?:Users|Documents and Settings)(?:\\{1,2}|/))",
    ),
    ("keyword", _KEYWORD),
    (
        "email",
        r"(?:@|%40)"
        r"(?:(?:[A-Za-z0-9_\x{80}-\x{10FFFF}-]+\.)+[A-Za-z\x{80}-\x{10FFFF}]{2,24}"
        r"|\[?\d{1,3}(?:\.\d{1,3}){3}\]?)",
    ),
    ("hexadecimal", r"[0-9A-Fa-f]{40,}"),
    ("ipv6", r"[0-9A-Fa-f]{0,4}:(?:[0-9A-Fa-f]{0,4}:)+[0-9A-Fa-f.]*"),
    ("number", r"(?:\+ ?)?\(?\d(?:[ .()/-]{0,3}\d){3,}"),
)

CANDIDATE = re2.compile("|".join(f"(?P<{name}>{body})" for name, body in _ALTERNATIVES).encode())
KINDS = tuple(name for name, _ in _ALTERNATIVES)

URL_BYTES_MAX = 4096  # what is longer is cut there, and its tail scanned as text
URL_REST = re.compile(rb"[^\s\"'<>`\\^{}|]+")
URL_USERINFO = re.compile(rb"[^/?#\s:@]*:[^/?#\s]+@")
URL_PARAMETER = re.compile(
    rb"(?i)[?&#;](?:[\w.%\[\]-]*(?:token|secret|passw|pwd|api_?key|auth|signature|credential|jwt"
    rb"|session|access_?key|otp)[\w\]-]*|[\w.-]*[_.-]?(?:key|sig|code|sid|hash|ticket|pass))"
    rb"=([^&#\s]{6,})"
)
URL_SECRET_PATH = re.compile(
    rb"(?i)^(?:hooks\.slack\.com/(?:services|workflows|triggers)/\w"
    rb"|(?:\w+\.)?discord(?:app)?\.com/api/webhooks/\d"
    rb"|api\.telegram\.org/bot\d|[\w.-]*webhook\.office\.com/webhook|hooks\.zapier\.com/hooks/)"
)
TOKEN_REST = re.compile(rb"[A-Za-z0-9_+/=-]*(?:\.[A-Za-z0-9_=-]+)*")
BEARER_REST = re.compile(rb"[A-Za-z0-9._~+/-]*=*")
PEM_END = re.compile(rb"-{2,6} ?END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)? ?-{2,6}")
PEM_REST = re.compile(
    rb"(?:(?:\s|\\[nrt]|[\"'+,>|\\])*[A-Za-z0-9+/=]{16,}|\s*[A-Z][\w-]+: [^\n]*)*"
    rb"(?:(?:\s|\\[nr])+[A-Za-z0-9+/=]{1,64})?"
)
_PATH_WORD = rb"[^\s\"'`<>|:*?;,()\[\]{}]"
# A folder may hold spaces: escaped ones, or words in capitals before the next separator.
PATH_REST = re.compile(
    _PATH_WORD
    + rb"+(?:(?:\\ |(?: [A-Z0-9][\w.&-]*){0,2} [A-Z0-9][\w.&-]*[\\/])"
    + _PATH_WORD
    + rb"*)*"
)
VALUE_BYTES = 512  # of a value are judged
VALUE = re.compile(rb"[^\s\"'`,;<>(){}\[\]|]+")
ZONE = re.compile(rb"%[A-Za-z0-9_.-]{1,16}")

# A commit, a digest, a lock file: not a secret, though forty digits long.
HASH_BEFORE = re.compile(
    rb"(?i)\b(?:commit|git|rev|revert|merged?|cherry-pick|bisect|checkout|rebase|reset|show|log|diff"
    rb"|index|tree|parent|blob|head|branch|tag|object|sha-?\d*|md5|digest|checksum|hash(?:es)?"
    rb"|integrity|etag|fingerprint|revision|ref|upstream|sum|from|at|submodule|@)\b"
)
HASH_AFTER = re.compile(
    rb"(?i)^(?:\s+(?:\*?[\w./-]+\.\w{2,}|is the first|refs/|HEAD\b|[\w./-]+\s*$))"
)
SECRET_BEFORE = re.compile(
    rb"(?i)secret|passw|token|\bkey\b|_key|apikey|api-key|seed|salt|credential|\bauth|hmac|private"
)
PLACEHOLDER = re.compile(
    rb"(?i)^(?:\$|%|<|\*{3,}|\.{3,}|x{4,}|your|example|changeme|dummy|null$|none$|true$|false$"
    rb"|undefined|process\.env|os\.environ|env\.|secrets\.|var\.|self\.|config\.|settings\.|args\.)"
)
FILE_SUFFIXES = frozenset(
    b"png jpg jpeg gif svg webp ico js jsx tsx json html css scss txt yaml yml toml lock".split()
)
