"""Tensors in files are read lazily, written one at a time, and never execute code."""

import json
import pickle
import re
import resource
import struct
import sys
import types
import weakref
import zipfile
from collections import defaultdict
from pathlib import Path

import pytest
import safetensors.torch
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pardalis.errors import BundleError
from pardalis.interop import tensors
from pardalis.interop.tensors import (
    LazyTensor,
    join,
    lazy,
    open_tensors,
    shard_index,
    shards_of,
    write_checkpoints,
    write_safetensors,
    write_shards,
)

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip
SHAPES = [(), (0,), (3, 0, 2), (1,), (7,), (3, 5), (2, 3, 4, 5)]


def every_kind() -> dict[str, torch.Tensor]:
    """A tensor of every dtype and shape, and some whose memory is laid out in another order."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"{dtype}.{'x'.join(map(str, shape))}": torch.randn(shape, generator=generator).to(dtype)
        for dtype in DTYPES
        for shape in SHAPES
    }
    grid = torch.randn(6, 8, generator=generator)
    image = torch.randn(2, 3, 4, 4, generator=generator)
    return tensors | {
        "transposed": grid.T,
        "every second": grid[::2, 1::3],
        "expanded": grid[:1].expand(5, 8),
        "channels last": image.to(memory_format=torch.channels_last),
        'naïve/name.with "quotes"': torch.ones(2),
    }


def lazily(tensors: dict[str, torch.Tensor]) -> dict[str, LazyTensor]:
    return {name: lazy(tensor) for name, tensor in tensors.items()}


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def read_all(path: Path) -> dict[str, torch.Tensor]:
    opened = open_tensors(path)
    for name, tensor in opened.items():
        values = tensor.read()
        assert (tensor.shape, tensor.dtype) == (tuple(values.shape), values.dtype), name
    return {name: tensor.read() for name, tensor in opened.items()}


# ── round trips ──────────────────────────────────────────────────────────────────────────────────


def test_safetensors_that_we_write(tmp_path):
    tensors = every_kind()
    write_safetensors(tmp_path / "a.safetensors", lazily(tensors))
    found = safetensors.torch.load_file(tmp_path / "a.safetensors")
    assert_equal(found, tensors)
    assert_equal(read_all(tmp_path / "a.safetensors"), tensors)


def test_safetensors_that_others_write(tmp_path):
    tensors = {name: tensor.contiguous().clone() for name, tensor in every_kind().items()}
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors")
    assert_equal(read_all(tmp_path / "a.safetensors"), tensors)


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("under", [None, "state_dict", "model"])
def test_checkpoints_that_we_write(tmp_path, under, mmap):
    tensors = every_kind()
    paths = [tmp_path / "consolidated.00.pth", tmp_path / "consolidated.01.pth"]
    other = {name: tensor.neg() if tensor.dtype != torch.bool else ~tensor
             for name, tensor in tensors.items()}  # fmt: skip
    write_checkpoints(dict(zip(paths, map(lazily, (tensors, other)), strict=True)), "Test", under)
    for path, expected in zip(paths, (tensors, other), strict=True):
        content = torch.load(path, weights_only=True, mmap=mmap)
        assert_equal(content if under is None else content[under], expected)
        assert_equal(read_all(path), expected)


def test_the_archive_of_a_checkpoint_is_sound(tmp_path):
    """PyTorch does not look at the checksums, but whatever else opens archives does."""
    write_checkpoints({tmp_path / "a.pth": lazily(every_kind())}, "Test")
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        assert archive.testzip() is None


def test_checkpoints_that_others_write(tmp_path):
    """Slices keep their whole storage there, and tensors may share one."""
    whole = torch.arange(24.0).view(4, 6)
    tensors = every_kind() | {
        "whole": whole,
        "row": whole[2],
        "columns": whole[:, 1:3],
        "turned": whole.T,
        "last": whole[3, 5],
        "parameter": torch.nn.Parameter(torch.ones(3)),
    }
    for content in (tensors, {"state_dict": tensors}, {"model": {"state_dict": 1}, **tensors},
                    {"state_dict": {"model": tensors}, "epoch": 3}):  # fmt: skip
        torch.save(content, tmp_path / "a.pth")
        if "whole" in content:
            content = {n: t for n, t in content.items() if n != "model"}
            torch.save(content, tmp_path / "a.pth")
        found = read_all(tmp_path / "a.pth")
        assert_equal(found, {name: tensor.detach() for name, tensor in tensors.items()})


def test_a_modules_state_dict(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    torch.save(module.state_dict(), tmp_path / "a.pth")
    assert_equal(read_all(tmp_path / "a.pth"), dict(module.state_dict()))


@pytest.mark.parametrize("under", [None, "state_dict"])
def test_checkpoints_before_pytorch_1_6(tmp_path, under):
    tensors = every_kind() | {"row": torch.arange(24.0).view(4, 6)[2]}
    content = tensors if under is None else {under: tensors, "epoch": 3}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(tmp_path / "a.pth")
    assert_equal(read_all(tmp_path / "a.pth"), tensors)


# ── foreign objects ──────────────────────────────────────────────────────────────────────────────

RAN: list[str] = []


def trap(what: str) -> None:
    RAN.append(what)
    raise AssertionError(f"{what} ran")


class Callback:
    """A class of a training framework; building one raises."""

    def __init__(self) -> None:
        self.best = 0.5

    def __new__(cls, *args: object) -> "Callback":
        if args or Callback.armed:
            trap("__new__")
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        trap("__setstate__")

    armed = False


class Config(dict):
    """A dict that is more, as frameworks keep hyperparameters in."""

    def __setitem__(self, key: object, value: object) -> None:
        if Callback.armed:
            trap("__setitem__")
        super().__setitem__(key, value)


class Steps(list):
    def append(self, item: object) -> None:
        trap("append")

    def extend(self, items: object) -> None:
        trap("extend")


class Reduced:
    def __reduce__(self) -> tuple:
        return trap, ("__reduce__",)


class Evaluated:
    def __reduce__(self) -> tuple:
        return eval, ("RAN.append('eval')",)


class Nested:
    """Calls an attribute of an attribute."""

    def __reduce__(self) -> tuple:
        return getattr(Path(), "touch"), ()  # noqa: B009


@pytest.fixture
def framework(monkeypatch) -> types.ModuleType:
    """A fake module that defines the classes."""
    module = types.ModuleType("lightning_of_old")
    for thing in (trap, Callback, Config, Steps, Reduced, Evaluated, Nested):
        monkeypatch.setattr(thing, "__module__", module.__name__)
        setattr(module, thing.__name__, thing)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


FOREIGN = {
    "object": Callback(),
    "dict": Config(lr=1e-4),
    "list": Steps([1, 2, 3]),
    "call": Reduced(),
    "eval": Evaluated(),
    "method": Nested(),
    "path": Path("runs"),
    "default": defaultdict(list, {"a": [1]}),
    "classes": {Callback: {"best": 1.0}},
    "function": trap,
    "plain": {"set": {1, 2}, "complex": 1j, "bytes": b"x", "big": 2**70, "range": range(3)},
    "torch": [torch.float16, torch.device("cpu"), torch.Size([2])],
    "tensors": {"momentum": torch.zeros(2)},
}


@pytest.mark.parametrize("protocol", [2, 4])
def test_other_objects_of_a_checkpoint_are_not_built(tmp_path, framework, monkeypatch, protocol):
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(3, dtype=torch.bfloat16)}
    path = tmp_path / "last.ckpt"
    torch.save({**FOREIGN, "state_dict": tensors}, path, pickle_protocol=protocol)
    monkeypatch.setattr(Callback, "armed", True)
    monkeypatch.chdir(tmp_path)
    assert_equal(read_all(path), tensors)
    monkeypatch.delitem(sys.modules, "lightning_of_old")  # nor need the framework be installed
    assert_equal(read_all(path), tensors)
    assert RAN == []
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def archive_of(pickled: bytes, path: Path) -> Path:
    """Write a checkpoint with the given pickle and a storage of 6 numbers."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickled)
        archive.writestr("a/data/0", torch.arange(6.0).numpy().tobytes())
    return path


