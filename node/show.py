"""How things look on a terminal: values in, lines out. Prints nothing."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from leaves.metadata import metadata
from leaves.model import DAY_S, Evaluation, Instant, Interval, Leaf, LeafId, Stage

from . import publishing, show_api
from .consent import ENDPOINT_SOURCES, disclosure
from .foreign import Known, State

if TYPE_CHECKING:
    from .deletion import Preview

WAITS_FOR_CONSENT = "waits for consent: train"
SHOWN = 0.95  # confidence of the bounds that an interval shows
GRANT_TRAIN = "`groove-node consent grant train`"


def gain(interval: Interval) -> str:
    return f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def evaluation_line(evaluation: Evaluation) -> str:
    """One line with every figure that a verdict rests on."""
    parts = [
        f"over parent {gain(evaluation.over_parent)}",
        f"over style control {gain(evaluation.over_style)}",
    ]
    if evaluation.over_previous:
        parts.append(f"over the version before {gain(evaluation.over_previous)}")
    if evaluation.general_rise is not None:
        parts.append(f"rise on other text < {evaluation.general_rise:+.3f}")
    line = f"{', '.join(parts)} nats per token on {evaluation.held_out} held-out sessions"
    return "; ".join([line, *_decided(evaluation)])


def _decided(evaluation: Evaluation) -> list[str]:
    """What a look asked for beyond the intervals that are shown, and the rate of right answers."""
    parts = []
    if evaluation.decided is not None and evaluation.confidence > SHOWN:
        parent, style = evaluation.decided
        parts.append(
            f"look {evaluation.attempt} decided at {evaluation.confidence:.2%}: at least "
            f"{parent:+.3f} over parent and {style:+.3f} over style control, of which more than "
            f"{evaluation.parent_margin:g} and {evaluation.margin:.3f} were wanted"
        )
    if evaluation.right is not None:
        before, after = evaluation.right
        parts.append(f"right answers {before:.0%} before, {after:.0%} now, of {evaluation.answers}")
    return parts


def ago(then: Instant | None, now: Instant) -> str:
    if then is None:
        return "never"
    seconds = max(now - then, 0)
    for size, word in ((DAY_S, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {word} ago"
    return "just now"


def next_step(leaf: Leaf, wanted: int, train: bool) -> str:
    """How far a seed is: "312 of 500 sessions, about 9 days at this pace".

    train: whether the owner allows it.
    """
    missing = wanted - leaf.sessions
    if missing <= 0:
        step = "trained in the next round" if train else f"{WAITS_FOR_CONSENT} ({GRANT_TRAIN})"
        return f"{leaf.name}: {leaf.sessions} of {wanted} sessions, {step}"
    pace = leaf.growth_per_day
    days = f", about {max(round(missing / pace), 1)} days at this pace" if pace > 0 else ""
    return f"{leaf.name}: {leaf.sessions} of {wanted} sessions{days}"


def leaf_facts(leaf: Leaf, members: int) -> list[tuple[str, str]]:
    facts = [
        ("id", leaf.id),
        ("stage", f"{leaf.stage}, since {day(leaf.stage_since)}"),
        ("level", str(leaf.level)),
        ("kind", leaf.kind.value),
        ("grown from", leaf.grown_from.value),
        ("sessions", f"{leaf.sessions} ({members} assigned now)"),
        ("growth", f"{leaf.growth_per_day:.1f} a day"),
        ("trainings", f"{leaf.trainings}, {leaf.wins} won"),
    ]
    if leaf.evaluation:
        facts.append(
            ("evaluation", f"{leaf.evaluation.verdict}; {evaluation_line(leaf.evaluation)}")
        )
    if leaf.adapter:
        facts.append(("bundle", leaf.adapter.bundle))
    if leaf.note:
        facts.append(("note", leaf.note))
    return facts


def foreign_facts(known: Known) -> list[tuple[str, str]]:
    facts = [
        ("id", known.leaf.leaf),
        ("origin", known.leaf.origin),
        ("stage", known.leaf.stage.value),
        ("here", known.state.value),
        ("bundle", known.leaf.root or "none offered"),
    ]
    if known.state is not State.HEARD:
        facts += [(key.replace("_", " "), str(value)) for key, value in known.detail.items()]
    return facts


def day(instant: Instant) -> str:
    """The UTC date of an instant."""

    return datetime.datetime.fromtimestamp(instant, datetime.UTC).date().isoformat()


def size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1e6 else f"{size_bytes / 1e3:.1f} kB"


def counted(count: int, what: str) -> str:
    """1 peer, 2 peers."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def moment(instant: Instant) -> str:
    """UTC date and time."""
    return datetime.datetime.fromtimestamp(instant, datetime.UTC).strftime("%Y-%m-%d %H:%M")


