"""``pardalis serve`` as a process: it says where it listens, and ends well by a signal."""

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from contextlib import contextmanager

import pytest

from pardalis.cli.main import main


@contextmanager
def serving(*arguments):
    command = [sys.executable, "-m", "pardalis", "serve", *map(str, arguments), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_from_start_to_stop(bundle_folder, number):
    with serving(bundle_folder, "--json") as process:
        said = json.loads(process.stdout.readline())
        assert said["models"] == ["tiny"]
        body = {"model": "tiny", "prompt": "an owl", "max_tokens": 3}
        request = urllib.request.Request(
            f"{said['url']}/v1/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            assert json.load(response)["usage"]["completion_tokens"] <= 3
        process.send_signal(number)
        rest, log = process.communicate(timeout=60)
    assert process.returncode == 0, log
    assert rest == ""
    lines = [json.loads(line) for line in log.splitlines()]
    [line] = [line for line in lines if line["event"] == "request"]
    assert (line["method"], line["path"], line["status"]) == ("POST", "/v1/completions", 200)
    assert "owl" not in log


def test_filters_of_a_command(bundle_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.txt").write_text("sesame")
    (tmp_path / "own.py").write_text("def judge(part): return 'never'")
    filters = ("--request-filter", "blocklist:words.txt", "--answer-filter", "own.py:judge")
    with serving(bundle_folder, "--json", *filters) as process:
        url = json.loads(process.stdout.readline())["url"]
        reasons = []
        for content in ("sesame", "an owl"):
            body = {"model": "tiny", "messages": [{"role": "user", "content": content}]}
            request = urllib.request.Request(
                f"{url}/v1/chat/completions", json.dumps(body).encode(),
                {"Content-Type": "application/json"},
            )  # fmt: skip
            with urllib.request.urlopen(request, timeout=60) as response:
                reasons.append(json.load(response)["choices"][0]["message"]["refusal"])
    assert reasons == ["The text has a word or phrase that this server refuses.", "never"]


def test_a_port_that_is_taken(bundle_folder, capfd):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", str(bundle_folder), "--port", str(port)]) not in (0, 75)
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert f"port {port} of 127.0.0.1 cannot be listened on" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "70000"], "--port must be at most 65535"),
        (["--max-slots", "0"], "--max-slots must be at least 1"),
        (["--api-key-file", "none.txt"], "none.txt"),
        (["--api-key-file", "empty.txt"], "empty.txt has no keys"),
        (["--request-filter", "mine"], "There is no filter 'mine'; give module:function, or one"),
        (["--answer-filter", "blocklist:none.txt"], "none.txt is no file"),
        (["--filter-timeout", "0"], "--filter-timeout must be above 0"),
        (["--c2pa-key", "key.pem"], "--c2pa-certificate and --c2pa-key belong together"),
        (["--watermark"], "--watermark needs images of at least 64 x 64 pixels, and the model's"),
        (["--adapter", "tiny=x"], "has the name 'tiny', which the model has"),
    ],
)
def test_what_is_refused(bundle_folder, arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n \n")
    assert main(["serve", str(bundle_folder), *arguments]) not in (0, 1, 75)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
