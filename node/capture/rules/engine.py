"""All rules over one text: as it stands, and as it reads once its disguises are taken off."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import Final

from . import digits, emails, ipv6, named, paths, pem, phones, runs, services, tokens, urls
from .fold import DEPTH_MAX, GAP, View, folded
from .scan import Pattern, Rule, Scan, Span, any_of, merged

_ALWAYS: Final[tuple[Rule, ...]] = (
    urls.find,
    tokens.find,
    named.find,
    emails.find,
    phones.announced,
)
# What ordinary text seldom has: one scan passes over all the rules of a group.
_SELDOM: Final[tuple[tuple[Pattern, tuple[Rule, ...]], ...]] = (
    (
        any_of(
            *pem.SHAPES,
            *paths.SHAPES,
            *ipv6.SHAPES,
            *tokens.SHAPES,
            *emails.SHAPES,
            *named.SHAPES,
            *services.SHAPES,
        ),
        (
            pem.find,
            paths.find,
            ipv6.find,
            tokens.seldom,
            emails.spelled,
            named.commands,
            services.find,
        ),
    ),
    (
        any_of(*digits.SHAPES, *phones.SHAPES),
        (digits.addresses, digits.cards, digits.security_numbers, phones.find),
    ),
)


def findings(
    text: bytes, tick: Callable[[], None], extra: Callable[[bytes], Iterable[Span]]
) -> list[Span]:
    """The union of what must go. `extra` finds what no rule knows, such as the owner's own values.

    tick is called every few hundred candidates; it may raise to end the search.
    """
    views: list[View] = []
    while len(views) < DEPTH_MAX and (view := folded(views[-1].text if views else text, tick)):
        tick()
        views.append(view)
    # Read in one go: to start each scan anew costs more than the little that a view holds.
    whole = GAP.join([text, *(view.text for view in views)])
    found = [*plain(Scan(whole, tick)), *extra(whole)]
    if views:
        found = list(_mapped(found, len(text), views))
    return merged(span for span in found if span.end > span.start)


def plain(scan: Scan) -> Iterator[Span]:
    """What the rules find in a text as it stands, and in the base64 in it."""
    yield from _ruled(scan)
    yield from runs.find(scan, _ruled)


def _ruled(scan: Scan) -> Iterator[Span]:
    for rule in _ALWAYS:
        yield from rule(scan)
    for shapes, rules in _SELDOM:
        if scan.has(shapes):
            for rule in rules:
                yield from rule(scan)


def _mapped(found: list[Span], size: int, views: list[View]) -> Iterator[Span]:
    """Spans of the text and its views, one after the other, as spans of the text."""
    begins = [
        0,
        *accumulate((len(view.text) + len(GAP) for view in views), initial=size + len(GAP)),
    ]
    ends = [size, *(begin + len(view.text) for begin, view in zip(begins[1:], views, strict=False))]
    for span in found:
        part = bisect_right(begins, span.start, hi=len(ends)) - 1
        start, end = span.start - begins[part], min(span.end, ends[part]) - begins[part]
        if start >= end:
            continue  # in the gap
        if part == 0:
            yield Span(start, end, span.label, span.reason)
            continue
        for view in reversed(views[:part]):
            start, end = view.original(start, end)
        yield Span(start, end, span.label, f"disguised: {span.reason}")