# {"a": a tensor of 2 x 3}, of which the last two bytes close dict and pickle.
TENSOR = (
    b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n"
    b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06tQ"
    b"K\x00K\x02K\x03\x86K\x03K\x01\x86\x89NtRs."
)


def test_a_pickle_cannot_reserve_memory(tmp_path):
    """It announces 2**32 - 2 objects, for which C's unpickler reserves 32 GB or more."""
    huge = b"r" + struct.pack("<I", 2**32 - 2)  # LONG_BINPUT
    assert TENSOR.startswith(b"\x80\x02}")
    path = archive_of(TENSOR[:3] + huge + TENSOR[3:], tmp_path / "a.pth")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, hard))
    try:
        found = read_all(path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert_equal(found, {"a": torch.arange(6.0).view(2, 3)})
    path = archive_of(b"\x80\x02j" + huge[1:] + b".", tmp_path / "b.pth")  # LONG_BINGET
    assert_refused(path, "no archive of PyTorch's")


@pytest.mark.parametrize(
    "state",
    [
        b"](K\x05\x85NNeb",  # a list: what a frozen dataclass with slots takes as its fields
        b"}X\x05\x00\x00\x00shapeK\x05\x85sb",
        b"N}X\x05\x00\x00\x00shapeK\x05\x85s\x86b",  # nothing, and slots
    ],
)
def test_a_tensors_place_is_not_changed_afterwards(tmp_path, state):
    path = archive_of(TENSOR[:-2] + state + TENSOR[-2:], tmp_path / "a.pth")
    assert_equal(read_all(path), {"a": torch.arange(6.0).view(2, 3)})


def test_the_traps_work(tmp_path, framework):
    """What would run if a checkpoint were loaded as a pickle."""
    for name in ("call", "object", "list"):
        with pytest.raises(AssertionError, match="ran"):
            pickle.loads(pickle.dumps(FOREIGN[name], protocol=2))
    RAN.clear()


def test_an_old_checkpoint_with_more_than_tensors_is_refused(tmp_path, framework):
    path = tmp_path / "a.pth"
    content = {"state_dict": {"a": torch.ones(2)}, "callback": FOREIGN["call"]}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    with pytest.raises(BundleError, match="and no pickle of tensors alone"):
        open_tensors(path)
    assert RAN == []


# ── broken files ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def broken(tmp_path):
    """Return a function that makes a file of some kind, cut short after a share of it."""

    def make(kind: str, share: float) -> Path:
        path = tmp_path / {"safetensors": "a.safetensors"}.get(kind, "a.pth")
        tensors = {"a": torch.randn(40, 50), "b": torch.randn(3)}
        if kind == "safetensors":
            safetensors.torch.save_file(tensors, path)
        else:
            torch.save(tensors, path, _use_new_zipfile_serialization=kind == "pth")
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])
        return path

    return make


