"""Shows an owner what the scrubber does to a text of their own, without keeping any of it.

Works on its own: no home is needed, and none is made. Where there is one, the secrets that it
remembers are looked for too.
"""

from __future__ import annotations

import os
import sys
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from . import config as config_file
from .errors import MisuseError, OwnerError
from .home import groove_cache, home_path, private_dir

if TYPE_CHECKING:
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
        found = scrubber.find(text)
        clean = scrubber.scrub(text)
    except ScrubError as problem:
        raise NotScrubbedError(
            f"the text cannot be made clean: {problem}",
            unchanged="Nothing of it was kept or printed; capture would have dropped it.",
        ) from None
    return Scrubbed(clean, _places(text, found), _second(clean) if second else None)


def _scrubber(env: Mapping[str, str]) -> PIIScrubber:
    from .capture.known import open_known
    from .capture.known_sources import here
    from .capture.scrubber import PIIScrubber

    home = home_path()
    config = config_file.load(home).capture
    return PIIScrubber(open_known(home, config, env, here(), remember=False))


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
