"""Scores of generated images one by one, each by a net, which is given many images at once.

    image_text  cosine of the image and the text in a CLIP or a pair net
    aesthetic   how much people would like the image, by a head on the vectors of a CLIP
    nsfw        how unsafe for work the image is, from 0 to 1, by Yahoo's Open-NSFW

Another one is one more entry of :data:`IMAGE_SCORES`; a module that a command imports may add it::

    def load(nets: Nets) -> Judge:
        return Judge("brightness", lambda images, texts: torch.tensor([mean(i) for i in images]))

    IMAGE_SCORES["brightness"] = ImageScore(load)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import PIL.Image
import torch
from jaxtyping import Float
from torch import Tensor

from pardalis.config import fingerprint
from pardalis.digests import file_digest
from pardalis.errors import BundleError
from pardalis.evaluate.metrics.image_text import ImageTextNet, image_text_cosine, load_aesthetic
from pardalis.evaluate.metrics.pair_net import load_pair_net
from pardalis.feature_nets.clip import ClipNet, load_clip
from pardalis.feature_nets.nsfw import load_nsfw_scores
from pardalis.files import read_json


@dataclass(frozen=True, slots=True)
class Nets:
    """The files of nets that a task names."""

    net: Path | None = None  # folder of a CLIP or of a pair net
    head: Path | None = None  # file of an aesthetic head


@dataclass(frozen=True, slots=True)
class Judge:
    """A score that is ready.

    Attributes:
        name: of the score; says which net it is, since numbers of two nets do not compare.
        of: one number for each image and its text.
    """

    name: str
    of: Callable[[Sequence[PIL.Image.Image], Sequence[str]], Float[Tensor, " N"]]


@dataclass(frozen=True, slots=True)
class ImageScore:
    """How a score is loaded; see the errors of :func:`load_image_text_net`.

    Attributes:
        needs: fields of :class:`Nets` without which it cannot be loaded.
    """

    load: Callable[[Nets], Judge]
    needs: tuple[str, ...] = ()
    higher_is_better: bool = True


def load_image_text_net(folder: Path) -> tuple[str, ImageTextNet]:
    """Return the name of the scores of a net, and the net: a CLIP or a pair net.

    Raises:
        BundleError: the folder holds neither, or a file is damaged.
        ConfigError: a package with the weights of a net is missing.
    """
    try:
        header = read_json(folder / "config.json")
        weights = file_digest(folder / "model.safetensors").rpartition(":")[2][:8]
    except (OSError, ValueError) as error:
        raise BundleError(
            f"{folder} holds no config.json and model.safetensors that can be read ({error}); give "
            "the folder of a CLIP as the hub stores it, or of a pair net."
        ) from error
    if isinstance(header, dict) and header.get("format") == "pardalis-pair-net":
        return f"pair_net_{weights}", load_pair_net(folder)
    return f"clip_{weights}", load_clip(folder)


def _image_text(nets: Nets) -> Judge:
    assert nets.net is not None
    name, net = load_image_text_net(nets.net)
    return Judge(name, lambda images, texts: image_text_cosine(net, images, texts))


def _aesthetic(nets: Nets) -> Judge:
    assert nets.net is not None and nets.head is not None
    name, net = load_image_text_net(nets.net)
    if not isinstance(net, ClipNet):
        raise BundleError(
            f"{nets.net} is a pair net, but an aesthetic head belongs to a CLIP; give its folder."
        )
    score = load_aesthetic(net, nets.head)
    both = fingerprint(name, file_digest(nets.head))[:8]
    return Judge(f"aesthetic_{both}", lambda images, texts: score(images))


def _nsfw(nets: Nets) -> Judge:
    score = load_nsfw_scores()
    return Judge("nsfw", lambda images, texts: torch.from_numpy(score(images)))


IMAGE_SCORES: dict[str, ImageScore] = {
    "image_text": ImageScore(_image_text, ("net",)),
    "aesthetic": ImageScore(_aesthetic, ("net", "head")),
    "nsfw": ImageScore(_nsfw, higher_is_better=False),
}
