"""What an operator meets: readiness, keys, metrics, clients that leave or are slow, stopping."""

import json
import re
import resource
import socket
import threading
import time
from contextlib import closing
from types import SimpleNamespace

import pytest

from pardalis import Engine
from pardalis.errors import ConfigError
from pardalis.serve import ServeConfig
from pardalis.serve.server import Listener

CHAT = "/v1/chat/completions"
LONG = {"model": "tiny", "messages": [{"role": "user", "content": "an owl"}], "temperature": 1.5,
        "modalities": ["image"], "max_images": 6, "stream": True}  # fmt: skip


def until(condition, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture
def slow(served_bundle, running, monkeypatch):
    """A server whose engine waits before each step."""
    with Engine(served_bundle, max_slots=2, steps_per_sync=1) as engine:
        advance = engine.advance
        pause = [0.02]

        def slowly():
            time.sleep(pause[0])
            advance()

        monkeypatch.setattr(engine, "advance", slowly)
        with running(engine, stop_timeout_s=20.0) as server:
            yield server
            pause[0] = 0


def begin(server, body=LONG):
    """Send a request and read the first event of its answer."""
    connection = server.connect()
    connection.request("POST", CHAT, json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200
    response.readline()
    return connection, response


def n_requests(server) -> int:
    """Return how many requests have ended."""
    (metric,) = server.service.metrics.requests.collect()
    return sum(int(each.value) for each in metric.samples if each.name.endswith("_total"))


def test_health_and_readiness(server):
    assert server.send("GET", "/health")[0] == 200
    status, _, body = server.send("GET", "/ready")
    assert (status, json.loads(body)) == (200, {"status": "ready"})


def test_the_description_of_the_api(server):
    status, _, body = server.send("GET", "/openapi.json")
    paths = json.loads(body)["paths"]
    assert status == 200
    assert {CHAT, "/v1/responses", "/v1/images/generations", "/v1/completions"} <= paths.keys()
    assert server.send("GET", "/docs")[0] == 200


def test_metrics(server):
    def value(text: str, name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def read() -> str:
        return server.send("GET", "/metrics")[2].decode()

    tokens = 'pardalis_tokens_total{kind="completion",modality="image"}'
    requests = f'pardalis_requests_total{{path="{CHAT}",status="200"}}'
    before = read()
    body = {**LONG, "max_images": 1, "stream": False}
    used = server.post(CHAT, body)[1]["usage"]["completion_tokens_details"]["image_tokens"]
    after = read()
    assert value(after, tokens) - value(before, tokens) == used > 0
    assert value(after, requests) - value(before, requests) == 1
    assert value(after, "pardalis_images_total") - value(before, "pardalis_images_total") == 1
    assert value(after, "pardalis_active_answers") == 0


def test_keys(served_bundle, running):
    with Engine(served_bundle) as engine, running(engine, api_keys=("one", "two")) as server:
        assert server.send("GET", "/ready")[0] == server.send("GET", "/health")[0] == 200
        wrong = ("Bearer", "Bearer ", "Bearer three", "Basic one", "one", "Bearer onetwo",
                 "Bearer \u00e9")  # fmt: skip
        for given in (None, *wrong):
            headers = {} if given is None else {"Authorization": given.encode().decode("latin-1")}
            for path in ("/v1/models", "/metrics"):
                status, found, body = server.send("GET", path, headers=headers)
                assert (status, found["www-authenticate"]) == (401, "Bearer")
                assert json.loads(body)["error"]["code"] == "invalid_api_key"
        for given in ("Bearer one", "bearer two", "Bearer  one "):
            assert server.send("GET", "/v1/models", headers={"Authorization": given})[0] == 200


def test_other_sites_are_refused_unless_they_are_named(server, served_bundle, running):
    origin = {"Origin": "https://example.org"}
    assert "access-control-allow-origin" not in server.send("GET", "/v1/models", None, origin)[1]
    with (
        Engine(served_bundle) as engine,
        running(engine, cors_origins=("https://example.org",)) as named,
    ):
        found = named.send("GET", "/v1/models", None, origin)[1]
        assert found["access-control-allow-origin"] == "https://example.org"
        other = named.send("GET", "/v1/models", None, {"Origin": "https://example.com"})[1]
        assert "access-control-allow-origin" not in other


@pytest.mark.parametrize(
    ("name", "answered"),
    [
        ("localhost:8000", True),
        ("127.0.0.1:8000", True),
        ("[::1]:8000", True),
        ("pardalis", True),  # as nginx calls a group of servers
        ("a.localhost", True),
        ("Example.org.:443", True),
        ("evil.example.org", False),
        ("example.org.evil.net:8000", False),
        ("127.0.0.1.evil.net", False),
    ],
)
def test_a_local_server_without_keys_answers_to_no_foreign_names(
    served_bundle, running, name, answered
):
    with Engine(served_bundle, max_slots=1) as engine, running(engine, hosts=("example.org",)) as s:
        status, _, body = s.send("GET", "/v1/models", headers={"Host": name})
    assert status == (200 if answered else 403)
    if not answered:
        assert "add the name to its hosts" in json.loads(body)["error"]["message"]


def test_hosts_are_restricted_where_a_stranger_could_come_in_through_a_browser():
    local = ServeConfig.local_hosts
    assert local("127.0.0.1", (), ()) == local("localhost", (), ()) == local("::1", (), ()) == ()
    assert local("0.0.0.0", (), ()) is None and local("127.0.0.1", ("key",), ()) is None
    assert local("0.0.0.0", (), ("a.org",)) == ("a.org",)


def test_a_client_that_leaves_frees_its_place(slow):
    connection, response = begin(slow)
    assert slow.service.open
    response.close()
    connection.close()
    until(lambda: not slow.service.open and slow.service.engine.idle)
    assert not slow.service.engine.has_work
    body = {**LONG, "stream": False}
    connection = slow.connect()
    connection.request("POST", CHAT, json.dumps(body), {"Content-Type": "application/json"})
    until(lambda: slow.service.open)
    connection.close()  # without having read anything
    until(lambda: not slow.service.open and slow.service.engine.idle)


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("path", "prompt"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "an owl"}]}),
        ("/v1/responses", {"input": "an owl"}),
        ("/v1/images/generations", {"prompt": "an owl"}),
        ("/v1/completions", {"prompt": "an owl"}),
    ],
)
def test_clients_that_leave_at_once_free_their_places(slow, path, prompt, stream, n):
    body = {"model": "tiny", "stream": stream, **prompt}
    if path != "/v1/responses":
        body["n"] = n
    content = json.dumps(body)
    for _ in range(4):
        connection = slow.connect()
        connection.request("POST", path, content, {"Content-Type": "application/json"})
        connection.close()
    until(lambda: n_requests(slow) == 4)
    until(lambda: not slow.service.open and slow.service.engine.idle)


