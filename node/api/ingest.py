"""What the receivers of others' reports have in common: unpacking, consent, the recorder."""

from __future__ import annotations

import re
import secrets
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from node.importing import grant_command
from node.tally import SourceCounts, Tally

from .errors import ApiError
from .genai import Told
from .recording import Exchange, Heard, Recorder

OTHER = "(another name)"
# No more digits in a row than a version has: a card's number is a name's too.
_NAMES = re.compile(
    r"(?=.{1,60}\Z)(?!.*[0-9]{4})(?:(?:gen_ai|llm|codex|claude_code)\.|call_type )[a-z0-9_.]+"
)
_OWN_WORDS = (
    "span without texts",
    "span of something else",
    "log record without a name",
    "prompt that the tool keeps to itself",
    "answer that is cut or kept in a file",
    "not a StandardLoggingPayload",
    "messages that LiteLLM keeps to itself",
    "call_type (no word)",
)
UNPACKED_BYTES_MAX = 8 << 20  # of a body, also if it came packed


def unpacked(body: bytes, encoding: str) -> bytes:
    """The body without its gzip. Raises ApiError; takes no more memory than the limit."""
    match encoding.strip().lower():
        case "" | "identity":
            if len(body) > UNPACKED_BYTES_MAX:
                raise ApiError(413, f"the body has more than {UNPACKED_BYTES_MAX:,} bytes")
            return body
        case "gzip":
            pass
        case other:
            raise ApiError(415, f"content-encoding must be gzip or none, not {other[:40]!r}")
    inflate = zlib.decompressobj(wbits=31)
    try:
        whole = inflate.decompress(body, UNPACKED_BYTES_MAX + 1)
    except zlib.error:
        raise ApiError(400, "the body is not gzip") from None
    if len(whole) > UNPACKED_BYTES_MAX:
        raise ApiError(413, f"the unpacked body has more than {UNPACKED_BYTES_MAX:,} bytes")
    if not inflate.eof:
        raise ApiError(400, "the gzip of the body is cut")
    return whole


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of a report."""

    rejected: int
    why: str


def allowed_of(
    recorder: Recorder, source: str, told: Sequence[Told]
) -> tuple[list[tuple[Told, str | None]], Taken]:
    """What of a report may be kept, with its folder. Reads a disk: for a thread."""
    if not recorder.allows(source):
        return [], Taken(len(told), not_allowed(source))
    kept: list[tuple[Told, str | None]] = []
    known: dict[str, bool] = {}
    for each in told:
        for folder in each.folders:
            if folder not in known:
                known[folder] = recorder.allows(source, folder)
        if all(known[folder] for folder in each.folders):
            kept.append((each, each.folders[0] if each.folders else None))
    rejected = len(told) - len(kept)
    return kept, Taken(rejected, "of project folders that are not allowed" if rejected else "")


def not_allowed(source: str) -> str:
    return f"nothing was kept: the owner of this node allows it with `{grant_command(source)}`"


def hand_over(
    recorder: Recorder, source: str, kept: Sequence[tuple[Told, str | None]], taken: Taken
) -> Taken:
    """Put what may be kept; for the loop."""
    if taken.why:
        recorder.refused(source, taken.rejected or 1)
    lost = sum(not recorder.hear(_heard(each, source, folder)) for each, folder in kept)
    if lost:
        return Taken(taken.rejected + lost, taken.why or "there is no room for more now")
    return taken


def _heard(told: Told, source: str, folder: str | None) -> Heard:
    exchange = Exchange(
        id=secrets.token_hex(12),
        model=told.model,
        provider=told.provider,
        messages=told.messages,
        choice=None,
        client=told.client,
        conversation=told.conversation,
        no_capture=False,
    )
    return Heard(exchange, told.text, "error" if told.failed else "ok", source, folder)


def count_unknown(tally: Tally, source: str, unknown: Counter[str]) -> None:
    """Kinds that were skipped, for `status`: by name, so that a format's drift is seen.

    Only names that are of a convention: a sender may have put words of its owner there.
    """
    named: Counter[str] = Counter()
    for name, count in unknown.items():
        named[name if name in _OWN_WORDS or _NAMES.fullmatch(name) else OTHER] += count
    if named:
        tally.add_source(source, SourceCounts(unknown=dict(named)))
