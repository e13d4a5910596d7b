"""GGUF files become the models that transformers and llama.cpp read in them, and come back."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import regex
import torch
from gguf_files import (
    BYTES,
    KEYS,
    add_value,
    byte_level,
    random_tensors,
    sentencepiece,
    write_gguf_file,
)
from safetensors.torch import load_file
from shapes import changed, decoder_config
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
)
from varied_lines import varied_lines

import pardalis
from pardalis.bundle import Bundle
from pardalis.documents import Document, Text
from pardalis.errors import BundleError, ConfigError
from pardalis.interop import export_model, gguf_file, import_model, read_model
from pardalis.interop.gguf import open_gguf
from pardalis.interop.gguf_export import write_gguf
from pardalis.interop.gguf_file import read_gguf
from pardalis.interop.gguf_tokenizer import GPT2, PRE_TOKENIZERS, merges_of
from pardalis.interop.vocabulary import from_foreign, to_foreign
from pardalis.model import Decoder, ModelConfig, initialise
from pardalis.vq import ImageTokenizer

# Measured: equal, on one core of an AMD EPYC. Other machines may sum in another order.
CLOSE = 1e-5


@pytest.fixture(scope="module")
def image_tokenizer(codec, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("image") / "tokenizer"
    codec.image_tokenizer.save(folder)
    return folder


def imported(path: Path, image_tokenizer: Path) -> Path:
    folder = path.with_suffix(".bundle")
    import_model(path, folder, image_tokenizer=image_tokenizer)
    return folder


def own_ids(bundle: Bundle, text: str) -> list[int]:
    """Return the ids of a text in the file's numbers, without the document's begin and end."""
    foreign = to_foreign(bundle.codec.vocabulary)
    return [foreign[i] for i in bundle.codec.encode_continuation(Document((Text(text),)))]


def logits(bundle: Bundle, ids: torch.Tensor) -> torch.Tensor:
    """Return logits of the file's ids in the order of the file's."""
    places = torch.tensor(from_foreign(bundle.codec.vocabulary))
    with torch.no_grad():
        return bundle.model(places[ids])[..., places]


def some_ids(size: int) -> torch.Tensor:
    return torch.randint(0, size, (2, 24), generator=torch.Generator().manual_seed(1))


# ── the container ────────────────────────────────────────────────────────────────────────────────


def test_values_and_tensors_are_those_of_the_packages_reader(tmp_path):
    path = tmp_path / "all.gguf"
    writer = gguf.GGUFWriter(path, "any")
    values = {
        "a text": "naïve 🦉",
        "texts": ["", "a", "猫"],
        "numbers": [1, -2],
        "floats": [0.5, 3.0],
    }
    for key, value in values.items():
        add_value(writer, key, value)
    for name, low, high in (("uint8", 0, 255), ("int8", -128, 127), ("uint16", 0, 65535),
                            ("int16", -32768, 32767), ("uint32", 0, 2**32 - 1),
                            ("int32", -(2**31), 2**31 - 1), ("uint64", 0, 2**64 - 1),
                            ("int64", -(2**63), 2**63 - 1), ("float64", -1e300, 1e-300),
                            ("bool", False, True)):  # fmt: skip
        getattr(writer, f"add_{name}")(f"low {name}", low)
        getattr(writer, f"add_{name}")(f"high {name}", high)
    writer.add_float32("short", 1e-5)
    writer.add_tensor("one", np.arange(5, dtype=np.float32))
    writer.add_tensor("half", np.arange(6, dtype=np.float16).reshape(3, 2))
    writer.add_tensor("cube", np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ours, theirs = read_gguf(path), gguf.GGUFReader(path)
    expected = {k: f.contents() for k, f in theirs.fields.items() if not k.startswith("GGUF.")}
    assert ours.values.pop("short") == 1e-5
    assert expected.pop("short") == np.float32(1e-5)
    assert ours.values == expected
    for tensor in theirs.tensors:
        found = ours.tensors[tensor.name]
        assert found.shape == tensor.data.shape
        np.testing.assert_array_equal(found.read().numpy(), tensor.data)
    assert ours.tensors["half"].dtype == torch.float16


def quantized_types() -> list[str]:
    found = []
    for kind, (_, n_bytes) in gguf.GGML_QUANT_SIZES.items():
        try:
            gguf.dequantize(np.zeros((1, n_bytes), np.uint8), kind)
        except NotImplementedError:
            continue
        found.append(kind.name)
    return found


@pytest.mark.parametrize("kind", quantized_types())
def test_every_type_that_the_package_dequantises_is_read(tmp_path, kind):
    number = gguf.GGMLQuantizationType[kind]
    block, n_bytes = gguf.GGML_QUANT_SIZES[number]
    stored = np.random.default_rng(0).integers(0, 256, (7, 3 * n_bytes), np.uint8)
    if kind == "F32":
        stored = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32).view(np.uint8)
    path = tmp_path / "one.gguf"
    writer = gguf.GGUFWriter(path, "any")
    writer.add_tensor("x", stored, raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read_gguf(path).tensors["x"]
    with np.errstate(all="ignore"):
        expected = torch.from_numpy(gguf.dequantize(stored, number))
    assert found.shape == (7, 3 * block)
    values = found.read()
    assert values.dtype == found.dtype
    torch.testing.assert_close(values.float(), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kind", ["F64", "I32", "Q8_K"])
def test_a_type_that_cannot_be_dequantised_is_refused(tmp_path, kind):
    number = gguf.GGMLQuantizationType[kind]
    path = tmp_path / "one.gguf"
    writer = gguf.GGUFWriter(path, "any")
    stored = np.zeros((2, gguf.GGML_QUANT_SIZES[number][1]), np.uint8)
    writer.add_tensor("x", stored, raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(BundleError, match=f"it has tensors of type {kind}, which is not supported"):
        read_gguf(path)


def test_without_the_package_the_message_says_what_to_install(tmp_path, monkeypatch):
    write_gguf_file(tmp_path / "a.gguf")
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(ConfigError, match=r"run pip install 'pardalis\[gguf\]'"):
        open_gguf(tmp_path / "a.gguf")


# ── models ───────────────────────────────────────────────────────────────────────────────────────

FILES: dict[str, dict[str, Any]] = {
    "byte-level, tied": {"tied": True},
    "byte-level, rows to spare": {
        "spare": 5, "values": {"llama.vocab_size": len(byte_level()[KEYS + "tokens"]) + 5},
    },
    "SentencePiece": {"vocabulary": sentencepiece()},
    "16 bits": {"kind": "F16"},
    "bfloat16": {"kind": "BF16"},
    "8 bits": {"kind": "Q8_0", "tied": True},
    "4 bits": {"kind": "Q4_1"},
    "Qwen2": {
        "architecture": "qwen2", "tied": True,
        "tensors": {
            f"blk.{n}.attn_{part}.bias": np.linspace(-1, 1, width).astype(np.float32)
            for n in range(2)
            for part, width in (("q", 64), ("k", 32), ("v", 32))
        },
    },
    "Qwen3": {
        "architecture": "qwen3",
        "values": {"qwen3.attention.key_length": 16, "qwen3.attention.value_length": 16},
        "tensors": {
            f"blk.{n}.attn_{part}_norm.weight": np.linspace(0.5, 1.5, 16).astype(np.float32)
            for n in range(2)
            for part in "qk"
        },
    },
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
@torch.no_grad()
def test_logits_are_those_of_transformers(compare, image_tokenizer, tmp_path, case):
    path = tmp_path / "model.gguf"
    write_gguf_file(path, **FILES[case])
    bundle = pardalis.load(imported(path, image_tokenizer), dtype=torch.float32)
    config = AutoConfig.from_pretrained(tmp_path, gguf_file=path.name)
    if case == "Qwen3":  # of which transformers does not read attention.key_length
        config.head_dim = 16
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, config=config, dtype=torch.float32
    ).eval()
    size = model.config.vocab_size
    ids = some_ids(size)
    ours = logits(bundle, ids)[..., :size]
    compare(f"GGUF, {case}", "logits", ours, model(ids).logits, atol=CLOSE)


def test_a_file_without_a_head_has_that_of_the_embedding(image_tokenizer, tmp_path):
    write_gguf_file(tmp_path / "model.gguf", tied=True)
    folder = imported(tmp_path / "model.gguf", image_tokenizer)
    assert pardalis.load(folder).model.config.tie_embeddings
    export_model(folder, tmp_path / "2nd.gguf", "gguf")
    assert "output.weight" not in read_gguf(tmp_path / "2nd.gguf").tensors


@torch.no_grad()
def test_matrices_keep_their_type_or_become_32_bits(image_tokenizer, tmp_path):
    for kind, dtype in (("F16", torch.float16), ("BF16", torch.bfloat16), ("Q4_0", torch.float32)):
        path = tmp_path / f"{kind}.gguf"
        write_gguf_file(path, kind=kind)
        weights = load_file(imported(path, image_tokenizer) / "model.safetensors")
        assert {t.dtype for t in weights.values() if t.ndim == 2} == {dtype}
        assert {t.dtype for t in weights.values() if t.ndim == 1} == {torch.float32}


@torch.no_grad()
def test_the_scaling_of_llama_3_1_is_found_in_its_frequencies(compare, image_tokenizer, tmp_path):
    rope = {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    wide = {  # heads of width 32: some channel pairs lie between the two limits
        "llama.attention.head_count": 2, "llama.attention.head_count_kv": 1,
        "llama.rope.dimension_count": 32, "llama.rope.freq_base": 5e5,
    }  # fmt: skip
    peer_config = LlamaConfig(
        vocab_size=len(byte_level()[KEYS + "tokens"]), hidden_size=64, intermediate_size=96,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=64, rms_norm_eps=1e-5, rope_parameters=rope,
    )  # fmt: skip
    model = LlamaForCausalLM(peer_config).eval()
    frequencies = 1 / 5e5 ** (torch.arange(0, 32, 2) / 32)
    divisors = (frequencies / model.model.rotary_emb.inv_freq).numpy().astype(np.float32)
    assert 1 < np.sort(divisors)[np.searchsorted(np.sort(divisors), 1.001)] < 32
    path = tmp_path / "model.gguf"
    write_gguf_file(path, values=wide, tensors={"rope_freqs.weight": divisors})
    folder = imported(path, image_tokenizer)
    bundle = pardalis.load(folder)
    scaling = bundle.model.config.position.scaling
    assert (scaling.factor, scaling.original_context) == (32.0, 8192)
    source = open_gguf(path)
    state = {name: tensor.read() for name, tensor in source.tensors.items()}
    model.load_state_dict(state)
    ids = some_ids(peer_config.vocab_size)
    ours = logits(bundle, ids)[..., : peer_config.vocab_size]
    compare("GGUF, Llama 3.1's scaling", "logits", ours, model(ids).logits, atol=CLOSE)
    assert scaling.low_freq_factor == 1.0
    # Other settings are noted beside the tensor, which alone does not tell them.
    other = replace(scaling, low_freq_factor=2.0, high_freq_factor=5.0, original_context=4096)
    model_of = read_model(folder.with_suffix(".gguf"), image_tokenizer=image_tokenizer)
    position = replace(model_of.config.position, scaling=other)
    write_gguf(replace(model_of, config=replace(model_of.config, position=position)),
               tmp_path / "other.gguf")  # fmt: skip
    again = read_model(tmp_path / "other.gguf", image_tokenizer=image_tokenizer)
    assert again.config.position.scaling == other


def test_other_frequencies_are_refused(tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf_file(path, tensors={"rope_freqs.weight": np.linspace(1, 3, 8, dtype=np.float32)})
    with pytest.raises(BundleError, match=r"RoPE frequencies .* not those of Llama 3.1's scaling"):
        open_gguf(path)


def test_other_scalings_are_handed_on(tmp_path):
    for values, expected in (
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
         {"rope_type": "linear", "factor": 4.0}),
        ({"llama.rope.scale_linear": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0,
          "llama.rope.scaling.original_context_length": 16},
         {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}),
        ({"llama.rope.scaling.type": "none"}, None),
    ):  # fmt: skip
        path = tmp_path / "model.gguf"
        write_gguf_file(path, values=values)
        assert open_gguf(path).config["rope_scaling"] == expected


def test_the_architecture_decides_on_the_order_of_rows(tmp_path):
    """llama.cpp permutes queries and keys of llama, and not those of Qwen."""
    stored = random_tensors(1)["blk.0.attn_q.weight"]
    tensors = {}
    for architecture in ("llama", "qwen2", "qwen3"):
        path = tmp_path / f"{architecture}.gguf"
        write_gguf_file(path, architecture=architecture, tensors={"blk.0.attn_q.weight": stored})
        source = open_gguf(path)
        assert source.config["model_type"] == architecture
        tensors[architecture] = source.tensors["model.layers.0.self_attn.q_proj.weight"].read()
    heads = stored.reshape(4, 8, 2, 64)
    halves = np.concatenate([heads[:, :, 0], heads[:, :, 1]], axis=1).reshape(64, 64)
    np.testing.assert_array_equal(tensors["llama"].numpy(), halves)
    np.testing.assert_array_equal(tensors["qwen2"].numpy(), stored)
    np.testing.assert_array_equal(tensors["qwen3"].numpy(), stored)


def test_biases_are_named_and_permuted_too(tmp_path):
    path = tmp_path / "model.gguf"
    bias = np.arange(64, dtype=np.float32)
    write_gguf_file(path, tensors={"blk.0.attn_q.bias": bias})
    source = open_gguf(path)
    assert source.config["attention_bias"] is True
    found = source.tensors["model.layers.0.self_attn.q_proj.bias"].read().numpy()
    pairs = bias.reshape(4, 8, 2)
    np.testing.assert_array_equal(found, np.concatenate([pairs[..., 0], pairs[..., 1]], 1).ravel())


def test_without_grouped_queries_there_are_as_many_keys_as_queries(tmp_path):
    square = random_tensors(1, seed=5)["blk.0.attn_q.weight"]
    tensors = {f"blk.{n}.attn_{part}.weight": square for n in range(2) for part in "kv"}
    found = []
    for n_heads in (None, 4):
        path = tmp_path / f"{n_heads}.gguf"
        values = {"llama.attention.head_count_kv": n_heads}
        write_gguf_file(path, values=values, tensors=tensors)
        found.append(open_gguf(path))
    assert found[0].config == found[1].config
    name = "model.layers.0.self_attn.k_proj.weight"
    assert torch.equal(found[0].tensors[name].read(), found[1].tensors[name].read())


def test_a_width_of_heads_of_its_own(tmp_path):
    path = tmp_path / "model.gguf"
    keys = {"llama.attention.key_length": 8, "llama.attention.value_length": 8,
            "llama.rope.dimension_count": 8}  # fmt: skip
    write_gguf_file(path, values=keys)
    assert open_gguf(path).config["head_dim"] == 8


def test_equal_values_for_each_layer_are_one(tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf_file(path, values={"llama.attention.head_count_kv": [2, 2]})
    assert open_gguf(path).config["num_key_value_heads"] == 2
    write_gguf_file(path, values={"llama.attention.head_count_kv": [2, 1]})
    with pytest.raises(BundleError, match=r"\[2, 1\] as llama.attention.head_count_kv"):
        open_gguf(path)


# ── vocabularies ─────────────────────────────────────────────────────────────────────────────────


def merged(parts: list[str], rank: Callable[[str, str], float | None]) -> list[str]:
    """Merge the neighbours of the lowest rank, the leftmost first, until none has a rank."""
    while pairs := [
        (found, i) for i, pair in enumerate(pairwise(parts)) if (found := rank(*pair)) is not None
    ]:
        _, i = min(pairs)
        parts = [*parts[:i], parts[i] + parts[i + 1], *parts[i + 2 :]]
    return parts


def naive_byte_level(values: dict[str, Any], patterns: Sequence[str], whole: bool) -> Callable:
    """Return the tokenizer by its definition: patterns in turn, then merges by rank."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    spelled = {byte: chr(byte) for byte in printable}
    spelled |= {byte: chr(256 + i) for i, byte in enumerate(others)}
    ids = {token: i for i, token in enumerate(values[KEYS + "tokens"])}
    ranks = {tuple(merge.split(" ")): i for i, merge in enumerate(values[KEYS + "merges"])}

    def split(pieces: list[str], pattern: str) -> list[str]:
        found = []
        for piece in pieces:
            end = 0
            for match in regex.finditer(pattern, piece):
                found += [piece[end : match.start()], match.group()]
                end = match.end()
            found.append(piece[end:])
        return [piece for piece in found if piece]

    def encode(text: str) -> list[int]:
        found = []
        for piece in reduce(split, patterns, [text]):
            parts = [spelled[byte] for byte in piece.encode()]
            if whole and "".join(parts) in ids:
                parts = ["".join(parts)]
            parts = merged(parts, lambda a, b: ranks.get((a, b)))
            found += [ids[part] for part in parts if part in ids]
        return found

    return encode


