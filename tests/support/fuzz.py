"""Hypothesis strategies that change valid files by their structure.

Values of a document are replaced, removed, moved and nested; headers are changed and written again
with the right lengths, so that a change reaches the reader behind them; bytes are changed too.
"""

import ast
import copy
import json
import pickle
import struct
from collections.abc import Callable
from typing import Any

from hostile import ABSURD, places
from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy[Any]], Any]


def _nested(depth: int) -> Any:
    value: Any = 0
    for n in range(depth):
        value = [value] if n % 2 else {"a": value}
    return value


def values() -> st.SearchStrategy[Any]:
    """Return plain values, most of them absurd."""
    found = (
        st.sampled_from(ABSURD)
        | st.integers()
        | st.floats()
        | st.text(max_size=20)
        | st.lists(st.integers(-2, 10**6), max_size=4)
        | st.sampled_from((2, 90, 99, 101, 400)).map(_nested)
    )
    return found.map(copy.deepcopy)  # since what is drawn may be changed


@st.composite
def documents(draw: Draw, valid: Any) -> Any:
    """Return a plain value, such as that of a JSON file, with one to three changes."""
    changed = {"": copy.deepcopy(valid)}  # so that the whole has a place, too
    for _ in range(draw(st.integers(1, 3))):
        every = list(places(changed))
        *way, key = draw(st.sampled_from(every))
        inner: Any = changed
        for step in way:
            inner = inner[step]
        match draw(st.sampled_from(("replace", "remove", "move", "wrap", "add"))):
            case "remove" if way:
                del inner[key]
            case "move":
                inner[key] = copy.deepcopy(_at(changed, draw(st.sampled_from(every))))
            case "wrap":
                inner[key] = [inner[key]]
            case "add" if isinstance(inner[key], dict):
                inner[key][draw(st.text(max_size=8))] = draw(values())
            case "add" if isinstance(inner[key], list):
                inner[key].append(draw(values()))
            case _:
                inner[key] = draw(values())
    return changed[""]


def _at(value: Any, way: tuple[Any, ...]) -> Any:
    for step in way:
        value = value[step]
    return value


@st.composite
def contents(draw: Draw, valid: bytes) -> bytes:
    """Return bytes with one to four changes: cut, repeated, replaced or added at any place."""
    changed = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        first = draw(st.integers(0, max(0, len(changed) - 1)))
        last = min(len(changed), first + draw(st.sampled_from((1, 2, 4, 16, 1000))))
        match draw(st.sampled_from(("cut", "end", "repeat", "replace", "add"))):
            case "cut":
                del changed[first:last]
            case "end":
                del changed[first:]
            case "repeat":
                changed[first:first] = changed[first:last]
            case "replace":
                changed[first:last] = draw(st.binary(min_size=last - first, max_size=last - first))
            case "add":
                changed[first:first] = draw(st.binary(max_size=8))
    return bytes(changed)


def json_files(valid: bytes) -> st.SearchStrategy[bytes]:
    """Return changed JSON files: their values, or their bytes."""
    changed = documents(json.loads(valid)).map(lambda value: json.dumps(value).encode())
    return changed | contents(valid)


@st.composite
def jsonl_files(draw: Draw, valid: bytes) -> bytes:
    """Return JSON lines with one line changed."""
    lines = valid.splitlines()
    n = draw(st.integers(0, len(lines) - 1))
    lines[n] = draw(json_files(lines[n]))
    return b"\n".join(lines) + draw(st.sampled_from((b"\n", b"", b"\n\n")))


@st.composite
def safetensors_files(draw: Draw, valid: bytes) -> bytes:
    """Return a safetensors file whose header is changed, or its length, or its bytes."""
    length = struct.unpack("<Q", valid[:8])[0]
    header = json.dumps(draw(documents(json.loads(valid[8 : 8 + length])))).encode()
    said = draw(st.just(len(header)) | st.integers(0, 2**64 - 1))
    changed = struct.pack("<Q", said) + header + valid[8 + length :]
    return draw(st.just(changed) | contents(valid))


@st.composite
def npy_files(draw: Draw, valid: bytes) -> bytes:
    """Return a ``.npy`` file with a changed header or changed bytes."""
    length = struct.unpack("<H", valid[8:10])[0]
    header = ast.literal_eval(valid[10 : 10 + length].decode())
    header |= draw(
        st.fixed_dictionaries(
            {},
            optional={
                "descr": st.sampled_from(("<f8", "|O", "<i8", ">u2", "|V0", "<U9", "", [], 3)),
                "shape": st.lists(st.integers(-3, 2**63), max_size=4).map(tuple) | values(),
                "fortran_order": st.booleans() | values(),
                "more": values(),
            },
        )
    )
    text = f"{header!r}\n".encode()[: 2**16 - 1]
    changed = valid[:8] + struct.pack("<H", len(text)) + text + valid[10 + length :]
    return draw(st.just(changed) | contents(valid))


@st.composite
def checkpoint_metadata(draw: Draw, valid: bytes) -> bytes:
    """Return PyTorch's metadata of a checkpoint with changed sizes and places, or changed bytes."""
    metadata = pickle.loads(valid)  # of our own making
    number = st.integers(-2, 2**62) | st.integers(0, 4096)
    for place in metadata.storage_data.values():
        if draw(st.booleans()):
            field = draw(st.sampled_from(("offset", "length", "relative_path")))
            object.__setattr__(place, field, draw(number if field != "relative_path" else values()))
    for entry in metadata.state_dict_metadata.values():
        if hasattr(entry, "size") and draw(st.booleans()):
            sizes = st.lists(st.integers(0, 2**40), max_size=4).map(tuple) | values()
            object.__setattr__(entry, draw(st.sampled_from(("size", "chunks"))), draw(sizes))
    if draw(st.booleans()):
        del metadata.state_dict_metadata[draw(st.sampled_from(list(metadata.state_dict_metadata)))]
    return draw(st.just(pickle.dumps(metadata)) | contents(valid))


def toml_values(value: Any) -> Any:
    """Return a value with what TOML cannot hold left out: nulls, keys of other types."""
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if v is not None and isinstance(k, str)}
        return {key: toml_values(each) for key, each in kept.items()}
    if isinstance(value, list):
        return [toml_values(each) for each in value if each is not None]
    return value