def assert_refused(path: Path, what: str) -> None:
    with pytest.raises(BundleError) as caught:
        open_tensors(path)
    message = str(caught.value)
    assert re.search(what, message), message
    assert message.startswith(str(path))
    assert message.endswith(".") and "\n" not in message and len(message) < 300


@pytest.mark.parametrize("share", [0, 0.001, 0.01, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["safetensors", "pth", "old pth"])
def test_a_truncated_file(broken, kind, share):
    assert_refused(broken(kind, share), "truncated or not a file of weights; copy it again")


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
@pytest.mark.parametrize(
    "content", [b"", b"Not weights.\n" * 99, b"PK\x03\x04", bytes(999), b"\x80"]
)
def test_a_file_of_something_else(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert_refused(tmp_path / name, "truncated or not a file of weights; copy it again")


def test_a_missing_file(tmp_path):
    assert_refused(tmp_path / "a.pth", "is missing; copy the whole folder again")


def test_an_archive_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("a/readme.txt", "text")
    assert_refused(tmp_path / "a.pth", "no archive of PyTorch's")


def test_an_archive_that_was_packed_again(tmp_path):
    """Its values would be read as they lie there."""
    torch.save({"a": torch.ones(100)}, tmp_path / "a.pth")
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as source,
        zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert_refused(tmp_path / "b.pth", "is compressed")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ({}, "holds no tensors by name"),
        ([torch.ones(2)], "holds no tensors by name"),
        (torch.ones(2), "holds no tensors by name"),
        ({"a": torch.ones(2), "epoch": 3}, "'epoch' in it is not a tensor"),
        ({"state_dict": {"a": torch.ones(2), "sub": {"b": torch.ones(2)}}}, "'sub' in it is not a"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "'a' in it is not a tensor of a known type"),
    ],
)
def test_a_checkpoint_of_something_else(tmp_path, content, what):
    torch.save(content, tmp_path / "a.pth")
    assert_refused(tmp_path / "a.pth", what)


@pytest.mark.parametrize(
    ("start", "shape", "stride"),
    [
        (0, (17,), (1,)), (13, (4,), (1,)), (0, (4, 5), (4, 1)), (0, (2,), (16,)), (17, (0,), (1,)),
        (-1, (4,), (1,)), (3, (4,), (-1,)), (0, (-4,), (1,)), (0, (4,), (1, 1)),
    ],
)  # fmt: skip
def test_a_tensor_that_is_not_in_its_storage(tmp_path, monkeypatch, start, shape, stride):
    """Of 16 numbers; what lies beyond them in the file or in memory is nobody's business."""
    whole = torch.arange(16.0)
    monkeypatch.setattr(
        torch.Tensor, "__reduce_ex__", lambda t, _: (
            torch._utils._rebuild_tensor_v2, (t._typed_storage(), start, shape, stride, False, None)
        )
    )  # fmt: skip
    torch.save({"a": whole}, tmp_path / "a.pth")
    assert_refused(
        tmp_path / "a.pth", "a tensor reaches beyond its storage|a tensor's offset|argument 2"
    )


