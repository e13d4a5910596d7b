"""``import``, ``export`` and ``tokenizer import-image``, as a user runs them."""

import json
from pathlib import Path

import PIL.Image
import pytest
import torch
from gguf_files import write_gguf_file
from safetensors.torch import load_file, save_file
from shapes import decoder_config

import pardalis
from pardalis.bundle import Bundle
from pardalis.cli.main import main
from pardalis.codec import Codec
from pardalis.interop.tensors import lazy
from pardalis.interop.vqgan import write_vqgan
from pardalis.model import Decoder, initialise
from pardalis.vq import ImageTokenizer, ImageTokenizerConfig


@pytest.fixture(scope="module")
def bundle(text_tokenizer, tmp_path_factory) -> Path:
    """A bundle that the foreign layouts can hold."""
    images = ImageTokenizerConfig(
        resolution=8, channels=32, channel_multipliers=(1,), n_res_blocks=1, z_channels=4,
        code_width=4, n_codes=1024,
    )  # fmt: skip
    codec = Codec.of(text_tokenizer, ImageTokenizer(images).eval())
    config = decoder_config(
        vocab_size=codec.vocabulary.size, context=160, d_model=16, n_layers=1, n_heads=2,
        n_kv_heads=2, d_ff=16, qk_norm_groups=1,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("own") / "bundle"
    Bundle(initialise(Decoder(config), 0).eval(), codec, {"recipe": "own"}).save(folder)
    return folder


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Return a function that runs a command in an empty folder and returns what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, code: int = 0) -> str:
        assert main(list(map(str, arguments))) == code
        shown = capsys.readouterr()
        assert (shown.out == "") == (code != 0)
        return shown.err if code else shown.out

    return run


@pytest.fixture
def bare(bundle, run) -> Path:
    """A Hugging Face folder as the published ones are: without an image decoder."""
    run("export", bundle, "-o", "bare", "--to", "hf")
    (Path("bare") / "pardalis.safetensors").unlink()
    return Path("bare")


def test_round_trip(bundle, run):
    assert run("export", bundle, "-o", "hf", "--to", "hf") == "hf\n"
    n_ids = pardalis.load(bundle).codec.vocabulary.size
    assert run("import", "hf", "-o", "bundles/own") == (
        "bundles/own\n"
        "  imported from  transformers\n"
        f"  parameters     {n_ids * 2 * 16 + 1872:,}\n"
        "  ids            unchanged\n"
        "  images         1,024 codes, preprocessing of chameleon\n"
    )
    ours = [run("generate", folder, "An owl", "--mode", "text", "--max-new-tokens", 9)
            for folder in (bundle, "bundles/own")]  # fmt: skip
    assert ours[0] == ours[1]
    run("generate", "bundles/own", "owl", "--mode", "image", "--out", "owl.png")
    with PIL.Image.open("owl.png") as image:
        assert image.size == (8, 8)


def test_without_an_image_decoder_images_can_only_be_read(bundle, bare, run):
    shown = run("import", bare, "-o", "reads")
    assert "read only: the source has no image decoder (--image-tokenizer adds one)" in shown
    PIL.Image.new("RGB", (9, 9), "red").save("red.png")
    run("generate", "reads", "red.png", "--mode", "text", "--max-new-tokens", 5)
    shown = run("generate", "reads", "owl", "--mode", "image", code=6)
    assert "has no decoder" in shown
    shown = run("import", bare, "-o", "generates", "--image-tokenizer", bundle)
    assert "read only" not in shown
    run("generate", "generates", "owl", "--mode", "image")


def test_the_original_image_tokenizer_completes_a_folder(bundle, bare, run):
    images = pardalis.load(bundle).codec.image_tokenizer
    tensors = {name: lazy(tensor.contiguous()) for name, tensor in images.state_dict().items()}
    write_vqgan(images.config, tensors, Path())
    assert run("tokenizer", "import-image", "vqgan.ckpt", "--config", "vqgan.yaml", "-o", "vq") == (
        "vq: 8 pixels, 8 x 8 codes of 1,024\n"
    )
    for option in ("vqgan.ckpt", "vq"):
        shown = json.loads(
            run("import", bare, "-o", f"with {option}", "--image-tokenizer", option, "--json")
        )
        assert shown["generates_images"]
        drawn = pardalis.load(f"with {option}").codec.image_tokenizer
        for name, tensor in images.state_dict().items():
            assert torch.equal(drawn.state_dict()[name], tensor)
    shown = json.loads(
        run("tokenizer", "import-image", "vqgan.ckpt", "--config", "vqgan.yaml", "-o", "vq2",
            "--json")
    )  # fmt: skip
    assert shown["image_tokenizer"] == "vq2"
    assert shown["config"]["n_codes"] == 1024


