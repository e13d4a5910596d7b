"""Hugging Face's Chameleon folders in and out: nothing is lost, and both libraries agree."""

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from random_weights import randomised
from safetensors.torch import load_file, save_file
from shapes import changed
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    ChameleonProcessor,
    GenerationConfig,
)

import pardalis
from pardalis.bundle import Bundle
from pardalis.cli.main import main
from pardalis.codec import Codec
from pardalis.config import to_toml
from pardalis.documents import Document, Image, Text
from pardalis.errors import BundleError
from pardalis.inference import Request, SamplingConfig, generate_ids
from pardalis.interop import export_model, huggingface, import_model, open_image_tokenizer
from pardalis.interop.vocabulary import from_foreign, to_foreign
from pardalis.model import Decoder, InitConfig, initialise
from pardalis.pipeline import load_recipe
from pardalis.tokens import Limits, Rule
from pardalis.vq import ImageTokenizer

BF16, FP16 = torch.bfloat16, torch.float16

# The published models: the 7B has the norms before each branch and one rank, the 34B has them on
# the output, grouped heads and several ranks.
KINDS = {
    "7B": {},
    "34B, shards": {"swin_norm": True, "num_key_value_heads": 4, "ranks": 2, "shard": "900KB"},
    "all heads differ": {"ranks": 0, "num_key_value_heads": 1},
    "scattered ids": {"scattered": True, "num_key_value_heads": 8},
    "bfloat16": {"dtype": BF16, "scattered": True, "ranks": 2},
    "float16": {"dtype": FP16},
    "RoPE of Llama 3.1": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
}
each_kind = pytest.mark.parametrize("kind", KINDS)
GROUPS = {"34B, shards": 2, "all heads differ": None, "bfloat16": 2}

# Measured: 0 in logits that reach 6, on one core of an AMD EPYC. That they are sums in the same
# order is no promise of either library; the bound is that of the decoders alone.
LOGITS = 1e-5


@pytest.fixture(scope="session")
def image() -> PIL.Image.Image:
    """A wide image with soft changes of colour."""
    small = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return PIL.Image.fromarray(small).resize((70, 40), PIL.Image.Resampling.BICUBIC)


@pytest.fixture(scope="session")
def exported(own_bundle, tmp_path_factory) -> Path:
    """Our own model as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("exported") / "hf"
    export_model(own_bundle, folder, "hf")
    return folder


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Return all weights of a folder, whatever its shards."""
    tensors = {}
    for path in folder.glob("model*.safetensors"):
        tensors.update(load_file(path))
    return tensors


def assert_bits_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        bits = [t.contiguous().view(torch.uint8) for t in (found[name], tensor)]
        assert torch.equal(*bits), name


def their_model(folder: Path) -> ChameleonForConditionalGeneration:
    model, loading = ChameleonForConditionalGeneration.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(loading.values()), loading
    return model.eval()


@torch.no_grad()
def bare_logits(model: ChameleonForConditionalGeneration, **inputs) -> torch.Tensor:
    """Return logits before its own ``forward`` masks image tokens."""
    return model.lm_head(model.model(**inputs).last_hidden_state)