_CHASSIS_CHANGED = (
    "groove.toml names another chassis since the last training; adapters of the other one answer "
    "no more until rounds have trained their leaves anew"
)


def status_facts(status: dict[str, Any]) -> list[tuple[str, str]]:
    leaves = ", ".join(f"{count} {stage}" for stage, count in status["leaves"].items())
    if leaves and status["branches"]:
        leaves += f"; in {status['branches']:,} branch{'es' * (status['branches'] > 1)}"
    foreign = ", ".join(f"{n} {state}" for state, n in status["foreign"].items() if n)
    last = status["round"]["last_finished"]
    node = status["node"]
    facts = [
        ("home", status["home"]),
        ("origin", status["origin"]),
        ("allowed", disclosure.standing_line(status["consent"])),
        ("node", node_line(node)),
        ("captured", captured_line(status)),
        *show_api.facts(status["endpoint"]),
        *queue_facts(status["queue"]),
        *source_facts(status["sources"], watched=node is not None),
        ("sessions", f"{status['embedded']:,} embedded"),
        ("leaves", leaves or "none yet"),
        *([("set aside", _CHASSIS_CHANGED)] if status["chassis_changed"] else []),
        ("peers' leaves", foreign or "none"),
        ("routing", status["routing"]["line"]),
        ("last round", moment(Instant(last)) if last else "never"),
    ]
    if phase := status["round"]["open"]:
        goes_on = (
            "running" if status["round"]["running"] else "stopped; `groove-node round` goes on"
        )
        facts.append(("open round", f"in {phase!r}, {goes_on}"))
    if waiting := status["proposals"]:
        facts.append(("waits for you", f"{counted(waiting, 'proposal')}: `groove-node approve`"))
    facts += [("kept back", text) for text in publishing.lines(status["kept_back"])]
    return facts + [("next", text) for text in status["next"]]


def node_line(node: Mapping[str, Any] | None) -> str:
    """Whether a node runs, and where. node: what `overview.running` found."""
    if node is None:
        return "not running: `groove-node run`"
    if node["pid"] is None:
        return f"running, {process(node)}: end the node, and start it again"
    return f"running ({process(node)}), {counted(len(node['peers']), 'peer')}, {listening(node)}"


def process(node: Mapping[str, Any]) -> str:
    if node["pid"] is None:
        return "and its run file cannot be read"
    return f"process {node['pid']}"


def listening(node: Mapping[str, Any]) -> str:
    """Where it listens: nowhere for the moments in which its host is started again."""
    return f"at {node['addresses'][0]}" if node["addresses"] else "not listening now"


def captured_line(status: dict[str, Any]) -> str:
    """How much there is, and what is amiss with it."""
    line = f"{size(status['captured_bytes'])} of scrubbed records"
    if torn := status["torn_lines"]:
        line += f", {counted(torn, 'line')} cut off by a crash"
    if status["rescan_due"]:
        line += "; the rules have improved: `groove-node data --rescan`"
    return line


_DROPS = {
    "dropped_full": "as the queue was full",
    "dropped_no_consent": "without consent",
    "dropped_scrub": "not to be scrubbed",
    "dropped_too_long": "too long",
    "dropped_error": "by an error",
    "dropped_deleted": "of deleted sessions",
}


def queue_facts(queue: dict[str, int]) -> list[tuple[str, str]]:
    """What became of what applications handed over; nothing if they never did."""
    if not queue:
        return []
    drops = ", ".join(f"{queue[name]:,} {why}" for name, why in _DROPS.items() if queue.get(name))
    kept = counted(queue.get("captured", 0), "record")
    return [("handed over", f"{kept} kept; dropped: {drops or 'none'}")]


