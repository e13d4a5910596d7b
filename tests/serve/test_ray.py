"""Replicas on Ray Serve: what the docs show runs, and answers are those of ``generate``."""

import http.client
import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest
import yaml
from indexed_documents import write_source
from shapes import decoder_config
from small_nets import write_clip

pytest.importorskip("fastapi", reason="the server needs FastAPI: pip install 'pardalis[serve]'")

import pardalis
from pardalis.bundle import Bundle
from pardalis.config import from_dict
from pardalis.errors import ConfigError
from pardalis.inference import EngineConfig
from pardalis.model import Decoder, initialise
from pardalis.retrieval import ClipConfig, IndexConfig, RetrieverConfig, build_index
from pardalis.serve import ServeConfig
from pardalis.serve.ray import RayConfig, app, deployment

ROOT = Path(__file__).parents[2]
LONG_S = 240.0  # until Ray has done something; far more than it takes
N_IMAGES = 60  # of a long answer, a few seconds

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="needs Ray Serve: make .venv/.cluster"
)


# ── the config ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "bundle is missing; it has no default, so set it."),
        ({"bundle": "/b", "bundel": 1}, "Unknown key 'bundel'; did you mean 'bundle'?"),
        ({"bundle": "/b", "engine": {"max_slots": 0}}, "engine.max_slots must be at least 1"),
        ({"bundle": "/b", "replicas": 0}, "replicas must be at least 1"),
        ({"bundle": "/b", "cpus": 0}, "cpus must be above 0"),
        ({"bundle": "/b", "serve": {"port": 80}}, "serve.port is not read, as Ray's proxy listens"),
        ({"bundle": "b"}, "b must be an absolute path"),
        ({"bundle": "/b", "adapters": {"a": "c"}}, "c must be an absolute path"),
        ({"bundle": "/b", "api_key_file": "k"}, "k must be an absolute path"),
        ({"bundle": "/b", "serve": {"c2pa_certificate": "/c", "c2pa_key": "k"}}, "k must be an"),
        ({"bundle": "/b", "serve": {"c2pa_certificate": "c", "c2pa_key": "/k"}}, "c must be an"),
        ({"bundle": "/b", "serve": {"request_filters": ["blocklist:w"]}}, "w must be an absolute"),
        ({"bundle": "/b", "serve": {"answer_filters": ["f.py:f"]}}, "f.py must be an absolute"),
        ({"bundle": "/b", "retrieve": {"index": "i"}}, "i must be an absolute path"),
        (
            {
                "bundle": "/b",
                "retrieve": {"index": "/i", "embedder": {"kind": "clip", "folder": "c"}},
            },
            "c must be an absolute path",
        ),
        (
            {"bundle": "/b", "retrieve": {"index": "/i", "documents": -1}},
            "retrieve.documents must be 0 or more",
        ),
        ({"bundle": "/b", "retrieve": {}}, "retrieve.index is missing"),
        ({"bundle": "/b", "device": "cuda:1"}, "device cuda:1 is no GPU of a replica"),
        (
            {"bundle": "/b", "api_key_file": "/k", "serve": {"api_keys": ["a"]}},
            "api_key_file and `serve.api_keys` are both set; give one of them.",
        ),
        ({"bundle": "/b", "adapters": {"b": "/c"}}, "adapters has the name 'b', which the model"),
    ],
)
def test_arguments_that_are_refused(arguments, message):
    with pytest.raises(ConfigError) as refused:
        app(arguments)
    assert message in str(refused.value)


def test_arguments_of_a_config_file_are_those_of_python():
    values = {
        "bundle": "/runs/owls/bundle", "adapters": {"lora": "/runs/lora"}, "dtype": "bfloat16",
        "engine": {"max_slots": 2}, "serve": {"image_hosts": ["a.b"]},
        "retrieve": {"index": "/i", "embedder": {"kind": "clip", "folder": "/c"}, "documents": 3},
    }  # fmt: skip
    found = from_dict(RayConfig, values)
    assert found == RayConfig(
        bundle=Path("/runs/owls/bundle"), adapters={"lora": Path("/runs/lora")}, dtype="bfloat16",
        engine=EngineConfig(max_slots=2), serve=ServeConfig(image_hosts=("a.b",)),
        retrieve=RetrieverConfig(
            index=Path("/i"), embedder=ClipConfig(folder=Path("/c")), documents=3
        ),
    )  # fmt: skip
    assert found.served_name == "owls"
    assert RayConfig(bundle=Path("/b"), name="mine").served_name == "mine"