def ids_in_order(n_ids: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(n_ids, (2, 40), generator=torch.Generator().manual_seed(seed))


# ── there and back ───────────────────────────────────────────────────────────────────────────────


@each_kind
def test_round_trip(kind, chameleon_folder, imported_bundle, tmp_path):
    """No bit of a tensor changes, and their class reads the same config."""
    source, bundle = chameleon_folder(**KINDS[kind]), imported_bundle(**KINDS[kind])
    export_model(bundle, tmp_path / "hf", "hf")
    assert (len(list(source.glob("model-*"))) > 1) == ("shards" in kind)
    assert_bits_equal(tensors_of(tmp_path / "hf"), tensors_of(source))
    ours, theirs = (
        ChameleonConfig.from_pretrained(folder).to_dict() for folder in (tmp_path / "hf", source)
    )
    for values in (ours, theirs):
        values.pop("transformers_version")
        if kind == "all heads differ":  # ours says 1, theirs 0: nothing there reads it
            values.pop("model_parallel_size")
        values["vq_config"]["attn_resolutions"] = values["vq_config"]["attn_resolutions"] or None
    assert ours == theirs
    model = pardalis.load(bundle).model
    assert model.config.attention.qk_norm.groups == GROUPS.get(kind, 1)
    assert model.head.weight.dtype == KINDS[kind].get("dtype", torch.float32)


def test_our_shards_are_theirs(imported_bundle, chameleon_folder, tmp_path, monkeypatch):
    small = functools.partial(huggingface.shards_of, shard_bytes=1_500_000)
    monkeypatch.setattr(huggingface, "shards_of", small)
    export_model(imported_bundle(), tmp_path / "hf", "hf")
    shards = sorted(path.name for path in (tmp_path / "hf").glob("model*.safetensors"))
    assert shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    assert len(shards) > 2
    assert_bits_equal(tensors_of(tmp_path / "hf"), tensors_of(chameleon_folder()))
    index = json.loads((tmp_path / "hf/model.safetensors.index.json").read_text())
    n_bytes = sum(t.nbytes for t in tensors_of(chameleon_folder()).values())
    assert index["metadata"]["total_size"] == n_bytes
    their_model(tmp_path / "hf")
    import_model(tmp_path / "hf", tmp_path / "bundle")
    assert_bits_equal(
        load_file(tmp_path / "bundle/model.safetensors"),
        load_file(imported_bundle() / "model.safetensors"),
    )


def test_what_a_config_leaves_out_has_the_value_of_their_class(chameleon_folder, tmp_path):
    source = tmp_path / "hf"
    source.mkdir()
    for path in chameleon_folder(**KINDS["scattered ids"]).iterdir():
        (source / path.name).symlink_to(path)
    values, defaults = json.loads((source / "config.json").read_text()), ChameleonConfig().to_dict()
    kept = {n: v for n, v in values.items() if v != defaults.get(n)} | {"rms_norm_eps": None}
    (source / "config.json").unlink()
    (source / "config.json").write_text(json.dumps({"model_type": "chameleon", **kept}))
    left_out = {"initializer_range", "swin_norm", "hidden_act", "attention_bias", "mlp_bias"}
    assert left_out <= values.keys() - kept.keys()
    import_model(source, tmp_path / "bundle")
    config = pardalis.load(tmp_path / "bundle").model.config
    assert (config.norm.eps, config.init.std, config.residual.placement) == (1e-5, 0.02, "pre")


@pytest.mark.parametrize("dtype", [BF16, torch.float32])
def test_a_dtype_can_be_chosen_both_ways(dtype, imported_bundle, chameleon_folder, tmp_path):
    source = chameleon_folder(dtype=FP16)
    import_model(source, tmp_path / "bundle", dtype=dtype)
    decoder = load_file(tmp_path / "bundle/model.safetensors")
    images = load_file(tmp_path / "bundle/image_tokenizer/model.safetensors")
    assert {t.dtype for t in decoder.values()} == {dtype}
    assert {t.dtype for t in images.values()} == {FP16}
    export_model(imported_bundle(dtype=FP16), tmp_path / "hf", "hf", dtype=dtype)
    exported = {name: t.to(dtype) for name, t in tensors_of(source).items()}
    assert_bits_equal(tensors_of(tmp_path / "hf"), exported)
    assert ChameleonConfig.from_pretrained(tmp_path / "hf").dtype == dtype


def test_the_image_decoder_is_exported(own_bundle, exported, tmp_path):
    """Their layout has no place for it, so it is a separate file that they ignore."""
    extra = load_file(exported / "pardalis.safetensors")
    assert extra
    assert all(name.startswith("image_tokenizer.decoder.") for name in extra)
    import_model(exported, tmp_path / "bundle")
    before, after = pardalis.load(own_bundle), pardalis.load(tmp_path / "bundle")
    assert_bits_equal(
        dict(after.codec.image_tokenizer.state_dict()),
        dict(before.codec.image_tokenizer.state_dict()),
    )
    assert after.codec.image_tokenizer.config == before.codec.image_tokenizer.config


@pytest.mark.parametrize("left", ["all", "codebook", "nothing"])
def test_an_image_tokenizer_takes_the_place_of_the_folders(left, own_bundle, tmp_path):
    """Which has no decoder, is rounded, prepares images in another way, or is not there."""
    bare = tmp_path / "hf"
    export_model(own_bundle, bare, "hf", dtype=BF16)
    (bare / "pardalis.safetensors").unlink()
    values = json.loads((bare / "preprocessor_config.json").read_text())
    values["rescale_factor"] = 0.0078
    (bare / "preprocessor_config.json").write_text(json.dumps(values))
    if left == "all":
        import_model(bare, tmp_path / "reads")
        own = ImageTokenizer.load_config(tmp_path / "reads/image_tokenizer")
        assert (own.has_decoder, own.preprocessing) == (False, "transformers")
    else:
        values["image_mean"] = [0.5, 0.5, 0.5]
        (bare / "preprocessor_config.json").write_text(json.dumps(values))
        kept = "model.vqmodel.quantize.embedding.weight" if left == "codebook" else ""
        tensors = {n: t for n, t in load_file(bare / "model.safetensors").items()
                   if not n.startswith("model.vqmodel.") or n == kept}  # fmt: skip
        save_file(tensors, bare / "model.safetensors")
        with pytest.raises(BundleError, match=r"image_processor\.image_mean"):
            import_model(bare, tmp_path / "reads")
    import_model(bare, tmp_path / "draws", image_tokenizer=own_bundle)
    name = "image_tokenizer/model.safetensors"
    assert_bits_equal(load_file(tmp_path / "draws" / name), load_file(own_bundle / name))
    found, expected = (
        ImageTokenizer.load_config(folder / "image_tokenizer")
        for folder in (tmp_path / "draws", own_bundle)
    )
    assert found == expected
    assert found.preprocessing == "chameleon"
    assert pardalis.load(tmp_path / "draws").model.head.weight.dtype == BF16


def test_licences_are_copied(chameleon_folder, tmp_path):
    source = tmp_path / "hf"
    source.mkdir()
    for path in chameleon_folder().iterdir():
        (source / path.name).symlink_to(path)
    (source / "LICENSE.txt").write_text("Not for dogs.\n")
    (source / "LICENSES").mkdir()  # of something else
    import_model(source, tmp_path / "bundle")
    assert "Not for dogs." in pardalis.load(tmp_path / "bundle").licences
    export_model(tmp_path / "bundle", tmp_path / "out", "hf")
    assert "Not for dogs." in (tmp_path / "out/LICENCES.md").read_text()
    import_model(tmp_path / "out", tmp_path / "again")
    assert "Not for dogs." in pardalis.load(tmp_path / "again").licences


# ── a model of ours, there ───────────────────────────────────────────────────────────────────────


def test_our_model_loads_there_and_gives_the_same_logits(own_bundle, exported, compare):
    bundle, theirs = pardalis.load(own_bundle), their_model(exported)
    ids = ids_in_order(bundle.codec.vocabulary.size)
    with torch.no_grad():
        ours = bundle.model(ids)
    compare("exported model", "logits", ours, bare_logits(theirs, input_ids=ids), atol=LOGITS)


@pytest.fixture(scope="module")
def quickstart_run(text_tokenizer, tmp_path_factory) -> Path:
    """A run with a bundle of the quickstart's shape, random."""
    recipe = load_recipe("quickstart")
    images = ImageTokenizer(recipe.image_tokenizer_run.model).eval()
    codec = Codec.of(text_tokenizer, randomised(images))
    shape = dataclasses.replace(recipe.model_run.model, init=InitConfig(std=0.1))
    model = Decoder(shape.sized(codec.vocabulary.size, context=recipe.prepare.row_tokens))
    folder = tmp_path_factory.mktemp("quickstart")
    (folder / "recipe.toml").write_text(to_toml(recipe))
    Bundle(initialise(model, 0).eval(), codec, {"recipe": "quickstart"}).save(folder / "bundle")
    return folder


def test_a_run_stands_for_its_image_tokenizer(quickstart_run):
    config, tensors = open_image_tokenizer(quickstart_run)
    expected, _ = open_image_tokenizer(quickstart_run / "bundle" / "image_tokenizer")
    assert config == expected
    assert tensors.keys() == ImageTokenizer(config).state_dict().keys()


def test_the_quickstarts_model_loads_there(quickstart_run, image, compare, tmp_path, caplog):
    """Its decoder gives the same logits; its image tokenizer has no place there, and stays ours."""
    main(["export", str(quickstart_run), "-o", str(tmp_path / "hf"), "--to", "hf"])
    assert (
        "cannot hold the image tokenizer: image_tokenizer.patch_size is 4 (needed: 1); image_"
        in (caplog.text)
    )
    bundle = pardalis.load(quickstart_run)
    theirs, loading = ChameleonForConditionalGeneration.from_pretrained(
        tmp_path / "hf", output_loading_info=True
    )
    assert all(name.startswith("model.vqmodel.") for name in loading.pop("missing_keys"))
    assert not any(loading.values())
    document = Document((Text("An owl: "), Image(image), Text(" and a fox.")))
    ids = torch.from_numpy(bundle.codec.encode(document).ids.astype(np.int64))[None]
    with torch.no_grad():
        ours = bundle.model(ids)
    logits = bare_logits(theirs.eval(), input_ids=ids)
    compare("exported quickstart", "logits", ours, logits, atol=LOGITS)
    their_ids = AutoTokenizer.from_pretrained(tmp_path / "hf")("An owl: ")["input_ids"]
    assert their_ids == ids[0, : len(their_ids)].tolist()
    with pytest.raises(OSError, match="preprocessor_config"):  # rather than a wrong encoder
        ChameleonProcessor.from_pretrained(tmp_path / "hf")
    import_model(tmp_path / "hf", tmp_path / "bundle")
    again = pardalis.load(tmp_path / "bundle")
    assert again.codec.encode(document).ids.tolist() == ids[0].tolist()
    with torch.no_grad():
        assert torch.equal(again.model(ids), ours)
    assert_bits_equal(
        dict(again.codec.image_tokenizer.state_dict()),
        dict(bundle.codec.image_tokenizer.state_dict()),
    )


@pytest.mark.parametrize("to", ["hf", "meta"])
def test_a_norm_of_the_embedding_goes_into_the_table(to, own_bundle, tmp_path, compare):
    """Their models have none: the rows that they look up are normalised before."""
    bundle = pardalis.load(own_bundle)
    model = Decoder(changed(bundle.model.config, embedding_norm=True))
    model.load_state_dict(bundle.model.state_dict())
    ids = ids_in_order(bundle.codec.vocabulary.size)
    with torch.no_grad():
        ours, without = model(ids), bundle.model(ids)
    assert not torch.allclose(ours, without, atol=0.1)
    Bundle(model, bundle.codec, made_by={}).save(tmp_path / "bundle")
    export_model(tmp_path / "bundle", tmp_path / "theirs", to)
    import_model(tmp_path / "theirs", tmp_path / "back")
    back = pardalis.load(tmp_path / "back").model
    assert not back.config.embedding.norm
    with torch.no_grad():
        compare("embedding norm", "logits", back(ids), ours, atol=LOGITS)


def test_our_model_round_trips(own_bundle, exported, tmp_path):
    import_model(exported, tmp_path / "bundle")
    before, after = pardalis.load(own_bundle), pardalis.load(tmp_path / "bundle")
    assert_bits_equal(dict(after.model.state_dict()), dict(before.model.state_dict()))
    assert after.model.config == before.model.config
    document = Document(
        (Text(" An <owl>\n"), Image(PIL.Image.new("RGB", (9, 8), "red")), Text("🦉"))
    )
    assert after.codec.encode(document) == before.codec.encode(document)
    assert "# Licences" in after.licences


def test_their_processor_gives_our_ids(own_bundle, exported, image, compare):
    bundle, theirs = pardalis.load(own_bundle), their_model(exported)
    processor = AutoProcessor.from_pretrained(exported)
    inputs = processor(images=[image], text="An owl: <image>, naïve 🦉", return_tensors="pt")
    document = Document(
        (Text("An owl: ", "user"), Image(image, role="user"), Text(", naïve 🦉", "user"))
    )
    ours = bundle.codec.encode_prompt(document)
    # The config has 2/255 for their pixels to be ours. What no config can say is that ours round
    # the longer side, and so may cut another pixel of images of other sizes than this.
    compare("exported model", "ids of a prompt", ours, with_codes(theirs, inputs))


def test_their_classes_find_every_value(own_bundle, exported):
    vocabulary = pardalis.load(own_bundle).codec.vocabulary
    config = ChameleonConfig.from_pretrained(exported)
    assert config.image_token_id == 7  # the id that no token of ours has
    assert (config.bos_token_id, config.pad_token_id, config.eos_token_id) == (0, 1, 2)
    assert config.model_parallel_size == 2
    assert config.swin_norm
    assert config.num_key_value_heads == 2
    assert config.rms_norm_eps == 1e-6
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 5000.0}
    assert config.max_position_embeddings == 96
    assert config.dtype == torch.float32
    assert not config.tie_word_embeddings
    vq = config.vq_config
    assert (vq.embed_dim, vq.num_embeddings, vq.latent_channels, vq.resolution) == (8, 64, 8, 8)
    assert (vq.base_channels, list(vq.channel_multiplier), vq.num_res_blocks) == (32, [1, 2], 1)
    assert not vq.attn_resolutions

    generation = GenerationConfig.from_pretrained(exported)
    assert (generation.bos_token_id, generation.pad_token_id) == (0, 1)
    assert generation.eos_token_id == [2, vocabulary.end_turn_id]

    processor = AutoProcessor.from_pretrained(exported)
    assert isinstance(processor, ChameleonProcessor)
    assert processor.image_seq_length == 16
    images = processor.image_processor
    assert images.size == {"shortest_edge": 8}
    assert images.crop_size == {"height": 8, "width": 8}
    assert images.rescale_factor == 2 / 255
    assert list(images.image_mean) == list(images.image_std) == [1, 1, 1]
    assert images.resample == PIL.Image.Resampling.LANCZOS

    tokenizer = processor.tokenizer
    assert tokenizer.padding_side == "left"
    assert tokenizer.model_max_length == 96
    assert (tokenizer.bos_token, tokenizer.bos_token_id) == ("<s>", 0)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<pad>", 1)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("</s>", 2)
    assert (tokenizer.unk_token, tokenizer.unk_token_id) == ("<unk>", 3)
    assert tokenizer.sep_token_id == vocabulary.end_turn_id
    assert tokenizer.image_token_id == 7
    assert tokenizer.boi_token_id == vocabulary.begin_image_id
    assert tokenizer.eoi_token_id == vocabulary.end_image_id
    assert len(tokenizer) == vocabulary.size