def test_a_slow_reader_holds_up_nobody(slow):
    host, port = slow.url.removeprefix("http://").split(":")
    body = json.dumps({**LONG, "n": 4}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        sock.connect((host, int(port)))
        sock.sendall(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: slow.service.open)
        quick = {**LONG, "max_images": 1, "stream": False}
        assert slow.post(CHAT, quick)[0] == 200
        sock.recv(1)
        assert slow.post(CHAT, quick)[0] == 200
    until(lambda: not slow.service.open)


def test_too_many_requests_wait(served_bundle, running, monkeypatch):
    with Engine(served_bundle, max_slots=1, max_waiting=1, steps_per_sync=1) as engine:
        advance, go = engine.advance, threading.Event()
        monkeypatch.setattr(engine, "advance", lambda: (go.wait(0.05), advance())[1])
        with running(engine) as server:
            body = {**LONG, "n": 8, "stream": False}
            status, headers, answer = server.send(
                "POST", CHAT, json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            go.set()
            error = json.loads(answer)["error"]
            assert (status, error["code"]) == (429, "queue_full")
            assert headers["retry-after"] == "1"
            until(lambda: engine.idle)  # those of the eight that were taken are gone
            assert server.post(CHAT, {**LONG, "stream": False, "max_images": 1})[0] == 200


def test_stopping_lets_open_answers_finish(slow):
    connection, response = begin(slow)
    with closing(connection):
        slow.stop()
        until(lambda: not slow.service.accepting)
        for _ in range(20):  # longer than the server takes to notice the signal
            assert slow.send("GET", "/ready")[0] == 503
            time.sleep(0.02)
        rest = response.read()
        assert rest.endswith(b"data: [DONE]\n\n")
        assert b'"finish_reason":"stop"' in rest


def test_stopping_ends_what_takes_too_long(served_bundle, running, monkeypatch):
    with Engine(served_bundle, steps_per_sync=1) as engine:
        advance = engine.advance
        monkeypatch.setattr(engine, "advance", lambda: (time.sleep(0.2), advance())[1])
        with running(engine, stop_timeout_s=0.5) as server:
            connection, response = begin(server)
            server.stop()
            rest = response.read()
            connection.close()
        assert b"[DONE]" in rest
        assert rest.count(b'"images"') < 6


def test_clients_without_a_file_descriptor_are_turned_away(monkeypatch, caplog):
    with Listener.at("127.0.0.1", 0) as listener:
        address = listener.getsockname()
        with socket.create_connection(address), listener.accept()[0]:
            pass
        limit = listener.fileno()
        monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, -1))
        for _ in range(3):
            with socket.create_connection(address) as client:
                with pytest.raises(ConnectionAbortedError):
                    listener.accept()
                assert client.recv(1) == b""
    assert [record.message for record in caplog.records] == [
        f"Clients are turned away: the process may have {limit} files and connections "
        "open; raise that limit (ulimit -n)."
    ]


