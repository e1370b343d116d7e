"""Words of any script, and the names that may be made of them.

A name is shown in terminals, is part of file names, and reaches peers in the label of a bundle. So
whatever a prompt holds, a name is short, lower case, in one normal form, and free of what a
terminal acts upon, does not show, or turns around.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise

NAME_CHARS_MAX = 40
WORDS_MAX = 24  # of a prompt: a name comes from how it begins, not from a pasted log
RUN_MAX = 48  # characters read of a text whose script puts no spaces between words
LETTERS_MAX = 24  # of a term: longer ones are hashes and paths
MARKS_MAX = 3  # on one letter; scripts that need them need no more

# Of scripts without spaces the words are not known; runs of characters stand for them.
_HAN = "\u3005\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
_KATAKANA = "\u30a1-\u30ff"
_HIRAGANA = "\u3041-\u3096\u309d\u309e"  # the grammar of Japanese, and so no name
_SOUTH_EAST = "\u0e01-\u0e5b\u0e81-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
_UNSPACED = f"{_HAN}{_KATAKANA}{_HIRAGANA}{_SOUTH_EAST}"
_GRAMS = {"han": (2, 4), "south_east": (3, 5)}  # lengths of the runs that may be terms

# Marks and letters that nobody sees: joiners, fillers, variation selectors.
_UNSEEN = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\u0640]")
_ASCII_WORD = re.compile(r"[a-z][a-z0-9+#]*(?:[.-][a-z0-9+#]+)*")
_ASCII_PART = re.compile(r"[a-z0-9+#]+")
_SPELT = {"c++": "cpp", "c#": "csharp", "f#": "fsharp"}


@cache
def _word() -> re.Pattern[str]:
    """Words of any text. Built when the first text needs it: the marks take some milliseconds."""
    letter = f"(?:(?![{_UNSPACED}])[^\\W_]|[{_marks()}+#])"
    first = f"(?![{_UNSPACED}])[^\\W\\d_]"
    return re.compile(
        f"(?P<han>[{_HAN}]+)|(?P<katakana>[{_KATAKANA}]+)|(?P<hiragana>[{_HIRAGANA}]+)"
        f"|(?P<south_east>[{_SOUTH_EAST}]+)|(?P<spaced>{first}{letter}*(?:[.-]{letter}+)*)"
    )


@cache
def _marks() -> str:
    """The combining marks of the basic plane: Python's `\\w` leaves out the vowels of Hindi."""
    return "".join(
        chr(code) for code in range(0x300, 0x10000) if unicodedata.category(chr(code))[0] == "M"
    )


def normal(text: str) -> str:
    """Return lower case, one form for what looks alike, and nothing that is not seen.

    What a terminal acts upon is gone: controls, joiners, and what turns the direction of writing.
    """
    if text.isascii():
        return text.lower()
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).lower())
    seen = "".join(c for c in folded if c.isspace() or unicodedata.category(c)[0] != "C")
    return _UNSEEN.sub("", seen)


def words(text: str) -> Iterator[tuple[str, str]]:
    """Yield (kind, word) in the order of the text; kind is spaced, han, katakana or south_east."""
    plain = normal(text)
    if plain.isascii():
        for found in _ASCII_WORD.finditer(plain):
            yield "spaced", found[0]
        return
    for found in _word().finditer(plain):
        kind = found.lastgroup or ""
        if kind != "hiragana":
            yield kind, found[0]


def parts(text: str) -> set[str]:
    """Return all that a name made of this text could have between its hyphens.

    Of a script without spaces, its pairs of characters: a name holds some of them.
    """
    plain = normal(text)
    if plain.isascii():
        return {_spelt(piece) for piece in set(_ASCII_PART.findall(plain))}
    out: set[str] = set()
    for kind, word in words(plain):
        if kind in _GRAMS:
            out.update(a + b for a, b in pairwise(word))
        else:
            out.update(_spelt(piece) for piece in re.split(r"[.-]", word))
    return out


def _spelt(word: str) -> str:
    return _SPELT.get(word) or word.replace("+", "").replace("#", "")


def terms(text: str, stop: frozenset[str]) -> tuple[tuple[str, ...], set[str]]:
    """Return the words that a text begins with, and the terms that it says.

    The words tell two asks apart, however often each comes; the terms are words, pairs of
    neighbouring words, and runs of characters where words are not told apart.
    """
    found: list[str] = []
    said: set[str] = set()
    kept: list[str] = []
    for kind, word in words(text):
        if len(found) == WORDS_MAX:
            break
        found.append(word)
        if kind in _GRAMS:
            shortest, longest = _GRAMS[kind]
            said.update(_grams(word[:RUN_MAX], shortest, longest))
            kept.append("")
        else:
            kept.append(word if _means(word, stop) else "")
    said.update(word for word in kept if word)
    said.update(f"{a}-{b}" for a, b in pairwise(kept) if a and b and a != b)
    return tuple(found), said


def _means(word: str, stop: frozenset[str]) -> bool:
    # Two letters are seldom a word where letters have cases, and often one where they have none.
    least = 2 if word.upper() == word.lower() else 3
    return least <= len(word) <= LETTERS_MAX and word not in stop


def _grams(run: str, shortest: int, longest: int) -> Iterator[str]:
    for length in range(shortest, longest + 1):
        for start in range(len(run) - length + 1):
            gram, after = run[start : start + length], run[start + length : start + length + 1]
            if not _is_mark(gram[0]) and not _is_mark(after):  # a letter keeps its marks
                yield gram


def _is_mark(letter: str) -> bool:
    return letter != "" and unicodedata.category(letter)[0] == "M"


def unspaced(term: str) -> bool:
    return not term.isascii() and re.search(f"[{_UNSPACED}]", term) is not None


def stems(term: str) -> set[str]:
    """What two terms of one name must not share.

    A singular and its plural are one word, and so are a dotted name and its parts, and runs of
    characters that overlap.
    """
    if unspaced(term):
        return {a + b for a, b in pairwise(term)}
    return {part.removesuffix("s") for part in re.split(r"[.-]", term)}


def kebab(terms_: Sequence[str]) -> str:
    """Join terms to a name; what may not stand in one is left out."""
    pieces = (_spelt(piece) for piece in re.split(r"[\s.-]+", "-".join(terms_)))
    return "-".join(piece for piece in pieces if problem(piece) is None)


def problem(name: str) -> str | None:
    """Say why this cannot be a name, or None."""
    if not name:
        return "it is empty"
    if len(name) > NAME_CHARS_MAX:
        return f"it has {len(name)} characters, more than {NAME_CHARS_MAX}"
    if normal(name) != name:
        return "it has capitals, or characters that are not seen or not in their normal form"
    if name[0] == "-" or name[-1] == "-" or "--" in name:
        return "a hyphen stands between two words, once"
    row = 0
    for before, letter in pairwise("-" + name):
        kind = unicodedata.category(letter)[0]
        row = row + 1 if kind == "M" else 0
        if letter != "-" and not (letter.isalnum() or kind == "M"):
            return f"{letter!r} is no letter, digit or hyphen"
        if row > MARKS_MAX or (kind == "M" and before == "-"):
            return "it has marks that belong to no letter"
    return None
