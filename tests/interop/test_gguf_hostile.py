"""GGUF files that somebody else made wrong are refused in one sentence, with bounded means."""

import os
import random
import resource
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf_files import (
    KEYS,
    add_value,
    byte_level,
    random_tensors,
    sentencepiece,
    shape_values,
    write_gguf_file,
)

from pardalis.errors import BundleError, PardalisError
from pardalis.interop import gguf_file, import_model, read_model

MEMORY = 2 << 30  # what a file of 200 kB may take at most, beside what the process has


@pytest.fixture(scope="module")
def image_tokenizer(codec, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("image") / "tokenizer"
    codec.image_tokenizer.save(folder)
    return folder


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("good") / "model.gguf"
    write_gguf_file(path)
    return path.read_bytes()


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """Bound the memory and the time of what a test reads."""
    old = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()

    def late(*_: object) -> None:
        raise AssertionError("reading goes on without end")

    before = signal.signal(signal.SIGALRM, late)
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, old[1]))
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    resource.setrlimit(resource.RLIMIT_AS, old)


@pytest.fixture
def read(image_tokenizer, tmp_path) -> Callable[[bytes], None]:
    """Return a function that reads the whole of a file with a content."""

    def attempt(content: bytes) -> None:
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        for tensor in read_model(path, image_tokenizer=image_tokenizer).decoder.values():
            tensor.read()

    return attempt


def sentence(error: pytest.ExceptionInfo[PardalisError]) -> str:
    text = str(error.value)
    assert text.endswith(".")
    assert "\n" not in text
    assert len(text) < 1000
    return text


def places_of(content: bytes) -> dict[str, int]:
    """Return the first byte of parts of a file's header."""
    key = content.index(b"general.name")
    tensor = content.index(b"token_embd.weight")
    return {
        "version": 4, "tensors": 8, "values": 16, "first key": 24,
        "type": key + len("general.name"), "text": key + len("general.name") + 4,
        "items": content.index(b"tokenizer.ggml.tokens") + len("tokenizer.ggml.tokens") + 8,
        "kind of items": content.index(b"tokenizer.ggml.tokens") + len("tokenizer.ggml.tokens") + 4,
        "first token": content.index(b"<|endoftext|>"),
        "tensor name": tensor - 8, "dimensions": tensor + 17, "width": tensor + 21,
        "rows": tensor + 29, "tensor type": tensor + 37, "offset": tensor + 41,
    }  # fmt: skip


