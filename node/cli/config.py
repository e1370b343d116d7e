"""`groove-node config`: what groove.toml says, why, and what was changed under [rules]."""

from __future__ import annotations

import sys

import msgspec

from node import settings
from node.app import App
from node.terminal import Terminal

from .base import AsJson, config


@config.command(name="get")
def config_get(key: str | None = None, /, *, json: AsJson = False) -> None:
    """Print a key, a section, or everything that is in force: what you set, else the defaults."""
    out = Terminal(json)
    found = settings.get(App.open(), key)
    out.facts([(name, _toml(value)) for name, value in found.items()])
    out.done({"config": found})


@config.command(name="explain")
def config_explain(key: str | None = None, /, *, json: AsJson = False) -> None:
    """Say what a key is for, its default, what it is now and what it may be.

    Of a section, or without a key of everything, each key is told in a line.
    """
    out = Terminal(json)
    app = App.open()
    if key is None or settings.is_section(key):
        told = settings.explain_all(app, key)
        rows = [(x["key"], _toml(x["value"]), x["allowed"], x["why"]) for x in told]
        out.table(("KEY", "IS", "MAY BE", "WHY"), rows)
        out.done({"keys": told})
        return
    found = settings.explain(app, key)
    plain = ("key", "allowed", "why")
    out.facts([(name, x if name in plain else _toml(x)) for name, x in found.items()])
    out.done(found)


@config.command(name="set")
def config_set(key: str, value: str, /, *, json: AsJson = False) -> None:
    """Set a key in groove.toml, as in `config set rules.approve ask`; comments stay.

    The file is checked whole before it is replaced. The next command reads it; a running node and
    a round that was begun go on with what they read at their start.
    """
    out = Terminal(json)
    app = App.open()
    done = settings.change(app, key, value)
    if key == "training.chassis" and done["new"] != done["old"] and app.forests.forest().leaves:
        out.note(
            "adapters that were trained on the other chassis are set aside until rounds have "
            "trained their leaves anew; what is above them answers"
        )
    if done["restart"]:
        out.note("the node that runs takes it at its next start: end it and start it again")
    out.done(done, f"{key} is {_toml(done['new'])} now, and was {_toml(done['old'])}")


@config.command(name="history")
def config_history(*, json: AsJson = False) -> None:
    """Every change under [rules], with the round that first went by it or that it waits for."""
    out = Terminal(json)
    app = App.open()
    found = settings.history(app)
    rows = [(x["when"], str(x["round"]), x["key"], _toml(x["old"]), _toml(x["new"])) for x in found]
    waiting = settings.pending(app)
    rows += [
        ("from the next round", "-", x["key"], _toml(x["old"]), _toml(x["new"])) for x in waiting
    ]
    if rows:
        out.table(("WHEN", "ROUND", "RULE", "WAS", "IS"), rows)
    out.done({"changes": found, "pending": waiting}, "" if rows else "no rule was changed")


@config.command(name="reference")
def config_reference() -> None:
    """Print docs/configuration.md: every key with its default, what it may be, and why."""
    from node import config_reference as reference

    sys.stdout.write(reference.markdown())


def _toml(value: object) -> str:
    return msgspec.json.encode(value).decode()
