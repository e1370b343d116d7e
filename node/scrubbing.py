"""Shows an owner what the scrubber does to a text of their own, without keeping any of it.

Works on its own: no home is needed, and none is made. Where there is one, the secrets that it
remembers are looked for too.
"""

from __future__ import annotations

import os
import sys
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from . import config as config_file
from .errors import MisuseError, OwnerError
from .home import get_or_create_user_id, groove_cache, home_path, private_dir

if TYPE_CHECKING:
    from .capture.known import KnownHere
    from .capture.scrubber import Finding, PIIScrubber

TEXT_BYTES_MAX = 64 << 20


class NotScrubbedError(OwnerError):
    """The text could not be made clean."""


@dataclass(frozen=True, slots=True)
class Replaced:
    """One place of the text; what stood there is not told. Lines and columns count from 1."""

    line: int
    column: int
    characters: int
    label: str
    reason: str


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """A text without what was found in it, and what that was."""

    text: str = field(repr=False)
    replaced: tuple[Replaced, ...]
    second: str | None = None  # the rule that still finds something; None if not asked, or clean

    @property
    def counts(self) -> Counter[str]:
        return Counter(each.label for each in self.replaced)


def read_text(path: Path | None) -> str:
    """The text of a file, or of standard input; raises MisuseError for what is no text."""
    name = str(path) if path else "standard input"
    try:
        if path is None:
            data = sys.stdin.buffer.read(TEXT_BYTES_MAX + 1)
        else:
            with path.open("rb") as file:
                data = file.read(TEXT_BYTES_MAX + 1)
    except OSError as problem:
        raise MisuseError(
            f"{name} cannot be read: {problem.strerror}", unchanged="Nothing was scrubbed."
        ) from None
    if len(data) > TEXT_BYTES_MAX:
        raise MisuseError(
            f"{name} is larger than {TEXT_BYTES_MAX >> 20} MB, the most that is read at once",
            unchanged="Nothing was scrubbed.",
            next_step="Split it at line ends: `split -C 50m FILE`, and scrub the parts.",
        )
    try:
        text = data.decode()
    except UnicodeDecodeError as problem:
        raise _no_text(name, f"byte {problem.start:,} is not UTF-8") from None
    if "\0" in text:
        raise _no_text(name, f"character {text.index(chr(0)):,} is a zero byte")
    return text


def scrub(text: str, env: Mapping[str, str] | None = None, *, second: bool = False) -> Scrubbed:
    """Scrub a text as capture would on this machine; `second` has it scanned once more.

    Raises NotScrubbedError if the rules cannot make it clean: capture would drop it.
    """
    from .capture.scrubber import ScrubError

    scrubber = _scrubber(os.environ if env is None else env)
    try:
        found = found_in_rounds(scrubber.find, text)
        clean = scrubber.scrub(text)
    except ScrubError as problem:
        raise NotScrubbedError(
            f"the text cannot be made clean: {problem}",
            unchanged="Nothing of it was kept or printed; capture would have dropped it.",
        ) from None
    return Scrubbed(clean, _places(text, found), _second(clean) if second else None)


def found_in_rounds(find: Callable[[str], list[Finding]], text: str) -> list[Finding]:
    """All that scrubbing replaces, as places of the text given: one for each placeholder.

    find: what one round replaces. What is found once something else is replaced covers what stood
    there at first: all of a placeholder that it takes in, which then counts no more.
    """
    from .capture.scrubber import ROUNDS_MAX

    pieces = [_Piece(0, 0, len(text), None)]
    for _ in range(ROUNDS_MAX):
        findings = find(text)
        if not findings:
            break
        pieces = list(_replaced(pieces, findings))
        text = _with_placeholders(text, findings)
    return [piece.finding for piece in pieces if piece.finding is not None]


@dataclass(frozen=True, slots=True)
class _Piece:
    """Characters of a text between two rounds: some of the first text, or a placeholder."""

    at: int  # in the text between the rounds
    start: int  # in the first text
    size: int  # in the text between the rounds
    finding: Finding | None  # in the first text; None: the characters are as they were

    @property
    def after(self) -> int:
        return self.at + self.size

    def first(self, at: int) -> int:
        """The place in the first text of the character at `at`."""
        return self.start + at - self.at if self.finding is None else self.finding.start

    def last(self, at: int) -> int:
        """The place in the first text just after the character before `at`."""
        return self.start + at - self.at if self.finding is None else self.finding.end


def _replaced(pieces: list[_Piece], findings: list[Finding]) -> Iterator[_Piece]:
    """The pieces of the text after a round; at least one piece is given."""
    starts = [piece.at for piece in pieces]
    at = done = 0
    for finding in [*findings, None]:
        until = finding.start if finding is not None else pieces[-1].after
        for index in range(max(bisect_right(starts, done) - 1, 0), bisect_left(starts, until)):
            piece = pieces[index]
            low, high = max(piece.at, done), min(piece.after, until)
            if low < high:  # of a placeholder that is cut, what is left still stands for it
                yield _Piece(at, piece.first(low), high - low, piece.finding)
                at += high - low
        if finding is not None:
            first = pieces[bisect_right(starts, finding.start) - 1]
            last = pieces[bisect_right(starts, finding.end - 1) - 1]
            place = replace(finding, start=first.first(finding.start), end=last.last(finding.end))
            size = len(_placeholder(finding))
            yield _Piece(at, place.start, size, place)
            at, done = at + size, finding.end


def _with_placeholders(text: str, findings: list[Finding]) -> str:
    parts: list[str] = []
    done = 0
    for finding in findings:
        parts += (text[done : finding.start], _placeholder(finding))
        done = finding.end
    return "".join((*parts, text[done:]))


def _placeholder(finding: Finding) -> str:
    return f"[{finding.label}]"


def _scrubber(env: Mapping[str, str]) -> PIIScrubber:
    """As capture has it in this home, if there is one; it writes nothing."""
    from .capture.scrubber import PIIScrubber

    return PIIScrubber(_known(home_path(), env))


def _known(home: Path, env: Mapping[str, str]) -> KnownHere:
    from .capture.known import open_known
    from .capture.known_folders import looked_into
    from .consent import ConsentManager

    config = config_file.load(home).capture
    if not (home / "consent.db").exists():
        return open_known(home, config, env, looked_into(None, ""), remember=False)
    with closing(ConsentManager(home / "consent.db")) as consent:
        folders = looked_into(consent, get_or_create_user_id(home))
        return open_known(home, config, env, folders, remember=False)


def _places(text: str, found: list[Finding]) -> tuple[Replaced, ...]:
    """Offsets as an editor shows them."""
    starts = [0, *(index + 1 for index, character in enumerate(text) if character == "\n")]
    places = []
    for finding in found:
        line = bisect_right(starts, finding.start)
        column = finding.start - starts[line - 1] + 1
        characters = finding.end - finding.start
        places.append(Replaced(line, column, characters, str(finding.label), finding.reason))
    return tuple(places)


def _second(clean: str) -> str | None:
    from .capture.second_scan import SecondScan

    with SecondScan(private_dir(groove_cache() / "kingfisher")) as scan:
        return scan.scan([clean])[0] or None


def _no_text(name: str, why: str) -> MisuseError:
    return MisuseError(
        f"{name} is no text: {why}",
        unchanged="Nothing was scrubbed.",
        next_step="Scrub the text that was made from it; the bytes of an image or an archive "
        "hide what they hold.",
    )
