"""The routes as a node wires them: none of them does anything when it is merely looked at."""

from __future__ import annotations

import hashlib
import re
import time
from pathlib import Path

import httpx
from starlette.routing import Mount, Route
from support_endpoint import endpoint, running

from node.api.assembling import assemble
from node.api.rules import Kind, rule_of
from node.app import App
from node.home import private_dir

BESIDE = ("-wal", "-shm", ".lock", ".log")  # of SQLite; of who looks whether another is at work


def contents(home: Path) -> dict[str, str]:
    return {
        str(path.relative_to(home)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(home.rglob("*"))
        if path.is_file() and not path.name.endswith(BESIDE)
    }


def opened(home: Path) -> App:
    """A home in which all stores are there already."""
    app = App(private_dir(home))
    for store in (
        "identity",
        "user_id",
        "consent",
        "forests",
        "foreign",
        "mailbox",
        "mesh_store",
        "embeddings",
    ):
        getattr(app, store)
    return app


def test_a_walk_over_all_routes_by_get_changes_no_file(tmp_path: Path) -> None:
    app = opened(tmp_path / "home")
    made = endpoint(app.home, time.monotonic)
    parts = assemble(app, made.config, made.counts, url=lambda: made.url)
    inner = parts.asgi._asgi  # type: ignore[attr-defined]
    paths = [each.path for each in inner.routes if isinstance(each, Route)]
    assert len(paths) > 20
    before = contents(app.home)
    with running(made, asgi=parts.asgi), httpx.Client(headers=made.bearer, timeout=60) as client:
        for path in paths:
            asked = made.url + re.sub(r"\{[^}]*\}", "x", path)
            for method in ("HEAD", "GET"):
                with client.stream(method, asked) as answer:  # /live never ends by itself
                    assert answer.status_code != 500, path
                    assert answer.status_code != 401, path
    assert contents(app.home) == before
    assert not made.counts.failures["unexpected"]


def test_a_page_that_is_posted_to_is_never_one_that_is_read(tmp_path: Path) -> None:
    app = opened(tmp_path / "home")
    made = endpoint(app.home, time.monotonic)
    parts = assemble(app, made.config, made.counts, url=lambda: "")
    for route in parts.asgi._asgi.routes:  # type: ignore[attr-defined]
        if isinstance(route, Mount):
            assert rule_of(f"{route.path}/x").kind is Kind.OPEN, "what is mounted has no rule"
            continue
        rule = rule_of(re.sub(r"\{[^}]*\}", "x", route.path))
        changes = set(route.methods or ()) - {"GET", "HEAD"}
        if rule.kind is Kind.PAGE and changes:
            assert changes == set(route.methods or ()) == {"POST"}, route.path
