"""What `status` says of the endpoint: where it is, what answers, what fell back or failed, and why.

All of it is from the run file, of which a newer or older node may have written other keys: what is
not there is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .api.counts import ASKS

CAUSES_MAX = 4  # in a line, the most frequent first
# Causes that are nobody's trouble: where the table sends a prompt, as `groove-node route` explains.
ORDINARY = frozenset(("gate", "starter", "kin", "sprout_parent", "no_ask", "starting"))
WHAT_TO_DO = {
    "encoder_busy": "more new chats came at once than can be routed: [api] route_within_ms is how "
    "long one waits",
    "encoder_failed": "`groove-node init` prepares the encoder, `groove-node doctor` looks at it",
    "no_table": "`groove-node round` builds a new routing table",
    "no_neighbours": "`groove-node round` makes the neighbours anew",
    "router_failed": "`groove-node logs` says more",
    "store": "`groove-node doctor` looks at the stores",
    "no_adapter": "a leaf's bundle is gone, or of another chassis: `groove-node leaf show NAME`",
    "adapter": "the back end refused a leaf's adapter: `groove-node logs` says which",
    "upstream_down": "see to the server that [api] upstream names",
    "recorder": "answers were given and not recorded: `groove-node logs` says more",
}


def standing(node: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """How the endpoint of the running node does; None if no node runs, or one without it."""
    api = (node or {}).get("api") or {}
    if not api:
        return None
    counts = api.get("counts") or {}
    backend = api.get("backend") or {}
    fallbacks = _numbers(counts.get("fallbacks"))
    trouble = {cause: n for cause, n in fallbacks.items() if cause not in ORDINARY}
    failures = _numbers(counts.get("failures"))
    return {
        "url": str(api.get("url") or ""),
        "trouble": str(api.get("trouble") or ""),
        "backend": str(backend.get("kind") or ""),
        "ready": backend.get("ready"),
        "why": str(backend.get("why") or ""),
        "answers": sum(_numbers(counts.get("answered")).values()),
        "requests": _asked(_numbers(counts.get("requests"))),
        "answered": _numbers(counts.get("answered")),
        "fallbacks": fallbacks,
        "failures": failures,
        "refused": _numbers(counts.get("refused")),
        "aborted": counts.get("aborted") or 0,
        "streams": counts.get("streams") or 0,
        "do": [WHAT_TO_DO[c] for c in (*_falling(trouble), *_falling(failures)) if c in WHAT_TO_DO],
    }


def facts(api: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Lines for `status`; none without an endpoint. api: what `standing` found."""
    if api is None or not (api["url"] or api["trouble"]):
        return []
    if not api["url"]:
        return [("answers at", f"nowhere: {api['trouble']}")]
    ready = {True: "ready", False: f"not ready: {api['why']}", None: "not asked yet"}[api["ready"]]
    line = f"{api['url']}, {api['backend']} back end {ready}"
    if api["requests"]:
        line += f"; {api['requests']:,} asked, {api['answers']:,} answered"
    if api["streams"]:
        line += f", {api['streams']:,} now"
    out = [("answers at", line)]
    trouble = {c: n for c, n in api["fallbacks"].items() if c not in ORDINARY}
    if trouble:
        out.append(("fell back", f"routed with less or not at all: {_list(trouble)}"))
    if api["failures"]:
        out.append(("failed", f"no answer, or not all of it: {_list(api['failures'])}"))
    if api["refused"]:
        out.append(("refused", _list(api["refused"])))
    return out + [("do", text) for text in api["do"][:2]]


def _list(counts: Mapping[str, int]) -> str:
    shown = _falling(counts)[:CAUSES_MAX]
    more = len(counts) - len(shown)
    words = [f"{cause.replace('_', ' ')} {counts[cause]:,}" for cause in shown]
    return ", ".join([*words, *([f"{more} more causes"] if more else [])])


def _falling(counts: Mapping[str, int]) -> list[str]:
    return sorted(counts, key=lambda cause: (-counts[cause], cause))


def _numbers(given: object) -> dict[str, int]:
    if not isinstance(given, Mapping):
        return {}
    return {str(k): n for k, n in given.items() if isinstance(n, int)}


def _asked(requests: Mapping[str, int]) -> int:
    """requests: by a route's name and status, such as "chat 200"."""
    return sum(n for name, n in requests.items() if name.rpartition(" ")[0] in ASKS)