WRONG: dict[str, tuple[str, str, Any, str]] = {
    "no magic": ("", "", None, "it does not begin as one"),
    "version 1": ("version", "<I", 1, "it is of version 1, and versions 2 and 3 are read"),
    "version 9": ("version", "<I", 9, "it is of version 9"),
    "big-endian": ("version", ">I", 3, "it is big-endian"),
    "tensors": ("tensors", "<Q", 2**60, "claims more than the file holds"),
    "values": ("values", "<Q", 2**60, "claims more than the file holds"),
    "fewer values": ("values", "<Q", 3, "is of the unknown type"),
    "key": ("first key", "<Q", 2**63, "claims more than the file holds"),
    "text": ("text", "<Q", 2**40, "claims more than the file holds"),
    "type": ("type", "<I", 99, "a value in it is of the unknown type 99"),
    "items": ("items", "<Q", 2**50, "claims more than the file holds"),
    "nested": ("kind of items", "<I", 9, "an array in it has items of the type 9"),
    "not UTF-8": ("first token", "<B", 0xFF, "'utf-8' codec can't decode"),
    "tensor name": ("tensor name", "<Q", 2**62, "claims more than the file holds"),
    "no dimension": ("dimensions", "<I", 0, "'token_embd.weight' has 0 dimensions"),
    "dimensions": ("dimensions", "<I", 2**31, "has 2147483648 dimensions"),
    "width": ("width", "<Q", 2**62, "its tensors take more bytes than the file has"),
    "no rows": ("rows", "<Q", 0, "has the shape"),
    "rows": ("rows", "<Q", 7, "tokens, but its embedding has 7 rows"),
    "tensor type": ("tensor type", "<I", 5, "'token_embd.weight' is of the unknown type 5"),
    "integers": ("tensor type", "<I", 26, "it has tensors of type I32, which is not supported"),
    "offset": ("offset", "<Q", 2**62, "'token_embd.weight' ends after the file"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_header_is_refused(good, read, case):
    place, form, value, message = WRONG[case]
    content = bytearray(good)
    if form:
        struct.pack_into(form, content, places_of(good)[place], value)
    else:
        content[:4] = b"GGML"
    with pytest.raises(BundleError) as error:
        read(bytes(content))
    assert message in sentence(error)


def test_a_truncated_file_is_refused_wherever_it_ends(good, read):
    for cut in [0, 3, 4, 23, 24, 100, *range(1000, len(good), len(good) // 25), len(good) - 40]:
        with pytest.raises(BundleError) as error:
            read(good[:cut])
        sentence(error)


def test_flipped_bytes_of_the_header_are_refused_or_harmless(good, read):
    generator = random.Random(0)
    end = good.index(b"output.weight")
    refused = 0
    for _ in range(250):
        content = bytearray(good)
        for _ in range(generator.choice((1, 1, 3))):
            content[generator.randrange(end)] ^= 1 << generator.randrange(8)
        try:
            read(bytes(content))
        except PardalisError as error:
            refused += 1
            assert str(error).endswith("."), error
            assert len(str(error)) < 3000
    assert refused > 50


ABSURD: tuple[Any, ...] = (
    0, 1, 7, 2**31, 2**32 - 1, -1.0, 0.0, 1e30, float("nan"), float("inf"), "", "x" * 5000, True,
    [1, 2], ["a"], [1e9], [2**31 - 1],
)  # fmt: skip


def test_absurd_values_are_refused_or_harmless(image_tokenizer, tmp_path):
    """Each value in turn is replaced by each of the above."""
    keys = [*byte_level(), *(f"llama.{name}" for name in (
        "context_length", "embedding_length", "block_count", "feed_forward_length",
        "attention.head_count", "attention.head_count_kv", "attention.layer_norm_rms_epsilon",
        "attention.key_length", "rope.dimension_count", "rope.freq_base", "rope.scaling.type",
        "rope.scaling.factor")), KEYS + "unknown_token_id", "general.alignment", "split.count",
        "general.architecture", "pardalis.licences"]  # fmt: skip
    cases = [(key, value) for key in keys for value in ABSURD]
    path, refused = tmp_path / "model.gguf", 0
    vocabulary = byte_level()
    for key, value in random.Random(1).sample(cases, 250):
        add = {key: value}
        if key == "general.alignment":
            add = {"general.type": "model"}  # the writer aligns by it
        writer = gguf.GGUFWriter(path, "llama")
        writer.kv_data[0].clear()
        every = {"general.architecture": "llama"} | shape_values() | vocabulary | add
        for name, each in every.items():
            if each not in ("", []):
                add_value(writer, name, each)
        for name, array in random_tensors(len(vocabulary[KEYS + "tokens"])).items():
            writer.add_tensor(name, array)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        try:
            read_model(path, image_tokenizer=image_tokenizer)
        except PardalisError as error:
            refused += 1
            assert str(error).endswith("."), (key, value, error)
            assert "\n" not in str(error), (key, value, error)
            assert len(str(error)) < 3000, (key, value)
    assert refused > 150


def refusal(path: Path, image_tokenizer: Path) -> str:
    with pytest.raises(PardalisError) as error:
        read_model(path, image_tokenizer=image_tokenizer)
    return sentence(error)


MISSING = ["general.architecture", "llama.context_length", "llama.embedding_length",
           "llama.block_count", "llama.feed_forward_length", "llama.attention.head_count",
           "llama.attention.layer_norm_rms_epsilon", KEYS + "model", KEYS + "tokens",
           KEYS + "merges", KEYS + "eos_token_id"]  # fmt: skip


@pytest.mark.parametrize("key", MISSING)
def test_a_missing_value_is_named(image_tokenizer, tmp_path, key):
    path = tmp_path / "model.gguf"
    if key == "general.architecture":
        write_gguf_file(path)
        path.write_bytes(path.read_bytes().replace(key.encode(), b"general.architectur_"))
    elif key == KEYS + "tokens":
        write_gguf_file(path)
        path.write_bytes(path.read_bytes().replace(key.encode(), (KEYS + "tokenz").encode()))
    else:
        write_gguf_file(path, values={key: None})
    assert f"has no {key}, which must be" in refusal(path, image_tokenizer)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general.architecture": "mamba"}, "of the architecture 'mamba'; llama, qwen2, qwen3 can"),
        ({"llama.expert_count": 8}, "llama.expert_count = 8, an option of the model that Pardalis"),
        ({"llama.attention.sliding_window": 64}, "llama.attention.sliding_window = 64, an option"),
        ({"llama.logit_scale": 2.0}, "llama.logit_scale = 2.0, an option of the model"),
        ({"llama.tensor_data_layout": "other"}, "has the tensor layout 'other'"),
        ({"llama.rope.dimension_count": 8}, "rope.dimension_count = 8, but heads of width 16"),
        ({"llama.attention.value_length": 8}, "llama.attention.value_length = 8, but heads of"),
        ({"llama.attention.head_count": 0}, "has a num_attention_heads of 0"),
        ({"llama.attention.head_count": 3}, "rope.dimension_count = 16, but heads of width 21"),
        ({"llama.embedding_length": 32}, "rope.dimension_count = 16, but heads of width 8"),
        ({"llama.block_count": 3}, "missing"),
        ({"llama.block_count": 4_000_000_000}, "n_layers must be at most"),
        ({KEYS + "model": "bert"}, "a vocabulary of the kind 'bert' (tokenizer.ggml.model)"),
        ({KEYS + "pre": "viking"}, "has the pre-tokenizer 'viking' (tokenizer.ggml.pre), which"),
        ({KEYS + "eos_token_id": 99_999}, "has the id 99999 as its eos token, but"),
        ({KEYS + "token_type": [1, 2]}, "has 2 values in tokenizer.ggml.token_type, but"),
        ({KEYS + "merges": ["ab"]}, "has a merge of ('ab', ''), not of two tokens"),
        ({KEYS + "merges": ["zz zz"]}, "is not a text tokenizer that can be read"),
        ({KEYS + "add_bos_token": 1}, "has 1 as tokenizer.ggml.add_bos_token, which must be true"),
        ({"tokenizer.chat_template": 3}, "has 3 as tokenizer.chat_template, which must be a text"),
        ({"split.count": 3}, "it is one of several parts; merge them with llama-gguf-split"),
    ],
)  # fmt: skip
def test_what_cannot_be_imported_is_named(image_tokenizer, tmp_path, changes, message):
    path = tmp_path / "model.gguf"
    write_gguf_file(path, values=changes)
    assert message in refusal(path, image_tokenizer)


def test_unknown_missing_and_misshapen_tensors_are_named(image_tokenizer, tmp_path):
    empty, odd = np.zeros(0, np.float32), np.zeros((64, 8), np.float32)
    for tensors, message in (
        ({"blk.0.attn_q_a.weight": odd}, "a tensor 'blk.0.attn_q_a.weight', which Pardalis"),
        ({"token_embd.bias": odd}, "a tensor 'token_embd.bias', which Pardalis does not know"),
        ({"token_embd.weight": empty}, "has no tensor token_embd.weight"),
        ({"blk.1.ffn_up.weight": empty}, "model.layers.1.mlp.up_proj.weight"),
        ({"blk.0.attn_q.weight": odd}, "model.layers.0.self_attn.q_proj.weight"),
        ({"blk.7.attn_q.weight": odd}, "model.layers.7.self_attn.q_proj.weight"),
        ({"rope_freqs.weight": odd}, "rope_freqs.weight of the shape"),
    ):  # fmt: skip
        path = tmp_path / "model.gguf"
        write_gguf_file(path, tensors=tensors)
        assert message in refusal(path, image_tokenizer)


def test_two_tokens_or_scores_that_are_none_are_named(image_tokenizer, tmp_path):
    path = tmp_path / "model.gguf"
    values = byte_level()
    values[KEYS + "tokens"][50] = values[KEYS + "tokens"][40]
    write_gguf_file(path, values)
    assert "twice, as 40 and 50" in refusal(path, image_tokenizer)
    values = sentencepiece()
    values[KEYS + "scores"][-1] = float("nan")
    write_gguf_file(path, values)
    assert "has a score that is not finite" in refusal(path, image_tokenizer)
    values = sentencepiece()
    values[KEYS + "tokens"][-1] = "a" * 300
    write_gguf_file(path, values)
    assert "has a token of 300 characters" in refusal(path, image_tokenizer)


def test_a_value_that_is_no_number_is_found_when_it_is_written(image_tokenizer, tmp_path):
    for value in (float("nan"), float("inf")):
        for kind in ("F32", "F16", "Q8_0"):
            weights = random_tensors(1)["blk.0.ffn_up.weight"]
            weights[3, 3] = value
            path = tmp_path / "model.gguf"
            with np.errstate(all="ignore"):
                write_gguf_file(path, kind=kind, tensors={"blk.0.ffn_up.weight": weights})
            with pytest.raises(PardalisError) as error:
                import_model(path, tmp_path / "bundle", image_tokenizer=image_tokenizer)
            assert "feed_forward.up_proj.weight" in sentence(error)
            assert not (tmp_path / "bundle").exists()


def test_what_is_no_file_is_refused(image_tokenizer, tmp_path):
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "device.gguf").symlink_to("/dev/zero")
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "loop.gguf").symlink_to(tmp_path / "loop.gguf")
    for name in ("pipe", "device", "folder", "loop", "missing"):
        refusal(tmp_path / f"{name}.gguf", image_tokenizer)


