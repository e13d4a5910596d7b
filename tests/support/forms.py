"""Every documented form of a recipe, tiny, with what it is given.

python tests/support/forms.py GIVEN FORM ...    runs forms by two ranks
"""

import copy
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import forked
import numpy as np
import PIL.Image
import tomli_w
import torch
from random_weights import randomised
from shapes import decoder_config
from small_nets import write_clip

from pardalis.bundle import Bundle
from pardalis.codec import Codec
from pardalis.interop import (
    export_model,
    import_image_tokenizer,
    import_model,
    open_image_tokenizer,
)
from pardalis.interop.vqgan import write_vqgan
from pardalis.model import Decoder, initialise
from pardalis.pipeline import load_recipe, run
from pardalis.tokens import train_text_tokenizer
from pardalis.vq import ImageTokenizer, ImageTokenizerConfig

SIDE = 8
_SHAPE = {
    "resolution": SIDE, "patch_size": 1, "channels": 32, "channel_multipliers": [1, 2],
    "n_res_blocks": 1, "z_channels": 8, "code_width": 8, "n_codes": 32,
}  # fmt: skip
_SCHEDULE = {"kind": "warmup_cosine", "learning_rate": 1e-3, "warmup_steps": 1}

OWN_SOURCES = {
    "sources": [
        {
            "name": "captioned",
            "reader": "folder",
            "path": "captioned",
            "transforms": [{"kind": "pair_order", "order": "both"}],
        },
        {"name": "pages", "reader": "html", "path": "pages"},
        {"name": "chats", "reader": "jsonl", "path": "chats.jsonl"},
    ]
}
INFILLING = {
    "sources": [
        source | {"transforms": [*source.get("transforms", []), {"kind": "cm3", "form": form}]}
        for source, form in zip(
            OWN_SOURCES["sources"], ("metaseq", "paper", "metaseq"), strict=True
        )
    ]
}
HELD_OUT = {"heldout": [{"name": "unseen", "reader": "jsonl", "path": "unseen.jsonl"}]}
RETRIEVED = {"kind": "retrieval", "documents": 1, "document_tokens": 48}
TEXT_TOKENIZER = {"text_tokenizer": {"vocab_size": 300}}
IMAGE_TOKENIZER = {
    "image_tokenizer": _SHAPE,
    "image_tokenizer_training": {"batch_images": 4, "schedule": _SCHEDULE},
    "image_tokenizer_loop": {"steps": 2, "evaluate_every": 2},
}
MODEL = {
    "model": {
        "d_model": 32,
        "n_layers": 1,
        "attention": {"n_heads": 2},
        "feed_forward": {"width": 32},
    }
}
TRAINING = {
    "prepare": {"row_tokens": 96},
    "training": {"batch_rows": 2, "schedule": _SCHEDULE},
    "training_loop": {"steps": 2, "evaluate_every": 1},
    "sample": {"images": 1, "captions": 1, "pages": 1, "caption_tokens": 4, "gallery": 4},
}
NEW = {**TEXT_TOKENIZER, **IMAGE_TOKENIZER, **MODEL, **TRAINING}
CURRICULUM = {
    "curriculum": [
        {"from_step": 0, "weights": {"captioned": 1.0, "pages": 1.0}},
        {"from_step": 1, "weights": {"captioned": 1.0, "chats": 3.0}},
    ]
}
PADDED = {"image_fit": "pad"}
GIVEN_RUN = "tokenizers only"  # the form whose run gives another form its image tokenizer


def _corpus_sources(*names: str) -> dict[str, Any]:
    return {
        what: [
            {"name": f"{name}.{split}", "reader": "jsonl",
             "path": f"{{run}}/corpus/{name}.{split}.jsonl"}
            for name in names
        ]
        for what, split in (("sources", "train"), ("heldout", "heldout"))
    }  # fmt: skip


