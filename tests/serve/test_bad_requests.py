"""Requests that are wrong in any way: a sentence with the field's name, and the server lives."""

import base64
import io
import json
import logging
import socket
import time
import zlib
from contextlib import closing

import PIL.Image
import pytest

from pardalis import Engine

USER = [{"role": "user", "content": "an owl"}]
CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
IMAGES, COMPLETIONS = "/v1/images/generations", "/v1/completions"


def chat(**fields):
    return CHAT, {"model": "tiny", "messages": USER, "max_tokens": 2, **fields}


def content(*parts):
    return chat(messages=[{"role": "user", "content": list(parts)}])


def url(text):
    return content({"type": "image_url", "image_url": {"url": text}})


def data(raw: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(raw).decode()}"


def responses(**fields):
    return RESPONSES, {"model": "tiny", "input": "an owl", "max_output_tokens": 2, **fields}


def images(**fields):
    return IMAGES, {"prompt": "an owl", **fields}


def completions(**fields):
    return COMPLETIONS, {"model": "tiny", "prompt": "an owl", "max_tokens": 2, **fields}


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (2, 2)).save(buffer, format="PNG")
    whole = bytearray(buffer.getvalue())
    whole[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    whole[29:33] = zlib.crc32(whole[12:29]).to_bytes(4, "big")
    return bytes(whole)


TINY = data(png(2, 2))
OPEN = {"type": "image_generation_call", "result": None}
LONG = "word " * 400

# What is sent, and what the message has to say.
BAD = {
    "no model": ((CHAT, {"messages": USER}), "model: field required"),
    "unknown model": (chat(model="gpt"), "There is no model 'gpt'"),
    "model of another type": (chat(model=3), "model: input should be a valid string"),
    "no messages": ((CHAT, {"model": "tiny"}), "messages: field required"),
    "empty messages": (chat(messages=[]), "messages: list should have at least 1 item"),
    "messages as text": (chat(messages="x"), "messages: input should be a valid list"),
    "message as text": (chat(messages=["x"]), "messages[0]: input should be a valid dict"),
    "no role": (chat(messages=[{"content": "x"}]), "messages[0] has the role None"),
    "unknown role": (chat(messages=[{"role": "tool", "content": "x"}]), "the role 'tool'"),
    "role of another type": (chat(messages=[{"role": 1, "content": "x"}]), "a role of type int"),
    "no content": (chat(messages=[{"role": "user"}]), 'messages[0] needs "content"'),
    "content as number": (chat(messages=[{"role": "user", "content": 1}]), 'needs "content"'),
    "empty parts": (content(), 'messages[0] needs "content"'),
    "part as text": (content("x"), "messages[0].content[0] must be"),
    "part without type": (content({"text": "x"}), "messages[0].content[0] must be"),
    "unknown part": (content({"type": "input_audio", "input_audio": {}}), "content[0] must be"),
    "text of another type": (content({"type": "text", "text": 1}), "content[0] must be"),
    "tool calls": (
        chat(messages=[{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}]),
        "has tool_calls",
    ),
    "half a surrogate": (chat(messages=[{"role": "user", "content": "\ud800"}]), "broken Unicode"),
    "too long": (chat(messages=[{"role": "user", "content": LONG}]), "fills the model's context"),
    "too many turns": (chat(messages=USER * 513), "messages has 513 entries; at most 512"),
    "too many images": (
        content(*[{"type": "image_url", "image_url": {"url": TINY}}] * 33),
        "messages has 33 images; at most 32",
    ),
    "image by URL": (url("https://example.org/a.png"), "images are fetched from no host"),
    "image by file URL": (url("file:///etc/passwd"), "images are fetched from no host"),
    "image by path": (url("/etc/passwd"), "images are fetched from no host"),
    "image without URL": (content({"type": "image_url"}), "content[0] must be"),
    "image that is null": (content({"type": "image_url", "image_url": None}), "must be"),
    "image with broken base64": (url("data:image/png;base64,%%%"), "messages[0].content[0]"),
    "image with nothing in it": (url("data:image/png;base64,"), "image"),
    "image that is text": (url(data(b"hello", "text/plain")), "image"),
    "image that is SVG": (url(data(b"<svg/>", "image/svg+xml")), "image"),
    "image cut off": (url(data(png(2, 2)[:40])), "image"),
    "image of 10^9 pixels": (url(data(png(40_000, 40_000))), "million pixels"),
    "image of no pixels": (url(data(png(0, 5))), "image"),
    "temperature below 0": (chat(temperature=-1), "temperature must be 0 or more"),
    "temperature as text": (chat(temperature="hot"), "temperature: input should be a valid number"),
    "temperature as list": (chat(temperature=[1]), "temperature: input should be a valid number"),
    "top_p of 0": (chat(top_p=0), "top_p must lie in (0, 1]"),
    "top_p above 1": (chat(top_p=1.5), "top_p must lie in (0, 1]"),
    "top_k below 0": (chat(top_k=-1), "top_k must be a whole number"),
    "max_tokens of 0": (chat(max_tokens=0), "max_tokens: input should be greater than or equal"),
    "max_tokens as float": (chat(max_tokens=1.5), "max_tokens: input should be a valid integer"),
    "max_tokens as text": (chat(max_tokens="5"), "max_tokens: input should be a valid integer"),
    "max_completion_tokens below 0": (chat(max_completion_tokens=-1), "max_completion_tokens: "),
    "n of 0": (chat(n=0), "n: input should be greater than or equal to 1"),
    "n of 1000": (chat(n=1000), "n must be from 1 to 8, got 1000"),
    "n as boolean": (chat(n=True), "n: input should be a valid integer"),
    "huge seed": (chat(seed=10**30), "seed"),
    "stop of another type": (chat(stop=3), "stop"),
    "empty stop": (chat(stop=""), "stop"),
    "stop with a number": (chat(stop=["a", 1]), "stop"),
    "no modality": (chat(modalities=[]), "modalities must name text, image or both"),
    "unknown modality": (chat(modalities=["audio"]), "modalities[0]: input should be 'text'"),
    "modalities as text": (chat(modalities="text"), "modalities: input should be a valid list"),
    "negative max_images": (chat(max_images=-1), "max_images must be"),
    "guidance that is not finite": (chat(guidance=1e308), "guidance must be a number"),
    "guidance of text": (chat(modalities=["text"], guidance=1e308), "guidance must be a number"),
    "contrastive_alpha of 2": (chat(contrastive_alpha=2), "contrastive_alpha"),
    "top_logprobs alone": (chat(top_logprobs=2), "top_logprobs needs logprobs"),
    "too many top_logprobs": (chat(logprobs=True, top_logprobs=21), "top_logprobs: "),
    "logprobs as number": (chat(logprobs=2), "logprobs: input should be a valid boolean"),
    "stream as text": (chat(stream="yes"), "stream: input should be a valid boolean"),
    "unknown stream option": (chat(stream_options={"x": 1}), "stream_options.x is not supported"),
    "tools": (chat(tools=[]), "tools is not supported; leave it out"),
    "response format": (chat(response_format={"type": "json_object"}), "response_format is not"),
    "penalty": (chat(frequency_penalty=1), "frequency_penalty: input should be 0"),
    "logit bias": (chat(logit_bias={"1": 2}), "logit_bias is not supported"),
    "store": (chat(store=True), "store: input should be False"),
    "unknown field": (chat(temprature=1), "temprature is not supported"),
    "no input": ((RESPONSES, {"model": "tiny"}), "input: field required"),
    "input as number": (responses(input=1), "input"),
    "input of texts": (responses(input=["x"]), "input"),
    "unknown item": (responses(input=[{"type": "reasoning"}]), "input[0] is of the type 'reason"),
    "item with tools": (responses(input=[{"role": "user", "content": "x", "name": "a"}]),
                        "input[0].name is not supported"),
    "item without image": (responses(input=[OPEN]), "input[0] needs its image as base64"),
    "item with broken image": (
        responses(input=[{**OPEN, "result": "%"}]), "input[0].content[0]"
    ),
    "previous response": (responses(previous_response_id="x"), "previous_response_id is not"),
    "function tool": (responses(tools=[{"type": "function"}]), "tools[0].type: input should be"),
    "stored response": (responses(store=True), "store: input should be False"),
    "background": (responses(background=True), "background is not supported"),
    "negative partial_images": (responses(partial_images=-1), "partial_images: "),
    "structured text": (responses(text={"format": {"type": "json_schema"}}), "text.format.type"),
    "no prompt": ((IMAGES, {}), "prompt: field required"),
    "prompt as list": (images(prompt=["x"]), "prompt: input should be a valid string"),
    "size of another model": (images(size="1024x1024"), "size must be auto or 16x16"),
    "size as number": (images(size=16), "size: input should be a valid string"),
    "image as URL": (images(response_format="url"), "response_format: input should be 'b64_json'"),
    "format of no image": (images(output_format="bmp"), "output_format: input should be 'png'"),
    "several images at once": (images(max_images=2), "max_images must be 1"),
    "transparent": (images(background="transparent"), "background: input should be"),
    "prompt with half a surrogate": (images(prompt="\udc00"), "prompt holds broken Unicode"),
    "prompt of ids": (completions(prompt=[1, 2]), "prompt: input should be a valid string"),
    "completion too long": (completions(prompt=LONG), "fills the model's context"),
    "echo": (completions(echo=True), "echo: input should be False"),
    "suffix": (completions(suffix="x"), "This model has not learnt to infill"),
    "best of 2": (completions(best_of=2), "best_of: input should be 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_field_is_named(server, name):
    (path, body), expected = BAD[name]
    status, answer = server.post(path, body)
    error = answer["error"]
    assert status == (404 if "model 'gpt'" in error["message"] else 400), answer
    assert expected in error["message"]
    assert error["type"] in ("invalid_request_error", "not_found_error")
    assert "\n" not in error["message"] and len(error["message"]) < 400
    assert "Traceback" not in str(answer)
    assert server.send("GET", "/ready")[0] == 200


def test_the_field_is_given_for_programs(server):
    for (path, body), param in (
        (chat(temperature=-1), "temperature"),
        (chat(max_tokens=0), "max_tokens"),
        (chat(tools=[]), "tools"),
        (images(size="1x1"), "size"),
    ):
        assert server.post(path, body)[1]["error"]["param"] == param


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"", {}, 400),
        (b"{", {}, 400),
        (b"null", {}, 400),
        (b"[]", {}, 400),
        (b'"text"', {}, 400),
        (b"{'a': 1}", {}, 400),
        (b"\xff\xfe\x00", {}, 400),
        (b'{"model": "tiny", "messages": "\xff"}', {}, 400),
        (b"[" * 100_000, {}, 400),
        (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, {}, 400),
        (b'{"model": "tiny", "seed": ' + b"9" * 10_000 + b"}", {}, 400),
        (b'{"temperature": NaN, "model": "tiny", "messages": [{"role": "user"}]}', {}, 400),
        (b'{"temperature": 1e999, "model": "tiny", "messages": [{"role": "user"}]}', {}, 400),
        (b"model=tiny", {"Content-Type": "application/x-www-form-urlencoded"}, 400),
        (b"{}", {"Content-Type": "text/plain"}, 400),
        (b"{}", {"Content-Type": "application/json; charset=utf-16"}, 400),
        (b"{}", {"Content-Encoding": "gzip"}, 400),
    ],
)  # fmt: skip
def test_bodies_that_are_no_request(server, body, headers, status):
    found, _, answer = server.send(
        "POST", CHAT, body, {"Content-Type": "application/json", **headers}
    )
    error = json.loads(answer)["error"]
    assert found == status
    assert error["message"].endswith(".") and len(error["message"]) < 400
    assert server.send("GET", "/ready")[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("POST", "/v1/", 404),
        ("GET", CHAT, 405),
        ("DELETE", "/v1/models", 405),
        ("PUT", RESPONSES, 405),
        ("PATCH", IMAGES, 405),
        ("TRACE", CHAT, 405),
        ("GET", "/v1/models/%00", 404),
        ("GET", "/v1/models/../../etc/passwd", 404),
        ("GET", "/..%2f..%2fetc/passwd", 404),
        ("GET", "/../../../../etc/passwd", 404),
        ("GET", "/%2e%2e/%2e%2e/pyproject.toml", 404),
        ("GET", "/v1/models/" + "a" * 5000, 404),
    ],
)
def test_paths_and_methods(server, method, path, status):
    found, headers, answer = server.send(method, path)
    assert found == status
    assert json.loads(answer)["error"]["message"]
    assert headers["x-request-id"]


