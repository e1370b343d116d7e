"""What `doctor` tries on the machine: one text encoded, the clock, the power, what has crashed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from . import crash
from .finding import Finding
from .home import dated
from .show import counted

if TYPE_CHECKING:
    from router.ports import Encoder

    from .app import App
    from .governor import Senses

BEHIND_S = 300.0  # a file may be dated so much ahead of the clock: of a disk on the network
HOUR_S = 3600
TRIED = "How do I wait for two tasks at once?"
OTHER = "Quel temps fait-il demain ?"


def tried(encoder: Encoder) -> str:
    """Encode for real; returns what is wrong with the vectors, or an empty text."""
    one, other = encoder.encode_one(TRIED), encoder.encode_one(OTHER)
    length = math.sqrt(float(one @ one))
    if not math.isfinite(length) or abs(length - 1) > 1e-3:
        return f"a text was encoded to a vector of length {length:.3f}, where 1 was expected"
    if float(one @ other) > 0.999:
        return "two texts that have nothing in common were encoded alike"
    return ""


def machine(app: App) -> Iterator[Finding]:
    """The clock, the power, and reports of crashes."""
    yield clock(app)
    yield power(app)
    yield from crashes(app)


def clock(app: App) -> Finding:
    """Against the dates of the home's own files, and the hour that peers have vouched for."""
    from gossip.records import RecordError, load_high

    now_s = app.clock.now_s()
    advice = "set this machine's clock; `timedatectl set-ntp true` keeps it right on Linux"
    newest = max((changed for changed, _ in dated(app.home.iterdir())), default=0.0)
    if newest > now_s + BEHIND_S:
        text = f"it is {_span(newest - now_s)} behind the date of a file of this home"
        return Finding("clock", "bad", text, advice)
    try:
        high_h = load_high(app.mesh_store.load())
    except RecordError as problem:
        return Finding("clock", "bad", str(problem), "move mesh.db of the home aside")
    if high_h * HOUR_S > now_s + HOUR_S:
        text = f"it is {_span(high_h * HOUR_S - now_s)} behind the hour that peers vouch for"
        return Finding("clock", "bad", text, advice)
    with_ = "the home's files and of what peers have signed" if high_h else "the home's files"
    return Finding("clock", "ok", f"not behind the dates of {with_}")


def _span(seconds: float) -> str:
    if seconds < 2 * HOUR_S:
        return counted(int(seconds // 60), "minute")
    if seconds < 48 * HOUR_S:
        return counted(int(seconds // HOUR_S), "hour")
    return counted(int(seconds // (24 * HOUR_S)), "day")


def power(app: App) -> Finding:
    """What the machine runs on, as far as it tells."""
    senses = app.adapters.senses(app.home, app.config.night)
    found = senses.read()
    if "power" in senses.unknown:
        return Finding("power", "ok", f"not known: {senses.unknown['power']}")
    return Finding("power", "ok", power_line(found))


def power_line(found: Senses) -> str:
    match found.on_battery, found.battery:
        case True, None:
            text = "on battery"
        case True, level:
            text = f"on battery, {level:.0%} left"
        case False, _:
            text = "on mains"
        case _:
            text = "no battery is known"
    return text + (", saving power" if found.low_power else "")


def crashes(app: App) -> Iterator[Finding]:
    """Reports of our own faults, for as long as they are kept."""
    found = crash.reports(app.home)
    if found:
        text = f"{counted(len(found), 'report')} of a fault of the node's own, last {found[-1]}"
        yield Finding("crashes", "note", text, "read it, pass it on if you like, and remove it")
    hard = app.home / crash.FOLDER / crash.HARD_FILE
    if hard.is_file() and hard.stat().st_size:
        text = f"the node's process has died in the middle: {hard} says where"
        yield Finding("crashes", "note", text, "pass it on if you like, and remove it")