@pytest.mark.parametrize("is_archive", [True, False])
def test_a_tensor_that_is_larger_than_its_storage(tmp_path, is_archive):
    """One number, repeated, would be written as 4 GiB."""
    path = tmp_path / "a.ckpt"
    large = torch.ones(1).expand(1 << 15, 1 << 15)
    torch.save({"large": large}, path, _use_new_zipfile_serialization=is_archive)
    with pytest.raises(BundleError, match="its tensors repeat values to be larger than 1 GiB"):
        open_tensors(path)


def test_records_that_end_after_the_file(tmp_path):
    torch.save({"a": torch.ones(100)}, tmp_path / "a.pth")
    content = (tmp_path / "a.pth").read_bytes()
    size, huge = struct.pack("<II", 400, 400), struct.pack("<II", 2**31, 2**31)
    assert content.count(size) == 2  # before the record, and in the directory
    (tmp_path / "a.pth").write_bytes(content.replace(size, huge))
    assert_refused(tmp_path / "a.pth", "data/0 in it ends after the file")


def test_names_that_are_numbers(tmp_path):
    torch.save({3: torch.ones(2)}, tmp_path / "a.pth")
    assert_refused(tmp_path / "a.pth", "3 in it is not a name")


def test_a_type_of_numbers_that_we_do_not_have(tmp_path):
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"a": torch.ones(2).to(torch.float8_e4m3fn)}, path)
    assert_refused(path, "tensors of the unknown type F8_E4M3")


# ── laziness ─────────────────────────────────────────────────────────────────────────────────────


