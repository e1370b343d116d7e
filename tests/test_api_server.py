"""The server over real sockets: what HTTP says, and clients that mean ill."""

from __future__ import annotations

import shutil
import socket
import stat
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import h11
import httpx
import pytest
from support_endpoint import Endpoint, endpoint, running

from node.api.connection import Limits
from node.api.listening import ListenBusyError, ListenRefusedError, parse
from node.errors import OwnerError

QUICK = Limits(head_s=0.4, idle_s=30.0, write_s=0.4, linger_s=0.2)


def connected(of: Endpoint) -> socket.socket:
    made = socket.create_connection(("127.0.0.1", of.port), timeout=20)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def head(of: Endpoint, path: str = "/v1/models", method: str = "GET", *more: str) -> bytes:
    lines = [
        f"{method} {path} HTTP/1.1",
        f"host: 127.0.0.1:{of.port}",
        f"authorization: Bearer {of.token.value}",
        *more,
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def until_closed(sent: socket.socket) -> bytes:
    blob = b""
    try:
        while more := sent.recv(65536):
            blob += more
    except ConnectionResetError:
        pass
    return blob


def becomes(what: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    deadline = time.monotonic() + 15
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# ---- slow and many -----------------------------------------------------------------------------


def test_fifty_clients_that_trickle_do_not_keep_an_honest_one_out(tmp_path: Path) -> None:
    made = endpoint(tmp_path, time.monotonic, connections_max=20)
    with running(made), ExitStack() as stack:
        trickling = [stack.enter_context(connected(made)) for _ in range(50)]
        for each in trickling:
            each.sendall(b"GET /v1/models HTTP/1.1\r\nhost: 127.0.0.1")
        for _ in range(5):
            answer = httpx.get(f"{made.url}/v1/models", headers=made.bearer, timeout=20)
            assert answer.status_code == 200
            for each in trickling:
                try:
                    each.sendall(b"x")
                except OSError:
                    continue  # this one was ended
    assert made.counts.refused["made_room"] >= 30
    assert made.counts.refused["connections"] == 0


def test_bodies_that_never_come_do_not_keep_an_honest_one_out(tmp_path: Path) -> None:
    made = endpoint(tmp_path, time.monotonic, connections_max=20)
    with running(made), ExitStack() as stack:
        form = "POST /entry HTTP/1.1\r\nhost: 127.0.0.1:{}\r\ncontent-length: 4000\r\n{}\r\n\r\nx"
        kind = "content-type: application/x-www-form-urlencoded"
        for _ in range(30):
            slow = stack.enter_context(connected(made))
            slow.sendall(form.format(made.port, kind).encode())
        for _ in range(5):
            answer = httpx.get(f"{made.url}/v1/models", headers=made.bearer, timeout=20)
            assert answer.status_code == 200
    assert made.counts.refused["connections"] == 0


def test_who_sends_much_ahead_and_goes_is_noticed(tmp_path: Path) -> None:
    made = endpoint(tmp_path, time.monotonic)
    with running(made):
        with connected(made) as gone:
            gone.sendall(head(made, "/v1/stream"))
            assert gone.recv(1000).startswith(b"HTTP/1.1 200")
            gone.sendall(b"x" * 150_000)
        becomes(lambda: len(made.ended) == 1)


def test_a_head_that_trickles_is_ended_however_it_trickles(tmp_path: Path) -> None:
    made = endpoint(tmp_path, time.monotonic)
    with running(made, limits=QUICK), connected(made) as slow:
        slow.settimeout(0.05)
        blob, ended = b"", False
        deadline = time.monotonic() + 15
        while not ended and time.monotonic() < deadline:
            try:
                slow.sendall(b"G")
                more = slow.recv(1000)
                blob, ended = blob + more, not more
            except TimeoutError:
                continue
            except OSError:
                ended = True
        assert ended
        assert made.counts.refused["late"] == 1
        assert blob.startswith(b"HTTP/1.1 408")


def test_a_body_that_trickles_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.api.guard.BODY_S", 0.3)
    made = endpoint(tmp_path, time.monotonic)
    with running(made), connected(made) as slow:
        more = ("content-type: application/json", "content-length: 1000")
        slow.sendall(head(made, "/v1/echo", "POST", *more) + b"{")
        assert until_closed(slow).startswith(b"HTTP/1.1 408")
    assert made.counts.refused["late"] == 1
    assert made.changed == []


def test_a_client_that_never_reads_is_ended_and_its_answer_with_it(tmp_path: Path) -> None:
    made = endpoint(tmp_path, time.monotonic)
    with running(made, limits=QUICK), connected(made) as deaf:
        deaf.sendall(head(made, "/v1/flood"))
        becomes(lambda: made.ended == ["flood"])
        becomes(lambda: made.counts.refused["unread"] == 1)


def test_when_all_connections_are_at_work_one_more_is_told_so(tmp_path: Path) -> None:
    made = endpoint(tmp_path, time.monotonic, connections_max=2)
    with running(made), ExitStack() as stack:
        for _ in range(2):
            busy = stack.enter_context(connected(made))
            busy.sendall(head(made, "/v1/stream"))
            assert busy.recv(1000).startswith(b"HTTP/1.1 200")
        with connected(made) as late:
            assert until_closed(late).startswith(b"HTTP/1.1 503")
        assert made.counts.refused["connections"] == 1
        stack.close()
        becomes(lambda: len(made.ended) == 2)
        becomes(lambda: httpx.get(f"{made.url}/healthz").status_code == 200)


def test_an_idle_connection_is_ended_without_a_word(tmp_path: Path) -> None:
    made = endpoint(tmp_path, time.monotonic)
    with running(made, limits=Limits(idle_s=0.1)), connected(made) as idle:
        assert until_closed(idle) == b""
    assert made.counts.refused["late"] == 0


def test_an_answer_that_nobody_waits_for_ends(tmp_path: Path) -> None:
    made = endpoint(tmp_path, time.monotonic)
    with running(made):
        with connected(made) as gone:
            gone.sendall(head(made, "/v1/stream"))
            assert gone.recv(1000).startswith(b"HTTP/1.1 200")
        becomes(lambda: made.ended == ["stream"])


def test_an_end_of_the_server_ends_open_streams(tmp_path: Path) -> None:
    made = endpoint(tmp_path, time.monotonic)
    with ExitStack() as stack:
        with running(made):
            for _ in range(3):
                busy = stack.enter_context(connected(made))
                busy.sendall(head(made, "/v1/stream"))
                assert busy.recv(1000).startswith(b"HTTP/1.1 200")
            stack.enter_context(connected(made)).sendall(b"GET ")
        assert made.ended == ["stream"] * 3


@pytest.mark.parametrize(
    "blob",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost : a\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\n folded: b\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n",
        b"\r\n" * 30_000,
        b"A" * 60_000,
    ],
)
def test_what_is_no_http_is_refused_and_the_server_goes_on(tmp_path: Path, blob: bytes) -> None:
    made = endpoint(tmp_path, time.monotonic)
    with running(made, limits=QUICK):
        with connected(made) as odd:
            odd.sendall(blob)
            odd.shutdown(socket.SHUT_WR)
            answer = until_closed(odd)
        assert answer == b"" or answer[9:12] in {b"400", b"431", b"421", b"501"}
        assert httpx.get(f"{made.url}/healthz").text == "ok\n"
        assert not made.counts.failures


# ---- what HTTP/1.1 says ------------------------------------------------------------------------


def read_answers(sent: socket.socket, count: int, method: str = "GET") -> list[tuple[int, bytes]]:
    """As h11's client reads them: it raises on anything that is no HTTP."""
    found: list[tuple[int, bytes]] = []
    parser = h11.Connection(h11.CLIENT)
    for _ in range(count):
        parser.send(h11.Request(method=method, target="/", headers=[("host", "a")]))
        parser.send(h11.EndOfMessage())
        status, body = 0, b""
        while True:
            event = parser.next_event()
            if event is h11.NEED_DATA:
                parser.receive_data(sent.recv(65536))
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                break
        found.append((status, body))
        if parser.our_state is h11.DONE:
            parser.start_next_cycle()
    return found


def test_one_connection_carries_many_requests_also_those_sent_ahead(tmp_path: Path) -> None:
    made = endpoint(tmp_path, time.monotonic)
    with running(made), connected(made) as one:
        json = ("content-type: application/json", "content-length: 2")
        one.sendall(head(made) * 2 + head(made, "/v1/echo", "POST", *json) + b"{}" + head(made))
        answers = read_answers(one, 4)
    assert [status for status, _ in answers] == [200] * 4
    assert b'"bytes":2' in answers[2][1]


def test_head_and_bodiless_answers_leave_the_connection_whole(tmp_path: Path) -> None:
    made = endpoint(tmp_path, time.monotonic)
    with running(made), connected(made) as one:
        one.sendall(head(made, method="HEAD"))
        assert read_answers(one, 1, "HEAD") == [(200, b"")]
        one.sendall(head(made, "/v1/nothing") + head(made, "/v1/stream", "HEAD"))
        assert read_answers(one, 1) == [(204, b"")]


def test_a_client_that_waits_is_told_to_go_on_only_if_it_is_let_in(tmp_path: Path) -> None:
    made = endpoint(tmp_path, time.monotonic)
    waits = ("expect: 100-continue", "content-type: application/json", "content-length: 2")
    with running(made):
        with connected(made) as one:
            one.sendall(head(made, "/v1/echo", "POST", *waits))
            assert one.recv(1000).startswith(b"HTTP/1.1 100")
            one.sendall(b"{}")
            assert read_answers(one, 1)[0][0] == 200
        with connected(made) as one:
            asked = head(made, "/v1/echo", "POST", *waits)
            one.sendall(asked.replace(b"Bearer g", b"Bearer x"))
            assert one.recv(1000).startswith(b"HTTP/1.1 401")


def test_a_client_that_has_said_all_still_gets_its_answer_whole(tmp_path: Path) -> None:
    """Half-closed is how some clients end; a browser or a library that is gone looks the same."""
    made = endpoint(tmp_path, time.monotonic)
    with running(made), connected(made) as one:
        one.sendall(head(made))
        assert read_answers(one, 1)[0][0] == 200
        one.shutdown(socket.SHUT_WR)
        assert until_closed(one) == b""


def test_http_1_0_is_answered_and_closed(tmp_path: Path) -> None:
    made = endpoint(tmp_path, time.monotonic)
    with running(made), connected(made) as one:
        one.sendall(head(made).replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert until_closed(one).startswith(b"HTTP/1.1 200")


def test_a_refused_body_of_any_length_does_not_hide_the_refusal(tmp_path: Path) -> None:
    made = endpoint(tmp_path, time.monotonic, body_bytes_max=2000)
    with running(made):
        for size in (3000, 700_000, 6_000_000):
            answer = httpx.post(
                f"{made.url}/v1/echo",
                content=b"x" * size,
                headers={**made.bearer, "content-type": "application/json"},
            )
            assert answer.status_code == 413, size


def test_httpx_and_curl_are_served(tmp_path: Path) -> None:
    made = endpoint(tmp_path, time.monotonic)
    with running(made):
        with httpx.Client(base_url=made.url, headers=made.bearer) as client:
            for _ in range(3):
                assert client.post("/v1/echo", json={"a": 1}).json()["caller"] == "token"
            with client.stream("GET", "/v1/stream") as streamed:
                assert next(streamed.iter_text()).startswith("data: 0")
        if (curl := shutil.which("curl")) is None:
            pytest.skip("curl is not here")
        secret = f"authorization: Bearer {made.token.value}"
        json = "content-type: application/json"
        for more in ((), ("--http2",), ("-H", "transfer-encoding: chunked"), ("--http1.0",)):
            command = [curl, "-sS", "-m", "20", *more, "-H", secret, "-H", json, "-d", "{}"]
            done = subprocess.run(
                [*command, f"{made.url}/v1/echo"], capture_output=True, check=True, text=True
            )
            assert '"bytes":2' in done.stdout, more


# ---- where it listens --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "listen",
    [
        *("0.0.0.0:4022", "[::]:4022", "192.168.1.2:4022", "example.com:80", "127.0.0.2:1", ":80"),
        *("127.0.0.1", "127.0.0.1:99999", "127.0.0.1:-1", "unix:", "http://127.0.0.1:1", "*:80"),
    ],
)
def test_no_address_is_taken_that_another_machine_could_reach(tmp_path: Path, listen: str) -> None:
    with pytest.raises(ListenRefusedError) as refused:
        parse(listen, tmp_path)
    assert refused.value.exit_code == 2
    assert listen in refused.value.what


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        made = endpoint(tmp_path, time.monotonic, listen=f"127.0.0.1:{port}")
        with pytest.raises(OwnerError) as failed, running(made):
            pass
        assert isinstance(failed.value, ListenBusyError)
        assert str(port) in failed.value.what


def test_the_socket_file_is_the_owners_alone_and_needs_no_token(tmp_path: Path) -> None:
    made = endpoint(tmp_path, time.monotonic, listen="unix")
    path = tmp_path / "api.sock"
    with running(made):
        assert made.url == f"unix:{path}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
            asked = client.post("http://localhost/v1/echo", json={})
            assert asked.json()["caller"] == "socket"
            page = {"origin": "http://localhost"}
            assert client.get("http://localhost/v1/models", headers=page).status_code == 403
            assert client.post("http://localhost/entry/link").status_code == 409
        with pytest.raises(ListenBusyError), running(made):
            pass
    assert not path.exists()


def test_a_socket_file_of_a_killed_process_is_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "s"
    path.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    made = endpoint(tmp_path, time.monotonic, listen=f"unix:{path}")
    with running(made), httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
        assert client.get("http://localhost/healthz").text == "ok\n"


def test_no_other_file_is_taken_away_and_no_open_folder_is_used(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_text("mine")
    with (
        pytest.raises(ListenRefusedError),
        running(endpoint(tmp_path, time.monotonic, listen=f"unix:{path}")),
    ):
        pass
    assert path.read_text() == "mine"
    wide = tmp_path / "wide"
    wide.mkdir()
    wide.chmod(0o755)
    with (
        pytest.raises(ListenRefusedError),
        running(endpoint(tmp_path, time.monotonic, listen=f"unix:{wide / 's'}")),
    ):
        pass
    assert list(wide.iterdir()) == []


def test_a_status_is_sent_with_its_words(tmp_path: Path) -> None:
    made = endpoint(tmp_path, time.monotonic)
    with running(made):
        assert httpx.get(f"{made.url}/healthz").reason_phrase == "OK"
        assert httpx.get(f"{made.url}/v1/models").reason_phrase == "Unauthorized"
