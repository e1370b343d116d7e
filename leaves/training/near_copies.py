"""Which of some texts are nearly the same, found without comparing each with each.

By the words alone: MinHash in its bottom-k form (Broder 1997) over runs of five words. Embeddings
would be at hand too, but they are of asks, and asks of one form about different things are close
there; what a held-out session must not be is a text that was trained on.
"""

from __future__ import annotations

import re
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterable

from ..ports import Example

ALIKE = 0.5  # Jaccard index of two texts' runs of words from which they count as near-copies
RUN = 5  # words
SKETCH = 64  # runs kept of a text: texts of up to 68 words are compared exactly
WORDS_MAX = 512  # of a text; no schedule sees more
_ASKED, _HOLDERS = 32, 256  # runs looked up for a text, and other holders looked at for each
_WORD = re.compile(r"\w+")


def sketch(text: str) -> frozenset[int]:
    """The smallest hashes of a text's runs of five words; of a shorter text, of the whole."""
    words = _WORD.findall(text.casefold())[:WORDS_MAX]
    runs = {
        zlib.crc32(" ".join(words[at : at + RUN]).encode())
        for at in range(max(len(words) - RUN + 1, 1))
    }
    return frozenset(sorted(runs)[:SKETCH])


def likeness(one: frozenset[int], other: frozenset[int]) -> float:
    """Estimate the Jaccard index of two texts from their sketches."""
    both = sorted(one | other)[:SKETCH]
    return sum(run in one and run in other for run in both) / max(len(both), 1)


class NearCopies:
    """Finds near-copies among sessions. Takes 0.2 ms a session to build, 1 ms to ask at most."""

    def __init__(self, examples: Iterable[Example]) -> None:
        self._sketches: dict[str, frozenset[int]] = {}
        self._holders: defaultdict[int, list[str]] = defaultdict(list)
        for example in examples:
            found = sketch(f"{example.prompt} {example.completion}")
            self._sketches[example.session] = found
            for run in found:
                self._holders[run].append(example.session)

    def near(self, session: str, among: Collection[str]) -> bool:
        """True if one of the sessions `among` is nearly the text of this one."""
        return bool(self.of(session, among))

    def of(self, session: str, among: Collection[str]) -> set[str]:
        """The sessions `among` that are nearly the text of this one.

        Looks at the rarest runs that it shares with any other. Of a run that very many have, only
        the first holders are looked at: of that many copies some are among those.
        """
        own = self._sketches[session]
        shared = [run for run in own if len(self._holders[run]) > 1]
        shared.sort(key=lambda run: (len(self._holders[run]), run))
        seen = {session}
        found: set[str] = set()
        for run in shared[:_ASKED]:
            for other in self._holders[run][:_HOLDERS]:
                if other not in seen and other in among:
                    seen.add(other)
                    if likeness(own, self._sketches[other]) >= ALIKE:
                        found.add(other)
        return found
