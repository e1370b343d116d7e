"""Long runs of hexadecimal digits: secrets, unless what stands around calls them a digest."""

from __future__ import annotations

import re

from .scan import compiled

_BEFORE = 96  # bytes of its line that can say what a run is
_HASH_BEFORE = compiled(
    r"(?i)(?:\b|_)(?:commits?|git|rev|revert(?:s|ed)?|merged?|cherry-pick(?:ed)?|bisect"
    r"|checkout|rebase|reset|show|log|diff"
    r"|index|tree|parents?|blob|head|branch|tag|object|oid|sha-?\d*(?:sums?)?|md5(?:sum)?"
    r"|blake\d?\w?|crc\d*|digests?|checksums?|hash(?:es)?"
    r"|integrity|etag|fingerprint|thumbprint|revision|ref|upstream|sum|from|at"
    r"|fix(?:e[sd])?(?: in)?|introduced|\w*rev|pin(?:ned)?|bump(?:ed)?|submodule"
    r"|layer|image|manifest|snapshot|resolved|version|@)(?:\b|_)"
)
_HASH_AFTER = re.compile(
    rb"(?i)^[\"']?(?:\s+(?:\(?(?:see|PR|#\d|was|by)\b|\*?[\w./-]+\.\w{2,}|is the first"
    rb"|refs/|HEAD\b|[\w./-]+\s*$|\(HEAD)|\.(?:tar|zip|json|js|css|patch|whl|git)"
    rb"|\s+[\w./-]+\n)"
)
_SECRET_BEFORE = compiled(
    r"(?i)secret|passw|token|\bkey\b|_key|key_|apikey|api-key|seed|salt|credential|\bauth"
    r"|hmac|private|cookie|session|bearer"
)
# What stands directly before most digests there are.
_PLAINLY = (
    b"blob ",
    b"tree ",
    b"commit ",
    b"parent ",
    b"object ",
    b"sha256:",
    b"sha1:",
    b"Merge: ",
)
_PUBLIC = (40, 56, 64, 96, 128)  # digits of SHA-1, SHA-224, SHA-256, SHA-384 and SHA-512


def is_secret(text: bytes, start: int, end: int) -> bool:
    """True for a run of forty or more that nothing calls a digest."""
    run = text[start:end]
    if run[:1] * 40 == run[:40]:
        return False  # forty equal digits are a filler
    line = text.rfind(b"\n", max(0, start - _BEFORE), start) + 1 or max(0, start - _BEFORE)
    before, after = text[line:start], text[end : end + 32]
    if run.isdigit() and not _SECRET_BEFORE.search(before):
        return False  # a number of mathematics
    if end - start not in _PUBLIC:
        return True
    if before.endswith(_PLAINLY) and len(before) < 24:
        return False
    if _SECRET_BEFORE.search(before):
        return True
    return not _HASH_BEFORE.search(before) and not _HASH_AFTER.match(after)
