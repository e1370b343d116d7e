"""The tree in a terminal, as the leaf architecture document draws it in its §11.

    Tree: 2,020 sessions, 2 leaves [1 seed, 1 mature]
    ├── Backend Programming  1,400 sessions
    │   └── Python [MATURE, 1,400 sessions, +12/day]
    ├── Poems [SEED, 280 sessions, waiting for 500, about 9 days at this pace]
    └── 340 unassigned sessions (in no leaf yet)

Values in, lines out; what leaves are missing is told here for the interactive page too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from leaves.lifecycle import Rules, training_threshold
from leaves.model import Forest, Instant, Interval, Leaf, LeafId, Stage
from node.foreign import Known, State
from node.set_aside import of_another
from node.show import WAITS_FOR_CONSENT, ago, counted, gain

BLOCKS = "▁▂▃▄▅▆▇█"
SPARK_WEEKS = 12
NAME_MIN = 8  # cells of a name that stay on the narrowest terminal
STYLES = {Stage.SEED: "yellow", Stage.SPROUT: "green", Stage.MATURE: "bold green"}


@dataclass(frozen=True, slots=True)
class Branch:
    """A live leaf and those under it, the larger first."""

    leaf: Leaf
    children: tuple[Branch, ...]


@dataclass(frozen=True, slots=True)
class Standing:
    """All that the tree tells. gates: cosine below which the parent serves, by leaf in force.

    unassigned: sessions that are in no leaf. weekly: sessions per week, oldest first.
    train: whether the owner allows training. chassis: tag of the one in use, if it is known.
    """

    forest: Forest
    rules: Rules
    sessions: int
    unassigned: int
    foreign: tuple[Known, ...] = ()
    starters: tuple[str, ...] = ()
    gates: Mapping[LeafId, float] = field(default_factory=dict)
    weekly: Mapping[LeafId, Sequence[int]] = field(default_factory=dict)
    train: bool = True
    chassis: str | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """One line. On a narrow terminal the extras go first, then the facts, each from its end."""

    name: str
    facts: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()
    style: str = ""
    children: tuple[Line, ...] = ()


def grown(forest: Forest) -> tuple[Branch, ...]:
    """Live leaves, each under its parent; of siblings the one with more sessions first."""
    live = {leaf.id: leaf for leaf in forest.live()}
    below: dict[LeafId | None, list[Leaf]] = {}
    for leaf in live.values():
        below.setdefault(leaf.parent if leaf.parent in live else None, []).append(leaf)

    def under(parent: LeafId | None) -> tuple[Branch, ...]:
        ordered = sorted(below.get(parent, []), key=lambda x: (-x.sessions, x.id))
        return tuple(Branch(leaf, under(leaf.id)) for leaf in ordered)

    return under(None)


def missing(leaf: Leaf, rules: Rules, train: bool = True) -> tuple[str, ...]:
    """What a leaf waits for before its next stage, and how long; nothing if it is mature.

    train: whether the owner allows it.
    """
    due = "to be trained in the next round" if train else WAITS_FOR_CONSENT
    match leaf.stage:
        case Stage.SEED:
            wanted = training_threshold(leaf.kind, rules)
            if leaf.sessions < wanted:
                return _waiting(leaf, wanted)
            return (due,)
        case Stage.SPROUT if leaf.trainings == 0:
            return (due,)
        case Stage.SPROUT if leaf.sessions < rules.mature_sessions:
            return _waiting(leaf, rules.mature_sessions)
        case Stage.SPROUT if leaf.wins < rules.mature_wins:
            return (f"won {leaf.wins} of {rules.mature_wins} rounds",)
        case Stage.SPROUT if leaf.trainings < 2:
            return ("to be retrained once" if train else WAITS_FOR_CONSENT,)
        case Stage.SPROUT:
            return ("its last round must hold",)
        case _:
            return ()


def _waiting(leaf: Leaf, wanted: int) -> tuple[str, ...]:
    if leaf.growth_per_day <= 0:
        return (f"waiting for {wanted:,}",)
    days = max(round((wanted - leaf.sessions) / leaf.growth_per_day), 1)
    long = "more than a year" if days > 365 else f"about {counted(days, 'day')}"
    return f"waiting for {wanted:,}", f"{long} at this pace"


def pace(leaf: Leaf) -> str:
    """+12/day, or +3/month; nothing while it does not grow."""
    if leaf.growth_per_day >= 1:
        return f"+{leaf.growth_per_day:.0f}/day"
    month = round(leaf.growth_per_day * 30)
    return f"+{month}/month" if month > 0 else ""


def sparkline(counts: Sequence[int]) -> str:
    """Blocks as high as the counts; nothing if there are none. A week without any is a space."""
    most = max(counts, default=0)
    if not most:
        return ""
    return "".join(BLOCKS[(n * (len(BLOCKS) - 1)) // most] if n else " " for n in counts).strip()


def drawn(standing: Standing, width: int | None = None) -> list[Text]:
    """The whole tree. width: cells of the terminal; None has no edge."""
    forest = standing.forest
    trunk = [_line(branch, standing) for branch in grown(forest)]
    trunk += [Line(f"{name} (starter)", style="dim") for name in standing.starters]
    if theirs := _of_peers(standing.foreign):
        trunk.append(Line("leaves of peers", children=theirs, style="dim"))
    if standing.unassigned:
        what = counted(standing.unassigned, "unassigned session")
        trunk.append(Line(f"{what} ({_why_unassigned(standing)})", style="dim"))
    out = [_fitted("", _title(standing), width)] if trunk else []
    _walk(trunk, "", width, out)
    return out


def _title(standing: Standing) -> Line:
    leaves = [leaf for leaf in standing.forest.live() if leaf.level > 1]
    stages = Counter(leaf.stage for leaf in leaves)
    many = f"{len(leaves):,} {'leaf' if len(leaves) == 1 else 'leaves'}"
    return Line(
        f"Tree: {counted(standing.sessions, 'session')}, {many}",
        tuple(f"{stages[stage]:,} {stage}" for stage in Stage if stages[stage]),
    )


def _why_unassigned(standing: Standing) -> str:
    wanted = standing.rules.first_discovery_sessions
    if not standing.forest.leaves and standing.sessions < wanted:
        return f"waiting for {wanted:,} for a first discovery"
    return "noise, or newer than the last round: waiting for leaves to form"


def _line(branch: Branch, standing: Standing) -> Line:
    leaf = branch.leaf
    children = tuple(_line(child, standing) for child in branch.children)
    sessions = counted(leaf.sessions, "session")
    if leaf.level == 1:
        return Line(_printable(leaf.name), extras=(sessions,), style="bold", children=children)
    facts = [leaf.stage.value.upper(), sessions, *missing(leaf, standing.rules, standing.train)]
    if of_another(leaf, standing.chassis):
        facts.append("set aside: made for another chassis")
    if leaf.stage is not Stage.SEED and (gate := standing.gates.get(leaf.id)):
        facts.append(f"gate {gate:.2f}")
    if leaf.evaluation:
        facts.append(f"{leaf.evaluation.over_style.mean:+.3f} nats over style")
    if grows := pace(leaf):
        facts.append(grows)
    spark = sparkline(standing.weekly.get(leaf.id, ()))
    extras = tuple(extra for extra in (leaf.id[:8], spark) if extra)
    return Line(_printable(leaf.name), tuple(facts), extras, STYLES.get(leaf.stage, ""), children)


def _of_peers(foreign: Iterable[Known]) -> tuple[Line, ...]:
    return tuple(
        Line(
            f"{_printable(known.name)} (of {known.leaf.origin[:8]})",
            (known.leaf.stage.upper(), known.state.value, f"~{_about(known):,} sessions"),
            (known.leaf.leaf[:8],),
            "green" if known.state is State.ACCEPTED else "",
        )
        for known in foreign
        if known.leaf.stage is Stage.MATURE
    )


def _about(known: Known) -> int:
    """Sessions of a peer's leaf: its card tells their power of two alone."""
    return int(2 ** max(known.leaf.sessions_log2 - 1, 0))