def source_facts(sources: list[dict[str, Any]], *, watched: bool) -> list[tuple[str, str]]:
    """One line a source, and one for each thing about it that the owner should know."""
    facts = []
    for each in sources:
        name, kept = each["source"], counted(each["transcripts"], "transcript")
        last = f", last {moment(Instant(each['last']))}" if each["last"] else ""
        taken = f"{counted(each['sessions'], 'session')}, {counted(each['records'], 'record')}"
        if name in ENDPOINT_SOURCES:
            how = "heard" if watched else "not heard: `groove-node run`"
            facts.append((name, f"{how if each['allowed'] else 'not allowed'}; {taken}{last}"))
            continue
        if not each["allowed"]:
            facts.append((name, f"{kept} here, not allowed"))
            continue
        how = "watched" if watched else "not watched: `groove-node run`"
        kept += within(each["allowed_folders"])
        facts.append((name, f"{how}; {kept}; {taken} taken in{last}"))
        facts += [("", line) for line in terms_lines(each["sessions"], each["untrainable"])]
        if each["growing"]:
            still = counted(each["growing"], "transcript")
            facts.append(("", f"{still} still being written: the last answer waits for its end"))
        if each["unknown"]:
            kinds = ", ".join(sorted(each["unknown"])[:5])
            facts.append(("", f"its format has changed; unknown kinds, skipped: {kinds}"))
        if each["expiring"]:
            facts.append(("", expiry_line(name, each["expiring"])))
    return facts


def within(folders: int | None) -> str:
    """Which of a tool's transcripts are captured: nothing to say if it knows no folders."""
    return "" if folders is None else f" here, captured from {counted(folders, 'allowed folder')}"


def terms_lines(sessions: int, untrainable: dict[str, int]) -> list[str]:
    """How many sessions cannot be trained on by the terms of who answered in them."""
    providers = sorted(name for name in untrainable if name)
    lines = []
    if providers:
        restricted = sum(untrainable[name] for name in providers)
        whose = "their" if len(providers) > 1 else "its"
        lines.append(
            f"{counted(sessions, 'session')}: {_are(restricted)} for routing and discovery only: "
            f"the terms of {' and '.join(providers)} forbid training on {whose} answers; "
            "`groove-node data --stats` has the whole account"
        )
    if unknown := untrainable.get("", 0):
        lines.append(
            f"{counted(sessions, 'session')}: {_are(unknown)} for routing and discovery only: "
            "who made their answers, and on what terms, is not known"
        )
    return lines


def _are(count: int) -> str:
    return f"{count:,} {'is' if count == 1 else 'are'}"


def expiry_line(source: str, transcripts: int) -> str:
    """What is about to be lost, and what saves it."""
    return (
        f"{source} deletes {counted(transcripts, 'transcript')} within 7 days that were not "
        f"imported: `groove-node import {source}`"
    )


def stats_facts(stats: dict[str, Any]) -> list[tuple[str, str]]:
    growth = ", ".join(f"{d['date'][5:]} {d['records']:,}" for d in stats["daily_growth"])
    training, tagger = stats["training"], stats["tagger"]
    terms = "restricted outputs too" if training["restricted_outputs"] else "terms that allow it"
    agreement = (
        f"{tagger['percentage']} % of {counted(tagger['compared'], 'record')} whose program had "
        "named the kind of work"
        if tagger["compared"]
        else "not known, for no program has named the kind of its work"
    )
    due = "; a rescan is due: `groove-node data --rescan`" if stats["rescan_due"] else ""
    return [
        ("records", f"{stats['total_records']:,} in {counted(stats['sessions'], 'session')}"),
        ("size", f"{stats['storage_size_mb']} MB"),
        ("allowed by", f"{counted(stats['opted_in_users'], 'user')} (opted in)"),
        ("domains", _tally(stats["domains"])),
        ("sources", _tally(stats["sources"])),
        ("last days", growth),
        ("how it went", f"{_tiers(stats['tiers'])} (tiers, in sessions)"),
        ("for training", f"{counted(training['sessions'], 'session')} ({terms})"),
        (
            "left out",
            f"{_tally(training['left_out'])} ({counted(training['left_out_records'], 'record')})",
        ),
        ("domains right", f"{agreement} (tagger agreement)"),
        (
            "not readable",
            f"{counted(stats['damaged_lines'], 'damaged line')}, "
            f"{counted(stats['torn_lines'], 'line')} cut off by a crash (torn tails)",
        ),
        ("scrub rules", f"version {stats['rules_version'] or 'unknown'}{due}"),
    ]


