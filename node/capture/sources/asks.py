"""What of a message the owner wrote, and what the owner's messages say of the answers before.

Coding tools put much into the user's place that no user wrote: reminders, the state of the
editor, project rules, summaries, what commands printed. Two thirds of a transcript is of that
kind; it would drown the ask in its embedding and be trained on as if it were one. `RULES` is the
whole list of what is taken out, each with its reason; it grows when a tool invents another.

Everything here costs time linear in the text, for hostile texts too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

from node.capture.quality import Outcome

CONTEXT, OUTPUT, SUMMARY, ATTACHMENT = (
    "injected context",
    "tool output",
    "summaries",
    "attachments",
)
_TAG_CHARS_MAX = 256  # of an opening tag with its attributes; longer ones are no tool's
_HEAD_CHARS = 240  # of an ask; whether it corrects is said at its beginning
_THANKS_CHARS_MAX = 80  # a longer one goes on to ask for something
_ARGUMENT_WORDS_MIN = 3  # "/model opus" names a thing, "/review the login page" asks for one


@dataclass(frozen=True, slots=True)
class Rule:
    """One element `<name …>…</name>` that a tool writes into the user's place."""

    name: str
    left_out: str  # what it is counted as
    reason: str
    opening_only: bool = False  # a common word: only a message that begins with it is the tool's


RULES: Final = (
    Rule("system-reminder", CONTEXT, "Claude Code reminds the model, unseen by the user"),
    Rule("system_reminder", CONTEXT, "the same in another spelling"),
    Rule("system-notification", CONTEXT, "the harness tells of a background event"),
    Rule("environment_context", CONTEXT, "Codex tells folder, shell and sandbox"),
    Rule("user_instructions", CONTEXT, "Codex before 0.60 sends AGENTS.md so"),
    Rule("permissions", CONTEXT, "Codex: <permissions instructions>, what the sandbox allows"),
    Rule("collaboration_mode", CONTEXT, "Codex describes its mode"),
    Rule("multi_agent_mode", CONTEXT, "Codex describes its mode"),
    Rule("apps_instructions", CONTEXT, "Codex describes connected apps"),
    Rule("skills_instructions", CONTEXT, "Codex lists its skills"),
    Rule("plugins_instructions", CONTEXT, "Codex lists its plugins"),
    Rule("personality_spec", CONTEXT, "Codex is told how to speak"),
    Rule("model_switch", CONTEXT, "Codex tells that the model changed"),
    Rule("realtime_conversation", CONTEXT, "Codex tells that speech is on"),
    Rule("codex_internal_context", CONTEXT, "Codex pursues a goal by itself"),
    Rule("goal_context", CONTEXT, "the same, earlier"),
    Rule("subagent_notification", CONTEXT, "another agent reports"),
    Rule("hook_prompt", CONTEXT, "a hook speaks"),
    Rule("turn_aborted", CONTEXT, "Codex tells that the user stopped it; read as a signal too"),
    Rule("user_action", CONTEXT, "Codex tells what the user pressed"),
    Rule("user_shell_command", OUTPUT, "a command that the user ran, and its output"),
    Rule("skill", CONTEXT, "Codex loads a skill's text", opening_only=True),
    Rule("INSTRUCTIONS", CONTEXT, "the body of AGENTS.md", opening_only=True),
    Rule("ide_opened_file", CONTEXT, "the editor tells which file is open"),
    Rule("ide_selection", CONTEXT, "the editor tells which lines are marked"),
    Rule("ide_diagnostics", CONTEXT, "the editor tells of errors"),
    Rule("new-diagnostics", CONTEXT, "the editor tells of new errors"),
    Rule("post-tool-use-hook", CONTEXT, "a hook speaks"),
    Rule("user-prompt-submit-hook", CONTEXT, "a hook speaks"),
    Rule("session-start-hook", CONTEXT, "a hook speaks"),
    Rule("task-notification", CONTEXT, "a background task reports"),
    Rule("teammate-message", CONTEXT, "another agent writes"),
    Rule("cross-session-message", CONTEXT, "another session writes"),
    Rule("user-memory-input", CONTEXT, "a note for the memory file, asking nothing"),
    Rule("local-command-caveat", CONTEXT, "says that the user did not write what follows"),
    Rule("command-name", CONTEXT, "a slash command's name"),
    Rule("command-message", CONTEXT, "a slash command's name once more"),
    Rule("command-contents", CONTEXT, "a slash command's stored text"),
    Rule("local-command-stdout", OUTPUT, "what a slash command printed"),
    Rule("local-command-stderr", OUTPUT, "what a slash command printed"),
    Rule("bash-input", OUTPUT, "a shell command of the user"),
    Rule("bash-stdout", OUTPUT, "what it printed"),
    Rule("bash-stderr", OUTPUT, "what it printed"),
)
_BY_NAME: Final = {rule.name: rule for rule in RULES}
_ARGUMENTS: Final = "command-args"  # the user's own words after a slash command

