"""From exchanges to sessions: which talk an exchange goes on with, and what of it is new.

A chat's client sends the whole talk each time. A talk is known again by the id that the client
gives, else by keyed hashes of how it stood after each answer, so that only new messages are
recorded, once. Nothing of a text is kept here but those hashes, and the key is in memory alone: a
talk that goes on after a restart, or after its session was closed, begins a new session with what
is new.

Loads capture: imported once somebody has consented.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from node.capture import CaptureItem, SessionEnd
from node.capture.quality import Outcome
from node.capture.queue import SESSIONS_MAX
from node.capture.record import EDIT
from node.capture.sources.asks import Course, Sign, human_ask, sign_of
from node.capture.sources.transcript import provider_of
from node.capture.terms import terms_of

from .recording import OWN, SIGNALS, SOURCE, Heard

OPEN_MAX = SESSIONS_MAX // 2  # the queue has as many for all who offer to it
TURNS_MAX = 1_000  # of a talk; then its session is closed, and a new one begins
PASSED_OVER_MAX = 10_000  # asks that were not to be kept, by a hash
_SAID = ("user", "assistant")

Offer = Callable[[CaptureItem | SessionEnd], bool]


@dataclass(slots=True)
class Talk:
    """One session while it is open."""

    session: str
    source: str
    folder: str | None
    key: bytes
    touched_s: float
    heads: list[bytes] = field(default_factory=list)  # how it stood, oldest first
    course: Course = field(default_factory=Course)
    turns: int = 0
    records: int = 0
    routing: Mapping[str, Any] | None = None
    last: str = ""  # the exchange whose answer came last
    answered: bool = False  # that one's answer was kept
    signal: str = ""  # what the owner said of it
    closed: bool = False

    def note(self, sign: Sign) -> None:
        self.turns += 1
        self.course.note(self.turns, sign)


class Talks:
    """All open talks. For one thread. What the queue does not take is counted in `lost`."""

    def __init__(self, chassis: str, *, builtin: bool = True) -> None:
        """chassis: its name; what it and its leaves say is under its terms.

        builtin: this node answers by itself, and not a server.
        """
        self._chassis = chassis
        self._builtin = builtin
        self._secret = secrets.token_bytes(32)
        self._open: OrderedDict[str, Talk] = OrderedDict()  # by session; longest untouched first
        self._by_key: dict[bytes, Talk] = {}
        self._by_head: dict[bytes, dict[str, Talk]] = {}  # two talks may stand alike
        self._passed_over: OrderedDict[bytes, None] = OrderedDict()
        self.lost = 0

    def __len__(self) -> int:
        return len(self._open)

    def take(self, heard: Heard, now_s: float, offer: Offer) -> Talk:
        """Record what is new of an exchange, and return its talk."""
        turns = list(_turns(heard.exchange.messages))
        chain = self._chain(heard, turns)
        talk, known = self._find(heard, chain)
        went_back = bool(talk and known and chain[known] != talk.heads[-1])
        if talk is None:
            talk = self._begun(heard, now_s, offer)
            talk.course.continued = _answered(turns) > 0
        # What was said before was recorded as it was said, or was not to be, or was said to
        # somebody else.
        passed_over = self._passed_over_of(chain)
        follows = passed_over < known or not passed_over
        known = max(known, _answered(turns), passed_over)
        talk.touched_s = now_s
        self._open.move_to_end(talk.session)
        if heard.exchange.feedback in SIGNALS and talk.answered and follows:
            self.mark(talk, heard.exchange.feedback)
        elif went_back:  # to before the last answer: the owner wants another one
            talk.note(Sign.STOPPED)
        self._asks(talk, heard, [text for role, text in turns[known:] if role == "user"], offer)
        self._answer(talk, heard, chain, offer)
        if talk.turns >= TURNS_MAX:
            self.close(talk, offer)
        return talk

    def pass_over(self, heard: Heard) -> None:
        """Remember, by hashes alone, what is not to be kept: later asks will repeat it."""
        chain = self._chain(heard, list(_turns(heard.exchange.messages)))
        heads = [chain[-1]]
        if heard.text.strip():
            heads.append(self._next(chain[-1], "assistant", heard.text))
        for head in heads:
            self._passed_over[head] = None
            self._passed_over.move_to_end(head)
        while len(self._passed_over) > PASSED_OVER_MAX:
            self._passed_over.popitem(last=False)

    def _passed_over_of(self, chain: list[bytes]) -> int:
        """How many turns were passed over, not counting the one that is asked now."""
        turns = range(len(chain) - 2, 0, -1)
        return next((n for n in turns if chain[n] in self._passed_over), 0)

    def mark(self, talk: Talk, signal: str) -> None:
        """Note what the owner said of the last answer."""
        talk.signal = signal

    def edit(self, talk: Talk, text: str, offer: Offer) -> None:
        """Record what the owner made of the last answer."""
        self._offer(talk, text, "workflow", {"event": EDIT}, offer)

    def idle(self, before_s: float, marked_before_s: float, offer: Offer) -> None:
        """Close the talks that were not touched for so long, or so long after a signal."""
        for talk in list(self._open.values()):
            if talk.touched_s <= (marked_before_s if talk.signal else before_s):
                self.close(talk, offer)

    def close_all(self, offer: Offer) -> None:
        for talk in list(self._open.values()):
            self.close(talk, offer)

    def forget_all(self) -> None:
        """Consent has ended: what is open is over, and nothing more is said of it."""
        for talk in self._open.values():
            talk.closed = True
        self._open.clear()
        self._by_key.clear()
        self._by_head.clear()

    def forget(self, source: str, folder: str | None) -> None:
        """The same for one source and folder."""
        for talk in list(self._open.values()):
            if (talk.source, talk.folder) == (source, folder):
                self._remove(talk)

    def _remove(self, talk: Talk) -> None:
        talk.closed = True
        self._open.pop(talk.session, None)
        if self._by_key.get(talk.key) is talk:
            del self._by_key[talk.key]
        for head in talk.heads:
            if owners := self._by_head.get(head):
                owners.pop(talk.session, None)
                if not owners:
                    del self._by_head[head]

    def close(self, talk: Talk, offer: Offer) -> None:
        self._remove(talk)
        if not talk.records:
            return
        stands = talk.course.standing()
        outcome = talk.signal or stands.outcome
        if talk.signal == Outcome.ACCEPTED and stands.corrections:
            outcome = Outcome.ITERATED.value
        end = SessionEnd(talk.session, outcome, talk.routing, stands.corrections, stands.errors)
        self.lost += not offer(end)

    def _begun(self, heard: Heard, now_s: float, offer: Offer) -> Talk:
        talk = Talk(secrets.token_hex(16), heard.source, heard.folder, self._key(heard), now_s)
        if len(self._open) >= OPEN_MAX:
            self.close(next(iter(self._open.values())), offer)
        self._open[talk.session] = talk
        if talk.key:
            self._by_key[talk.key] = talk
        return talk

    def _find(self, heard: Heard, chain: list[bytes]) -> tuple[Talk | None, int]:
        """The talk that this goes on with, and how many of its turns are known."""
        named = self._key(heard)
        talk = self._by_key.get(named) if named else None
        if named and talk is None:
            return None, 0
        for known in range(len(chain) - 1, 0, -1):
            owners = self._by_head.get(chain[known], {})
            if talk is not None:
                if talk.session in owners:
                    return talk, known
            elif len(owners) == 1:
                return next(iter(owners.values())), known
            elif owners:  # of two that stand alike, neither: it might be another's
                return None, 0
        return talk, 0

    def _asks(self, talk: Talk, heard: Heard, texts: list[str], offer: Offer) -> None:
        for text in texts:
            ask = human_ask(text)
            if ask.stopped:
                talk.note(Sign.STOPPED)
            if not ask.text:
                continue
            match talk.signal:  # it was said of an answer that is not the last any more
                case Outcome.ACCEPTED:
                    talk.note(Sign.THANKED)
                case Outcome.REJECTED:
                    talk.note(Sign.STOPPED)
            talk.signal = ""
            talk.note(sign_of(ask.text))
            about = {"client": heard.exchange.client} if heard.exchange.client else {}
            self._offer(talk, ask.text, "prompt", about, offer)

    def _answer(self, talk: Talk, heard: Heard, chain: list[bytes], offer: Offer) -> None:
        exchange, text, asked = heard.exchange, heard.text, chain[-1]
        talk.last, talk.answered = exchange.id, False
        if exchange.choice is not None and exchange.choice.routing is not None:
            talk.routing = exchange.choice.routing
        match heard.outcome:
            case "ok" if text.strip():
                talk.note(Sign.ANSWERED)
                self._offer(talk, text, "completion", self._about(heard), offer)
                talk.answered = True
            case "aborted":
                talk.note(Sign.STOPPED)  # half an answer would be learned as a whole one
            case "error":
                talk.note(Sign.BROKE)
        # The same may be asked again, or a tool's output come. But two talks may begin alike.
        if not talk.answered or len(chain) > 2 or talk.key:
            self._stands(talk, asked)
        if text.strip():
            self._stands(talk, self._next(asked, "assistant", text))

    def _about(self, heard: Heard) -> dict[str, Any]:
        """Who wrote an answer, under which terms."""
        exchange = heard.exchange
        about: dict[str, Any] = {"client": exchange.client} if exchange.client else {}
        if exchange.provider == OWN and heard.source == SOURCE:
            adapted = exchange.choice is not None and exchange.choice.adapter is not None
            # A server may have another model than the chassis below what it says without a leaf.
            model = self._chassis if adapted or self._builtin else exchange.model
            about["terms_class"] = terms_of("", model).value
            return {**about, "source_provider": OWN, "source_model": model}
        # The shape that something is passed on in says nothing of who answers: the model does.
        provider = provider_of(exchange.model)
        if not provider and (heard.source != SOURCE or exchange.provider == "anthropic"):
            provider = exchange.provider
        return {**about, "source_provider": provider, "source_model": exchange.model}

    def _offer(self, talk: Talk, text: str, kind: str, about: dict[str, Any], offer: Offer) -> None:
        item = CaptureItem(talk.session, text, kind, about or None, talk.source, talk.folder)
        if offer(item):
            talk.records += 1
        else:
            self.lost += 1

    def _stands(self, talk: Talk, head: bytes) -> None:
        talk.heads.append(head)
        self._by_head.setdefault(head, {})[talk.session] = talk

    def _key(self, heard: Heard) -> bytes:
        """Of the id that a client gave; empty if it gave none."""
        given = heard.exchange.conversation
        if not given:
            return b""
        return self._next(_opening(heard), "id", given)

    def _chain(self, heard: Heard, turns: list[tuple[str, str]]) -> list[bytes]:
        """How the talk stood before its first turn, and after each."""
        chain = [self._next(_opening(heard), "", "")]
        for role, text in turns:
            chain.append(self._next(chain[-1], role, text))
        return chain

    def _next(self, head: bytes, role: str, text: str) -> bytes:
        told = hashlib.blake2b(head, digest_size=16, key=self._secret)
        told.update(f"\0{role}\0".encode())
        told.update(text.strip().encode("utf-8", "surrogatepass"))  # clients trim answers
        return told.digest()


def _answered(turns: list[tuple[str, str]]) -> int:
    """How many turns there are up to the last answer."""
    return max((n for n, (role, _) in enumerate(turns, 1) if role == "assistant"), default=0)


def _opening(heard: Heard) -> bytes:
    place = f"{heard.source}\0{heard.folder or ''}\0{heard.exchange.client}"
    return place.encode("utf-8", "surrogatepass")


def _turns(messages: tuple[Mapping[str, Any], ...]) -> Iterator[tuple[str, str]]:
    """What people and models said: no system prompts, and no output of tools."""
    for message in messages:
        role, text = message.get("role"), message.get("content")
        if role in _SAID and isinstance(text, str) and text.strip():
            yield str(role), text