@pytest.mark.parametrize("pre", PRE_TOKENIZERS, ids=lambda pre: pre.names[0])
def test_text_is_split_and_merged_as_the_name_says(tmp_path, pre):
    values = byte_level(pre.names[0])
    path = tmp_path / "model.gguf"
    write_gguf_file(path, values)
    tokenizer = Tokenizer.from_str(open_gguf(path).tokenizer_json)
    tokenizer.encode_special_tokens = True
    naive = naive_byte_level(values, pre.patterns, pre.ignore_merges)
    for line in varied_lines(250):
        assert tokenizer.encode(line, add_special_tokens=False).ids == naive(line), line


def test_names_differ_in_what_they_split():
    line = "It's 12345  67, DON'T\n\n x"
    pieces = {pre.names[0]: pre.patterns for pre in PRE_TOKENIZERS}
    found = {name: tuple(split_by(patterns, line)) for name, patterns in pieces.items()}
    assert found["gpt-2"][2] == " 12345"
    assert found["smollm"][2:5] == (" ", "1", "2")
    assert found["llama-bpe"][3:5] == ("123", "45")
    assert found["qwen2"][3] == "1"
    assert found["default"][3:5] == (" ", "123")
    assert len(set(found.values())) == len(found) - 1  # smaug-bpe splits as llama-bpe


