"""Text-only Hugging Face models become mixed-modal ones that generate the same text."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file
from text_models import CASES, LINES, LLAMA_3, TEXTS, make_llama, peer
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

import pardalis
from pardalis.batch import Batch
from pardalis.bundle import Bundle
from pardalis.documents import Document, Image, Text
from pardalis.errors import BundleError, ConfigError, PardalisError
from pardalis.interop import NewRows, import_model, open_image_tokenizer, read_model
from pardalis.interop.tensors import lazy
from pardalis.interop.vocabulary import from_foreign, to_foreign
from pardalis.interop.vqgan import write_vqgan
from pardalis.train.decoder_task import DecoderTask, DecoderTrainConfig
from pardalis.train.schedule import WarmupCosineConfig
from pardalis.vq import ImageTokenizer, ImageTokenizerConfig, initialise

# Measured: equal, on one core of an AMD EPYC. Other machines may sum in another order.
CLOSE = 1e-5


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Callable[[str], Path]:
    """Return a function that makes the folder of a case, each once."""
    made: dict[str, Path] = {}

    def folder(case: str) -> Path:
        if case not in made:
            made[case] = tmp_path_factory.mktemp("llama") / "hf"
            make_llama(made[case], **CASES[case])
        return made[case]

    return folder


@pytest.fixture(scope="module")
def image_tokenizer(codec, tmp_path_factory) -> Path:
    """A folder of ours: 16 pixels, 4 codes of 32."""
    folder = tmp_path_factory.mktemp("image") / "tokenizer"
    codec.image_tokenizer.save(folder)
    return folder


@pytest.fixture(scope="module")
def imported(llama, image_tokenizer, tmp_path_factory) -> Callable[[str], Path]:
    """Return a function that imports a case with all options left out, each once."""
    made: dict[str, Path] = {}

    def bundle(case: str) -> Path:
        if case not in made:
            made[case] = tmp_path_factory.mktemp("bundles") / "bundle"
            import_model(llama(case), made[case], image_tokenizer=image_tokenizer)
        return made[case]

    return bundle


def copy_of(folder: Path, to: Path, file: str = "config.json", **changes) -> Path:
    """Copy a folder and change values of one of its JSON files; None removes one."""
    shutil.copytree(folder, to)
    path = to / file
    values = (json.loads(path.read_text()) if path.is_file() else {}) | changes
    path.write_text(json.dumps({n: v for n, v in values.items() if v is not None}))
    return to


each_case = pytest.mark.parametrize("case", CASES)


# ── what stays ───────────────────────────────────────────────────────────────────────────────────


@each_case
def test_text_tokens_equal_those_of_the_tokenizer(compare, llama, imported, case):
    theirs = PreTrainedTokenizerFast.from_pretrained(llama(case))
    codec = pardalis.load(imported(case)).codec
    foreign = to_foreign(codec.vocabulary)
    assert codec.adds_bos == (
        theirs("a").input_ids != theirs("a", add_special_tokens=False).input_ids
    )
    for text in TEXTS:
        ids = codec.encode(Document((Text(text),))).ids.tolist()
        expected = theirs(text).input_ids
        compare(f"text-only, {case}", "ids of text", [foreign[i] for i in ids[:-1]], expected)
        assert codec.decode(ids).text == theirs.decode(expected[codec.adds_bos :])


@pytest.mark.parametrize("case", ["Llama 2", "Mistral", "Llama 3.1", "SmolLM2", "Qwen3, tied"])
def test_any_line_has_the_ids_of_transformers(compare, llama, image_tokenizer, case):
    """Added tokens that are not special are those tokens; special ones are text."""
    case = next(each for each in CASES if each.startswith(case))
    theirs = PreTrainedTokenizerFast.from_pretrained(llama(case))
    special = set(theirs.all_special_ids)
    model = read_model(llama(case), image_tokenizer=image_tokenizer)
    ours, ids, foreign = model.text_tokenizer, model.vocabulary, to_foreign(model.vocabulary)
    for line in LINES:
        expected = theirs(line, add_special_tokens=False, split_special_tokens=True).input_ids
        found = [foreign[ids.text_id(token)] for token in ours.encode(line)]
        compare(f"text-only, {case}", "ids of lines", found, expected)
        assert not special & set(found)
        assert ours.decode(ours.encode(line)) == theirs.decode(expected)
    if "Qwen" in case:
        think = theirs.convert_tokens_to_ids("<think>")
        assert think in [foreign[ids.text_id(token)] for token in ours.encode("so <think>it")]


@each_case
@torch.no_grad()
def test_text_logits_equal_those_of_the_model(compare, llama, imported, case):
    model, bundle = peer(llama(case)), pardalis.load(imported(case), dtype=torch.float32)
    places = torch.tensor(from_foreign(bundle.codec.vocabulary))[: model.config.vocab_size]
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, model.config.vocab_size, (3, 20), generator=generator)
    ours = bundle.model(places[ids])[..., places]
    compare(f"text-only, {case}", "logits of old ids", ours, model(ids).logits, atol=CLOSE)


@each_case
def test_old_rows_keep_their_bits_and_their_dtype(llama, imported, case):
    dtype = CASES[case].get("dtype", torch.float32)
    model, bundle = peer(llama(case), dtype), pardalis.load(imported(case))
    places = list(from_foreign(bundle.codec.vocabulary))[: model.config.vocab_size]
    assert {parameter.dtype for parameter in bundle.model.parameters()} == {dtype}
    for ours, theirs in (
        (bundle.model.embedding, model.model.embed_tokens), (bundle.model.head, model.lm_head),
    ):  # fmt: skip
        assert torch.equal(ours.weight[places], theirs.weight)


@pytest.mark.parametrize("case", ["Llama 2", "Llama 3, bf16, shards"])
def test_weights_in_pytorchs_own_files(llama, imported, image_tokenizer, tmp_path, case):
    """With a buffer that old versions wrote. Safetensors are taken where both lie."""
    folder = copy_of(llama(case), tmp_path / "hf")
    index = folder / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"] if index.is_file() else {}
    files = sorted(folder.glob("model*.safetensors"))
    assert (len(files) > 1) == ("shards" in case)
    for path in files:
        tensors = load_file(path)
        if path == files[0]:
            tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
        name = path.name.replace("model", "pytorch_model").replace(".safetensors", ".bin")
        torch.save(tensors, folder / name)
        path.unlink()
    if places:
        index.unlink()
        names = {n: f.replace("model", "pytorch_model").replace(".safetensors", ".bin")
                 for n, f in places.items()}  # fmt: skip
        index = folder / "pytorch_model.bin.index.json"
        index.write_text(json.dumps({"weight_map": names}))
    import_model(folder, tmp_path / "bundle", image_tokenizer=image_tokenizer)
    found, expected = (
        load_file(path / "model.safetensors") for path in (tmp_path / "bundle", imported(case))
    )
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    (folder / "model.safetensors").write_text("x")
    refused(folder, image_tokenizer, tmp_path / "safetensors", "model.safetensors cannot be read")


def test_another_dtype_is_an_option(llama, image_tokenizer, tmp_path):
    folder = llama("Llama 2")
    import_model(folder, tmp_path / "b", dtype=torch.bfloat16, image_tokenizer=image_tokenizer)
    bundle = pardalis.load(tmp_path / "b")
    size = peer(folder).config.vocab_size
    expected = peer(folder).lm_head.weight.to(torch.bfloat16)
    assert torch.equal(bundle.model.head.weight[:size], expected)


# ── the vocabulary ───────────────────────────────────────────────────────────────────────────────


def test_new_ids_follow_the_old_ones(imported, llama):
    ids = pardalis.load(imported("Llama 2, tied, rows to spare")).codec.vocabulary
    size = peer(llama("Llama 2, tied, rows to spare")).config.vocab_size
    assert ids.foreign_ids == range(ids.size)
    assert (ids.unk_id, ids.bos_id, ids.eos_id) == (0, 1, 2)
    assert ids.text == range(3, size - 13)  # rows to spare have no name and are no text
    assert {ids.pad_id, ids.end_image_id, ids.begin_image_id, ids.end_turn_id} == set(
        range(size, size + 4)
    )
    assert ids.image == range(size + 4, size + 36)
    assert ids.size == size + 36


def test_special_tokens_between_text_tokens_leave_one_range_of_text(imported, llama):
    ids = pardalis.load(imported("Llama 3, bf16, shards")).codec.vocabulary
    assert ids.text.start == 0
    assert ids.foreign_ids == range(ids.size)
    # <|endoftext|> is number 0 and no text, <|begin_of_text|> comes after the pieces.
    moved = pardalis.load(imported("specials between")).codec.vocabulary
    size = peer(llama("specials between")).config.vocab_size
    assert [to_foreign(moved)[i] for i in moved.text] == list(range(1, size - 2))


def test_a_token_that_looks_like_a_special_token_is_text(llama, image_tokenizer, tmp_path):
    """Byte-level tokenizers learn such tokens from web pages."""
    folder = copy_of(llama("Llama 3, bf16, shards"), tmp_path / "hf")
    content = json.loads((folder / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    longest = max(set(vocab) - set(LLAMA_3), key=len)
    vocab["<s>"] = vocab.pop(longest)
    content["model"]["merges"] = [
        merge for merge in content["model"]["merges"] if "".join(merge) != longest
    ]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    model = read_model(folder, image_tokenizer=image_tokenizer)
    assert model.vocabulary.foreign_ids == range(model.vocabulary.size)
    text = "an <s>owl</s>"
    assert model.text_tokenizer.decode(model.text_tokenizer.encode(text)) == text


def roles(folder: Path, image_tokenizer: Path) -> dict[str, int]:
    """Return the old id of every role that an old id has."""
    ids = read_model(folder, image_tokenizer=image_tokenizer).vocabulary
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    found = {
        name: to_foreign(ids)[getattr(ids, f"{name}_id")]
        for name in ("bos", "eos", "end_turn", "unk", "pad", "begin_image", "end_image")
    }
    assert len(set(found.values())) == len(found), "no id has two roles"
    return {name: i for name, i in found.items() if i < size}


LLAMA_2_ROLES = {"bos": 1, "eos": 2, "unk": 0}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, LLAMA_2_ROLES),
        ({"pad_token_id": -1}, LLAMA_2_ROLES),  # as old files say that there is none
        ({"pad_token_id": 0}, LLAMA_2_ROLES),  # stand-ins for having none
        ({"pad_token_id": 2}, LLAMA_2_ROLES),
        ({"pad_token_id": 9999}, LLAMA_2_ROLES),  # beyond the embedding
        ({"pad_token_id": 7}, {**LLAMA_2_ROLES, "pad": 7}),
        ({"eos_token_id": [2, 9, 8]}, {**LLAMA_2_ROLES, "end_turn": 8}),
        ({"eos_token_id": [2]}, LLAMA_2_ROLES),
        ({"eos_token_id": 1}, {"bos": 1, "unk": 0}),
        ({"eos_token_id": [1, 8]}, {"bos": 1, "unk": 0, "end_turn": 8}),
        ({"bos_token_id": 0, "eos_token_id": 0}, {"bos": 0}),
    ],
)
def test_roles_follow_the_configs(llama, image_tokenizer, tmp_path, changes, expected):
    folder = copy_of(llama("Llama 2"), tmp_path / "hf", **changes)
    (folder / "generation_config.json").unlink()
    assert roles(folder, image_tokenizer) == expected


def test_the_generation_config_takes_precedence(llama, image_tokenizer, tmp_path):
    instruct = copy_of(llama("Llama 2"), tmp_path / "hf", eos_token_id=8)
    file = "generation_config.json"
    (instruct / file).write_text(json.dumps({"eos_token_id": [2, 8], "bos_token_id": None}))
    assert roles(instruct, image_tokenizer) == {**LLAMA_2_ROLES, "end_turn": 8}


def test_the_last_eos_of_llama_3_ends_a_turn(llama, image_tokenizer):
    folder = llama("Llama 3, bf16, shards")
    names = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    assert roles(folder, image_tokenizer) == {
        "bos": names["<|begin_of_text|>"],
        "eos": names["<|end_of_text|>"],
        "end_turn": names["<|eot_id|>"],
    }


def test_the_end_of_a_turn_of_qwen_is_not_the_end_of_a_document(llama, image_tokenizer):
    """Of its two ends, the one that also begins a document ends it."""
    folder = llama("Qwen2")
    names = Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id
    assert roles(folder, image_tokenizer) == {
        "bos": names("<|endoftext|>"),
        "end_turn": names("<|im_end|>"),
    }


@torch.no_grad()
def test_a_shared_bos_and_eos_becomes_two_equal_tokens(imported):
    bundle = pardalis.load(imported("SmolLM2, bf16, tied, shards"))
    ids = bundle.codec.vocabulary
    assert to_foreign(ids)[ids.bos_id] == 0
    assert ids.eos_id != ids.bos_id
    for matrix in (bundle.model.embedding.weight, bundle.model.head.weight):
        assert torch.equal(matrix[ids.eos_id], matrix[ids.bos_id])
        assert not torch.equal(matrix[ids.pad_id], matrix[ids.bos_id])


# ── new rows ─────────────────────────────────────────────────────────────────────────────────────


def matrices(llama, image_tokenizer, case: str, **options) -> dict[str, tuple[Tensor, Tensor]]:
    """Return old and new rows of embedding and head after an import."""
    folder = llama(case)
    rows = NewRows(**options) if options else None
    model = read_model(folder, image_tokenizer=image_tokenizer, new_rows=rows)
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    assert model.vocabulary.foreign_ids == range(model.vocabulary.size)
    found = {name: model.decoder[f"{name}.weight"].read() for name in ("embedding", "head")}
    return {name: (matrix[:size], matrix[size:]) for name, matrix in found.items()}


@pytest.mark.parametrize("case", ["Llama 2", "Llama 3, bf16, shards"])
def test_normal_rows_have_the_spread_of_a_new_model(llama, image_tokenizer, case):
    for _, new in matrices(llama, image_tokenizer, case, init="normal").values():
        new = new.float()
        # 2,200 values or more: their spread is within 1.5 % (one sigma), their mean within 0.001
        assert new.std().item() == pytest.approx(0.05, rel=0.06)
        assert new.mean().item() == pytest.approx(0, abs=0.005)
        assert len(new.unique(dim=0)) == len(new)


@pytest.mark.parametrize("case", ["Llama 2", "Llama 3, bf16, shards"])
def test_mean_rows_lie_around_the_mean_at_a_hundredth_of_the_spread(llama, image_tokenizer, case):
    rounding = 2**-9 if "bf16" in case else 0  # relative
    for old, new in matrices(llama, image_tokenizer, case).values():
        old, new = old.float(), new.float()
        off = (new - old.mean(0)) / old.std(0)
        assert off.std().item() == pytest.approx(0.01, rel=0.06)
        assert off.mean().item() == pytest.approx(0, abs=1e-3)
        assert off.abs().max() < 0.05 + rounding * (old.mean(0) / old.std(0)).abs().max()
        assert len(new.unique(dim=0)) == len(new)


def test_the_seed_decides_on_new_rows(llama, image_tokenizer):
    def new(**options) -> Tensor:
        return matrices(llama, image_tokenizer, "Llama 2", **options)["head"][1]

    for init in ("mean", "normal"):
        assert torch.equal(new(init=init, seed=1), new(init=init, seed=1))
        assert not torch.equal(new(init=init, seed=1), new(init=init, seed=2))
    assert torch.equal(new(), new(init="mean", seed=0))
    parts = matrices(llama, image_tokenizer, "Llama 2", init="normal")
    assert not torch.equal(parts["head"][1], parts["embedding"][1])


@each_case
@torch.no_grad()
def test_new_ids_are_at_first_no_likelier_than_old_ones(llama, imported, case):
    """By the inequality of arithmetic and geometric means, but for the noise."""
    bundle = pardalis.load(imported(case), dtype=torch.float32)
    n_old = peer(llama(case)).config.vocab_size
    places = torch.tensor(from_foreign(bundle.codec.vocabulary))
    new = places[n_old:][~torch.isin(places[n_old:], bundle.codec.vocabulary.eos_id)]
    logits = bundle.model(places[torch.arange(n_old)[None, :60]])
    probabilities = logits.softmax(-1)
    assert (probabilities[..., new].mean(-1) < probabilities[..., places[:n_old]].mean(-1)).all()


# ── image tokenizers ─────────────────────────────────────────────────────────────────────────────


def original_layout(folder: Path) -> ImageTokenizer:
    """Write ``vqgan.ckpt`` and ``vqgan.yaml``: 4 pixels, 4 codes of 16."""
    config = ImageTokenizerConfig(
        resolution=4, channels=32, channel_multipliers=(1, 2), n_res_blocks=1, z_channels=8,
        code_width=8, n_codes=16,
    )  # fmt: skip
    tokenizer = initialise(ImageTokenizer(config), seed=0)
    folder.mkdir()
    write_vqgan(config, {name: lazy(t) for name, t in tokenizer.state_dict().items()}, folder)
    return tokenizer


def test_any_image_tokenizer_can_be_added(llama, imported, image_tokenizer, codec, tmp_path):
    original = original_layout(tmp_path / "vqgan")
    for name, path, expected in (
        ("folder", image_tokenizer, codec.image_tokenizer),
        ("bundle", imported("Mistral"), codec.image_tokenizer),
        ("original", tmp_path / "vqgan" / "vqgan.ckpt", original),
    ):
        import_model(llama("Llama 2"), tmp_path / name, image_tokenizer=path)
        found = pardalis.load(tmp_path / name).codec
        assert found.image_tokenizer.config == expected.config
        assert found.vocabulary.n_codes == expected.config.n_codes
        weights = found.image_tokenizer.state_dict()
        for name, tensor in expected.state_dict().items():
            assert torch.equal(weights[name], tensor), name
        config, tensors = open_image_tokenizer(path)
        assert (config, set(tensors)) == (expected.config, set(weights))


# ── use ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def owl() -> PIL.Image.Image:
    return PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 16, 3), np.uint8))


@pytest.mark.parametrize(
    "case", ["Llama 2", "Llama 3, bf16, shards", "SmolLM2, bf16, tied, shards", "specials between"]
)
def test_it_generates_text_and_images(imported, owl, case):
    bundle = pardalis.load(imported(case))
    drawn = pardalis.generate(bundle, "An owl", mode="image", max_images=2)
    assert [image.source.size for image in drawn.images] == [(16, 16)] * 2
    described = pardalis.generate(bundle, [owl, "what?"], mode="text", max_new_tokens=9)
    assert all(isinstance(segment, Text) for segment in described.segments)
    mixed = pardalis.generate(bundle, ["The fox", owl], mode="interleaved", max_new_tokens=30)
    codec = bundle.codec
    codec.grammar.validate(codec.encode(mixed).ids)


@torch.no_grad()
def test_it_stops_where_the_text_only_model_stops(llama, imported):
    """Make the one id that ends documents the likeliest; the copy of it must end ours."""
    folder = imported("SmolLM2, bf16, tied, shards")
    bundle = pardalis.load(folder, dtype=torch.float32)
    ids = bundle.codec.vocabulary
    ends = [ids.bos_id, ids.eos_id]
    prompt = torch.tensor([bundle.codec.encode_prompt(Document((Text("The owl"),)))])
    hidden = bundle.model.hidden(prompt)[0, -1]
    bundle.model.head.weight[ends] += hidden
    answer = pardalis.generate(bundle, "The owl", mode="text", max_new_tokens=20)
    assert answer.segments == ()


class OneBatch:
    """The same document in every batch."""

    def __init__(self, ids: list[int]) -> None:
        row = torch.tensor([ids])
        self._batch = Batch(
            ids=row[:, :-1],
            targets=row[:, 1:],
            weights=torch.ones(1, len(ids) - 1),
            positions=torch.arange(len(ids) - 1)[None],
            documents=torch.zeros(1, len(ids) - 1, dtype=torch.long),
        )

    def batch(self, step: int, rank: int = 0, size: int = 1) -> Batch:
        return self._batch


def test_it_can_be_trained(imported, owl):
    bundle: Bundle = pardalis.load(imported("Llama 2"))
    ids = bundle.codec.encode(
        Document((Text("An owl:"), Image(owl), Text("is it one?")))
    ).ids.tolist()
    before = bundle.model.head.weight.detach().clone()
    config = DecoderTrainConfig(
        batch_rows=1, schedule=WarmupCosineConfig(learning_rate=1e-2, warmup_steps=1)
    )
    task = DecoderTask(
        bundle.model,
        OneBatch(ids),
        config.objective.build({"image": bundle.codec.vocabulary.image}),
        config,
        total_steps=8,
    )
    losses = [task.step(step) for step in range(8)]
    for kind in ("loss_text", "loss_image"):
        assert float(losses[-1][kind]) < 0.8 * float(losses[0][kind])
    moved = (bundle.model.head.weight != before).any(1)
    assert moved[ids[1:]].all()


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────


def test_an_image_tokenizer_must_be_named(llama, tmp_path):
    with pytest.raises(ConfigError, match=r"is a text-only model \(llama\); name the image tok"):
        import_model(llama("Llama 2"), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


LLAMA_3_ROPE = {"rope_type": "llama3", "factor": 8.0, "rope_theta": 5e5}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_parameters": LLAMA_3_ROPE}, "The config of .*hf lacks 'low_freq_factor'"),
        ({"rope_parameters": None, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
         r"RoPE of type 'dynamic' \(supported: 'default', 'linear' and 'llama3'\)"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "RoPE of type 'yarn'"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}},
         "RoPE of each kind of layer"),
        ({"partial_rotary_factor": 0.5}, r"partial_rotary_factor = 0.5 \(supported: 1.0\)"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}},
         r"RoPE of a part of a head, 0.25"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0.5}}, "factor must be at least 1"),
        ({"attention_bias": True}, "missing model.layers.0.self_attn.q_proj.bias"),
        ({"quantization_config": {"bits": 4}}, "quantization_config .supported: floating-point"),
        ({"mlp_bias": True, "hidden_act": "gelu"}, "hidden_act = 'gelu' .*; mlp_bias = True"),
        ({"head_dim": 32}, "q_proj.weight .64x64 instead of 128x64"),
        ({"head_dim": "wide"}, "The config of .*attention.d_head must be of type int, got 'wide'"),
        ({"model_type": "mistral", "sliding_window": 32},
         r"sliding_window = 32 \(supported: full attention; max_position_embeddings = 32 or less"),
        ({"model_type": "mistral", "max_position_embeddings": 8192},
         "sliding_window = 4096"),  # which a missing key means
        ({"model_type": "qwen2", "sliding_window": 32, "use_sliding_window": True},
         "sliding_window = 32"),
        ({"model_type": "gpt2"},
         "of type 'gpt2'; chameleon, llama, mistral, qwen2 and qwen3 can be imported"),
        ({"num_hidden_layers": 3}, "do not fit their config: missing model.layers.2"),
        ({"num_hidden_layers": 1}, "do not fit their config: unexpected model.layers.1"),
        ({"intermediate_size": 32}, "gate_proj.weight .96x64 instead of 32x64"),
        ({"max_position_embeddings": None}, "The config of .*hf lacks 'max_position_embeddings'"),
        ({"num_attention_heads": None}, "The config of .*hf lacks 'num_attention_heads'"),
        ({"bos_token_id": None}, "names no bos_token_id below 319, with which documents begin"),
        ({"eos_token_id": None}, "names no eos_token_id below 319, with which documents end"),
        ({"bos_token_id": 319}, "names no bos_token_id below 319"),
        ({"eos_token_id": [-1]}, "names no eos_token_id below 319"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(llama, image_tokenizer, tmp_path, changes, message):
    folder = copy_of(llama("Llama 2"), tmp_path / "hf", **changes)
    (folder / "generation_config.json").unlink()
    refused(folder, image_tokenizer, tmp_path, message)


def refused(folder: Path, image_tokenizer: Path, tmp_path: Path, message: str) -> None:
    with pytest.raises(PardalisError, match=message) as caught:
        import_model(folder, tmp_path / "bundle", image_tokenizer=image_tokenizer)
    assert type(caught.value) is BundleError
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", None, "tokenizer.json is missing; save the tokenizer with"),
        (
            "tokenizer.json",
            "{}",
            "The tokenizer of .* is not a tokenizer that can be read .*'model'",
        ),
        ("tokenizer.json", b"\xff", "tokenizer.json is not a text file"),
        ("generation_config.json", "[1]", "generation_config.json holds no JSON object"),
        ("generation_config.json", "{", "generation_config.json is not JSON"),
        ("config.json", "{", "config.json is not JSON"),
        ("model.safetensors", None, "has neither model.safetensors nor"),
        ("model.safetensors", "x", "cannot be read"),
    ],
)
def test_broken_files_are_named(llama, image_tokenizer, tmp_path, file, content, message):
    folder = copy_of(llama("Llama 2"), tmp_path / "hf")
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(folder, image_tokenizer, tmp_path, message)


def test_mistrals_own_parameters_beside_them_do_not_matter(llama, image_tokenizer, tmp_path):
    """Its folders hold another layout of it too, with a params.json."""
    folder = copy_of(llama("Mistral"), tmp_path / "hf")
    (folder / "params.json").write_text('{"dim": 64, "n_layers": 2}')
    (folder / "consolidated.safetensors").touch()
    import_model(folder, tmp_path / "bundle", image_tokenizer=image_tokenizer)
    assert pardalis.load(tmp_path / "bundle").model.config.attention.n_kv_heads == 1


def test_an_image_tokenizer_must_be_whole(llama, image_tokenizer, tmp_path):
    folder = tmp_path / "vq"
    shutil.copytree(image_tokenizer, folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["quantize.embedding.weight"]
    save_file(tensors, folder / "model.safetensors")
    refused(
        llama("Llama 2"),
        folder,
        tmp_path,
        "`image_tokenizer` do not fit .* missing quantize.embedding",
    )


def test_an_untied_model_needs_its_head(llama, image_tokenizer, tmp_path):
    folder = copy_of(
        llama("SmolLM2, bf16, tied, shards"), tmp_path / "hf", tie_word_embeddings=False
    )
    refused(folder, image_tokenizer, tmp_path, "missing lm_head.weight")