def test_a_stopping_server_takes_no_request(server):
    server.service.stop_accepting()
    try:
        status, _, body = server.send("GET", "/ready")
        assert (status, json.loads(body)["status"]) == (503, "stopping")
        status, answer = server.post(CHAT, {**LONG, "stream": False})
        assert (status, answer["error"]["type"]) == (503, "server_error")
    finally:
        server.service.accepting = True


@pytest.mark.parametrize("path", ["/v1/images/generations", CHAT])
def test_clients_are_told_no_files_of_the_operator(server, monkeypatch, caplog, path):
    """Such as a certificate that has expired; the log says which it is."""

    def expired(*arguments):
        raise ConfigError("c2pa_certificate /etc/keys/chain.pem and c2pa_key key.pem sign nothing.")

    monkeypatch.setattr(server.service, "origin", SimpleNamespace(encode=expired))
    body = {"prompt": "owl"} if path != CHAT else {**LONG, "modalities": ["image"]}
    status, answer = server.post(path, {**body, "stream": False})
    assert (status, answer["error"]["type"]) == (500, "server_error")
    assert answer["error"]["message"] == "The server failed; its log has the reason."
    assert "/etc/keys/chain.pem" in caplog.text
    head = {"Content-Type": "application/json"}
    _, _, sent = server.send("POST", path, json.dumps({**body, "stream": True}).encode(), head)
    assert b"its log has the reason" in sent and b"chain.pem" not in sent


def test_an_engine_that_fails_is_said(served_bundle, running, monkeypatch, caplog):
    with Engine(served_bundle) as engine:
        monkeypatch.setattr(engine, "advance", lambda: 1 / 0)
        with running(engine) as server:
            status, answer = server.post(CHAT, {**LONG, "stream": False})
            assert status == 400 or status >= 500
            assert "engine failed" in answer["error"]["message"]
            for path in ("/ready", "/health"):
                status, _, body = server.send("GET", path)
                assert (status, json.loads(body)["status"]) == (503, "failed")