def split_by(patterns: Sequence[str], text: str) -> list[str]:
    pieces = [text]
    for pattern in patterns:
        pieces = [part for piece in pieces for part in regex.split(f"({pattern})", piece) if part]
    return pieces


def naive_sentencepiece(values: dict[str, Any], prefix: bool) -> Callable[[str], list[int]]:
    """Return llama.cpp's tokenizer of SentencePiece's kind: always the best-scoring neighbours."""
    ids = {token: i for i, token in enumerate(values[KEYS + "tokens"])}
    scores = values[KEYS + "scores"]

    def encode(text: str) -> list[int]:
        parts = list((" " * prefix + text).replace(" ", "▁")) if text else []
        parts = merged(parts, lambda a, b: -scores[ids[a + b]] if a + b in ids else None)
        found = []
        for part in parts:
            found += [ids[part]] if part in ids else [ids[BYTES[byte]] for byte in part.encode()]
        return found

    return encode


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_merges_the_neighbours_of_the_best_score(image_tokenizer, tmp_path, prefix):
    values = sentencepiece() | ({} if prefix else {KEYS + "add_space_prefix": False})
    path = tmp_path / "model.gguf"
    write_gguf_file(path, values)
    bundle = pardalis.load(imported(path, image_tokenizer))
    naive = naive_sentencepiece(values, prefix)
    lines = [line for line in varied_lines(400) if not {"<", "▁"} & {*line}]
    for line in [*lines, "The owl and the fox.", "  An old oak", "sat the on"]:
        assert own_ids(bundle, line) == naive(line), line
        ids = bundle.codec.encode(Document((Text(line),))).ids
        assert bundle.codec.decode(ids.tolist()).text == line


