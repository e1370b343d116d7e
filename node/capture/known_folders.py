"""Where the `.env` files lie that the scrubber must know: projects, allowed or not.

A password of a project may be pasted into a session of any other, so what is looked into does not
follow consent: to withdraw a folder must not lower what protects it. Looked into are the working
folder, every folder that was ever allowed, and those that the transcripts of coding assistants name
as theirs. Of each, and of what holds it up to the root of its project (where `.git` is) or the
home, `.env` and `.env.*` are read; of a project also two folders deep. What a transcript names is a
stranger's word: only small regular files inside of the project are opened, and nothing waits.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from node.consent.folders import resolved
from node.home import dated

from ..consent import FOLDER_SOURCES

if TYPE_CHECKING:
    from ..consent import ConsentManager

log = logging.getLogger(__name__)

FILE_BYTES_MAX = 262_144
FILES_MAX = 400  # `.env` files, in all folders together
FOLDERS_MAX = 2_000  # that are looked into for them: about 20 ms
DEPTH_MAX = 2
PARENTS_MAX = 12
TRANSCRIPTS_MAX = 500  # the newest, whose beginnings are looked at for the names of folders
HEAD_BYTES = 65_536
NAMED_MAX = 200

# Within a text that a transcript quotes, the marks are escaped: this is the tool's own word.
_CWD = re.compile(rb'"cwd"\s*:\s*("(?:[^"\\]|\\.){1,4096}")')
_NOT_OURS = frozenset({"node_modules", "vendor", "target", "dist", "build", "venv"})
_EXAMPLES = ("example", "sample", "template", "dist", "defaults")


def looked_into(consent: ConsentManager | None, user_id: str) -> Iterator[Path]:
    """Every folder whose secrets this machine is known to hold; none twice."""
    ever: dict[Path, None] = {}
    for decision in consent.get_consent_history(user_id) if consent else ():
        ever.update(dict.fromkeys(sorted(decision.folders)))
    yield from dict.fromkeys((*here(), *reversed(ever), *named_by_transcripts()))


def here() -> list[Path]:
    """The working folder, if it is there at all: it may have been removed under a process."""
    try:
        return [Path.cwd()]
    except OSError:
        return []


def named_by_transcripts() -> Iterator[Path]:
    """The folders that coding assistants have lately worked in; of no transcript more is read."""
    from .sources.formats import formats

    listed: list[tuple[float, Path]] = []
    for each in formats():
        if each.name in FOLDER_SOURCES:
            for root in each.roots():
                listed += dated(each.files(root))
    found: dict[Path, None] = {}
    for _, path in sorted(listed, reverse=True)[:TRANSCRIPTS_MAX]:
        for match in _CWD.finditer(_bytes(path, HEAD_BYTES)):
            folder = _folder(match[1])
            if folder is not None:
                found[folder] = None
        if len(found) >= NAMED_MAX:
            break
    yield from list(found)[:NAMED_MAX]


def env_files(owner: Path | None, folders: Iterable[Path]) -> list[tuple[Path, Path | None]]:
    """`.env` and `.env.*`, each with the folder that it must lie in; not the examples for all.

    owner: the owner's home, of which only its own are given, wherever links of theirs lead.
    """
    depths: dict[Path, int] = {}
    within: dict[Path, Path | None] = {}
    if owner is not None:
        depths[owner], within[owner] = 0, None
    for folder in folders:
        lineage = list(_lineage(folder, owner))
        for each in lineage:
            top = each == folder or (each == lineage[-1] and _is_root(each))
            depths[each] = max(depths.get(each, 0), DEPTH_MAX if top else 0)
            within[each] = lineage[-1]
    waiting = [(folder, depth, within[folder]) for folder, depth in depths.items()]
    files: dict[Path, Path | None] = {}
    looked = 0
    while waiting and looked < FOLDERS_MAX and len(files) < FILES_MAX:
        folder, deeper, inside = waiting.pop(0)  # broad first: a budget that ends, ends deep
        looked += 1
        for entry in _entries(folder):
            name = entry.name
            if name == ".env" or (name.startswith(".env.") and not name.endswith(_EXAMPLES)):
                files.setdefault(Path(entry.path), inside)
            elif deeper and _may_hold(entry):
                waiting.append((Path(entry.path), deeper - 1, inside))
    return list(files.items())[:FILES_MAX]


def read(path: Path, within: Path | None = None) -> str:
    """The text of a small file; empty for anything else, and for what lies outside of `within`."""
    try:
        real = path.resolve(strict=True)
        if within is not None and not real.is_relative_to(within.resolve()):
            return ""
    except (OSError, RuntimeError):  # it is not there; a loop of links
        return ""
    data = _bytes(real, FILE_BYTES_MAX + 1)
    return data.decode("utf-8", "replace") if len(data) <= FILE_BYTES_MAX else ""


def _bytes(path: Path, most: int) -> bytes:
    """The first bytes of a regular file. A pipe or a device is opened without waiting, and left."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            return file.read(most) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    except OSError as problem:
        log.debug("known values not read file=%s reason=%s", path.name, problem.strerror)
        return b""


def _lineage(folder: Path, owner: Path | None) -> Iterator[Path]:
    """The folder and what holds it, up to its project's root, and never to the home or above."""
    for each in (folder, *folder.parents)[:PARENTS_MAX]:
        if each.parent == each or (owner is not None and owner.is_relative_to(each)):
            return
        yield each
        if _is_root(each):
            return


def _is_root(folder: Path) -> bool:
    return os.path.lexists(folder / ".git")  # in a worktree it is a file


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError:
        return []


def _may_hold(entry: os.DirEntry[str]) -> bool:
    ours = entry.name[0] not in "._" and entry.name not in _NOT_OURS
    return ours and entry.is_dir(follow_symlinks=False)


def _folder(quoted: bytes) -> Path | None:
    try:
        return resolved(msgspec.json.decode(quoted, type=str))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
