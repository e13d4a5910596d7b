"""A small net that says how well an image and a text fit, trained on the pairs of a corpus.

Frozen EfficientNet-lite0 and all-MiniLM-L6-v2 give features; two perceptrons map them into one
space, trained as CLIP is (arXiv 2103.00020, figure 3). Its cosine compares models on the corpus
that it learnt from. It is not CLIPScore, and means little on other images: name it "pair net" and
the digest of its weights wherever a number of it stands.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import PIL.Image
import torch
from jaxtyping import Bool, Float
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from pardalis import config as configs
from pardalis import files, seeds
from pardalis.config import check_above, check_at_least, check_fractions
from pardalis.data.source import read_part
from pardalis.data.split import WHOLE, Part
from pardalis.documents import Rejection, open_image
from pardalis.errors import BundleError, ConfigError, DataError
from pardalis.evaluate.features import ImageFeatures
from pardalis.feature_nets.files import fitted, read_tensors
from pardalis.feature_nets.sentences import SentenceNet, load_sentence_net
from pardalis.progress import bar

_FORMAT, _VERSION = "pardalis-pair-net", 1
_CONFIG_FILE, _WEIGHTS_FILE = "config.json", "model.safetensors"
_AT_ONCE = 256  # images that are decoded
_MOST_SCALE = 100.0
_SAME = 0.999  # cosine of texts from which on they are the same


@dataclass(frozen=True, kw_only=True, slots=True)
class PairNetConfig:
    """The shape of a pair net, and how it is trained."""

    width: int = 128  # of the common space
    hidden: int = 512
    steps: int = 400
    batch: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    dropout: float = 0.2  # share of features that are left out in training
    heldout: float = 0.1  # share of pairs that are not learnt, at most 500
    seed: int = 0

    def __post_init__(self) -> None:
        check_at_least(self, width=1, hidden=1, steps=1, batch=2)
        check_above(self, learning_rate=0)
        check_fractions(self, "dropout", "heldout", below_one=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class PairNetReport:
    """What a net was trained on, and how often it finds the text of an image it never saw."""

    pairs: int
    heldout_pairs: int
    heldout_top1: float | None  # the right text, or an equal one, is nearest of all held-out ones
    chance: float | None  # the same of a random choice


class PairNet(nn.Module):
    """Two perceptrons into one space."""

    def __init__(self, config: PairNetConfig, image_width: int, text_width: int) -> None:
        super().__init__()
        self.image_projection = _perceptron(image_width, config)
        self.text_projection = _perceptron(text_width, config)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def images(self, features: Float[Tensor, "N D"]) -> Float[Tensor, "N W"]:
        """Map unit features of images to vectors of length 1."""
        return F.normalize(self.image_projection(features * features.shape[1] ** 0.5), dim=1)

    def texts(self, features: Float[Tensor, "N D"]) -> Float[Tensor, "N W"]:
        """Map unit features of texts to vectors of length 1."""
        return F.normalize(self.text_projection(features * features.shape[1] ** 0.5), dim=1)


def _perceptron(n_inputs: int, config: PairNetConfig) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(n_inputs, config.hidden), nn.GELU(), nn.Linear(config.hidden, config.width)
    )


def fit_pair_net(
    images: Float[Tensor, "N I"], texts: Float[Tensor, "N T"], config: PairNetConfig
) -> tuple[PairNet, PairNetReport]:
    """Train a net on unit features of pairs; the same input and seed give the same net.

    The loss is the mean of both cross-entropies over the pairs of a batch. Equal texts of a batch
    are no negatives of each other.

    Raises:
        DataError: there are fewer than two pairs to learn.
    """
    generator = torch.Generator().manual_seed(seeds.derive(config.seed, "pair net"))
    order = torch.randperm(len(images), generator=generator)
    n_heldout = min(500, int(config.heldout * len(images)))
    heldout, learnt = order[:n_heldout], order[n_heldout:]
    if len(learnt) < 2:
        raise DataError(
            f"A pair net learns from at least two pairs of an image and a text, got {len(learnt)}; "
            "give a larger corpus."
        )
    net = PairNet(config, images.shape[1], texts.shape[1])
    _initialise(net, generator)
    optimizer = torch.optim.AdamW(
        net.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    batch = min(config.batch, len(learnt))
    with bar("Pair net", total=config.steps) as advance:
        for step in range(config.steps):
            rate = config.learning_rate * 0.5 * (1 + math.cos(math.pi * step / config.steps))
            optimizer.param_groups[0]["lr"] = rate
            some = learnt[torch.randperm(len(learnt), generator=generator)[:batch]]
            loss = _loss(net, images[some], texts[some], config.dropout, generator)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            advance(loss=f"{float(loss.detach()):.2f}")
    net.requires_grad_(False)
    top1, chance = _top1(net, images[heldout], texts[heldout])
    return net, PairNetReport(
        pairs=len(learnt), heldout_pairs=n_heldout, heldout_top1=top1, chance=chance
    )


def _initialise(net: PairNet, generator: torch.Generator) -> None:
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5, generator=generator)
            nn.init.zeros_(module.bias)


def _loss(
    net: PairNet,
    images: Float[Tensor, "B I"],
    texts: Float[Tensor, "B T"],
    dropout: float,
    generator: torch.Generator,
) -> Tensor:
    same = _same_texts(texts)
    kept = [
        x * (torch.rand(x.shape, generator=generator) >= dropout) / (1 - dropout)
        for x in (images, texts)
    ]
    scale = net.logit_scale.exp().clamp(max=_MOST_SCALE)
    logits = scale * net.images(kept[0]) @ net.texts(kept[1]).T
    logits = logits.masked_fill(same.fill_diagonal_(False), -torch.inf)
    targets = torch.arange(len(images))
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def _same_texts(texts: Float[Tensor, "N T"]) -> Bool[Tensor, "N N"]:
    return texts @ texts.T > _SAME


@torch.no_grad()
def _top1(
    net: PairNet, images: Float[Tensor, "N I"], texts: Float[Tensor, "N T"]
) -> tuple[float | None, float | None]:
    if not len(images):
        return None, None
    same = _same_texts(texts)
    nearest = (net.images(images) @ net.texts(texts).T).argmax(1)
    right = same[torch.arange(len(images)), nearest]
    return float(right.float().mean()), float(same.float().mean())


class PairScorer:
    """A trained pair net with the nets that give its features; an ``ImageTextNet``."""

    def __init__(self, net: PairNet, features: ImageFeatures, sentences: SentenceNet) -> None:
        self._net, self._features, self._sentences = net, features, sentences

    @torch.no_grad()
    def images(self, images: Sequence[PIL.Image.Image]) -> Float[Tensor, "N W"]:
        """Return one vector of length 1 for each image."""
        return self._net.images(self._features.of(images))

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Float[Tensor, "N W"]:
        """Return one vector of length 1 for each text."""
        return self._net.texts(self._sentences.of(texts))


def train_pair_net(
    source: Path, reader: str, out: Path, config: PairNetConfig, part: Part = WHOLE
) -> PairNetReport:
    """Train a net on the documents of one image and a text, and write it into a folder.

    The folder gets ``config.json``, with the report, and ``model.safetensors``; another net of that
    name is replaced. Documents of other forms and unreadable images are left out.

    Args:
        source: a folder or a file of documents.
        reader: a name in :data:`pardalis.documents.READERS`.
        part: the part of the documents that is used.

    Raises:
        ConfigError: a package with the weights of a net is missing, or the folder holds something
            else.
        DataError: there are fewer than two pairs to learn.
    """
    files.require_replaceable(out, _CONFIG_FILE, (_WEIGHTS_FILE,))
    features, sentences = ImageFeatures.load(), load_sentence_net()
    vectors, texts = [], []
    for images, some_texts in _pairs(source, reader, part):
        vectors.append(features.of(images))
        texts += some_texts
    if not texts:
        raise DataError(
            f"{source} has no document of one readable image and a text; such pairs are learnt."
        )
    of_images, of_texts = torch.cat(vectors), sentences.of(texts)
    net, report = fit_pair_net(of_images, of_texts, config)
    header = {
        "format": _FORMAT,
        "version": _VERSION,
        "image_width": of_images.shape[1],
        "text_width": of_texts.shape[1],
        "config": configs.to_dict(config),
        "report": asdict(report),
    }
    with files.atomic_folder(out) as folder:
        files.write_json(folder / _CONFIG_FILE, header)
        weights = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
        files.write_bytes(folder / _WEIGHTS_FILE, save(weights))
    return report


def load_pair_net(folder: Path) -> PairScorer:
    """Read what :func:`train_pair_net` wrote, and the nets that give its features.

    Raises:
        BundleError: a file is missing or damaged, or the weights have other shapes.
        ConfigError: a package with the weights of a net is missing.
    """
    path = folder / _CONFIG_FILE
    features, sentences = ImageFeatures.load(), load_sentence_net()
    try:
        header = files.read_json(path)
        found = (header["format"], header["version"])
        widths = (header["image_width"], header["text_width"])
        config = configs.from_dict(PairNetConfig, header["config"])
    except (OSError, ValueError, LookupError, TypeError, ConfigError) as error:
        raise BundleError(
            f"{path} cannot be read ({error}); give the folder of a pair net, or train it again."
        ) from error
    if found != (_FORMAT, _VERSION) or widths != (features.width, sentences.width):
        raise BundleError(
            f"{path} describes no pair net of version {_VERSION} on EfficientNet-lite0 and "
            "all-MiniLM-L6-v2; train it again."
        )
    with torch.device("meta"):
        net = PairNet(config, *widths)
    needed = {name: tensor.shape for name, tensor in net.state_dict().items()}
    weights = folder / _WEIGHTS_FILE
    net.load_state_dict(fitted(read_tensors(weights), needed, weights), assign=True)
    return PairScorer(net.requires_grad_(False).eval(), features, sentences)


def _pairs(
    source: Path, reader: str, part: Part
) -> Iterator[tuple[list[PIL.Image.Image], list[str]]]:
    """Yield images and texts of documents with one readable image and a text, many at once."""
    images: list[PIL.Image.Image] = []
    texts: list[str] = []
    for item in read_part(source, reader, part):
        if isinstance(item, Rejection) or len(item.images) != 1:
            continue
        text = item.text.strip() or item.images[0].alt
        try:
            image = open_image(item.images[0].source)
        except DataError:
            continue
        if text:
            images.append(image)
            texts.append(text)
        if len(images) == _AT_ONCE:
            yield images, texts
            images, texts = [], []
    if images:
        yield images, texts