def test_merges_of_scores_are_every_division_of_a_token():
    vocab = {name: i for i, name in enumerate(["a", "b", "ab", "ba", "aba", "x"])}
    assert merges_of(["ab", "aba", "x"], vocab) == [("a", "b"), ("a", "ba"), ("ab", "a")]


def test_text_ids_are_those_of_transformers(compare, image_tokenizer, tmp_path):
    """For the names that it reads; of ``llama-bpe`` it does not keep whole tokens whole."""
    for name in ("qwen2", "gpt-2"):
        values = byte_level(name)
        path = tmp_path / name / "model.gguf"
        path.parent.mkdir()
        write_gguf_file(path, values)
        theirs = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).backend_tokenizer
        theirs.encode_special_tokens = True
        bundle = pardalis.load(imported(path, image_tokenizer))
        lines = varied_lines(300)
        expected = [theirs.encode(line, add_special_tokens=False).ids for line in lines]
        compare(f"GGUF, {name}", "ids of text", [own_ids(bundle, line) for line in lines], expected)


def test_special_ids_are_those_that_the_file_names(image_tokenizer, tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf_file(path)
    ids = pardalis.load(imported(path, image_tokenizer)).codec.vocabulary
    assert (ids.pad_id, ids.bos_id, ids.eos_id) == (0, 1, 2)
    assert ids.text == range(3, len(byte_level()[KEYS + "tokens"]))
    path = tmp_path / "eot.gguf"
    write_gguf_file(path, values={KEYS + "eot_token_id": 0, KEYS + "padding_token_id": None})
    ids = pardalis.load(imported(path, image_tokenizer)).codec.vocabulary
    assert (ids.eos_id, ids.end_turn_id) == (2, 0)


def test_what_a_file_does_not_name_has_llama_cpps_defaults(tmp_path):
    path = tmp_path / "model.gguf"
    named = dict.fromkeys((KEYS + "bos_token_id", KEYS + "eos_token_id", KEYS + "unknown_token_id"))
    write_gguf_file(path, sentencepiece() | named)
    source = open_gguf(path)
    assert (source.config["bos_token_id"], source.config["eos_token_id"]) == (1, [2])
    content = json.loads(source.tokenizer_json)
    assert content["model"]["unk_token"] == "<unk>"
    assert content["post_processor"]["special_tokens"]["<s>"]["ids"] == [1]  # add_bos_token
    write_gguf_file(path, values={KEYS + "bos_token_id": None, KEYS + "pre": None})
    source = open_gguf(path)
    assert source.config["bos_token_id"] == 2  # the end begins documents
    steps = json.loads(source.tokenizer_json)["pre_tokenizer"]["pretokenizers"]
    assert steps[1]["pattern"]["Regex"] == GPT2
    assert len(steps) == 5  # default
    write_gguf_file(path, values={KEYS + "add_bos_token": True})
    assert json.loads(open_gguf(path).tokenizer_json)["post_processor"] is not None


def test_user_defined_tokens_are_found_in_text_and_control_tokens_are_not(
    image_tokenizer, tmp_path
):
    values = byte_level()
    values[KEYS + "tokens"] += ["<think>", "[unused]"]
    values[KEYS + "token_type"] += [4, 5]
    path = tmp_path / "model.gguf"
    write_gguf_file(path, values)
    bundle = pardalis.load(imported(path, image_tokenizer))
    thinking = len(values[KEYS + "tokens"]) - 2
    assert thinking in own_ids(bundle, "a<think>b")
    assert thinking in bundle.codec.vocabulary.text
    assert thinking + 1 in bundle.codec.vocabulary.unused
    assert not set(own_ids(bundle, "<|im_end|><|endoftext|>")) & {0, 1, 2}
    assert (
        bundle.codec.decode(bundle.codec.encode(Document((Text("<|im_end|>"),))).ids.tolist()).text
        == "<|im_end|>"
    )


# ── export ───────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def own_bundle(codec, tmp_path) -> Path:
    """A bundle that was trained here: image ids come before text ids."""
    config: ModelConfig = changed(
        pardalis_config(codec.vocabulary.size), qk_norm="none", n_kv_heads=2
    )
    model = initialise(Decoder(config), seed=0).eval()
    Bundle(model, codec, {"recipe": "test"}, "# Terms\n\nOur own.\n").save(tmp_path / "own")
    return tmp_path / "own"


def pardalis_config(size: int) -> ModelConfig:
    return decoder_config(
        vocab_size=size, context=48, d_model=64, n_layers=2, n_heads=4, d_ff=96, init_std=0.3
    )


@torch.no_grad()
def test_a_model_trained_here_is_read_by_transformers(compare, own_bundle, tmp_path):
    export_model(own_bundle, tmp_path / "model.gguf", "gguf")
    bundle = pardalis.load(own_bundle)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", dtype=torch.float32
    ).eval()
    ids = some_ids(bundle.codec.vocabulary.size)
    compare("GGUF, exported", "logits", bundle.model(ids), model(ids).logits, atol=CLOSE)
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    for line in varied_lines(200):
        encoded = bundle.codec.encode(Document((Text(line),))).ids.tolist()
        assert theirs(line, split_special_tokens=True).input_ids == encoded[:-1]  # with BOS
    assert theirs.eos_token_id == bundle.codec.vocabulary.eos_id


