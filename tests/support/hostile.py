"""Hostile and broken files, made from valid ones: what one change makes of a folder's files.

A :class:`Case` is a name and a change of a folder in place. The module fuzz has random changes.
"""

import copy
import json
import os
import pickle
import resource
import shutil
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

import pardalis
from pardalis.adapters import load_adapter, merge
from pardalis.adapters.peft import describe_adapter
from pardalis.data.codes import decode_codes
from pardalis.data.shards import Shards
from pardalis.inference import GenerationConfig, generate_many
from pardalis.retrieval import Index, Neighbours
from pardalis.vq import ImageTokenizer

Change = Callable[[Path], None]
MARK = "PARDALIS_TEST_EXECUTED"

ABSURD: tuple[Any, ...] = (
    -1, 0, 10**9, 2**63, 10**400, 1e308, float("nan"), float("inf"), None, True, "", "x" * 10_000,
    "../../etc", [], {}, [[]], [-1], [10**9, 0],
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    name: str
    change: Change

    def __str__(self) -> str:
        return self.name


class Payload:
    """Sets an environment variable when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.putenv, (MARK, "1")


class Executed:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return _touch, (str(self.path),)


def _touch(path: str) -> str:
    Path(path).touch()
    return path


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield (*at, key)
        if isinstance(inner, dict | list) and len(inner) < 50:
            yield from places(inner, (*at, key))


def replaced(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    copied = json.loads(json.dumps(value))
    inner = copied
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = new
    return copied


def write(name: str, content: str | bytes) -> Change:
    data = content if isinstance(content, bytes) else content.encode()
    return lambda folder: _put(folder / name, lambda path: path.write_bytes(data))


def _put(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink(missing_ok=True)
    make(path)


def text_cases(name: str) -> list[Case]:
    """Return contents that are no JSON of ours."""
    contents = {
        "empty": b"", "not UTF-8": b"\xff\xfe\x00{", "deep": b"[" * 100_000,
        "deep tables": b'{"a":' * 5000 + b"1" + b"}" * 5000, "a number": b"7", "null": b"null",
        "a list": b"[1, 2]", "a long number": b"9" * 5000, "NaN": b"NaN",
        "half": b'{"format": "pardalis', "a text": b'"x"',
    }  # fmt: skip
    return [Case(f"{name}:{what}", write(name, content)) for what, content in contents.items()]


def special_cases(name: str) -> list[Case]:
    """Return what is no regular file in place of a file."""
    makes: dict[str, Callable[[Path], object]] = {
        "pipe": os.mkfifo,
        "device": lambda path: path.symlink_to("/dev/zero"),
        "folder": Path.mkdir,
        "loop": lambda path: path.symlink_to(path),
    }
    return [
        Case(f"{name}:{what}", lambda folder, make=make: _put(folder / name, make))
        for what, make in makes.items()
    ]


def weight_cases(folder: Path, name: str) -> list[Case]:
    """Return damaged, lying and poisoned safetensors files."""
    tensors = safetensors.torch.load_file(folder / name)
    content = (folder / name).read_bytes()
    floats = sorted(key for key, tensor in tensors.items() if tensor.is_floating_point())
    first, last = floats[0], floats[-1]

    def poisoned(key: str, value: float) -> dict[str, torch.Tensor]:
        changed = {k: t.clone() for k, t in tensors.items()}
        changed[key].view(-1)[-1] = value
        return changed

    def saved(changed: dict[str, torch.Tensor]) -> bytes:
        return safetensors.torch.save(changed)

    huge = {"a": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 2**62]}}
    header = json.dumps(huge).encode()
    contents = {
        "empty": b"", "half": content[: len(content) // 2], "long header": b"\xff" * 16,
        "header of 2 GB": struct.pack("<Q", 2**31) + b"{}",
        "huge tensor": struct.pack("<Q", len(header)) + header,
        "NaN first": saved(poisoned(first, float("nan"))),
        "NaN last": saved(poisoned(last, float("nan"))),
        "inf": saved(poisoned(last, float("inf"))),
        "-inf": saved(poisoned(first, float("-inf"))),
        "missing tensor": saved({k: t for k, t in tensors.items() if k != first}),
        "another shape": saved({**tensors, first: tensors[first][None]}),
        "no tensors": saved({}),
        "integers": saved({**tensors, first: tensors[first].to(torch.int8)}),
        "a pickle": pickle.dumps(Payload()),
    }  # fmt: skip
    return [Case(f"{name}:{what}", write(name, each)) for what, each in contents.items()]


def array_cases(folder: Path, name: str) -> list[Case]:
    """Return damaged and lying ``.npy`` files."""
    content, values = (folder / name).read_bytes(), np.load(folder / name)

    def saved(array: np.ndarray) -> Change:
        return lambda place: _put(place / name, lambda path: np.save(path, array))

    objects = np.array([Payload()], dtype=object)
    cases = {
        "empty": write(name, b""),
        "half": write(name, content[: len(content) // 2]),
        "a pickle": write(name, pickle.dumps(Payload())),
        "header": write(name, content[:10] + b"((((" + content[14:]),
        "floats": saved(values.astype(np.float64)),
        "longer": saved(np.concatenate([values, values])),
        "objects": lambda place: _put(
            place / name, lambda path: np.save(path, objects, allow_pickle=True)
        ),
    }
    if values.dtype == np.int64:
        for what, value in {"negative": -1, "large": 10**9, "largest": 2**63 - 1}.items():
            changed = values.copy()
            changed.reshape(-1)[-1] = value
            cases[what] = saved(changed)
    return [Case(f"{name}:{what}", change) for what, change in cases.items()]


# ── reading what was changed ─────────────────────────────────────────────────────────────────────

_MEMORY = 2 << 30  # bytes that the process may grow by


@contextmanager
def limits(seconds: int) -> Iterator[None]:
    """Bound time and memory inside the block. A hang or an absurd allocation then fails."""
    old = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()

    def late(*_: object) -> None:
        raise AssertionError("reading goes on without end")

    before = signal.signal(signal.SIGALRM, late)
    resource.setrlimit(resource.RLIMIT_AS, (size + _MEMORY, old[1]))
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, old)


def use_bundle(folder: Path) -> None:
    """Load a bundle and generate; what it generates must be tokens with finite probabilities."""
    bundle = pardalis.load(folder)
    config = GenerationConfig(mode="text", max_new_tokens=2)
    [made] = generate_many(bundle, [["owl"]], config, seed=0)
    assert made is not None
    ids = torch.tensor([[bundle.codec.vocabulary.bos_id]])
    assert torch.isfinite(bundle.model(ids)).all()


def use_adapter(bundle: Path) -> Callable[[Path], None]:
    """Return what describes an adapter and merges it into the model of a bundle."""
    loaded = pardalis.load(bundle)

    def use(folder: Path) -> None:
        describe_adapter(folder)
        merge(copy.deepcopy(loaded.model), load_adapter(folder, loaded.codec.vocabulary))

    return use


def use_index(folder: Path) -> None:
    """Open an index with candidates, search it, and read what the candidates name."""
    index = Index.open(folder)
    query = np.ones((1, index.vectors.shape[1]), dtype=np.float32)
    index.search("exact").nearest(query, len(index))
    neighbours = Neighbours.open(folder / "neighbours", index)
    for name in neighbours.numbers_of:
        for number in neighbours.of(name):
            index.document(number)
            index.source_and_name(number)


def use_shards(folder: Path) -> None:
    shards = Shards.open(folder, vocab_size=32)
    assert len(shards.names) == shards.n_documents == 5
    members = [document for row in range(shards.n_rows) for document in shards.row(row)]
    assert sorted(members) == list(range(5))
    for document in members:
        assert shards.document(document).ids.tolist() == [0, 1, 2, 3]


def load_bundle(folder: Path) -> None:
    """Load a bundle; weights that a header gives to each other's names may be useless."""
    bundle = pardalis.load(folder)
    ids = torch.tensor([[bundle.codec.vocabulary.bos_id]])
    assert bundle.model(ids).shape[-1] == bundle.codec.vocabulary.size


def read_shards(folder: Path) -> None:
    """Read every document of shards, of which some may hold other ids than they did."""
    shards = Shards.open(folder, vocab_size=32)
    for row in range(shards.n_rows):
        for document in shards.row(row):
            assert len(shards.document(document)) <= shards.n_tokens


def use_codes(tokenizer: ImageTokenizer, folder: Path) -> None:
    """Decode codes to images beside them."""
    out = folder.parent / "images"
    shutil.rmtree(out, ignore_errors=True)
    report = decode_codes(tokenizer, folder, out)
    # Fewer images are right where the settings have other parts.
    assert len(list(out.glob("*.png"))) == report.images