def test_json(bundle, run):
    shown = json.loads(run("export", bundle, "-o", "hf", "--to", "hf", "--json"))
    assert shown == {"folder": "hf", "layout": "hf"}
    shown = json.loads(run("import", "hf", "-o", "b", "--json", "--dtype", "bfloat16"))
    assert shown.pop("parameters") > 0
    assert shown == {
        "bundle": "b",
        "imported_from": "transformers",
        "image_codes": 1024,
        "ids_moved": False,
        "generates_images": True,
        "preprocessing": "chameleon",
    }
    assert pardalis.load("b").model.head.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("import hf -o hf/b", 2, "hf/b is, holds or lies in the source hf; choose another."),
        ("import hf -o full", 2, "full exists and is not empty; choose another folder, or"),
        ("import hf -o b --new-rows mean", 2, "--new-rows does not apply: a Chameleon has image"),
        ("import hf -o b --seed 1", 2, "--new-rows does not apply"),
        ("import hf -o b --image-tokenizer x", 4, "No image tokenizer at x; give a bundle, a"),
        ("import full -o b", 4, "full holds no checkpoint that can be imported: neither"),
        ("import {bundle} -o b", 4, "is a bundle already and needs no import."),
        ("export {bundle} -o full --to meta", 2, "full exists and is not empty; choose another"),
        ("export {bundle} -o b --to hf --ranks 2", 2, "--ranks does not apply: only the original"),
        (
            "export full -o b --to hf",
            4,
            "full is no bundle: bundle.json is missing; give the folder",
        ),
    ],
)
def test_errors_are_one_line_with_an_exit_code(arguments, code, message, bundle, run):
    run("export", bundle, "-o", "hf", "--to", "hf")
    Path("full").mkdir()
    (Path("full") / "thesis.tex").touch()
    shown = run(*(part.format(bundle=bundle) for part in arguments.split()), code=code)
    last = shown.splitlines()[-1]
    assert last.startswith("pardalis: ")
    assert message in last
    assert sorted(path.name for path in Path().iterdir()) == ["full", "hf"]


def test_gguf_files_come_in_and_go_out(bundle, run):
    write_gguf_file(Path("small.gguf"), kind="Q8_0", tied=True)
    shown = json.loads(
        run("import", "small.gguf", "-o", "b", "--image-tokenizer", bundle, "--json")
    )
    assert shown["imported_from"] == "llama"
    shown = json.loads(run("export", "b", "-o", "back.gguf", "--to", "gguf", "--json"))
    assert shown == {"file": "back.gguf", "layout": "gguf"}
    assert (
        run("export", "b", "-o", "half.gguf", "--to", "gguf", "--quantize", "f16") == "half.gguf\n"
    )
    sizes = [Path(f"{name}.gguf").stat().st_size for name in ("small", "half", "back")]
    assert sizes == sorted(sizes)
    run("import", "back.gguf", "-o", "again", "--image-tokenizer", "b")
    one, two = (pardalis.load(folder).model.state_dict() for folder in ("b", "again"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("import small.gguf -o b", 2, "is a text-only model (llama); name the image tokenizer to "
         "add to it with --image-tokenizer."),
        ("import none.gguf -o b", 4, "No folder and no GGUF file at none.gguf; give the folder or"),
        ("export {bundle} -o small.gguf --to gguf", 2, "small.gguf exists; choose another name"),
        ("export {bundle} -o b --to hf --quantize f16", 2, "--quantize does not apply: only GGUF"),
        ("export {bundle} -o b --to gguf", 4, "GGUF cannot hold this model: model.attention.qk_"),
    ],
)  # fmt: skip
def test_errors_of_gguf_files(arguments, code, message, bundle, run):
    write_gguf_file(Path("small.gguf"))
    shown = run(*(part.format(bundle=bundle) for part in arguments.split()), code=code)
    assert message in shown.splitlines()[-1]
    assert [path.name for path in Path().iterdir()] == ["small.gguf"]


def test_an_imported_bundle_is_shown_in_a_few_lines(bundle, run):
    """Without the list of its remapped token ids."""
    run("export", bundle, "-o", "hf", "--to", "hf")
    scatter(Path("hf"))
    assert json.loads(run("import", "hf", "-o", "b", "--json"))["ids_moved"]
    shown = run("show", "bundle", "b")
    assert "  imported from transformers\n" in shown
    assert "  images        8 pixels, 8 x 8 codes\n" in shown
    assert "                ids differ from those of the imported files\n" in shown
    assert len(shown) < 500
    shown = run("show", "bundle", "b", "--json")
    assert json.loads(shown)["vocabulary"]["ids"] == "moved"
    assert "foreign_ids" not in shown
    assert "ids differ" not in run("show", "bundle", bundle)
    ours = [run("generate", folder, "An owl", "--mode", "text", "--max-new-tokens", 9)
            for folder in (bundle, "b")]  # fmt: skip
    assert ours[0] == ours[1]


def scatter(folder: Path) -> None:
    """Swap two text token ids with two image token ids everywhere in a folder."""
    values = json.loads((folder / "config.json").read_text())
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    n = values["vocab_size"]
    place = list(range(n))
    for one, other in ((10, n - 3), (20, n - 9)):
        place[one], place[other] = other, one
    for names in (values["vocabulary_map"], tokenizer["model"]["vocab"]):
        names |= {name: place[i] for name, i in names.items()}
    for token in tokenizer["added_tokens"]:
        token["id"] = place[token["id"]]
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    weights = load_file(folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = weights[name][place].contiguous()
    save_file(weights, folder / "model.safetensors")
