"""All rules over one text: as it stands, and as it reads once its disguises are taken off."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from . import digits, emails, ipv6, named, paths, pem, phones, runs, services, tokens, urls
from .fold import DEPTH_MAX, View, folded
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
    scan = Scan(text, tick)
    found = [*plain(scan), *extra(text)]
    views: list[View] = []
    while len(views) < DEPTH_MAX:
        view = folded(views[-1].text if views else text, tick)
        if view is None:
            break
        tick()
        views.append(view)
        inner = scan.within(view.text)
        found += (_mapped(span, views) for span in (*plain(inner), *extra(view.text)))
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


def _mapped(span: Span, views: list[View]) -> Span:
    """A span of the last view as one of the text."""
    start, end = span.start, span.end
    for view in reversed(views):
        start, end = view.original(start, end)
    return Span(start, end, span.label, f"disguised: {span.reason}")
