"""When work may run that nobody waits for: from senses and time to a verdict, with its reason.

The owner's machine is the owner's. A node works at night, when nobody sits there, on mains power,
within its budgets, and gives way within two seconds to whoever comes back. It always says why it
waits and what will make it go on. Nothing here is read from the machine: `senses` does that, and
what a sense cannot tell (None) never stops the node.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from leaves.model import Instant

from .windows import Night, Window, around, drawn

if TYPE_CHECKING:
    from .config import NightConfig

BETWEEN_S = 20 * 3600  # from one night's beginning to the next: never two in less
MISSED_IDLE_S = 600  # a night that was missed is made up after so much idleness...
MISSED_SPREAD_S = 1800  # ...and up to this much more, drawn for the date
PRESENT_S = 60.0  # touched the machine so lately: is there
FAILED = "failed"  # the cause of a verdict that could not be come to
MADE_UP = " made up"  # after the date of a night that was missed


class Work(StrEnum):
    """What is asked for. What the owner asks for by hand is never asked about."""

    ROUND = "round"
    FETCH = "fetch"  # and the judging of what was fetched
    SERVE = "serve"


class State(StrEnum):
    """What the node may do by itself."""

    WORKS = "works"
    WAITS = "waits"  # tonight, for something of the machine
    RESTS = "rests"  # until a night begins
    PAUSED = "paused"  # by the owner


@dataclass(frozen=True, slots=True)
class Senses:
    """What is known of the machine at one moment. None: not known."""

    idle_s: float | None = None  # since anybody touched it
    on_battery: bool | None = None
    battery: float | None = None  # of its charge, 0 to 1
    load: float | None = None  # of all cores, by others than this node, 0 to 1
    metered: bool | None = None
    low_power: bool | None = None  # the owner asked the machine to save power
    disk_free_bytes: int | None = None
    temperature_c: float | None = None
    model_server: str | None = None  # the owner's own, at work now: its name; "" if none is
    served_s: float | None = None  # since this node's endpoint last answered somebody


@dataclass(frozen=True, slots=True)
class Record:
    """What is remembered across restarts. bytes and cpu_s: of the night that began last."""

    since: Instant  # when nights were first kept here: none before was missed
    began: Instant | None = None
    date: str = ""  # of the night that began last
    finished: bool = False
    bytes: int = 0
    cpu_s: float = 0.0
    paused: bool = False
    paused_until: Instant | None = None  # None, and paused: until `resume`
    paused_by: str = "by you"


@dataclass(frozen=True, slots=True)
class Verdict:
    """until: what will change it, to be read. at: when, if that is known. cause: the gate that is
    shut, in a word that is always the same."""

    state: State
    why: str
    until: str = ""
    at: Instant | None = None
    cause: str = ""

    @property
    def works(self) -> bool:
        return self.state is State.WORKS

    def line(self) -> str:
        """One line for `status`."""
        return f"{self.state}: {'; '.join(filter(None, (self.why, self.until)))}"


@dataclass(frozen=True, slots=True)
class _Occasion:
    """A night that may be worked in now. begun: it was begun before and not finished."""

    date: str
    ends: Instant
    begun: bool
    idle_s: float  # wanted before it begins


class Governor:
    """Looks at the senses, and answers for what may be done until the next look."""

    def __init__(
        self, config: NightConfig, secret: bytes, zone: datetime.tzinfo | None = None
    ) -> None:
        """secret: nobody else's, steady. zone: None is the machine's own."""
        self._config = config
        self._window = Window.parse(config.window)
        self.secret = secret
        self._zone = zone
        self._disturbed: Instant | None = None  # when work last had to give way to somebody
        self._senses = Senses()
        self._record = Record(Instant(0))
        self.verdict = Verdict(State.RESTS, "the machine was not looked at yet")
        self.date = ""  # of the night that the last verdict lets begin or go on

    @property
    def always(self) -> bool:
        """True if no hour and no gate holds this node back, but `pause`."""
        return self._window is None

    def knows(self, record: Record) -> None:
        """Take in what is remembered; before the first look, and whenever it changed."""
        self._record = record

    def allows(self, work: Work) -> bool:
        """Whether this may be done, by the last look."""
        if work is Work.SERVE:
            metered = bool(self._senses.metered) and not self._config.metered
            # Whoever cannot be judged may be paused.
            known = self.verdict.state is not State.PAUSED and self.verdict.cause != FAILED
            return known and (self.always or not metered)
        if not self.verdict.works:
            return False
        return work is not Work.FETCH or self.always or not self._bytes_spent()

    def look(self, senses: Senses, now: Instant) -> Verdict:
        """Come to a verdict."""
        self._senses = senses
        self.verdict = self._look(senses, now)
        return self.verdict

    def fails(self, why: str) -> Verdict:
        """Nobody could look, or act on what was seen: nothing may be done until somebody can."""
        self.date = ""
        until = "goes on when it can be judged again; `groove-node logs` says more"
        why = f"the machine cannot be judged: {why}"
        self.verdict = Verdict(State.WAITS, why, until, cause=FAILED)
        return self.verdict

    def _look(self, senses: Senses, now: Instant) -> Verdict:
        record = self._record
        self.date = ""
        if record.paused and (record.paused_until is None or now < record.paused_until):
            at = record.paused_until
            until = f"at {self.moment(at, now)}" if at else "with `groove-node resume`"
            return Verdict(State.PAUSED, record.paused_by, f"goes on {until}", at)
        if self._window is None:
            return Verdict(State.WORKS, "always, as `window` under [night] says")
        last, coming = around(self._window, now, self.secret, self._zone)
        occasion = self._occasion(last, coming, now)
        if isinstance(occasion, Verdict):
            return occasion
        if self._config.energy_wh_max <= self.energy_wh(record.cpu_s) and occasion.begun:
            spent = f"this night's {self._config.energy_wh_max:g} Wh are spent"
            return self._rests(spent, coming.starts, now)
        return self._gated(occasion, senses, now)

    def energy_wh(self, cpu_s: float) -> float:
        """What so many seconds of one core are estimated to have cost."""
        return cpu_s / 3600 * self._config.watts_per_core

    def moment(self, at: Instant, now: Instant) -> str:
        """Local time; with its day if that is not today, its date if not within a week."""
        local, today = (datetime.datetime.fromtimestamp(x, self._zone) for x in (at, now))
        if local.date() == today.date():
            return local.strftime("%H:%M")
        near = abs((local.date() - today.date()).days) < 7
        return local.strftime("%a %H:%M" if near else "%Y-%m-%d %H:%M")

    # ---- which night -----------------------------------------------------------------------------

    def _occasion(self, last: Night, coming: Night, now: Instant) -> _Occasion | Verdict:
        assert self._window is not None
        record, within = self._record, now < last.closes
        idle_s = self._config.idle_min * 60
        # What began far in the future did so by a clock that was wrong and was set back.
        lately = record.began is not None and abs(now - record.began) < BETWEEN_S
        if lately and not record.finished:
            assert record.began is not None
            if within and record.date == last.date:
                return _Occasion(last.date, last.closes, True, idle_s)
            made_up_until = Instant(record.began + self._window.long_min * 60)
            if record.date.endswith(MADE_UP) and now < made_up_until:
                return _Occasion(record.date, made_up_until, True, idle_s)
        if lately:
            assert record.began is not None
            again = Instant(record.began + BETWEEN_S)
            if within and max(again, last.starts) < last.closes:
                return self._rests("the last night is done", max(again, last.starts), now)
            if again >= coming.closes:  # it is too near: a made up one was late
                _, coming = around(self._window, coming.opens, self.secret, self._zone)
            starts = max(again, coming.starts)
            over = "the last night is done" if record.finished else "the last night is over"
            return self._rests(over, starts, now)
        if within:
            if now < last.starts:
                return self._rests("not yet tonight", last.starts, now)
            return _Occasion(last.date, last.closes, False, idle_s)
        if record.since < last.closes and (record.began is None or record.began < last.opens):
            more_s = drawn(self.secret, f"missed {last.date}", MISSED_SPREAD_S)
            ends = Instant(now + self._window.long_min * 60)
            return _Occasion(last.date + MADE_UP, ends, False, MISSED_IDLE_S + more_s)
        return self._rests("by day", coming.starts, now)

    def _rests(self, why: str, starts: Instant, now: Instant) -> Verdict:
        return Verdict(State.RESTS, why, f"next night {self.moment(starts, now)}", starts)

    # ---- whether the machine is free -------------------------------------------------------------

    def _gated(self, occasion: _Occasion, senses: Senses, now: Instant) -> Verdict:
        for shut in self._shut(senses):
            return _waits(*shut)
        for busy in self._in_use(senses, occasion):
            self._disturbed = now if occasion.begun else None
            return _waits(*busy)
        wanted_s = occasion.idle_s
        if occasion.begun:
            wanted_s = min(wanted_s, self._config.again_min * 60)
            quiet_s = now - self._disturbed if self._disturbed is not None else wanted_s
            if 0 <= quiet_s < wanted_s:
                at = Instant(int(now + wanted_s - quiet_s))
                return _waits("quiet", "the machine was in use just now", self._quiet(), at)
        elif senses.idle_s is not None and senses.idle_s < wanted_s:
            made_up = ", to make up for a missed night" if MADE_UP in occasion.date else ""
            idle = f"idle for {senses.idle_s / 60:.0f} of {wanted_s / 60:.0f} min{made_up}"
            return _waits("idle", idle, "when nobody has touched the machine for so long")
        self._disturbed = None
        self.date = occasion.date
        why = f"until {self.moment(occasion.ends, now)} at the latest"
        if self._bytes_spent():
            why += f"; nothing is fetched, {self._config.megabytes_max:,} MB have passed"
        return Verdict(State.WORKS, why, at=occasion.ends)

    def _shut(self, senses: Senses) -> Iterator[tuple[str, str, str]]:
        """What of the machine forbids work, and what ends that: nobody is there to be disturbed."""
        config = self._config
        if senses.on_battery:
            charge = f" ({senses.battery:.0%})" if senses.battery is not None else ""
            if not config.on_battery:
                yield "battery", f"on battery{charge}", "when plugged in"
            elif senses.battery is not None and senses.battery * 100 < config.battery_min:
                enough = f"when plugged in, or charged to {config.battery_min:.0f} %"
                yield "battery", f"on battery{charge}", enough
        if senses.low_power:
            yield "low power", "the machine saves power", "when low-power mode is off"
        if senses.metered and not config.metered:
            yield "metered", "the connection is metered", "on another network"
        free = senses.disk_free_bytes
        if free is not None and free < config.disk_gb_min * 1e9:
            enough = f"when {config.disk_gb_min:g} GB are free"
            yield "disk", f"{free / 1e9:.1f} GB free on the disk", enough
        heat = senses.temperature_c
        if heat is not None and heat > config.temperature_c_max:
            yield "heat", f"{heat:.0f} °C", f"below {config.temperature_c_max:.0f} °C"

    def _in_use(self, senses: Senses, occasion: _Occasion) -> Iterator[tuple[str, str, str]]:
        """Who uses the machine just now."""
        if senses.idle_s is not None and senses.idle_s < PRESENT_S:
            idle = f"after {occasion.idle_s / 60:.0f} min without you"
            yield "you", "you are at the machine", self._quiet() if occasion.begun else idle
        if senses.served_s is not None and senses.served_s < PRESENT_S:
            yield "endpoint", "you ask the endpoint", self._quiet()
        if senses.model_server:
            server = f"your {senses.model_server} is at work"
            yield "model server", server, self._quiet()
        if senses.load is not None and senses.load >= self._config.load_max:
            yield "load", f"other work takes {senses.load:.0%} of the cores", self._quiet()

    def _quiet(self) -> str:
        return f"after {self._config.again_min:g} min of quiet"

    def _bytes_spent(self) -> bool:
        record = self._record
        return self.date == record.date and record.bytes >= self._config.megabytes_max * 1_000_000


def _waits(cause: str, why: str, until: str, at: Instant | None = None) -> Verdict:
    return Verdict(State.WAITS, why, f"goes on {until}", at, cause)