def test_every_path_is_made_absolute():
    config = RayConfig(
        bundle=Path("b"), adapters={"a": Path("c")}, api_key_file=Path("k"),
        retrieve=RetrieverConfig(index=Path("i"), embedder=ClipConfig(folder=Path("n"))),
        serve=ServeConfig(
            c2pa_certificate=Path("p"), c2pa_key=Path("q"),
            request_filters=("blocklist:w", "nsfw:0.5", "m:f"), answer_filters=("d/f.py:f", "nsfw"),
        ),
    )  # fmt: skip
    found = config.with_paths(lambda path: Path("/x") / path)
    assert found == RayConfig(
        bundle=Path("/x/b"), adapters={"a": Path("/x/c")}, api_key_file=Path("/x/k"),
        retrieve=RetrieverConfig(index=Path("/x/i"), embedder=ClipConfig(folder=Path("/x/n"))),
        serve=ServeConfig(
            c2pa_certificate=Path("/x/p"), c2pa_key=Path("/x/q"),
            request_filters=("blocklist:/x/w", "nsfw:0.5", "m:f"),
            answer_filters=("/x/d/f.py:f", "nsfw"),
        ),
    )  # fmt: skip


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"run pip install 'pardalis\[cluster\]'\."):
        deployment(RayConfig(bundle=Path("b")))


# ── a cluster ────────────────────────────────────────────────────────────────────────────────────