# A message that begins so holds nothing of the user's.
_OPENINGS: Final = (
    ("Caveat: The messages below were generated", CONTEXT),
    ("This session is being continued from a previous conversation", SUMMARY),
    ("Another language model started to solve this problem", SUMMARY),
    ("You are `/root`, the primary agent", CONTEXT),
    ("Base directory for this skill:", CONTEXT),
)
_INTERRUPTED: Final = "[Request interrupted by user"
_ABORTED: Final = "<turn_aborted>"
_RULES_FILE: Final = "# AGENTS.md instructions"
_RULES_END: Final = "</INSTRUCTIONS>"
_EDITOR_CONTEXT: Final = "# Context from my IDE setup"
_REQUEST: Final = "## My request for Codex:"  # the user's words follow it
# What stands in the place of a picture or a long paste. Both parts are bounded: linear.
_MARKER: Final = re.compile(
    r"\[(?:Image #\d{1,4}|Image: source: [^\]\n]{1,256}|Pasted text #\d{1,4}[^\]\n]{0,40}"
    r"|\.\.\.Truncated text #\d{1,4}[^\]\n]{0,40})\]"
)
_TAG_NAME: Final = re.compile(r"[A-Za-z][A-Za-z_-]{0,40}")


@dataclass(frozen=True, slots=True)
class Ask:
    """What is left of a message in the user's place."""

    text: str = field(repr=False)  # empty if the user wrote none of it
    left_out: tuple[str, ...] = ()  # what was taken out, by kind
    stopped: bool = False  # it says that the user interrupted the answer


def human_ask(message: str) -> Ask:
    """Return what the owner wrote of a message; linear in its length."""
    text = message.strip()
    if text.startswith(_INTERRUPTED):
        return Ask("", stopped=True)
    for opening, kind in _OPENINGS:
        if text.startswith(opening):
            return Ask("", (kind,))
    left: list[str] = []
    if text.startswith(_RULES_FILE):
        _, closed, after = text.rpartition(_RULES_END)
        text = after if closed else ""
        left.append(CONTEXT)
    if text.startswith((_EDITOR_CONTEXT, _REQUEST)) or f"\n{_REQUEST}" in text:
        before, marked, after = text.partition(_REQUEST)
        text = after if marked else ""
        if before.strip() or not marked:
            left.append(CONTEXT)
    stopped = _ABORTED in text
    kept = "".join(_outside(text, left))
    bare = _MARKER.sub("", kept)
    if len(bare) != len(kept):
        left.append(ATTACHMENT)
    return Ask(bare.strip(), tuple(left), stopped)


def _outside(text: str, left: list[str]) -> Iterator[str]:
    """Yield the parts of a text that stand in no element of `RULES`.

    An element that is never closed is the user's, who writes about it; but one that opens the
    message is a tool's, and cut: nothing of it is the user's then. To stay linear, a name that
    was once sought in vain is not sought again.
    """
    done = at = 0
    blank = True  # nothing was kept so far
    unclosed: set[str] = set()
    while (at := text.find("<", at)) >= 0:
        start, at = at, at + 1
        found = _TAG_NAME.match(text, at)
        name = found.group() if found else ""
        rule = _BY_NAME.get(name)
        if found is None or name in unclosed or (rule is None and name != _ARGUMENTS):
            continue
        blank = blank and not text[done:start].strip()
        if rule is not None and rule.opening_only and not blank:
            continue
        body = text.find(">", found.end(), found.end() + _TAG_CHARS_MAX)
        if body < 0 or text[found.end()] not in "> \n/":
            continue
        inner, end = _close(text, name, body + 1)
        if end < 0:
            unclosed.add(name)
            if blank and rule is not None:
                left.append(rule.left_out)
                return
            continue
        yield text[done:start]
        if rule is not None:
            left.append(rule.left_out)
        elif len(text[body + 1 : inner].split(maxsplit=3)) >= _ARGUMENT_WORDS_MIN:
            yield text[body + 1 : inner]
            blank = False
        done = at = end
    yield text[done:]


