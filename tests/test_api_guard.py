"""Who is let in: a table of heads, sent as bytes to the real server."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support_endpoint import Endpoint, endpoint, running

from node.api import entry
from node.api.rules import HEADERS_MAX, RULES, Kind

T = {"authorization": "Bearer {token}"}
S = {"cookie": "groove_{port}={cookie}"}
OWN = "http://127.0.0.1:{port}"
JSON = {"content-type": "application/json"}
FORM = {"content-type": "application/x-www-form-urlencoded"}
FIT = b"form_token={form}&what=done"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    made = endpoint(tmp_path_factory.mktemp("home"), time.monotonic, body_bytes_max=100_000)
    with running(made):
        yield made


def ask(
    of: Endpoint,
    method: str,
    path: str,
    headers: dict[str, str] | list[tuple[str, str]],
    body: bytes = b"",
) -> tuple[int, dict[str, str], bytes]:
    """One request as it stands, with a Host if none is given; status, headers and body."""
    cookie, session = of.sessions.open()
    words = {
        "token": of.token.value,
        "port": str(of.port),
        "cookie": cookie,
        "form": session.form_token,
    }
    given = list(headers.items()) if isinstance(headers, dict) else list(headers)
    if not any(name.lower() == "host" for name, _ in given):
        given.insert(0, ("host", "127.0.0.1:{port}"))
    if body and not any(
        name.lower() in {"content-length", "transfer-encoding"} for name, _ in given
    ):
        body = body.replace(b"{form}", session.form_token.encode())
        given.append(("content-length", str(len(body))))
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{n}: {v}\r\n" for n, v in given)
    for word, value in words.items():
        head = head.replace(f"{{{word}}}", value)
    with socket.create_connection(("127.0.0.1", of.port), timeout=20) as sent:
        sent.sendall(head.encode("latin-1") + b"connection: close\r\n\r\n" + body)
        blob = b""
        while more := sent.recv(65536):
            blob += more
    top, _, rest = blob.partition(b"\r\n\r\n")
    first, *lines = top.decode("latin-1").split("\r\n")
    found = dict(line.lower().split(": ", 1) for line in lines)
    return int(first.split()[1]), found, rest


MANY = {f"x-{number}": "y" for number in range(HEADERS_MAX)}

# What is asked, with which head, and the status; of a refusal, the cause that is counted.
CASES: list[tuple[str, str, dict[str, str], bytes, int, str]] = [
    # who asks for the programs' side
    ("GET", "/v1/models", T, b"", 200, ""),
    ("GET", "/v1/models", {"authorization": "bearer {token}"}, b"", 200, ""),
    ("GET", "/v1/models", {"authorization": "BEARER   {token}"}, b"", 200, ""),
    ("GET", "/v1/models", {"x-api-key": "{token}"}, b"", 200, ""),
    ("GET", "/v1/models", {"X-Api-Key": "{token}", "authorization": "Bearer x"}, b"", 200, ""),
    ("HEAD", "/v1/models", T, b"", 200, ""),
    ("GET", "/v1/models", {}, b"", 401, "token"),
    ("GET", "/v1/models", {"authorization": "Bearer "}, b"", 401, "token"),
    ("GET", "/v1/models", {"authorization": "Bearer {token}x"}, b"", 401, "token"),
    ("GET", "/v1/models", {"authorization": "Basic {token}"}, b"", 401, "token"),
    ("GET", "/v1/models", {"authorization": "{token}"}, b"", 401, "token"),
    ("GET", "/v1/models", {"authorization": "Bearer \xff\xfe"}, b"", 401, "token"),
    ("GET", "/v1/models", S, b"", 401, "token"),
    ("GET", "/v1/models?api_key={token}", {}, b"", 401, "token"),
    ("GET", "/v1/nowhere", {}, b"", 401, "token"),
    ("GET", "/metrics", {}, b"", 401, "token"),
    ("GET", "/metrics", S, b"", 401, "token"),
    ("GET", "/metrics", T, b"", 200, ""),
    ("POST", "/entry/link", {}, b"", 401, "token"),
    ("POST", "/entry/link", S, b"", 401, "token"),
    # who asks for the pages
    ("GET", "/", S, b"", 200, ""),
    ("GET", "/", T, b"", 200, ""),
    ("GET", "/", {}, b"", 401, "session"),
    ("GET", "/", {"cookie": "groove_{port}=x"}, b"", 401, "session"),
    ("GET", "/", {"cookie": "groove_1={cookie}"}, b"", 401, "session"),
    ("GET", "/", {"cookie": "a=b; groove_{port}={cookie}; c=d"}, b"", 200, ""),
    ("GET", "/do/thing", S, b"", 405, "method"),
    ("GET", "/healthz", {}, b"", 200, ""),
    ("GET", "/entry", {}, b"", 200, ""),
    # the name that was asked for: DNS rebinding
    ("GET", "/v1/models", {**T, "host": "localhost:{port}"}, b"", 200, ""),
    ("GET", "/v1/models", {**T, "host": "[::1]:{port}"}, b"", 200, ""),
    ("GET", "/v1/models", {**T, "host": "evil.test:{port}"}, b"", 421, "host"),
    ("GET", "/v1/models", {**T, "host": "127.0.0.1"}, b"", 421, "host"),
    ("GET", "/v1/models", {**T, "host": "127.0.0.1:1"}, b"", 421, "host"),
    ("GET", "/v1/models", {**T, "host": "127.0.0.1.evil.test:{port}"}, b"", 421, "host"),
    ("GET", "/v1/models", {**T, "host": "localhost.:{port}"}, b"", 421, "host"),
    ("GET", "/v1/models", {**T, "host": "LOCALHOST:{port}"}, b"", 421, "host"),
    ("GET", "/v1/models", {**T, "host": "0.0.0.0:{port}"}, b"", 421, "host"),
    ("GET", "/v1/models", {**T, "host": "127.1:{port}"}, b"", 421, "host"),
    ("GET", "/v1/models", {**T, "host": "2130706433:{port}"}, b"", 421, "host"),
    ("GET", "/v1/models", {**T, "host": "a@127.0.0.1:{port}"}, b"", 421, "host"),
    ("GET", "/healthz", {"host": "evil.test:{port}"}, b"", 421, "host"),
    ("GET", "/entry", {"host": "evil.test:{port}"}, b"", 421, "host"),
    ("GET", "/", {**S, "host": "evil.test:{port}"}, b"", 421, "host"),
    # the page that asks
    ("POST", "/v1/echo", {**T, **JSON, "origin": OWN}, b"{}", 200, ""),
    ("POST", "/v1/echo", {**T, **JSON, "origin": "null"}, b"{}", 403, "origin"),
    ("POST", "/v1/echo", {**T, **JSON, "origin": "http://evil.test"}, b"{}", 403, "origin"),
    ("POST", "/v1/echo", {**T, **JSON, "origin": "https://127.0.0.1:{port}"}, b"{}", 403, "origin"),
    ("POST", "/v1/echo", {**T, **JSON, "origin": "http://127.0.0.1:1"}, b"{}", 403, "origin"),
    ("POST", "/v1/echo", {**T, **JSON, "origin": "http://localhost:{port}"}, b"{}", 403, "origin"),
    ("POST", "/v1/echo", {**T, **JSON, "origin": OWN + ".evil.test"}, b"{}", 403, "origin"),
    ("POST", "/v1/echo", {**T, **JSON, "origin": ""}, b"{}", 403, "origin"),
    ("GET", "/v1/models", {**T, "origin": "chrome-extension://abc"}, b"", 403, "origin"),
    ("GET", "/", {**S, "sec-fetch-site": "none"}, b"", 200, ""),
    ("GET", "/", {**S, "sec-fetch-site": "same-origin"}, b"", 200, ""),
    ("GET", "/", {**S, "sec-fetch-site": "same-site"}, b"", 403, "fetch_site"),
    ("GET", "/", {**S, "sec-fetch-site": "cross-site"}, b"", 403, "fetch_site"),
    ("GET", "/", {**S, "sec-fetch-site": "Same-Origin"}, b"", 403, "fetch_site"),
    ("GET", "/v1/models", {**T, "sec-fetch-site": "cross-site"}, b"", 403, "fetch_site"),
    # methods
    ("OPTIONS", "/v1/echo", {"origin": OWN}, b"", 405, "method"),
    ("OPTIONS", "/v1/echo", {**T, "access-control-request-method": "POST"}, b"", 405, "method"),
    ("PUT", "/v1/echo", {**T, **JSON}, b"{}", 405, "method"),
    ("PATCH", "/v1/echo", {**T, **JSON}, b"{}", 405, "method"),
    ("TRACE", "/v1/echo", T, b"", 405, "method"),
    ("CONNECT", "/v1/echo", T, b"", 405, "method"),
    ("BREW", "/", S, b"", 405, "method"),
    ("get", "/v1/models", T, b"", 405, "method"),
    ("DELETE", "/", S, b"", 405, "method"),
    ("DELETE", "/v1/files", T, b"", 200, ""),
    ("POST", "/metrics", {**T, **JSON}, b"{}", 405, "method"),
    ("POST", "/healthz", JSON, b"{}", 405, "method"),
    ("DELETE", "/v1/files", {**T, **JSON}, b"{}", 400, "body"),
    ("GET", "/v1/models", {**T, **JSON}, b"{}", 400, "body"),
    ("GET", "/", {**S, "upgrade": "websocket", "connection": "upgrade"}, b"", 400, "websocket"),
    ("GET", "/v1/models", {**T, "upgrade": "h2c", "connection": "upgrade"}, b"", 200, ""),
    # what is posted
    ("POST", "/v1/echo", {**T, **JSON}, b"{}", 200, ""),
    ("POST", "/v1/echo", {**T, "content-type": "application/json; charset=utf-8"}, b"{}", 200, ""),
    ("POST", "/v1/echo", {**T, "content-type": "APPLICATION/JSON"}, b"{}", 200, ""),
    ("POST", "/v1/echo", {**T, "content-type": "application/x-protobuf"}, b"x", 200, ""),
    ("POST", "/v1/echo", {**T, "content-type": "application/x-ndjson"}, b"{}", 200, ""),
    ("POST", "/v1/echo", {**T, "content-type": "text/plain"}, b"{}", 415, "content_type"),
    ("POST", "/v1/echo", {**T, **FORM}, b"a=b", 415, "content_type"),
    ("POST", "/v1/echo", {**T, "content-type": "multipart/form-data"}, b"x", 415, "content_type"),
    ("POST", "/v1/files", {**T, "content-type": "multipart/form-data; boundary=x"}, b"x", 200, ""),
    ("POST", "/v1/echo", T, b"{}", 415, "content_type"),
    ("POST", "/v1/echo", T, b"", 200, ""),
    ("POST", "/do/thing", {**S, **FORM}, FIT, 303, ""),
    ("POST", "/do/thing", {**S, **FORM}, b"what=done", 403, "form_token"),
    ("POST", "/do/thing", {**S, **FORM}, b"form_token=x&what=done", 403, "form_token"),
    ("POST", "/do/thing", S, b"", 403, "form_token"),
    ("POST", "/do/thing", {**S, **JSON}, b"{}", 415, "content_type"),
    ("POST", "/do/thing", {**S, "content-type": "text/plain"}, FIT, 415, "content_type"),
    ("POST", "/do/thing", {**T, **FORM}, b"what=done", 303, ""),
    ("POST", "/do/thing", {**S, **FORM, "origin": "null"}, FIT, 403, "origin"),
    ("POST", "/do/thing", {**S, **FORM, "sec-fetch-site": "same-site"}, FIT, 403, "fetch_site"),
    ("POST", "/do/thing", {**S, **FORM}, b"&".join([b"a=b"] * 300), 400, "malformed"),
    ("POST", "/do/thing", {**S, **FORM}, b"a=\xff&form_token={form}", 400, "malformed"),
    # how much
    ("POST", "/v1/echo", {**T, **JSON}, b"x" * 100_000, 200, ""),
    ("POST", "/v1/echo", {**T, **JSON}, b"x" * 100_001, 413, "size"),
    ("POST", "/v1/echo", {**T, **JSON, "content-length": "9" * 15}, b"x", 413, "size"),
    ("POST", "/do/thing", {**S, **FORM}, b"a=" + b"x" * 65_536, 413, "size"),
    ("POST", "/entry", FORM, b"code=" + b"x" * 5000, 413, "size"),
    ("GET", "/v1/" + "x" * 3000, T, b"", 414, "path"),
    ("GET", "/v1/models?" + "x" * 9000, T, b"", 414, "path"),
    ("GET", "/v1/models", {**T, **MANY}, b"", 431, "headers"),
    ("GET", "/v1/models", {**T, "x-long": "y" * 33_000}, b"", 431, "headers"),
    # what is no path, or two at once
    ("GET", "//evil.test/", S, b"", 400, "path"),
    ("GET", "/static/../", {}, b"", 400, "path"),
    ("GET", "/static/%2e%2e/v1/models", {}, b"", 400, "path"),
    ("GET", "/static/..%2f..%2fv1", {}, b"", 400, "path"),
    ("GET", "/static/%5c..%5c", {}, b"", 400, "path"),
    ("GET", "/v1//models", T, b"", 400, "path"),
    ("GET", "/%00", S, b"", 400, "path"),
    ("GET", "http://evil.test/", S, b"", 400, "path"),
    ("OPTIONS", "*", T, b"", 400, "path"),
    ("GET", "/%76%31/models", {}, b"", 401, "token"),
    ("GET", "/V1/models", {}, b"", 401, "session"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "headers", "body", "status", "cause"), CASES)
def test_a_head_is_let_in_or_refused_as_the_table_says(
    served: Endpoint,
    method: str,
    path: str,
    headers: dict[str, str],
    body: bytes,
    status: int,
    cause: str,
) -> None:
    before, done = served.counts.refused.copy(), len(served.changed)
    got, answer, rest = ask(served, method, path, headers, body)
    assert got == status, rest
    assert served.counts.refused - before == ({cause: 1} if cause else {})
    assert not any(name.startswith("access-control-") for name in answer)
    if cause:
        assert len(served.changed) == done, "a refused request did something"
        assert b"secret" not in rest


TWICE = ["authorization", "content-type", "cookie", "origin", "sec-fetch-site", "x-api-key"]


@pytest.mark.parametrize("name", [*TWICE, "host", "content-length"])
def test_a_header_that_decides_is_given_once(served: Endpoint, name: str) -> None:
    first = {"host": "127.0.0.1:{port}", "content-length": "1"}.get(name, "{token}")
    second = {"host": "127.0.0.1:{port}", "content-length": "2"}.get(name, "x")
    status, _, _ = ask(served, "GET", "/", [(name, first), (name, second)])
    assert status == 400


def test_a_body_whose_length_is_given_in_two_ways_is_refused(served: Endpoint) -> None:
    both = {**T, **JSON, "content-length": "3", "transfer-encoding": "chunked"}
    assert ask(served, "POST", "/v1/echo", both, b"0\r\n\r\n")[0] == 400


def test_a_chunked_body_is_capped_too(served: Endpoint) -> None:
    chunks = b"".join(b"2710\r\n" + b"x" * 10_000 + b"\r\n" for _ in range(11)) + b"0\r\n\r\n"
    chunked = {**T, **JSON, "transfer-encoding": "chunked"}
    assert ask(served, "POST", "/v1/echo", chunked, chunks)[0] == 413
    status, _, rest = ask(served, "POST", "/v1/echo", chunked, b"3\r\n{}\n\r\n0\r\n\r\n")
    assert (status, json.loads(rest)["bytes"]) == (200, 3)


def test_a_large_body_without_the_token_is_not_read_before_it_is_refused(served: Endpoint) -> None:
    status, answer, _ = ask(served, "POST", "/v1/echo", JSON, b"x" * 3_000_000)
    assert (status, answer["connection"]) == (401, "close")


def test_no_get_changes_anything_on_any_route(served: Endpoint) -> None:
    """All that changes something is behind a rule; of the pages, only /do and what is named."""
    before = list(served.changed)
    cookie, _ = served.sessions.open()
    code = served.sessions.link()
    who = {**T, "cookie": f"groove_{{port}}={cookie}"}
    routes = [*(rule.path for rule in RULES), "/", "/v1/echo", "/do/thing", "/exit"]
    for path in [*routes, f"/entry?code={code}"]:
        for method in ("GET", "HEAD"):
            ask(served, method, path, who)
            assert served.sessions.get(cookie), "a GET has ended the session"
    assert served.changed == before
    assert served.sessions.spend(code), "a GET has spent the code"


def test_every_answer_has_the_headers_that_a_browser_obeys(served: Endpoint) -> None:
    for path, headers in (("/", S), ("/", {}), ("/v1/models", T), ("/healthz", {}), ("/x", S)):
        _, answer, _ = ask(served, "GET", path, headers)
        policy = answer["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer["x-content-type-options"] == "nosniff"
        assert answer["x-frame-options"] == "deny"
        assert answer["cross-origin-resource-policy"] == "same-origin"
        assert answer["cache-control"] == "no-store"
        assert "server" not in answer


def test_an_upstream_cannot_open_the_answers_to_foreign_pages(served: Endpoint) -> None:
    _, answer, _ = ask(served, "GET", "/v1/cross", T)
    assert "access-control-allow-origin" not in answer
    assert "set-cookie" not in answer


def test_refusals_have_the_shape_that_the_client_of_the_path_reads(served: Endpoint) -> None:
    _, kind, body = ask(served, "GET", "/v1/models", {})
    assert kind["content-type"] == "application/json"
    assert json.loads(body)["error"]["code"] == "token"
    assert json.loads(body)["error"]["type"] == "authentication_error"
    _, _, body = ask(served, "POST", "/v1/messages", JSON, b"{}")
    assert json.loads(body)["type"] == "error"
    assert json.loads(body)["error"]["type"] == "authentication_error"
    _, kind, body = ask(served, "GET", "/", {})
    assert kind["content-type"].startswith("text/html")
    assert b"groove-node dashboard" in body


def test_a_route_that_fails_is_counted_and_says_nothing_of_what_was_asked(
    served: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    status, _, body = ask(served, "GET", "/v1/broken", T)
    assert status == 500
    assert b"client" not in body
    assert "a text of the client's" not in caplog.text
    assert "ValueError" in caplog.text
    assert served.counts.failures["unexpected"] >= 1


def test_requests_are_counted_by_the_names_of_routes_and_never_by_paths(served: Endpoint) -> None:
    ask(served, "GET", "/v1/nowhere/a-path-of-the-clients", T)
    ask(served, "GET", "/v1/models", T)
    names = {name for name, _ in served.counts.requests}
    assert {"unknown", "models"} <= names
    assert not any("/" in name for name in names)
    assert sum(served.counts.took["models"].counts) >= 1


def test_the_link_is_good_once_and_lets_one_browser_in(served: Endpoint) -> None:
    _, _, body = ask(served, "POST", "/entry/link", T)
    url = json.loads(body)["url"]
    path = url.removeprefix(served.url)
    code = path.partition("code=")[2]
    status, _, page = ask(served, "GET", path, {})
    assert (status, code.encode() in page) == (200, True)
    status, answer, _ = ask(served, "POST", "/entry", FORM, b"code=" + code.encode())
    assert (status, answer["location"]) == (303, "/")
    cookie = answer["set-cookie"]
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert cookie.startswith(f"groove_{served.port}=")
    assert ask(served, "POST", "/entry", FORM, b"code=" + code.encode())[0] == 403


def test_leaving_ends_the_session(served: Endpoint) -> None:
    cookie, session = served.sessions.open()
    form = b"form_token=" + session.form_token.encode()
    mine = {"cookie": f"groove_{{port}}={cookie}"}
    assert ask(served, "GET", "/", mine)[0] == 200
    assert ask(served, "POST", "/exit", {**mine, **FORM}, form)[0] == 200
    assert ask(served, "GET", "/", mine)[0] == 401


def test_a_code_in_the_address_is_no_html(served: Endpoint) -> None:
    _, _, page = ask(served, "GET", "/entry?code=%22%3E%3Cscript%3E", {})
    assert b"<script" not in page


class Watch:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s


def test_sessions_and_links_end_by_time_and_by_number() -> None:
    now = Watch()
    sessions = entry.Sessions(now)
    code = sessions.link()
    cookie, _ = sessions.open()
    now.s = entry.LINK_S + 1
    assert not sessions.spend(code)
    assert sessions.get(cookie)
    now.s += entry.SESSION_IDLE_S + 1
    assert sessions.get(cookie) is None
    kept = [sessions.open()[0] for _ in range(entry.SESSIONS_MAX)]
    now.s += 1
    assert all(sessions.get(each) for each in kept[1:])
    sessions.open()
    assert sessions.get(kept[0]) is None, "the one that was unused for longest goes"
    assert sessions.get(kept[1])
    first = sessions.link()
    for _ in range(entry.LINKS_MAX):
        sessions.link()
    assert not sessions.spend(first)


def test_a_session_lives_a_week_however_much_it_is_used() -> None:
    now = Watch()
    sessions = entry.Sessions(now)
    cookie, _ = sessions.open()
    while now.s < entry.SESSION_S:
        assert sessions.get(cookie)
        now.s += entry.SESSION_IDLE_S / 2
    now.s += 1
    assert sessions.get(cookie) is None


def test_no_rule_gives_programs_paths_to_a_cookie() -> None:
    assert all(
        rule.kind is Kind.TOKEN for rule in RULES if rule.path.startswith(("/v1", "/api", "/metr"))
    )


def test_bodies_of_all_requests_together_are_bounded(tmp_path: Path) -> None:
    made = endpoint(tmp_path, time.monotonic, body_bytes_max=1024)
    with running(made):
        held = [socket.create_connection(("127.0.0.1", made.port)) for _ in range(8)]
        head = (
            f"POST /v1/echo HTTP/1.1\r\nhost: 127.0.0.1:{made.port}\r\ncontent-length: 1024\r\n"
            f"content-type: application/json\r\nauthorization: Bearer {made.token.value}\r\n\r\n"
        )
        for each in held:
            each.sendall(head.encode() + b"x" * 1023)
        statuses = set()
        deadline = time.monotonic() + 10
        while 503 not in statuses and time.monotonic() < deadline:
            statuses.add(ask(made, "POST", "/v1/echo", {**T, **JSON}, b"x" * 1024)[0])
        assert 503 in statuses
        for each in held:
            each.sendall(b"x")
            assert each.recv(100).startswith(b"HTTP/1.1 200")
            each.close()
        assert ask(made, "POST", "/v1/echo", {**T, **JSON}, b"x" * 1024)[0] == 200


@pytest.mark.parametrize(
    "headers", [FORM, {**FORM, **S}], ids=["a stranger's", "the owner's, stale"]
)
def test_a_body_that_is_refused_after_it_was_read_takes_no_room(
    served: Endpoint, headers: dict[str, str]
) -> None:
    path = "/do/something" if "cookie" in headers else "/entry"
    for _ in range(220):  # together more than the bodies of all requests may be
        assert ask(served, "POST", path, headers, b"\xff" * 4_000)[0] in (400, 403)
    assert ask(served, "POST", "/entry", FORM, b"code=none")[0] == 403


def test_a_body_of_crumbs_is_refused(served: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.api.guard.PARTS_MAX", 100)
    chunked = {**T, **JSON, "transfer-encoding": "chunked"}
    assert ask(served, "POST", "/v1/echo", chunked, b"1\r\nx\r\n" * 500 + b"0\r\n\r\n")[0] == 400
    assert ask(served, "POST", "/v1/echo", chunked, b"1\r\nx\r\n" * 90 + b"0\r\n\r\n")[0] == 200