class Reads:
    """Lazy tensors that are counted when they are read, and seen when they leave memory."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.alive: list[weakref.ref] = []
        self.most_alive = 0

    def tensor(self, name: str, values: torch.Tensor) -> LazyTensor:
        def read() -> torch.Tensor:
            tensor = values.clone()
            self.names.append(name)
            self.alive = [one for one in self.alive if one() is not None]
            self.alive.append(weakref.ref(tensor))
            self.most_alive = max(self.most_alive, len(self.alive))
            return tensor

        return LazyTensor(tuple(values.shape), values.dtype, read)


def test_nothing_is_read_before_it_is_written(tmp_path):
    reads = Reads()
    a, b = (reads.tensor(name, torch.arange(6.0).view(2, 3)) for name in "ab")
    made = {
        "cast": a.to(torch.float16),
        "same": a.to(None).to(torch.float32),
        "turned": a.map(lambda t: t.T, (3, 2)),
        "joined": join([a, b], 1),
        "half": b.split(2, 0)[1],
    }
    described = {
        name: (tensor.shape, tensor.dtype, tensor.n_bytes) for name, tensor in made.items()
    }
    shards_of(made)
    shard_index({"all": made})
    assert reads.names == []
    assert described == {
        "cast": ((2, 3), torch.float16, 12),
        "same": ((2, 3), torch.float32, 24),
        "turned": ((3, 2), torch.float32, 24),
        "joined": ((2, 6), torch.float32, 48),
        "half": ((1, 3), torch.float32, 12),
    }
    write_safetensors(tmp_path / "a.safetensors", made)
    assert reads.names == ["a", "a", "a", "a", "b", "b"]
    grid = torch.arange(6.0).view(2, 3)
    expected = {
        "cast": grid.half(), "same": grid, "turned": grid.T, "joined": torch.cat([grid, grid], 1),
        "half": grid[1:],
    }  # fmt: skip
    assert_equal(read_all(tmp_path / "a.safetensors"), expected)


def test_joined_parts_of_several_dtypes_are_promoted(tmp_path):
    """As of a rank that was saved in another type than the others."""
    parts = [torch.tensor([1.0, 2.0]), torch.tensor([3.0]).bfloat16(), torch.tensor([4.0]).half()]
    for order in (parts, parts[::-1], parts[1:]):
        joined = join([lazy(part) for part in order], 0)
        assert joined.dtype == torch.float32  # bfloat16 and float16 together need it too
        write_safetensors(tmp_path / "a.safetensors", {"a": joined})
        assert_equal(read_all(tmp_path / "a.safetensors"), {"a": torch.cat(order)})


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_one_tensor_is_in_memory_at_a_time(tmp_path, suffix):
    reads = Reads()
    tensors = {f"t{i}": reads.tensor(f"t{i}", torch.ones(5, 5)) for i in range(8)}
    path = tmp_path / f"a{suffix}"
    if suffix == ".pth":
        write_checkpoints({path: tensors}, "Test")
    else:
        write_safetensors(path, tensors)
    assert reads.names == list(tensors)
    assert reads.most_alive <= 2  # the one that is read, and the one just written


def test_a_tensor_that_ranks_share_is_read_once(tmp_path):
    reads = Reads()
    paths = [tmp_path / f"{rank}.pth" for rank in range(4)]
    wholes = {f"t{i}": torch.randn(8, 12) for i in range(3)}
    split = {name: reads.tensor(name, t).split(4, 1) for name, t in wholes.items()}
    files = {path: {n: parts[r] for n, parts in split.items()} for r, path in enumerate(paths)}
    write_checkpoints(files, "Test")
    assert reads.names == list(wholes)
    assert reads.most_alive <= 2
    for rank, path in enumerate(paths):
        expected = {name: t[:, 3 * rank : 3 * rank + 3] for name, t in wholes.items()}
        assert_equal(read_all(path), expected)


def test_only_the_needed_part_of_a_shared_storage_is_read(tmp_path, monkeypatch):
    """What is cut from one matrix is saved with all of it."""
    whole = torch.arange(600.0).view(30, 20)
    parts = {"q": whole[:10], "k": whole[10:20], "column": whole[:, 3]}
    torch.save(parts, tmp_path / "a.pth")
    opened = open_tensors(tmp_path / "a.pth")
    read, original = [], tensors.bytes_of
    monkeypatch.setattr(tensors, "bytes_of", lambda *at: read.append(at[2]) or original(*at))
    assert_equal({name: tensor.read() for name, tensor in opened.items()}, parts)
    assert read == [800, 800, 4 * (29 * 20 + 1)]


def test_a_tensor_of_another_shape_than_announced_is_not_written(tmp_path):
    wrong = lazy(torch.ones(2)).map(lambda t: t.double(), (2,))
    with pytest.raises(AssertionError):
        write_safetensors(tmp_path / "a.safetensors", {"a": wrong})


def test_parts_in_any_order(tmp_path):
    reads = Reads()
    whole = torch.arange(12.0).view(6, 2)
    parts = reads.tensor("whole", whole).split(3, 0)
    for i in (2, 0, 2, 1, 1, 0):
        assert torch.equal(parts[i].read(), whole[2 * i : 2 * i + 2])


def test_a_file_is_read_from_anew_each_time(tmp_path):
    """No file stays open or mapped, so what was opened may be replaced."""
    for path, write in (
        (tmp_path / "a.safetensors", lambda p, t: write_safetensors(p, t)),
        (tmp_path / "a.pth", lambda p, t: write_checkpoints({p: t}, "Test")),
    ):
        write(path, {"a": lazy(torch.zeros(3))})
        opened = open_tensors(path)["a"]
        write(path, {"a": lazy(torch.ones(3))})
        assert torch.equal(opened.read(), torch.ones(3))


# ── shards ───────────────────────────────────────────────────────────────────────────────────────


def test_shards_are_named_as_others_name_them():
    tensors = {f"t{i}": lazy(torch.zeros(10)) for i in range(5)}  # of 40 bytes each
    assert list(shards_of(tensors)) == ["model.safetensors"]
    files = shards_of(tensors, 80)
    assert {name: list(shard) for name, shard in files.items()} == {
        "model-00001-of-00003.safetensors": ["t0", "t1"],
        "model-00002-of-00003.safetensors": ["t2", "t3"],
        "model-00003-of-00003.safetensors": ["t4"],
    }
    index = shard_index(files)
    assert index["metadata"] == {"total_size": 200}
    assert index["weight_map"] == {name: file for file, shard in files.items() for name in shard}


def test_a_tensor_larger_than_a_shard_has_one_of_its_own():
    sizes = {"a": 1, "b": 50, "c": 1, "d": 1}
    files = shards_of({name: lazy(torch.zeros(n)) for name, n in sizes.items()}, 40)
    assert [list(shard) for shard in files.values()] == [["a"], ["b"], ["c", "d"]]


def test_transformers_loads_our_shards(tmp_path):
    config = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        vocab_size=40,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    files = shards_of(lazily(dict(model.state_dict())), 3000)
    assert len(files) > 3
    write_shards(tmp_path, files, "Test")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(shard_index(files)))
    config.save_pretrained(tmp_path)
    loaded, report = LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert_equal(dict(loaded.state_dict()), dict(model.state_dict()))