def test_what_they_save_again_is_what_they_read(exported, tmp_path):
    """Their own file of it differs from ours in no tensor, and lacks only what they do not know."""
    their_model(exported).save_pretrained(tmp_path)
    assert_bits_equal(tensors_of(exported), tensors_of(tmp_path))
    ours, theirs = (
        ChameleonConfig.from_pretrained(folder).to_dict() for folder in (exported, tmp_path)
    )
    for values in (ours, theirs):
        values.pop("transformers_version")
        values["vq_config"].pop("dtype")  # filled in from the whole model's on saving
    assert ours == theirs


# ── an imported model against itself there ───────────────────────────────────────────────────────


def with_codes(model: ChameleonForConditionalGeneration, inputs) -> list[int]:
    """Return the ids of one prompt there with their codes in place of the placeholders."""
    ids = inputs["input_ids"][0].clone()
    if "pixel_values" in inputs:
        with torch.no_grad():
            codes = model.get_image_tokens(inputs["pixel_values"])
        ids[ids == model.config.image_token_id] = codes.flatten().long()
    return ids.tolist()


PARITY = {name: KINDS[name] for name in KINDS if "float" not in name}


@pytest.mark.parametrize("kind", PARITY)
def test_an_interleaved_prompt(kind, chameleon_folder, imported_bundle, image, compare):
    """The same ids, codes among them, then the same logits, then the same completion."""
    folder, bundle = (
        chameleon_folder(**PARITY[kind]),
        pardalis.load(imported_bundle(**PARITY[kind])),
    )
    theirs, processor = their_model(folder), ChameleonProcessor.from_pretrained(folder)
    foreign, ours_of = to_foreign(bundle.codec.vocabulary), from_foreign(bundle.codec.vocabulary)
    inputs = processor(images=[image], text="An owl: <image>\nIs it a fox?", return_tensors="pt")
    document = Document(
        (Text("An owl: ", "user"), Image(image, role="user"), Text("\nIs it a fox?", "user"))
    )
    prompt = bundle.codec.encode_prompt(document)
    name = f"imported model, {kind}"
    compare(name, "ids of a prompt", [foreign[i] for i in prompt], with_codes(theirs, inputs))
    assert inputs["input_ids"].shape[1] == len(prompt)

    with torch.no_grad():
        ours = bundle.model(torch.tensor([prompt]))
    expected = bare_logits(theirs, **inputs)
    compare(name, "logits", ours[..., list(ours_of)], expected, atol=LOGITS)

    grammar = bundle.codec.grammar
    allowed = grammar.allowed_ids()[Rule.TEXT]
    suppressed = [foreign[i] for i in range(len(foreign)) if not allowed[i]]
    answer = theirs.generate(
        **inputs, max_new_tokens=30, do_sample=False, suppress_tokens=suppressed
    )[0, len(prompt) :]
    request = Request(
        prompt_ids=tuple(prompt),
        limits=Limits(max_new_tokens=40, max_images=0),
        text=SamplingConfig(temperature=0.0),
    )
    [ids] = generate_ids(bundle.model, grammar, [request])
    ids = ids[: len(answer)]
    compare(name, "answer", [foreign[i] for i in ids], answer.tolist())
    assert len(set(answer.tolist())) > 3


def test_a_loaded_bundle_saves_everything(imported_bundle, tmp_path, image):
    """What training further does: load, save, load."""
    before = pardalis.load(imported_bundle(scattered=True, num_key_value_heads=8))
    before.save(tmp_path / "bundle")
    after = pardalis.load(tmp_path / "bundle")
    assert after.codec.vocabulary == before.codec.vocabulary
    assert after.codec.fingerprint == before.codec.fingerprint
    assert after.made_by == before.made_by == {"imported_from": "transformers"}
    document = Document((Text("An owl 🦉"), Image(image)))
    ids = before.codec.encode(document).ids.tolist()
    assert after.codec.encode(document).ids.tolist() == ids
    with torch.no_grad():
        assert torch.equal(after.model(torch.tensor([ids])), before.model(torch.tensor([ids])))


def test_the_release_has_no_scaling_of_rope(imported_bundle, tmp_path):
    with pytest.raises(BundleError, match=r"model.position.scaling is set \(needed: none\)"):
        export_model(imported_bundle(**KINDS["RoPE of Llama 3.1"]), tmp_path / "meta", "meta")
