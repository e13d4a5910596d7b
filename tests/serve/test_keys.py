"""Keys of a server: what a file of them holds, and which requests they open."""

import asyncio

import pytest

pytest.importorskip("fastapi", reason="the server needs FastAPI: pip install 'pardalis[serve]'")

from pardalis.errors import ConfigError
from pardalis.serve import ServeConfig
from pardalis.serve.keys import Keys, read_keys
from pardalis.serve.middleware import Gate


def test_a_file_of_keys(tmp_path):
    path = tmp_path / "keys.txt"
    path.write_text("\n one \n\ntwo\n")
    assert read_keys(path) == ("one", "two")
    path.write_bytes("\ufeff# of Ada\r\n one \r\n#two\r\nt w#o\r\n".encode())
    assert read_keys(path) == ("one", "t w#o")
    for wrong in ("schlüssel", "a\tb", "a\x7f", "\u200bone"):
        path.write_text(f"one\n\n{wrong}\n", "utf-8")
        with pytest.raises(ConfigError, match=r"line 3 of .*keys\.txt is a key with characters"):
            read_keys(path)
    path.write_text(" \n# none\n")
    with pytest.raises(ConfigError, match=r"has no keys; write one on each line\.$"):
        read_keys(path)
    with pytest.raises(ConfigError, match="is no file"):
        read_keys(tmp_path)


def test_what_opens():
    keys = Keys(["one", "t w o"])
    for header in ("Bearer one", "bearer one", "Bearer  one ", "Bearer t w o"):
        assert keys.open(header)
    for header in ("", "one", "Bearer", "Bearer ", "Basic one", "Bearer onet w o", "Bearer One"):
        assert not keys.open(header)
    assert Keys([]).open("")


@pytest.mark.parametrize(
    ("path", "root", "needs"),
    [
        ("/v1/models", "", True),
        ("/v1", "", False),
        ("/metrics", "", True),
        ("/metrics2", "", False),
        ("/ready", "", False),
        ("/", "", False),
        ("/models/v1/models", "/models", True),  # mounted below a path
        ("/models/metrics", "/models", True),
        ("/models/ready", "/models", False),
        ("/v1/models", "/models", True),
        ("/v1/models", "/v", True),  # which does not lead to this path
    ],
)
def test_which_paths_need_a_key(path, root, needs):
    reached, said = [], []

    async def application(scope, receive, send):
        reached.append(scope["path"])

    async def receive():
        return {"type": "http.request"}

    async def send(message):
        said.append(message.get("status"))

    scope = {"type": "http", "method": "GET", "path": path, "root_path": root, "headers": []}
    asyncio.run(Gate(application, ServeConfig(api_keys=("one",)))(scope, receive, send))
    assert (reached, said[:1]) == (([], [401]) if needs else ([path], []))