@pytest.mark.parametrize(
    "raw",
    [
        b"GARBAGE\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: abc\r\n\r\n",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 30_000 + b"\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"\x00" * 1000,
    ],
)
def test_bytes_that_are_no_http(server, raw):
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as sock:
        try:
            sock.sendall(raw)
            first = sock.recv(100)
        except ConnectionError:
            first = b""
    assert not first or b" 400 " in first or b" 404 " in first or b" 431 " in first
    assert server.send("GET", "/ready")[0] == 200


def test_a_body_that_is_too_large(server):
    status, answer = server.post(CHAT, b"x" * ((32 << 20) + 1))
    assert status == 413
    assert "larger than 32 MiB" in answer["error"]["message"]

    def chunks():
        for _ in range(33):
            yield b"x" * (1 << 20)

    with closing(server.connect()) as connection:  # its length is not told
        try:
            connection.request("POST", CHAT, chunks(), {"Content-Type": "application/json"})
            assert connection.getresponse().status == 413
        except ConnectionError:
            pass  # the server has closed what it does not read
    assert server.send("GET", "/ready")[0] == 200


def test_a_body_that_does_not_come(served_bundle, running):
    with Engine(served_bundle) as engine, running(engine, body_timeout_s=0.3) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as sock:
            head = f"POST {CHAT} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            sock.sendall(head.encode() + b"Content-Length: 100\r\n\r\n{")
            answer = b""
            while b"}}" not in answer and (some := sock.recv(4096)):
                answer += some
        assert b" 408 " in answer.split(b"\r\n")[0] + b" "
        assert b"did not arrive within 0.3 s" in answer
        assert server.send("GET", "/ready")[0] == 200


@pytest.mark.parametrize(
    "sent", [b"", b"GET / HT", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET / HT"]
)
def test_a_head_that_does_not_come(served_bundle, running, monkeypatch, sent):
    monkeypatch.setattr("pardalis.serve.server.Protocol.head_timeout_s", 0.2)
    with Engine(served_bundle) as engine, running(engine) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as sock:
            sock.sendall(sent)
            while sock.recv(1 << 16):  # until the server closes the connection
                pass
        with closing(server.connect()) as connection:  # one that is used again stays
            for _ in range(2):
                connection.request("GET", "/health")
                assert connection.getresponse().read() == b'{"status":"ok"}'


def test_logs_hold_no_content(server, caplog):
    with caplog.at_level(logging.DEBUG):
        server.post(*chat(messages=[{"role": "user", "content": "sesame-7391"}]))
        server.post(*chat(messages=[{"role": "tool", "content": "sesame-7391"}]))
        server.post(CHAT, b'{"sesame-7391')
        deadline = time.monotonic() + 20  # a line is written when the answer has gone
        while caplog.text.count('"event": "request"') < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
    assert caplog.text.count('"event": "request"') == 3
    assert "sesame" not in caplog.text
