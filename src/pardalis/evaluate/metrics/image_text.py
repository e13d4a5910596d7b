"""Scores of an image and a text, and of an image alone, by nets that the user supplies.

A number is comparable only with numbers of the same net, so scores carry its name. CLIPScore is
defined for CLIP ViT-B/32, and is called so with no other net; for machines without its weights,
:mod:`~pardalis.evaluate.metrics.pair_net` trains a small net of its own.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import PIL.Image
import torch
from jaxtyping import Float
from torch import Tensor

from pardalis.feature_nets.clip import ClipNet
from pardalis.feature_nets.files import fitted, read_tensors

_WEIGHT = 2.5
_LAYER = re.compile(r"layers\.\d{1,3}\.weight")
_PREFIX = "A photo depicts "


@runtime_checkable
class ImageTextNet(Protocol):
    """Vectors of length 1 of images and of texts, in one space."""

    def images(self, images: Sequence[PIL.Image.Image]) -> Float[Tensor, "N D"]: ...

    def texts(self, texts: Sequence[str]) -> Float[Tensor, "N D"]: ...


def image_text_cosine(
    net: ImageTextNet, images: Sequence[PIL.Image.Image], texts: Sequence[str]
) -> Float[Tensor, " N"]:
    """Return the cosine of each image and the text at the same index, from -1 to 1.

    Raises:
        ValueError: there are not as many images as texts.
    """
    if len(images) != len(texts):
        raise ValueError(f"{len(images)} images cannot be compared with {len(texts)} texts")
    return (net.images(images) * net.texts(texts)).sum(1)


def clip_score(
    net: ClipNet, images: Sequence[PIL.Image.Image], texts: Sequence[str]
) -> Float[Tensor, " N"]:
    """Return CLIPScore of each image and text: ``2.5 max(cos, 0)`` (arXiv 2104.08718, section 3).

    As there, the text has the prefix "A photo depicts" and no reference is needed.

    Raises:
        ValueError: there are not as many images as texts.
    """
    prefixed = [_PREFIX + text for text in texts]
    return _WEIGHT * image_text_cosine(net, images, prefixed).clamp(min=0)


def load_aesthetic(
    net: ClipNet, path: Path
) -> Callable[[Sequence[PIL.Image.Image]], Float[Tensor, " N"]]:
    """Return what scores images by linear maps of a CLIP's vectors, such as LAION's aesthetic ones.

    Args:
        path: a file of the tensors ``weight`` (1, width) and ``bias`` (1), as LAION's
            ``sa_0_4_vit_l_14_linear.pth``; or of several maps that follow each other, with nothing
            between them: ``layers.0.weight`` and so on, as ``sac+logos+ava1-l14-linearMSE.pth``.
            Both belong to CLIP ViT-L/14.

    Raises:
        BundleError: the file cannot be read, or was fitted to vectors of another width.
    """
    found = read_tensors(path)
    names = sorted((n for n in found if _LAYER.fullmatch(n)), key=lambda n: int(n.split(".")[1]))
    names = names or ["weight"]
    needed: dict[str, torch.Size] = {}
    width = net.width
    for name in names:
        n_outputs = 1 if name == names[-1] else len(found[name])
        needed[name] = torch.Size((n_outputs, width))
        needed[name.replace("weight", "bias")] = torch.Size((n_outputs,))
        width = n_outputs
    head = fitted(found, needed, path)

    def score(images: Sequence[PIL.Image.Image]) -> Float[Tensor, " N"]:
        x = net.images(images)
        for name in names:
            x = x @ head[name].T + head[name.replace("weight", "bias")]
        return x[:, 0]

    return score