_TIERS = {"A": "A well", "B": "B fairly", "C": "C badly", "unknown": "not known"}


def _tiers(counts: dict[str, int]) -> str:
    return _tally({_TIERS.get(name, name): count for name, count in counts.items()})


def _tally(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "none"


def counts_facts(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Figures under their own names."""
    return [
        (key.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value))
        for key, value in result.items()
    ]


def _leaves(count: int) -> str:
    """1 leaf, 2 leaves."""
    return f"{count:,} {'leaf' if count == 1 else 'leaves'}"


def deletion_question(found: Preview) -> str:
    """What a deletion would come to, as the owner is asked for it."""
    records, sessions = counted(found.records, "record"), counted(found.sessions, "session")
    retracted = f"retract {_leaves(found.retracted)}" if found.retracted else ""
    if found.everything:
        made = f"remove the {_leaves(found.leaves)} made of them" if found.leaves else ""
        ending = "withdraw your consent to everything"
        what = f"Delete all {records} of {sessions}"
        return f"{_joined([what, made, retracted, ending])}?"
    retrained = f"train {_leaves(found.retrained)} again" if found.retrained else ""
    more = found.records - found.fitting
    whole = f" (whole sessions: the filters fit {found.fitting:,} of the records)" if more else ""
    ending = "withdraw this user's consent" if found.ends_consent else ""
    question = _joined([f"Delete {records} of {sessions}{whole}", retracted, retrained, ending])
    return f"{question}?" if ending else f"{question}? Consent stays as it is."


def _joined(parts: Iterable[str]) -> str:
    *first, last = [part for part in parts if part]
    return f"{', '.join(first)} and {last}" if first else last


def after_deletion(receipt: dict[str, Any]) -> str:
    """What the owner should know of what comes after it."""
    chosen = receipt["selected"]
    filtered = chosen["domain"] is not None or chosen["after"] is not None or chosen["sessions"]
    if chosen["everything"] or not filtered:
        return (
            "What your tools still hold is as it was: should capture be allowed again, an import "
            "takes it in again."
        )
    return "No import takes these sessions in again."


def deletion_facts(receipt: dict[str, Any]) -> list[tuple[str, str]]:
    consent = "withdrawn" if receipt["consent_revoked"] else "as it was"
    return [
        (
            "deleted",
            f"{counted(receipt['records_deleted'], 'record')} of "
            f"{counted(receipt['sessions_deleted'], 'session')}",
        ),
        ("consent", consent),
        ("retracted", _leaves(receipt["leaves_retracted"])),
        ("to retrain", _leaves(receipt["leaves_to_retrain"])),
        ("at", moment(Instant(int(receipt["at"])))),
    ]


def as_json(leaf: Leaf, gates: Mapping[LeafId, float]) -> dict[str, Any]:
    """A leaf's metadata under the names of the leaf architecture document, and what it has not.

    gates: by leaf, of the routing table in force. A seed has none: it serves nothing.
    """
    evaluation, told = leaf.evaluation, metadata(leaf)
    gate = None if leaf.stage is Stage.SEED else gates.get(leaf.id)
    return {
        **told,
        "confidence_gate": round(gate, 4) if gate else told["confidence_gate"],
        "name": leaf.name,
        "level": leaf.level,
        "kind": leaf.kind.value,
        "trainings": leaf.trainings,
        "wins": leaf.wins,
        "attempts": leaf.attempts,
        "bundle": leaf.adapter.bundle if leaf.adapter else None,
        "held_out": evaluation.held_out if evaluation else None,
        "verdict": evaluation.verdict.value if evaluation else None,
        "eval_vs_style": gain(evaluation.over_style) if evaluation else None,
    }


def foreign_json(known: Known) -> dict[str, Any]:
    return {
        "leaf_id": known.leaf.leaf,
        "origin_key": known.leaf.origin,
        "name": known.name,
        "stage": known.leaf.stage.value,
        "state": known.state.value,
        "bundle": known.leaf.root,
        "size_bytes": known.leaf.size_bytes,
        **known.detail,
    }