class Cluster:
    """A process that holds a cluster of Ray, and a client of its proxy."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.log = (folder / "log").open("w+")
        self.sessions = tempfile.TemporaryDirectory(prefix="ray-")  # a short path, for its sockets
        environment = os.environ | {
            "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1",
            "RAY_TMPDIR": self.sessions.name, "PYTHONPATH": os.pathsep.join(sys.path),
        }  # fmt: skip
        script = ROOT / "tests" / "support" / "ray_cluster.py"
        self.process = subprocess.Popen(
            [sys.executable, script, str(self.port)], env=environment, text=True, cwd=folder,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log,
        )  # fmt: skip
        self._expect_done()

    def run(self, command: str) -> None:
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()
        self._expect_done()

    def _expect_done(self) -> None:
        for line in self.process.stdout:
            if line.startswith("> "):
                assert line == "> done\n"
                return
        self.log.seek(0)
        raise AssertionError(self.log.read()[-4000:])

    def processes(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self) -> int:
        """Let the cluster stop; returns its exit code. Nothing of it is left."""
        processes = self.processes()
        try:
            self.process.communicate(timeout=LONG_S)
            return self.process.returncode
        finally:
            _, alive = psutil.wait_procs(processes, timeout=60)
            for each in alive:
                each.kill()
            self.process.kill()
            self.log.close()
            self.sessions.cleanup()
            assert not alive

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=LONG_S)

    def send(self, method: str, path: str, body: object = None) -> tuple[int, dict[str, str], str]:
        """Return status, headers and content of one request."""
        with closing(self.connect()) as connection:
            content = None if body is None else json.dumps(body)
            connection.request(method, path, content, {"Content-Type": "application/json"})
            response = connection.getresponse()
            headers = {name.lower(): value for name, value in response.getheaders()}
            assert len(headers) == len(response.getheaders())  # each once
            return response.status, headers, response.read().decode()

    def until_ready(self) -> None:
        until(lambda: self.send("GET", "/ready")[0] == 200)

    def metrics(self, replica: str) -> dict[str, float]:
        """Return the metrics of one replica, whose answer may need several requests."""
        while True:
            _, headers, text = self.send("GET", "/metrics")
            if headers["x-replica"] == replica:
                return {k: float(v) for k, v in re.findall(r"^([^# ]\S*) (\S+)$", text, re.M)}


def until(condition) -> None:
    deadline = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def block(language: str, word: str) -> str:
    """Return the block of the page on serving that has a word."""
    page = (ROOT / "docs" / "serving.md").read_text()
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    [found] = [each for each in blocks if word in each]
    return found


@pytest.fixture(scope="module")
def long_bundle(codec, tmp_path_factory) -> Path:
    """A model whose answers can be long."""
    config = decoder_config(
        vocab_size=codec.vocabulary.size, context=2048, d_model=64, n_layers=4, n_heads=4,
        n_kv_heads=2, d_ff=128, init_std=0.3,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("served") / "long"
    Bundle(initialise(Decoder(config), 0).eval(), codec, {}).save(folder)
    return folder


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = Cluster(tmp_path_factory.mktemp("ray"))
    yield cluster
    assert cluster.end() == 0


@pytest.fixture(scope="module")
def replicas(cluster, long_bundle, tmp_path_factory) -> Cluster:
    """Two replicas, which the Python of the docs starts."""
    file = tmp_path_factory.mktemp("docs") / "replicas.py"
    shown = block("python", "RayConfig")
    assert 'Path("runs/quickstart"), replicas=2' in shown
    file.write_text(shown.replace("runs/quickstart", str(long_bundle)))
    cluster.run(f"python {file}")
    cluster.until_ready()
    return cluster


def ask(seed: int, **options) -> dict[str, object]:
    return {"model": "long", "prompt": "an owl", "seed": seed, "max_tokens": 12,
            "temperature": 1.0, **options}  # fmt: skip


LONG = {"model": "long", "input": "an owl", "seed": 1, "temperature": 1.5, "stream": True,
        "modalities": ["image"]}  # fmt: skip


def begin(cluster: Cluster, n_images: int = N_IMAGES):
    """Send a request and read the first event of its answer."""
    connection = cluster.connect()
    content = json.dumps({**LONG, "max_images": n_images})
    connection.request("POST", "/v1/responses", content, {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200
    assert b"response.created" in response.readline()
    return connection, response


@needs_ray
def test_two_replicas_give_the_answers_of_generate(replicas, long_bundle):
    bundle = pardalis.load(long_bundle)
    expected = [
        pardalis.generate(
            bundle, "an owl", mode="text", max_new_tokens=12, temperature=1.0, seed=seed
        ).text
        for seed in range(3)
    ]
    seen = set()
    for number in range(40):
        status, headers, content = replicas.send("POST", "/v1/completions", ask(number % 3))
        assert status == 200
        assert json.loads(content)["choices"][0]["text"] == expected[number % 3]
        seen.add(headers["x-replica"])
    assert len(seen) == 2


@contextmanager
def begun_on_both(cluster: Cluster, n_images: int):
    """Begin an answer on each replica, and so with equal queues; yield responses by replica."""
    found: dict[str, http.client.HTTPResponse] = {}
    with ExitStack() as stack:
        for _ in range(10):
            connection, response = begin(cluster, n_images)
            stack.enter_context(closing(connection))
            stack.enter_context(closing(response))
            found.setdefault(response.headers["X-Replica"], response)
            if len(found) == 2:
                break
        yield found


@needs_ray
def test_events_come_one_by_one_through_the_proxy(replicas):
    """The first event is there while the answer is still being written."""
    with begun_on_both(replicas, N_IMAGES) as responses:
        for replica in responses:
            assert replicas.metrics(replica)["pardalis_active_answers"] >= 1
        for response in responses.values():
            events = [json.loads(line[6:]) for line in response if line.startswith(b"data: {")]
            assert events[-1]["type"] == "response.completed"
            kinds = [event["type"].rpartition(".")[2] for event in events]
            assert kinds.count("partial_image") > 0
            assert len(events[-1]["response"]["output"]) == N_IMAGES
    assert len(responses) == 2


@needs_ray
def test_a_client_that_leaves_ends_its_answer(replicas):
    with begun_on_both(replicas, 5 * N_IMAGES) as responses:
        before = {replica: replicas.metrics(replica) for replica in responses}
    for replica, found in before.items():
        assert found["pardalis_active_answers"] >= 1
        until(lambda replica=replica: replicas.metrics(replica)["pardalis_active_answers"] == 0)
        assert whole_answers(replicas.metrics(replica)) == whole_answers(found)


def whole_answers(metrics: dict[str, float]) -> float:
    return sum(v for k, v in metrics.items() if k.startswith("pardalis_answers_total"))


@needs_ray
def test_errors_pass_as_they_are(replicas):
    status, _, content = replicas.send("POST", "/v1/completions", ask(0, temperature=-1.0))
    assert status == 400
    assert json.loads(content)["error"]["message"] == "temperature must be 0 or more, got -1.0."


@needs_ray
def test_the_config_file_and_a_stop_that_lets_answers_finish(cluster, replicas, long_bundle, codec):
    """Its replica has an index, and gives what ``generate`` gives with it."""
    cluster.run("delete default")
    values = yaml.safe_load(block("yaml", "import_path"))
    assert values["applications"][0]["args"]["bundle"] == "/models/quickstart"
    values["applications"][0]["args"] |= {"bundle": str(long_bundle), "replicas": 1}
    values["applications"][0]["args"]["serve"] = {"stop_timeout_s": LONG_S}
    clip = write_clip(long_bundle.parent / "clip")
    source = write_source(long_bundle.parent, "pairs", ["an owl", "a fox", "an oak"], range(3))
    config = IndexConfig(embedder=ClipConfig(folder=clip))
    index = build_index(long_bundle.parent / "index", [source], codec, config)
    retrieve = {"index": str(index.folder), "embedder": {"kind": "clip", "folder": str(clip)}}
    values["applications"][0]["args"]["retrieve"] = retrieve
    values["http_options"]["port"] = cluster.port
    file = long_bundle.parent / "serve.yaml"
    file.write_text(yaml.safe_dump(values))
    cluster.run(f"config {file}")
    cluster.until_ready()
    status, headers, content = cluster.send("POST", "/v1/completions", ask(0))
    assert status == 200
    expected = pardalis.generate(
        long_bundle, "an owl", mode="text", max_new_tokens=12, temperature=1.0, seed=0,
        retriever=from_dict(RetrieverConfig, retrieve).build(),
    )  # fmt: skip
    assert expected.retrieved
    assert json.loads(content)["choices"][0]["text"] == expected.text
    assert json.loads(content)["retrieved"] == [asdict(each) for each in expected.retrieved]
    connection, response = begin(cluster)
    with closing(connection):
        assert response.headers["X-Replica"] == headers["x-replica"]
        cluster.run("delete pardalis")
        lines = response.read().decode().splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert events[-1]["type"] == "response.completed"
    assert len(events[-1]["response"]["output"]) == N_IMAGES
