"""Paths that name a person: what stands below a home folder, on any system."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from .scan import ALNUM, Label, Scan, Span, compiled

_HOME = compiled(
    r"(?:\\?/)(?:Users|home|usr/home|var/home|export/home)\\?/"
    r"|(?i:[A-Z]:(?:\\{1,4}|\\?/)(?:Users|Documents and Settings|Benutzer|Usuarios"
    r"|Utilisateurs)(?:\\{1,4}|\\?/))"
    r"|(?i:\\{2,4}[A-Z0-9.$_-]{1,40}(?:\\{1,2}[A-Z0-9.$_-]{1,40}){0,3}\\{1,2}(?:Users"
    r"|home|homes|profiles)\\{1,2})"
    r"|/run/media/[a-z]|/(?:mnt|cygdrive)?/?[a-z]/Users/|(?:^|[\s\"'=(:,])~[a-z][a-z0-9_-]{1,31}/"
    r"|(?i:file:/{2,3}(?:[A-Z]:|/)?/?(?:Users|home)/)"
)
SHAPES: Final = (_HOME,)
_INNER = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-)]}")
_ROOT = compiled(
    r"(?:(?:file:/{0,2})?(?:/mnt|/cygdrive|/private|/System/Volumes/Data|/host|/hostfs"
    r"|/rootfs)?(?:/[a-z])?|[A-Za-z]:|\\\\[\w.$-]+(?:\\[\w.$-]+)?)$"
)
_ROOT_ENDS = (b"/", b"/mnt", b"/cygdrive", b"/private", b"/Data", b"/host", b"/hostfs", b"/rootfs")
_PLAIN_BEFORE = (b"", b" ", b"\n", b"\t", b'"', b"'", b"`", b"(", b"=", b",")
_WORD = rb"[^\s\"'`<>|:*?;,()\[\]{}\\]"
_PIECE = rb"(?:" + _WORD + rb"|\\{1,4}[^\s\"'`<>|:*?;,()\[\]{}\\nrt]|\\{1,4}[nrt]\w|\\{1,4}/|\\ )"
# A folder may hold spaces: escaped ones, or words in capitals before the next separator.
_REST = re.compile(
    _PIECE + rb"+(?:(?: [A-Z0-9][\w.&-]*){0,2} [A-Z0-9][\w.&-]*[\\/]" + _PIECE + rb"*)*"
)
_QUOTED = re.compile(rb"[^\"'`\n<>|*?]{1,400}")
_NOBODY = re.compile(
    rb"(?i)(?:\$\{?|%|<|\{|\*|\.{2,}|(?:public|shared|default(?: user)?|all users|runner"
    rb"(?:admin)?|vsts|circleci|travis|jovyan|codespace|vscode|gitpod)(?=[\\/\s\"']|$)"
    rb"|[\w-]+\.(?:html?|php|aspx?|jsp|json|xml|css|js)\b)"
)


def find(scan: Scan) -> Iterator[Span]:
    """Yield every path below somebody's home."""
    text, done = scan.text, 0
    for match in scan.matches(_HOME):
        start, end = match.span()
        if start < done or start < 0:
            continue
        inside = start > 1 and text[start - 1] in ALNUM and text[start - 2] in ALNUM
        if inside and text[start] == 47 and not text.endswith(_ROOT_ENDS, 0, start):
            continue  # `src/home/x`: a folder inside another
        if text[start] not in b"/\\~" and not text[start : start + 1].isalpha():
            start += 1  # the sign before a tilde
        tail = end - 1 if text[end - 1 : end].isalpha() and text[end - 2 : end - 1] == b"/" else end
        if text[start] == 126:
            tail = end
        first = _beginning(text, start)
        if first is None or (text[start] != 126 and _NOBODY.match(text, tail)):
            continue
        last = _ending(text, first, tail)
        if last > tail or text[start] == 126:
            done = last
            yield Span(first, last, Label.FILE_PATH, "home folder")


def _beginning(text: bytes, start: int) -> int | None:
    """Where the path begins, or None if the folder is inside another: `src/home/index.ts`."""
    first = start
    if text[start - 1 : start] not in _PLAIN_BEFORE and _may_have_root(text, start):
        low = max(0, start - 64)
        root = _ROOT.search(text[low:start])
        first = low + root.start() if root and root.group() else start
    before = text[first - 1 : first]
    if before and before[0] in _INNER:
        if before in b"nrt" and text[first - 2 : first - 1] == b"\\":
            return first
        if text[start] in b"/\\~":
            return None
        if before.isalnum():
            return None
    return first


def _may_have_root(text: bytes, start: int) -> bool:
    if text[start - 1] == 58:  # `C:`
        return True
    if text[start - 2 : start - 1] == b"/":  # `/c`
        return text[start - 3 : start - 2] in _PLAIN_BEFORE or text.endswith(
            _ROOT_ENDS, 0, start - 2
        )
    return (
        text.endswith(_ROOT_ENDS, max(0, start - 64), start)
        or b"\\\\" in text[max(0, start - 64) : start]
    )


def _ending(text: bytes, first: int, tail: int) -> int:
    quote = text[first - 1 : first]
    if quote in (b'"', b"'", b"`") and first > 0:
        inside = _QUOTED.match(text, tail)
        if inside and text[inside.end() : inside.end() + 1] == quote:
            return inside.end() - (1 if text[inside.end() - 1 : inside.end()] == b"\\" else 0)
    rest = _REST.match(text, tail, tail + 1024)
    if rest is None:
        return tail
    return tail + len(rest.group().rstrip(b".!\\"))