def _close(text: str, name: str, at: int) -> tuple[int, int]:
    """Return where the element's text ends and where it ends itself; (-1, -1) if it never does.

    Elements of the same name may stand within it. If not all of them are closed, the last close
    is taken for the element's own.
    """
    opening, closing = f"<{name}", f"</{name}"
    depth, last = 1, (-1, -1)
    while (close := text.find(closing, at)) >= 0:
        while (another := text.find(opening, at, close)) >= 0:
            at = another + len(opening)
            depth += text[at] in "> \n"
        at = close + len(closing)
        if text[at : at + 1] not in ("", ">", " ", "\n"):
            continue  # a longer name
        end = text.find(">", at, at + _TAG_CHARS_MAX)
        last = close, end + 1 if end >= 0 else at
        depth -= 1
        if depth == 0:
            break
    return last


class Sign(Enum):
    """One thing that happened in a session and says how well it goes."""

    ASKED = auto()
    CORRECTED = auto()  # an ask that finds fault with the answer before it
    THANKED = auto()
    ANSWERED = auto()
    STOPPED = auto()  # the owner interrupted, refused a call of a tool, or took a turn back
    WORKED = auto()  # a call of a tool
    FAILED = auto()
    MENDED = auto()  # the same call of a tool that had failed, now without a failure
    BROKE = auto()  # the provider failed, and no answer came


def _phrases(text: str) -> tuple[str, ...]:
    return tuple(phrase.strip() for phrase in text.replace("\n", "|").split("|") if phrase.strip())


# The beginning of an ask that finds fault: English, German, French, Spanish. With a comma or stop
# where the bare word begins harmless asks ("no need to …", "non-blocking …").
_FAULT_OPENINGS: Final = _phrases("""
    no,|no.|no!|no -|no —|no:|nope|wrong|incorrect|that's wrong|thats wrong|that is wrong
    this is wrong|that's not|thats not|that is not|this is not|it's not what|not what i
    not like that|you forgot|you missed|you broke|you didn't|you did not|i said|i told you
    i meant|i asked for|undo|revert|roll back|try again|why did you
    nein,|nein.|nein!|falsch|das ist falsch|das stimmt nicht|stimmt nicht|das ist nicht
    so nicht|du hast vergessen|ich meinte|mach das rückgängig|nochmal
    non,|non.|non !|c'est faux|ce n'est pas|c'est pas|pas ça|tu as oublié|je voulais dire|annule
    eso no|eso está mal|está mal|esto está mal|incorrecto|no es eso|no es lo que|te olvidaste
    quise decir|deshaz
""")
# Anywhere in the opening of an ask that follows an answer, these report that it failed.
_FAULT_WORDS: Final = _phrases("""
    doesn't work|does not work|doesnt work|didn't work|did not work|not working|isn't working
    still fail|still broken|still not|still get|still see|still the same|still wrong|same error
    same problem|same issue|that's wrong|is broken now|broke the
    funktioniert nicht|geht nicht|klappt nicht|immer noch|gleiche fehler|gleicher fehler
    derselbe fehler|schlägt fehl
    ne marche pas|marche toujours pas|ne fonctionne pas|toujours pas|même erreur|même problème
    no funciona|sigue sin|sigue fallando|sigue dando|todavía no|aún no|mismo error|mismo problema
""")
# A short message that begins so asks for nothing more: the answer was taken.
_THANKS: Final = _phrases("""
    thanks|thank you|thx|perfect|great|awesome|excellent|nice|lgtm|looks good|works now
    it works|that works|that worked|works perfectly|well done
    danke|vielen dank|perfekt|super|funktioniert jetzt|passt|sehr gut|klappt
    merci|parfait|ça marche|génial|très bien
    gracias|muchas gracias|perfecto|genial|funciona|excelente|muy bien
""")


