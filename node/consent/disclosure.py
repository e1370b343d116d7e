"""What the owner reads before saying yes, and how their consent stands. Values in, lines out.

The hash of the text that was shown is part of the receipt: a change of meaning needs a new
CURRENT_CONSENT_VERSION.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

_TEXTS = {
    "capture": """\
  capture  What is kept: your prompts, the answers to them, and about each session its tool, model,
           times and outcome. From where: what your own programs hand over (api, jsonl, pydoc), and
           of coding assistants only the sources and project folders that you name. Where: on this
           machine, under GROOVE_HOME; sessions are embedded and clustered here.
           E-mail addresses, phone numbers, API keys, card numbers, file paths and more are
           replaced by placeholders before anything is written. This lowers the risk; it does not
           find everything. Names of people and street addresses are not found at all, nor is what
           is secret only by its meaning.""",
    "train": """\
  train    What it is used for: adapters (expert models) are trained with it on this machine, so
           that answers in your domains improve. Only with records whose terms allow it.""",
    "publish": """\
  publish  Signed leaf states (int8 centroids of at least 200 sessions, coarse counts) and the
           adapters of mature leaves are given to peers. Prompts, answers and their embeddings
           never are. An adapter can retain traces of what it was trained on.""",
    "fetch": """\
  fetch    Peers' adapters are fetched, checked, judged on your sessions, used, and served on.""",
}
_TERMS = """\
The terms of Anthropic, OpenAI, Google and others forbid training models on what theirs say. So the
sessions of Claude Code, Codex and the like are used for finding domains and for routing only,
unless you set `restricted_outputs = true` under `[training]` in groove.toml."""
_ENDPOINT = {
    "endpoint": """\
  endpoint Whatever your programs ask of this node's own endpoint, and the answers, also those that
           it passes on. A request with the header X-Groove-No-Capture: 1 is not kept.""",
    "otlp": """\
  otlp     What instrumented programs report to the endpoint of their exchanges with any model. Of a
           report that names a project folder only what is in those that you name.""",
    "litellm": """\
  litellm  What a LiteLLM proxy reports to the endpoint of the exchanges of all who use it.""",
}
_FOOT = """\
Everything is off until you allow it. You can withdraw at any time: `groove-node consent revoke`
ends it at once, also in a session that is running. `groove-node data --delete` deletes all that was
captured, and asks peers to drop what was trained on it: honest ones do within 7 days."""


def text(
    scopes: Collection[str], sources: Collection[str] = (), folders: Collection[Any] = ()
) -> str:
    """What concerns what is asked for; sources and folders are of capture."""
    asked = {*scopes, "capture"} if sources or folders else {*scopes}
    told = [said for scope, said in _TEXTS.items() if scope in asked]
    told += [said for source, said in _ENDPOINT.items() if source in sources]
    lines = ["What this allows, and what it does not:", "", *told, ""]
    if sources or folders or "train" in asked:
        lines += [_TERMS, ""]
    return "\n".join([*lines, _FOOT])


def sha256(shown: str) -> str:
    """The hash of a text that was shown, as the receipt has it."""
    return hashlib.sha256(shown.encode()).hexdigest()


EXAMPLE = (
    "Why does /home/ann/shop/pay.py fail for ann@example.com from 203.0.113.7? "
    "The test card is 4111 1111 1111 1111, and Ann Miller of 12 Hill Road called about it."
)
SHOWN_CHARS = 400  # of each text of the preview
LEAD_CHARS = 80  # shown before the first thing that is replaced

_SCOPES = {
    "capture": "record, embed and cluster sessions on this machine",
    "train": "train own adapters on them",
    "publish": "offer leaf states and mature adapters to peers",
    "fetch": "get, judge, use and serve on peers' adapters",
}


@dataclass(frozen=True, slots=True)
class Shown:
    """One text as the preview shows it. after: None if it would be dropped whole."""

    source: str  # empty for the answer to the ask before
    folder: str | None
    before: str = field(repr=False)
    after: str | None
    reasons: tuple[str, ...]  # "EMAIL: name@domain", each once


def scope_rows(scopes: Iterable[str], since: dict[str, str] | None = None) -> list[Sequence[str]]:
    """SCOPE, allowed or off, SINCE, MEANING."""
    allowed, when = set(scopes), since or {}
    return [
        (s, "allowed" if s in allowed else "off", when.get(s, "-"), text)
        for s, text in _SCOPES.items()
    ]


def standing_line(standing: dict[str, Any]) -> str:
    """How consent stands, in one line that says what to do; for `status`, `run`, `consent show`."""
    if undone := standing["undone"]:
        return (
            f"NOTHING until you delete again: this home is from before the deletion of everything "
            f"on {undone['at']}, and holds deleted data again ({undone['records']:,} records had "
            f"been deleted). It stays unused. `{standing['again']}` deletes it"
        )
    match standing["standing"]:
        case "never asked":
            return "nothing yet: `groove-node consent grant capture`"
        case "revoked":
            return "nothing, you withdrew it"
        case "terms changed":
            return (
                f"NOTHING until you answer again: {standing['reason']}. "
                f"`{standing['again']}` shows the new terms"
            )
        case "restored":
            return (
                f"NOTHING until you say yes again: {standing['reason']}. You may have withdrawn "
                f"consent since. `{standing['again']}` asks again"
            )
    return ", ".join(standing["scopes"]) or "nothing"


def stays_line(records: int) -> str:
    """The offer that goes with a withdrawal; empty if nothing was captured."""
    if not records:
        return ""
    stay = "1 record stays" if records == 1 else f"{records:,} records stay"
    return f"{stay}; `groove-node data --delete` removes what was captured"


def nothing_previewed(tools: bool, folders: bool) -> str:
    """Why a grant of capture shows no asks. tools: a coding assistant is allowed; folders: any."""
    if not tools:
        return (
            "This grant captures nothing of the histories of coding assistants; "
            "`groove-node consent grant capture --source claude-code --folder DIR` would."
        )
    if not folders:
        return (
            "This grant captures nothing of that history yet: of coding assistants only what is "
            "in project folders that you name, by `--folder DIR`."
        )
    return "No ask of these sources and folders is among the newest transcripts here."


def preview_lines(shown: Sequence[Shown]) -> list[str]:
    """The preview: each text before and after scrubbing, and why."""
    lines = []
    for one in shown:
        where = f"{one.source}, {one.folder}" if one.folder else one.source
        lines += ["", f"  from {printable(where)}"] if where else ["    its answer"]
        lines.append(f"    before  {printable(one.before)}")
        if one.after is None:
            lines.append("    after   nothing: it cannot be made clean, so it would be dropped")
            continue
        lines.append(f"    after   {printable(one.after)}")
        lines.append(f"    why     {'; '.join(one.reasons) or 'nothing was found in it'}")
    return lines


def printable(text: str) -> str:
    """A text on one line, without what a terminal would obey."""
    words = " ".join(text.split())
    return "".join(
        c if unicodedata.category(c)[0] != "C" else "\N{REPLACEMENT CHARACTER}" for c in words
    )


def cut(text: str, start: int) -> str:
    """The part of a text that is shown."""
    end = start + SHOWN_CHARS
    return f"{'… ' if start else ''}{text[start:end]}{' …' if end < len(text) else ''}"