EXPORTED: dict[str, dict[str, Any]] = {
    "byte-level, tied": {"tied": True},
    "linear scaling": {
        "values": {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    },
    "Qwen2": FILES["Qwen2"],
    "Qwen3": FILES["Qwen3"],
    "byte-level, rows to spare": {"spare": 5},
    "SentencePiece": {"vocabulary": sentencepiece()},
    "bfloat16": {"kind": "BF16"},
    "16 bits": {"kind": "F16"},
}


@pytest.mark.parametrize("case", [*EXPORTED, "own"])
def test_import_export_import_is_the_same_bit_for_bit(image_tokenizer, own_bundle, tmp_path, case):
    first = own_bundle
    if case != "own":
        write_gguf_file(tmp_path / "first.gguf", **EXPORTED[case])
        first = imported(tmp_path / "first.gguf", image_tokenizer)
    export_model(first, tmp_path / "2nd.gguf", "gguf")
    second = imported(tmp_path / "2nd.gguf", image_tokenizer)
    export_model(second, tmp_path / "3rd.gguf", "gguf")
    before, after = (load_file(folder / "model.safetensors") for folder in (first, second))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(before[name].dtype == after[name].dtype for name in before if before[name].ndim == 2)
    one, two = pardalis.load(first), pardalis.load(second)
    assert replace(two.codec.vocabulary, foreign_ids=None) == replace(
        one.codec.vocabulary, foreign_ids=None
    )
    assert replace(two.model.config, init=one.model.config.init) == one.model.config
    for line in varied_lines(100):
        assert (
            one.codec.encode(Document((Text(line),))).ids.tolist()
            == two.codec.encode(Document((Text(line),))).ids.tolist()
        )
    assert one.licences == two.licences
    contents = [(tmp_path / f"{name}.gguf").read_bytes() for name in ("2nd", "3rd")]
    assert contents[0].replace(b"2nd", b"3rd") == contents[1] or case == "own"


def test_scattered_ids_keep_their_numbers(image_tokenizer, tmp_path):
    """A special token between text tokens: ids are permuted here, and not in the file."""
    values = byte_level()
    values[KEYS + "tokens"].insert(100, "<|between|>")
    values[KEYS + "token_type"].insert(100, 3)
    write_gguf_file(tmp_path / "first.gguf", values)
    folder = imported(tmp_path / "first.gguf", image_tokenizer)
    bundle = pardalis.load(folder)
    assert not isinstance(bundle.codec.vocabulary.foreign_ids, range)
    export_model(folder, tmp_path / "2nd.gguf", "gguf")
    old, new = read_gguf(tmp_path / "first.gguf"), read_gguf(tmp_path / "2nd.gguf")
    n = len(values[KEYS + "tokens"])
    assert new.values[KEYS + "tokens"][:n] == values[KEYS + "tokens"]
    assert new.values[KEYS + "token_type"][:n] == values[KEYS + "token_type"]
    for name in ("token_embd.weight", "output.weight"):
        assert torch.equal(new.tensors[name].read()[:n], old.tensors[name].read())
    again = pardalis.load(imported(tmp_path / "2nd.gguf", image_tokenizer))
    assert again.codec.vocabulary == bundle.codec.vocabulary


def test_image_ids_are_unused_tokens_and_other_new_ids_control_tokens(own_bundle, tmp_path):
    export_model(own_bundle, tmp_path / "model.gguf", "gguf")
    values = read_gguf(tmp_path / "model.gguf").values
    ids = pardalis.load(own_bundle).codec.vocabulary
    types = dict(enumerate(values[KEYS + "token_type"]))
    assert {types[i] for i in ids.image} == {5}
    assert {types[i] for i in ids.special.values()} == {3}
    assert {types[i] for i in ids.text} == {1}
    assert values[KEYS + "tokens"][ids.image[7]] == "IMGIMGHZ"
    assert values[KEYS + "pre"] == "gpt-2"
    assert values[KEYS + "add_bos_token"] is True


@torch.no_grad()
def test_matrices_can_be_rounded(own_bundle, tmp_path):
    exact = load_file(own_bundle / "model.safetensors")["embedding.weight"]
    for quantization, kind, bound in (("f16", "F16", 2**-11), ("q8_0", "Q8_0", 2**-7)):
        path = tmp_path / f"{quantization}.gguf"
        export_model(own_bundle, path, "gguf", quantization=quantization)
        read = gguf.GGUFReader(path)
        assert {t.tensor_type.name for t in read.tensors if t.data.ndim == 2} == {kind}
        assert {t.tensor_type.name for t in read.tensors if t.data.ndim == 1} == {"F32"}
        found = read_gguf(path).tensors["token_embd.weight"].read().float()
        assert 0 < (found - exact).abs().max() < bound * exact.abs().max()
    path = tmp_path / "bfloat16.gguf"
    export_model(own_bundle, path, "gguf", dtype=torch.bfloat16)
    found = read_gguf(path).tensors["token_embd.weight"]
    assert torch.equal(found.read(), exact.to(torch.bfloat16))


def test_values_that_16_bits_cannot_hold_are_refused(own_bundle, image_tokenizer, tmp_path):
    export_model(own_bundle, tmp_path / "a.gguf", "gguf")
    model = read_model(tmp_path / "a.gguf", image_tokenizer=image_tokenizer)
    table = model.decoder["embedding.weight"]
    huge = {**model.decoder, "embedding.weight": table.map(lambda t: t * 1e6, table.shape)}
    with pytest.raises(BundleError, match=r"token_embd.weight has values above 65504"):
        write_gguf(replace(model, decoder=huge), tmp_path / "b.gguf", quantization="f16")
    assert [path.name for path in tmp_path.glob("*b.gguf*")] == []


def test_the_chat_template_goes_along(image_tokenizer, tmp_path):
    write_gguf_file(tmp_path / "a.gguf")
    model = read_model(tmp_path / "a.gguf", image_tokenizer=image_tokenizer)
    write_gguf(model, tmp_path / "b.gguf")
    assert open_gguf(tmp_path / "b.gguf").chat_template == "{{ messages[0]['content'] }}"


def test_an_exported_model_needs_its_own_image_tokenizer(own_bundle, codec, tmp_path):
    export_model(own_bundle, tmp_path / "a.gguf", "gguf")
    config = replace(codec.image_tokenizer.config, n_codes=16)
    ImageTokenizer(config).save(tmp_path / "smaller")
    with pytest.raises(BundleError, match="names 32 image codes already, and the `image_tokenizer"):
        read_model(tmp_path / "a.gguf", image_tokenizer=tmp_path / "smaller")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "attention.qk_norm.kind is 'layer_norm' (needed: 'none' or 'rms_norm')"),
        ({"qk_norm": "none", "norm_placement": "reordered"}, "placement is 'reordered'"),
    ],
)  # fmt: skip
def test_a_model_that_does_not_fit_is_refused(codec, tmp_path, changes, message):
    config = changed(pardalis_config(codec.vocabulary.size), **changes)
    Bundle(initialise(Decoder(config), seed=0), codec, {}).save(tmp_path / "own")
    with pytest.raises(BundleError) as error:
        export_model(tmp_path / "own", tmp_path / "model.gguf", "gguf")
    assert "GGUF cannot hold this model" in str(error.value)
    assert message in str(error.value)
    assert not (tmp_path / "model.gguf").exists()


