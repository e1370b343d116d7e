"""docs/configuration.md, made of the code: each key with its default, its range and its reason.

The reason of a key stands in one place, the comment beside its field; `config explain` shows it
too. A test makes the file anew and compares, so that neither can say what the other does not.
"""

from __future__ import annotations

import itertools
from typing import Any

import msgspec

from . import settings
from .config import FILE, Config

_HEAD = f"""\
# Configuration

`{FILE}` in GROOVE_HOME. There need not be one: every key has a default, and a key that is not
known is an error. `groove-node config get`, `explain` and `set` read and change it one key at a
time; a running node takes most keys at its next start, and says so.

This file is printed by `groove-node config reference`; do not edit it.

Variables of the environment:

| variable | default | what for |
|---|---|---|
| `GROOVE_HOME` | `~/.groove` | what is the owner's: keys, consent, the corpus, leaves |
| `GROOVE_CACHE` | the platform's cache folder | converted models, which can be made again |
| `GROOVE_STATE` | the platform's state folder | which consent and which deletion were the last |
| `GROOVE_API_LISTEN` | not set | goes before `listen` under `[api]`; empty is no endpoint |
| `GROOVE_TRACEBACK` | not set | if set, a fault of the node's own shows Python's traceback |
"""


def markdown() -> str:
    """The whole file."""
    found = settings.values(Config())
    parts = [_HEAD]
    for section, keys in itertools.groupby(found, key=lambda key: key.rpartition(".")[0]):
        parts.append(f"\n## [{section}]\n\n| key | default | may be | why |\n|---|---|---|---|\n")
        parts += [_row(key, found[key]) for key in keys]
    return "".join(parts)


def _row(key: str, default: Any) -> str:
    name = key.rpartition(".")[2]
    cells = (f"`{name}`", f"`{_toml(default)}`", settings.allowed(key), settings.why(key))
    return "| " + " | ".join(_cell(each) for each in cells) + " |\n"


def _toml(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
