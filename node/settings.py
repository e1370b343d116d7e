"""groove.toml looked at and changed one key at a time, for whoever would rather not edit it.

A change is made in the text, so comments and order stay; the whole file is read as the node would
read it before it replaces the one that is there.
"""

from __future__ import annotations

import difflib
import inspect
import re
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from . import show
from .config import FILE, Config
from .errors import MisuseError
from .home import write_atomic

if TYPE_CHECKING:
    from .app import App

_HEADER = re.compile(r"\s*\[([^\[\]]+)\]\s*(?:#.*)?")
_COMMENT = re.compile(r"#\s*(.+)$")


def values(config: Config) -> dict[str, Any]:
    """Every key with its value in force, as `section.key`, in the order of the sections."""
    return dict(_flat(config, ""))


def _flat(section: Struct, prefix: str) -> list[tuple[str, Any]]:
    out: list[tuple[str, Any]] = []
    for name in section.__struct_fields__:
        value = getattr(section, name)
        if isinstance(value, Struct):
            out += _flat(value, f"{prefix}{name}.")
        else:
            out.append((f"{prefix}{name}", msgspec.to_builtins(value)))
    return out


def get(app: App, key: str | None) -> dict[str, Any]:
    """The value of one key, of a section, or of all."""
    found = values(app.config)
    if key is None:
        return found
    chosen = {name: found[name] for name in found if name == key or name.startswith(f"{key}.")}
    if not chosen:
        raise _unknown(key)
    return chosen


def explain(app: App, key: str) -> dict[str, Any]:
    """One key: its value, its default, its type, and the reason that stands beside it."""
    if key not in values(app.config):
        raise _unknown(key)
    section: Struct = Config()
    *path, name = key.split(".")
    for each in path:
        section = getattr(section, each)
    return {
        "key": key,
        "value": values(app.config)[key],
        "default": msgspec.to_builtins(getattr(section, name)),
        "why": _why(type(section), name),
    }


def _why(section: type[Struct], name: str) -> str:
    """The comment of a field; the file is the one place where it is written."""
    for line in inspect.getsource(section).splitlines():
        if re.match(rf"\s+{name}\s*:", line):
            comment = _COMMENT.search(line)
            return comment[1] if comment else ""
    return ""


def change(app: App, key: str, value: str) -> dict[str, Any]:
    """Set a key in groove.toml; returns the old and the new value. Raises MisuseError."""
    before = values(app.config)
    if key not in before or "." not in key:
        raise _unknown(key)
    path = app.home / FILE
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    section, _, name = key.rpartition(".")
    why = "it is more than one line"
    lines = value.splitlines()
    quoted = msgspec.json.encode(value).decode()  # `ask` means "ask"
    for written in (value, quoted) if len(lines) == 1 else ():
        changed = edited(text, section, name, written)
        try:
            after = msgspec.toml.decode(changed, type=Config)
        except (msgspec.DecodeError, ValueError) as problem:
            why = str(problem)
            continue
        write_atomic(path, changed.encode())
        return {"key": key, "old": before[key], "new": values(after)[key]}
    raise MisuseError(
        f"{key} cannot be {value!r}: {why}",
        unchanged=f"{path} is as it was.",
        next_step=f"`groove-node config explain {key}` says what it is for.",
    )


def edited(text: str, section: str, name: str, value: str) -> str:
    """The text with one key set; its comment, and everything else, stays as it is."""
    lines = text.splitlines()
    end = inside = -1
    for at, line in enumerate(lines):
        header = _HEADER.fullmatch(line)
        if header:
            inside = at if header[1].strip() == section else -1
        if inside < 0:
            continue
        if line.strip():
            end = at
        found = re.match(rf"(\s*{name}\s*=\s*)((?:\"[^\"]*\"|'[^']*'|[^#\"'])*?)(\s*#.*)?$", line)
        if found:
            lines[at] = f"{found[1]}{value}{found[3] or ''}"
            return "\n".join(lines) + "\n"
    if end >= 0:
        lines.insert(end + 1, f"{name} = {value}")
    else:
        lines += [*([""] if lines and lines[-1].strip() else []), f"[{section}]"]
        lines.append(f"{name} = {value}")
    return "\n".join(lines) + "\n"


def history(app: App) -> list[dict[str, Any]]:
    """What changed under [rules], as rounds met it, oldest first."""
    return [
        {
            "when": show.moment(change.at),
            "round": change.round,
            "key": f"rules.{change.name}",
            "old": change.old,
            "new": change.new,
        }
        for change in app.forests.rule_changes()
    ]


def _unknown(key: str) -> MisuseError:
    close = difflib.get_close_matches(key, sorted(values(Config())), n=1)
    hint = f"; did you mean `{close[0]}`?" if close else ""
    return MisuseError(
        f"groove.toml has no key {key!r}{hint}",
        unchanged="Nothing was changed.",
        next_step="`groove-node config get` lists every key, as section.key.",
    )
