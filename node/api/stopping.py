"""Ends a text where a stop string begins, wherever the pieces of the text are cut.

A back end that decodes token by token asks this of every piece. Only what could be the beginning of
a stop string is kept back, and no longer than until the next piece decides.
"""

from __future__ import annotations

from collections.abc import Sequence


class Stopping:
    """One for an answer.

        stopping = Stopping(ask.stop)
        for text in texts:
            yield stopping.push(text)  # may be empty
            if stopping.hit is not None:
                break
        else:
            yield stopping.rest()

    What comes out, joined, is the text up to the first character of the stop string that is
    complete first; of two that are complete with the same character, the one that began earlier.
    So it does not depend on how the text was cut.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)  # an empty one would end all texts
        self._kept = ""
        self.hit: str | None = None  # the stop string that was met

    def push(self, text: str) -> str:
        """Return what may be shown by now. Nothing comes after a stop string."""
        if self.hit is not None:
            return ""
        if not self._stops:
            return text
        whole = self._kept + text
        found = self._first(whole)
        if found is not None:
            begin, self.hit = found
            self._kept = ""
            return whole[:begin]
        keep = self._beginning(whole)
        shown, self._kept = whole[: len(whole) - keep], whole[len(whole) - keep :]
        return shown

    def rest(self) -> str:
        """Return what was kept back, at the end of a text that met no stop string."""
        rest, self._kept = self._kept, ""
        return rest

    def _first(self, whole: str) -> tuple[int, str] | None:
        """Where the stop string that is complete first begins."""
        ends = [
            (begin + len(stop), begin, stop)
            for stop in self._stops
            if (begin := whole.find(stop)) >= 0
        ]
        if not ends:
            return None
        _, begin, stop = min(ends)
        return begin, stop

    def _beginning(self, whole: str) -> int:
        """How many characters at the end could be the beginning of a stop string."""
        longest = max(map(len, self._stops)) - 1
        for length in range(min(longest, len(whole)), 0, -1):
            end = whole[len(whole) - length :]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0