def _printable(name: str) -> str:
    """A peer's word may hold what a terminal would obey."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in name)


def _walk(lines: Sequence[Line], rails: str, width: int | None, out: list[Text]) -> None:
    for at, line in enumerate(lines):
        last = at == len(lines) - 1
        out.append(_fitted(rails + ("└── " if last else "├── "), line, width))
        _walk(line.children, rails + ("    " if last else "│   "), width, out)


def _fitted(rails: str, line: Line, width: int | None) -> Text:
    """The line within `width` cells: what does not fit is left out, at last of the name."""
    facts, extras = list(line.facts), list(line.extras)
    while width is not None and cell_len(_plain(rails, line.name, facts, extras)) > width:
        if extras:
            extras.pop()
        elif facts:
            facts.pop()
        else:
            break
    name = line.name
    room = max(width - cell_len(rails), NAME_MIN) if width is not None else cell_len(name)
    if cell_len(name) > room:
        name = set_cell_size(name, room - 1).rstrip() + "…"
    text = Text(rails, style="dim")
    text.append(name, style=f"not dim {line.style}" if line.style != "dim" else "")
    if facts:
        text.append(f" [{', '.join(facts)}]", style=f"not dim {line.style}")
    for extra in extras:
        text.append(f"  {extra}")
    return text


def _plain(rails: str, name: str, facts: Sequence[str], extras: Sequence[str]) -> str:
    inside = f" [{', '.join(facts)}]" if facts else ""
    return "".join([rails, name, inside, *(f"  {extra}" for extra in extras)])


def table_rows(
    forest: Forest, foreign: Iterable[Known], now: Instant
) -> tuple[Sequence[str], list[Sequence[str]]]:
    """Columns and rows of `groove-node tree --table`: parents first, then peers' leaves."""
    columns = ("LEAF", "STAGE", "SESSIONS", "GAIN OVER STYLE", "LAST ROUTED", "ID")
    rows: list[Sequence[str]] = []

    def walk(branches: Iterable[Branch], depth: int) -> None:
        for branch in branches:
            leaf = branch.leaf
            rows.append(
                (
                    "  " * depth + leaf.name,
                    leaf.stage if leaf.level > 1 else "branch",
                    f"{leaf.sessions:,}",
                    gain(leaf.evaluation.over_style) if leaf.evaluation else "-",
                    ago(leaf.last_routed, now),
                    leaf.id[:8],
                )
            )
            walk(branch.children, depth + 1)

    walk(grown(forest), 0)
    for known in foreign:
        if known.leaf.stage is not Stage.MATURE:
            continue
        over = known.detail.get("over_style")
        rows.append(
            (
                f"{known.name} (of {known.leaf.origin[:8]})",
                f"{known.leaf.stage}, {known.state}",
                f"~{_about(known):,}",
                gain(Interval(**over)) if over else "-",
                "-",
                known.leaf.leaf[:8],
            )
        )
    return columns, rows