def sign_of(ask: str) -> Sign:
    """Return what an ask says of the answer before it: CORRECTED, THANKED, or only ASKED."""
    head = ask[:_HEAD_CHARS].casefold().replace("\u2019", "'").strip()
    if any(_begins(head, phrase) for phrase in _FAULT_OPENINGS) or any(
        phrase in head for phrase in _FAULT_WORDS
    ):
        return Sign.CORRECTED
    if len(ask) <= _THANKS_CHARS_MAX and any(_begins(head, phrase) for phrase in _THANKS):
        return Sign.THANKED
    return Sign.ASKED


def _begins(head: str, phrase: str) -> bool:
    """True if the head begins with the phrase as whole words."""
    if not head.startswith(phrase):
        return False
    after = head[len(phrase) : len(phrase) + 1]
    return not (after.isalnum() and phrase[-1].isalnum())


@dataclass(frozen=True, slots=True)
class Standing:
    """How a session went, as far as its signs tell."""

    outcome: str = ""  # an `Outcome`; empty if nothing is known
    corrections: int = 0
    errors: int = 0


@dataclass(slots=True)
class Course:
    """The signs of one session in order, each with the place of its line, and what they come to.

    The outcome is the first row that holds at the end of what was read:

    | what the signs say                                              | outcome  |
    |-----------------------------------------------------------------|----------|
    | the provider broke, and no answer or ask came after             | error    |
    | the owner stopped the last answer, refused a call of a tool, or |          |
    |     took the turn back, and nothing was asked or said after it  | rejected |
    | the last ask finds fault, and no answer came                    | rejected |
    | a call of a tool failed last, and no word came after it         | error    |
    | some ask was a correction, and an answer was followed by thanks |          |
    |     or by an ask that finds no fault                            | iterated |
    | no ask was a correction, and an answer was followed by thanks,  |          |
    |     or a call that had failed was made again, worked, and was   |          |
    |     answered for: a test that was red and is green              | accepted |
    | anything else: nobody said that the answer was good             | (empty)  |

    An ask that follows an answer and finds fault with it is a correction; so is whatever is asked
    or answered next after the owner stopped the model. Failed calls of tools and breaks of the
    provider are counted as errors. Going on to another thing is no praise.
    """

    continued: bool = False  # an answer came before the part that was read
    _signs: list[tuple[int, Sign]] = field(default_factory=list)

    def note(self, place: int, sign: Sign) -> None:
        # Repeated good news says nothing more; kept once, the list stays short.
        if sign in (Sign.WORKED, Sign.ANSWERED) and self._signs and self._signs[-1][1] is sign:
            return
        self._signs.append((place, sign))

    def standing(self, before: int | None = None) -> Standing:
        """What the signs come to; only of lines before a place, if one is given."""
        corrections = errors = 0
        answered = self.continued
        stopped = broke = failed = last_corrects = False
        taken = praised = mended = proved = False
        for place, sign in self._signs:
            if before is not None and place >= before:
                break
            match sign:
                case Sign.ASKED | Sign.CORRECTED | Sign.THANKED:
                    last_corrects = stopped or (answered and sign is Sign.CORRECTED)
                    corrections += last_corrects
                    taken = taken or (answered and not last_corrects)
                    praised = praised or (answered and sign is Sign.THANKED)
                    answered = stopped = broke = failed = mended = False
                case Sign.ANSWERED:
                    corrections += stopped  # refused with words, and gone on by them
                    proved = proved or mended
                    answered, stopped, broke, failed = True, False, False, False
                case Sign.STOPPED:
                    stopped = True
                case Sign.WORKED:
                    failed = False
                case Sign.MENDED:
                    failed, mended = False, True
                case Sign.FAILED:
                    errors, failed, mended = errors + 1, True, False
                case Sign.BROKE:
                    errors, broke = errors + 1, True
        outcome = ""
        if broke:
            outcome = Outcome.ERROR.value
        elif stopped or (last_corrects and not answered):
            outcome = Outcome.REJECTED.value
        elif failed:
            outcome = Outcome.ERROR.value
        elif corrections and taken:
            outcome = Outcome.ITERATED.value
        elif not corrections and (praised or proved):
            outcome = Outcome.ACCEPTED.value
        return Standing(outcome, corrections, errors)
