"""groove.toml looked at and changed one key at a time, for whoever would rather not edit it.

A change is made in the text, so comments and order stay; the whole file is read as the node would
read it before it replaces the one that is there.
"""

from __future__ import annotations

import difflib
import inspect
import itertools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from leaves.rules import Rules, bounds

from . import overview, show, started, windows
from .api.config import PLACE, PLACE_IN_WORDS, URL, URL_IN_WORDS
from .config import FILE, Config, load
from .errors import MisuseError
from .home import write_atomic

if TYPE_CHECKING:
    from .app import App

_HEADER = re.compile(r"\s*\[([^\[\]]+)\]\s*(?:#.*)?")
_COMMENT = re.compile(r"#\s*(.+)$")
_MORE = re.compile(r"\s+#\s*(.+)")  # a comment that goes on below its field
_EMPTY = """an empty text is written '""', in both quotes"""
_CLAUSE = re.compile(r"^§\d+[^:]*:\s*")
WINDOW = "always or HH:MM-HH:MM, such as 23:00-05:00"
_FORMS = {windows.PATTERN: WINDOW, PLACE: PLACE_IN_WORDS, URL: URL_IN_WORDS}
TEXTS = """a list of texts, such as '[\"…\"]'"""


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
    """One key: its value, its default, what it may be, and the reason that stands beside it."""
    if key not in values(app.config):
        raise _unknown(key)
    section, name = _field(key)
    return {
        "key": key,
        "value": values(app.config)[key],
        "default": msgspec.to_builtins(getattr(section, name)),
        "allowed": _allowed(type(section), name),
        "why": _why(type(section), name),
    }


def allowed(key: str) -> str:
    """What a key may be, in words."""
    section, name = _field(key)
    return _allowed(type(section), name)


def why(key: str) -> str:
    """What a key is for: the comment beside its field."""
    section, name = _field(key)
    return _why(type(section), name)


def _field(key: str) -> tuple[Struct, str]:
    """The section of a key with its defaults, and the name in it."""
    section: Struct = Config()
    *path, name = key.split(".")
    for each in path:
        section = getattr(section, each)
    return section, name


def explain_all(app: App, section: str | None) -> list[dict[str, Any]]:
    """Every key of a section, or of all, as `explain` tells it. Raises MisuseError."""
    return [explain(app, key) for key in get(app, section)]


def is_section(key: str) -> bool:
    return any(name.startswith(f"{key}.") for name in values(Config()))


def _allowed(section: type[Struct], name: str) -> str:
    """The words or the range that a key takes; the type where there is neither."""
    if section is Rules and (within := bounds(name)):
        return f"{within[0]} to {within[1]:,}"
    (told,) = (
        field.type
        for field in msgspec.inspect.type_info(section).fields  # type: ignore[attr-defined]
        if field.name == name
    )
    match told:
        case msgspec.inspect.LiteralType(words):
            return " or ".join(_toml(word) for word in sorted(words, key=str))
        case msgspec.inspect.BoolType():
            return "true or false"
        case msgspec.inspect.IntType() | msgspec.inspect.FloatType():
            if told.gt is None and told.ge is None:
                return "a number"
            low = f"above {told.gt:,}" if told.gt is not None else f"from {told.ge:,}"
            return f"{low} to {told.le:,}" if told.le is not None else low
        case msgspec.inspect.StrType(pattern=str() as form):
            return _FORMS.get(form, "64 hexadecimal digits, or an empty text")
        case msgspec.inspect.StrType():
            return "a text"
    return TEXTS


def _toml(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _why(section: type[Struct], name: str) -> str:
    """The comment of a field; the file is the one place where it is written.

    Its clause of a document is left out: no owner has that.
    """
    lines = inspect.getsource(section).splitlines()
    for at, line in enumerate(lines):
        if re.match(rf"\s+{name}\s*:", line):
            said = [comment[1]] if (comment := _COMMENT.search(line)) else []
            more = (_MORE.fullmatch(each) for each in lines[at + 1 :])
            said += [each[1] for each in itertools.takewhile(bool, more) if each]
            return _CLAUSE.sub("", " ".join(said))
    return ""


def change(app: App, key: str, value: str) -> dict[str, Any]:
    """Set a key in groove.toml; returns the old and the new value. Raises MisuseError."""
    if key not in values(app.config) or "." not in key:
        raise _unknown(key)
    path = app.home / FILE
    with app.lock("config", wait=True):  # of two that set at once, neither is lost
        before = values(load(app.home))
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        changed, after = _checked(path, text, key, value, before[key])
        write_atomic(path, changed.encode())
    node = overview.running(app)
    restart = bool(started.changes(app, node)) and key.partition(".")[0] != "rules"
    return {"key": key, "old": before[key], "new": after[key], "restart": restart}


def _checked(
    path: Path, text: str, key: str, value: str, before: object
) -> tuple[str, dict[str, Any]]:
    """The text with the key set, and all values that it then holds. Raises MisuseError."""
    from . import sound  # it needs the gossip package, which most commands do without

    section, _, name = key.rpartition(".")
    why = "it is more than one line" if value else _EMPTY
    quoted = _toml(value)  # `ask` means "ask"
    tries = (value, quoted) if len(value.splitlines()) == 1 else ()
    for written in tries:
        changed = edited(text, section, name, written)
        try:
            after = values(msgspec.toml.decode(changed, type=Config))
        except msgspec.ValidationError as problem:
            why = _plain(key, str(problem))
            if isinstance(before, str):
                continue
            break  # it was a value of TOML, so this is what is wrong with it
        except (msgspec.DecodeError, ValueError) as problem:
            why = str(problem)
            continue
        why = sound.fault(key, after[key])
        if not why:
            return changed, after
        break
    raise MisuseError(
        f"{key} cannot be {value!r}: {why}",
        unchanged=f"{path} is as it was.",
        next_step=f"`groove-node config explain {key}` says what it is for.",
    )


def _plain(key: str, problem: str) -> str:
    """What msgspec says of a value, with what the key may be where that is no help."""
    if re.search(r"matching regex|`bool`|`array`", problem):
        return f"expected {allowed(key)}"
    return problem


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


def pending(app: App) -> list[dict[str, Any]]:
    """What was changed under [rules] since the last round, and which the next one will go by."""
    now = msgspec.to_builtins(app.config.rules)
    return [
        {"key": f"rules.{name}", "old": old, "new": now[name]}
        for name, old in app.forests.rules_before().items()
        if name in now and now[name] != old
    ]


def _unknown(key: str) -> MisuseError:
    close = difflib.get_close_matches(key, sorted(values(Config())), n=1)
    hint = f"; did you mean `{close[0]}`?" if close else ""
    return MisuseError(
        f"groove.toml has no key {key!r}{hint}",
        unchanged="Nothing was changed.",
        next_step="`groove-node config get` lists every key, as section.key.",
    )