def test_tensors_may_not_share_bytes_to_be_larger_than_the_file(good, read):
    """All tensors at the offset of the first, and each as large as all of them together."""
    content = bytearray(good)
    at = good.index(b"blk.0.ffn_gate.weight") + len("blk.0.ffn_gate.weight")
    data = len(good) - 1000
    struct.pack_into("<QQ", content, at + 4, 4, data // 16)
    struct.pack_into("<Q", content, at + 24, 0)
    with pytest.raises(BundleError, match="its tensors take more bytes than the file has"):
        read(bytes(content))


def test_a_type_is_asked_for_once(tmp_path, monkeypatch):
    """Of 64 MiB a header of tensors without data would take minutes."""
    asked = []
    library = gguf_file.library("A test")
    dequantize = library.dequantize
    monkeypatch.setattr(
        library, "dequantize", lambda *given: asked.append(given) or dequantize(*given)
    )
    names = (f"{number}".encode() for number in range(1000))
    places = (struct.pack("<Q", len(n)) + n + struct.pack("<IQIQ", 1, 256, 12, 0) for n in names)
    path = tmp_path / "a.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1000, 0) + b"".join(places))
    with pytest.raises(BundleError, match="its tensors take more bytes than the file has"):
        gguf_file.read_gguf(path)
    assert len(asked) <= 1