FORMS: dict[str, dict[str, Any]] = {
    "own sources": OWN_SOURCES | HELD_OUT | NEW,
    "nothing held out, padded, curriculum": OWN_SOURCES | NEW | PADDED | CURRICULUM,
    "infilling": INFILLING | HELD_OUT | NEW,
    "a given image tokenizer": OWN_SOURCES
    | HELD_OUT
    | {"image_tokenizer_from": "tokenizer"}
    | TEXT_TOKENIZER
    | MODEL
    | TRAINING,
    "the image tokenizer of a bundle, curriculum": OWN_SOURCES
    | {"image_tokenizer_from": "bundle"}
    | MODEL
    | TRAINING
    | CURRICULUM,
    "the image tokenizer of a run": OWN_SOURCES
    | {"image_tokenizer_from": f"runs/{GIVEN_RUN}"}
    | MODEL
    | TRAINING
    | PADDED,
    "the tokenizers of a bundle": OWN_SOURCES
    | HELD_OUT
    | {"tokenizers_from": "bundle"}
    | MODEL
    | TRAINING,
    "an imported image tokenizer": OWN_SOURCES
    | HELD_OUT
    | {"image_tokenizer_from": "imported-tokenizer"}
    | MODEL
    | TRAINING,
    "a bundle trained further": OWN_SOURCES
    | HELD_OUT
    | {"start_from": "bundle", "model": {"dropout": 0.1}}
    | TRAINING,
    "a bundle trained further, padded, curriculum": OWN_SOURCES
    | {"start_from": "bundle"}
    | TRAINING
    | PADDED
    | CURRICULUM,
    "a chain: the run of another recipe trained further": OWN_SOURCES
    | {"start_from": "own sources.toml"}
    | TRAINING,
    "an imported bundle that cannot generate images": OWN_SOURCES
    | {"start_from": "imported-bundle"}
    | TRAINING
    | {"sample": {"images": 0, "captions": 1, "pages": 0, "caption_tokens": 4}},
    "own sources, retrieved": {
        "sources": [
            source | ({"transforms": [RETRIEVED]} if source["name"] == "captioned" else {})
            for source in OWN_SOURCES["sources"]
        ],
        "heldout": [HELD_OUT["heldout"][0] | {"transforms": [RETRIEVED]}],
        "retrieval": {
            "sources": ["captioned", "pages"],
            "embedder": {"kind": "clip", "folder": "clip"},
            "rules": {"max_score": 1.0},
        },
    }
    | {"image_tokenizer_from": "tokenizer"}
    | MODEL
    | TRAINING,
    GIVEN_RUN: OWN_SOURCES | HELD_OUT | TEXT_TOKENIZER | IMAGE_TOKENIZER,
    "an image tokenizer only": OWN_SOURCES | IMAGE_TOKENIZER,
    "a text tokenizer only": OWN_SOURCES
    | TEXT_TOKENIZER
    | {"image_tokenizer_from": "tokenizer"},
    "the encyclopedia": _corpus_sources("pairs", "encyclopedia", "articles")
    | {"corpus": {"concepts": 12, "image_side": SIDE, "text_articles": 20, "lead_words": 30,
                  "heldout_percent": 40, "seed": 1}}
    | NEW,
    "the drawings": _corpus_sources("pairs")
    | {"corpus": {"kind": "drawings", "packages": "packages", "image_side": SIDE}}
    | {"image_tokenizer_from": "tokenizer"}
    | MODEL
    | TRAINING,
}  # fmt: skip

BY_TWO = (
    "own sources",
    "the image tokenizer of a bundle, curriculum",
    "a bundle trained further, padded, curriculum",
    "own sources, retrieved",
    GIVEN_RUN,
)


def write_given(folder: Path) -> Path:
    """Write the sources, tokenizers and bundles that forms name, and a recipe of each form."""
    _write_sources(folder)
    torch.set_num_threads(1)
    config = ImageTokenizerConfig(**_SHAPE | {"channel_multipliers": (1, 2)})
    tokenizer = randomised(ImageTokenizer(config))
    tokenizer.save(folder / "tokenizer")
    write_clip(folder / "clip")
    (folder / "vqgan").mkdir()
    codec = Codec.of(train_text_tokenizer(["an owl on an oak"], 260), tokenizer)
    shape = decoder_config(vocab_size=codec.vocabulary.size, context=112, **MODEL["model"])
    bundle = Bundle(initialise(Decoder(shape), 0), codec, {"recipe": "given"})
    bundle.save(folder / "bundle")
    export_model(folder / "bundle", folder / "foreign", "hf")
    import_model(folder / "foreign", folder / "imported-bundle")
    _, tensors = open_image_tokenizer(folder / "tokenizer")
    write_vqgan(config, tensors, folder / "vqgan")
    import_image_tokenizer(folder / "vqgan" / "vqgan.ckpt", folder / "imported-tokenizer")
    for name, tables in FORMS.items():
        (folder / f"{name}.toml").write_text(tomli_w.dumps({"name": name} | copy.deepcopy(tables)))
    return folder


def _write_sources(folder: Path) -> None:
    (folder / "captioned").mkdir(parents=True)
    (folder / "pages").mkdir()
    for n in range(6):
        pixels = np.random.default_rng(n).integers(0, 256, (20, 24, 3), np.uint8)
        PIL.Image.fromarray(pixels).save(folder / "captioned" / f"{n}.png")
        (folder / "captioned" / f"{n}.txt").write_text(f"noise number {n}")
        image = f'<img src="../captioned/{n}.png" alt="">'
        page = f"<body><p>Page {n}</p>{image}<p>This is noise.</p></body>"
        (folder / "pages" / f"{n}.html").write_text(page)
    chats, unseen = [], []
    for n in range(4):
        image = {"image": f"captioned/{n}.png"}
        chats.append(
            [
                {"text": "Be brief.", "role": "system"},
                {"text": "What is this?", "role": "user"},
                image | {"role": "user"},
                {"text": f"Noise {n}.", "role": "assistant"},
            ]
        )
        pixels = np.random.default_rng(90 + n).integers(0, 256, (20, 24, 3), np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"unseen-{n}.png")
        unseen.append([{"text": f"never seen {n}"}, {"image": f"unseen-{n}.png"}])
    for name, documents in (("chats", chats), ("unseen", unseen)):
        lines = (json.dumps({"name": f"{n}", "segments": s}) for n, s in enumerate(documents))
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def run_form(given: Path, name: str, folder: Path) -> None:
    """Run all stages of a form, as one rank of as many as there are."""
    torch.set_num_threads(1)
    run(load_recipe(given / f"{name}.toml"), folder, with_parents=True)


def main(given: Path, names: list[str]) -> int:
    codes = []
    for name in names:
        folder = given / "by-two" / name
        codes += forked.together(partial(run_form, given, name, folder), 2, folder / "said")
    return max(codes)


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), sys.argv[2:]))