def test_an_existing_file_stays(own_bundle, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_text("mine")
    with pytest.raises(ConfigError, match=r"model.gguf exists; choose another name"):
        export_model(own_bundle, path, "gguf")
    assert path.read_text() == "mine"


def test_options_of_other_formats_are_refused(own_bundle, tmp_path):
    with pytest.raises(ConfigError, match="`n_ranks` does not apply"):
        export_model(own_bundle, tmp_path / "a.gguf", "gguf", n_ranks=2)
    with pytest.raises(ConfigError, match="`quantization` does not apply: only GGUF has it"):
        export_model(own_bundle, tmp_path / "a", "hf", quantization="q8_0")


def test_a_tokenizer_without_a_name_is_refused(image_tokenizer, tmp_path):
    write_gguf_file(tmp_path / "a.gguf")
    model = read_model(tmp_path / "a.gguf", image_tokenizer=image_tokenizer)
    content = json.loads(model.text_tokenizer.to_json())
    for change, message in (
        ({"normalizer": {"type": "Lowercase"}}, "normalises text"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "splits text by a rule that llama.cpp has no"),
        ({"decoder": {"type": "Fuse"}}, "is neither a byte-level BPE nor one of SentencePiece's"),
    ):
        tokenizer = type(model.text_tokenizer).from_json(
            json.dumps(content | change), model.vocabulary
        )
        with pytest.raises(BundleError, match=message):
            write_gguf(replace(model, text_tokenizer=tokenizer), tmp_path / "b.gguf")


def test_the_length_of_a_header_is_bounded(tmp_path, monkeypatch):
    write_gguf_file(tmp_path / "a.gguf")
    monkeypatch.setattr(gguf_file, "_MOST_HEADER", 1 << 10)
    with pytest.raises(BundleError, match="its header is longer than 0 MiB"):
        read_gguf(tmp_path / "a.gguf")
