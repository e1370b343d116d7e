"""The child process of the second scan: kingfisher's rules behind two pipes, and nothing else.

    python -m node.capture.second_scan_worker CACHE_FOLDER

Before the first text is read the process gives up opening files and sockets, for good.
"""

from __future__ import annotations

import os
import resource
import sys

import kingfisher_sdk

from .second_scan import Found, Hello, Texts, receive, send

MEMORY_BYTES_MAX = 1 << 30  # of address space; the rules take 0.23 GB of it, and 70 MB of memory


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # it would hold texts
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
    os.nice(5)
    scanner = open_scanner(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))  # no descriptor can be opened from here on
    send(sys.stdout.buffer, Hello(len(scanner.rules)))
    while (order := receive(sys.stdin.buffer, Texts)) is not None:
        send(sys.stdout.buffer, Found(tuple(first_rule(scanner, text) for text in order.texts)))


def open_scanner(cache: str) -> kingfisher_sdk.Scanner:
    """kingfisher with all its rules. What it finds it keeps no copy of.

    A remark in the text ("kingfisher:ignore") excuses nothing: the text is not its owner's code.
    """
    policy = kingfisher_sdk.DetectionPolicy(inline_ignores=False, markup_context=False)
    rules = kingfisher_sdk.Rules(cache_dir=cache)
    return kingfisher_sdk.Scanner(rules, redact=True, policy=policy)


def first_rule(scanner: kingfisher_sdk.Scanner, text: bytes) -> str:
    """The id of the rule of the first find; helpers of other rules are not finds."""
    return next((find.rule_id for find in scanner.scan(text) if find.visible), "")


if __name__ == "__main__":
    main()
