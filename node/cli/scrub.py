"""What capture would replace in a text: `groove-node scrub`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import Parameter

from node import scrubbing
from node.terminal import Terminal

from .base import AsJson, command


@command.command
def scrub(
    file: Annotated[
        Path | None, Parameter(help="A text; standard input if it is left out.")
    ] = None,
    /,
    *,
    second: Annotated[
        bool,
        Parameter(negative="", help="Scan the result again, as is done before it is trained on."),
    ] = False,
    quiet: Annotated[bool, Parameter(negative="", help="Print the scrubbed text alone.")] = False,
    json: AsJson = False,
) -> None:
    """Print a text as capture would store it, and on stderr what was replaced and why.

    Nothing is stored, and no home is needed. Names of people and postal addresses are not found.

    Values that this machine knows to be secret are found wherever they stand. Read for them are the
    environment, the usual credential files of your home (.aws, .netrc, .npmrc, .pypirc, .pgpass,
    .git-credentials, docker's and gh's), and `.env` and `.env.*` of your home, of the working
    folder, of every project that capture was ever allowed for, and of those that Claude Code and
    Codex name in their latest transcripts: of each folder's parents too, up to the root of its
    project (.git) or your home, and of a project two folders deep. A link out of the project, a
    file above 256 KB, and examples (.env.example) are not read. No other `.env` is known.

        groove-node scrub notes.txt > clean.txt
        pbpaste | groove-node scrub --second
    """
    out = Terminal(json)
    result = scrubbing.scrub(scrubbing.read_text(file), second=second)
    if json:
        out.done({**msgspec.to_builtins(result), "counts": dict(result.counts)})
        return
    sys.stdout.write(result.text)
    sys.stdout.flush()
    if quiet:
        return
    for each in result.replaced:
        where = f"{file or '-'}:{each.line}:{each.column}"
        out.note(f"{where}  {each.label}  {each.characters} characters  ({each.reason})")
    counts = ", ".join(f"{label} {count:,}" for label, count in result.counts.most_common())
    out.note(f"{len(result.replaced):,} replaced" + (f": {counts}" if counts else ""))
    if result.second:
        out.note(f"the second scan still finds something: {result.second}")
        out.note("Such a text is stored scrubbed, but never trained on or published from.")
    elif second:
        out.note("the second scan finds nothing")
