"""Training of the image tokenizer: each step updates it, and the discriminator if there is one.

    images → tokenizer → reconstruction ─┬─ pixel, perceptual, region, adversarial losses → update
                   │                     └─ loss of the discriminator → its update
                   └─ latents and codes → update of the codebook

All randomness (images, crops, restarts of codes) is a function of the step number, so no generator
state is saved. The images of a step are divided among the processes that ``torchrun`` starts.
"""

from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import PIL.Image
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pardalis.config import check_above, check_at_least, check_fractions, not_deciding
from pardalis.data.images import AugmentationConfig, ImageBatch, ImageFeed, check_shared
from pardalis.documents import Image
from pardalis.errors import ConfigError, DataError
from pardalis.feature_nets import (
    FeatureNetConfig,
    PerceptualDistance,
    load_perceptual_distance,
)
from pardalis.parallel import World
from pardalis.seeds import derive
from pardalis.train.adversary import AdversarialConfig, Adversary
from pardalis.train.optimizer import AdamWConfig, Optimizer, OptimizerConfig
from pardalis.train.schedule import ScheduleConfig, WarmupCosineConfig, learning_rate
from pardalis.train.skipping import batch_of
from pardalis.vq.codebook import CodebookTrainer, codebook_use, perplexity
from pardalis.vq.config import ImageTokenizerConfig
from pardalis.vq.discriminator import build_discriminator
from pardalis.vq.init import initialise
from pardalis.vq.losses import l1_and_l2, psnr
from pardalis.vq.preprocessing import open_square, to_images, to_pixels
from pardalis.vq.regions import region_loss
from pardalis.vq.tokenizer import ImageTokenizer, TokenizerOutput

# Codebook use is counted over several steps, since one batch is too small for a large codebook.
_USE_WINDOW_STEPS = 20
_SAMPLES = 8  # held-out images in a report


@dataclass(frozen=True, kw_only=True, slots=True)
class PerceptualConfig:
    """A loss between the features of image and reconstruction."""

    weight: float = 1.0
    net: FeatureNetConfig = field(default_factory=FeatureNetConfig)

    def __post_init__(self) -> None:
        check_at_least(self, weight=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class RegionConfig:
    """A perceptual loss inside the regions of one kind, which are part of the dataset.

    Make-A-Scene (arXiv 2203.13131) has one for faces, with a face recognition net, and one for
    objects.
    """

    kind: str  # kind of the regions
    weight: float = 1.0  # multiplied by the weight of each region
    net: FeatureNetConfig = field(default_factory=FeatureNetConfig)
    side: int = 64  # pixels a side that a region is resized to
    most: int = 6  # largest number of regions of an image; the first ones
    repeats: int = 1  # times that an image with such a region occurs in an epoch

    def __post_init__(self) -> None:
        check_at_least(self, weight=0, side=32, most=1, repeats=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageTokenizerTrainConfig:
    """Options of a run besides the tokenizer's config and the images."""

    batch_images: int = 32  # images of one update, over all processes
    schedule: ScheduleConfig = field(
        default_factory=lambda: WarmupCosineConfig(
            learning_rate=1.5e-3, warmup_steps=20, floor_ratio=0.05
        )
    )
    optimizer: OptimizerConfig = field(
        default_factory=lambda: AdamWConfig(weight_decay=0.0, fused=True)
    )
    l1_weight: float = 0.0  # weight of the mean absolute difference of pixels in [-1, 1]
    l2_weight: float = 4.0  # weight of the mean squared difference
    perceptual: PerceptualConfig | None = None
    regions: tuple[RegionConfig, ...] = ()
    adversarial: AdversarialConfig | None = None
    codebook_weight: float = 1.0  # weight of the quantizer's loss
    # Initialisation and restarts of codes, for quantizers with a codebook in the latent space.
    start_on_data: bool = True  # initialise the codebook with latents of the first batch
    codebook_decay: float = 0.95  # decay rate of a code's mean use and mean latent
    restart_until: float = 0.8  # share of the run in which dead codes are restarted; 0: none
    ema_decay: float = 0.0  # decay rate of averaged weights, which are saved; 0: no averaging
    grad_clip: float = 1.0  # largest global norm of the gradient; inf: no clipping
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    heldout_images: int = 256  # largest number of images in an evaluation
    precision: Literal["float32", "bfloat16"] = "float32"  # convolutions; sums are in float32
    compile: bool = not_deciding(False)  # compile encoder and decoder
    seed: int = 0  # root seed of initial values, order of images and restarts

    @property
    def nets(self) -> list[FeatureNetConfig]:
        """The feature nets of all losses."""
        nets = [region.net for region in self.regions]
        return nets if self.perceptual is None else [self.perceptual.net, *nets]

    def __post_init__(self) -> None:
        check_at_least(self, batch_images=1)
        if self.heldout_images < 0:
            raise ConfigError(f"heldout_images must be at least 0, got {self.heldout_images}.")
        if not (
            self.l1_weight >= 0 and self.l2_weight >= 0 and self.l1_weight + self.l2_weight > 0
        ):
            raise ConfigError(
                "l1_weight and l2_weight must be 0 or more, and one of them above 0, got "
                f"{self.l1_weight} and {self.l2_weight}."
            )
        check_at_least(self, codebook_weight=0)
        check_fractions(self, "codebook_decay", "restart_until")
        check_fractions(self, "ema_decay", below_one=True)
        check_above(self, grad_clip=0)
        kinds = [region.kind for region in self.regions]
        if twice := sorted({kind for kind in kinds if kinds.count(kind) > 1}):
            raise ConfigError(f"regions names the kind {twice[0]!r} twice; name each once.")


class ImageTokenizerTask:
    """The image tokenizer as a task of the training loop.

    Args:
        model_config: config of the tokenizer, which starts from initial weights.
        config: training options.
        images: training images; each is decoded when it is needed.
        heldout: held-out images; the first ``heldout_images`` that can be read are evaluated.
        total_steps: length of the run, for the schedule.
        world: the processes that train together; default: a single process on the CPU.

    Raises:
        DataError: there is no image.
        ConfigError: the tokenizer has no decoder, or a feature net is not available.
    """

    def __init__(
        self,
        model_config: ImageTokenizerConfig,
        config: ImageTokenizerTrainConfig,
        images: Sequence[Image],
        heldout: Sequence[Image] = (),
        *,
        total_steps: int,
        world: World | None = None,
    ) -> None:
        self.world = world or World()
        check_image_training(model_config, config, total_steps, self.world.size)
        self.config = config
        self.total_steps = total_steps
        self.device = self.world.device
        self.feed = ImageFeed(
            _repeated(images, config.regions),
            model_config,
            config.batch_images,
            config.seed,
            config.augmentation,
            (self.world.rank, self.world.size),
        )
        self.heldout = _squares(heldout, model_config, config.heldout_images)

        self.tokenizer = initialise(ImageTokenizer(model_config), config.seed).to(self.device)
        self.optimizer = Optimizer(self.tokenizer, config.optimizer, config.schedule.learning_rate)
        self.averaged: AveragedModel | None = None  # codebook included
        if config.ema_decay:
            average = get_ema_multi_avg_fn(config.ema_decay)  # type: ignore[no-untyped-call]
            self.averaged = AveragedModel(self.tokenizer, multi_avg_fn=average)
        self.codebook = self._live_codebook()
        self.perceptual = (
            _distance(config.perceptual.net, model_config.resolution, self.device)
            if config.perceptual
            else None
        )
        self.region_distances = [
            _distance(region.net, region.side, self.device) for region in config.regions
        ]
        self.adversary = (
            Adversary(
                config.adversarial,
                model_config.resolution,
                config.seed,
                self.world,
                config.schedule.learning_rate,
            )
            if config.adversarial
            else None
        )
        self._skipped: tuple[int, ...] = ()
        self._recent_counts: deque[Int[Tensor, " N"]] = deque(maxlen=_USE_WINDOW_STEPS)
        if config.compile:
            self.tokenizer.encoder.compile()
            assert self.tokenizer.decoder is not None
            self.tokenizer.decoder.compile()

    @property
    def trained(self) -> ImageTokenizer:
        """The tokenizer to save: that of averaged weights, if there are any."""
        if self.averaged is None:
            return self.tokenizer
        assert isinstance(self.averaged.module, ImageTokenizer)
        return self.averaged.module

    def step(self, step: int) -> dict[str, float | Tensor]:
        """Update the tokenizer, its codebook and the discriminator on the images of this step."""
        config = self.config
        rate = learning_rate(config.schedule, step, self.total_steps)
        self.optimizer.set_learning_rate(rate)
        generator = torch.Generator().manual_seed(derive(config.seed, "codebook", step))
        batch = self.feed.batch(batch_of(step, self._skipped))
        pixels = self._pixels(batch.bytes)

        self.tokenizer.train()
        if self.codebook is not None and not self.codebook.started and config.start_on_data:
            with torch.no_grad(), self._autocast():
                latents = self.tokenizer.latents(pixels)
            self.codebook.start(_vectors(latents), generator)
        with self._autocast():
            output = self.tokenizer(pixels)
            loss, metrics = self._loss(step, output, pixels, batch)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.world.average_gradients(self.tokenizer.parameters())
        norm = torch.nn.utils.clip_grad_norm_(self.tokenizer.parameters(), config.grad_clip)
        self.optimizer.step()
        metrics |= self._update_codebook(step, output, generator)
        if self.averaged is not None:
            self.averaged.update_parameters(self.tokenizer)
        if self.adversary is not None and self.adversary.is_active(step):
            metrics |= self.adversary.update(step, rate, pixels, output.reconstruction.float())
        return metrics | {
            "loss": loss.detach(),
            "grad_norm": norm.detach(),
            "learning_rate": rate,
            "images": float(config.batch_images),
        }

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Return reconstruction metrics of held-out images, and their codebook use."""
        if len(self.heldout) == 0:
            return {}
        tokenizer = self.trained.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        counts = torch.zeros(tokenizer.config.n_codes, dtype=torch.int64, device=self.device)
        mine = self.heldout[self.world.rank :: self.world.size]
        for bytes_ in torch.split(mine, self.config.batch_images):
            if len(bytes_) == 0:  # there are fewer images than processes
                continue
            pixels = self._pixels(bytes_)
            codes = tokenizer.encode(pixels)
            reconstruction = tokenizer.decode(codes)
            counts += self._counts(codes)
            l1 = l1_and_l2(reconstruction, pixels)[0] * len(pixels)
            sums += torch.stack([psnr(reconstruction, pixels).sum(), l1])
        mean_psnr, l1 = (self.world.sum(sums) / len(self.heldout)).tolist()
        counts = self.world.sum(counts)
        return {
            "heldout_psnr": mean_psnr,
            "heldout_loss_l1": l1,
            "heldout_codebook_use": codebook_use(counts).item(),
            "heldout_perplexity": perplexity(counts).item(),
        }

    @torch.no_grad()
    def samples(self) -> tuple[list[PIL.Image.Image], list[PIL.Image.Image]]:
        """Return a few held-out images and their reconstructions."""
        tokenizer = self.trained.eval()
        every = max(1, len(self.heldout) // _SAMPLES)
        pixels = self._pixels(self.heldout[::every][:_SAMPLES])
        if len(pixels) == 0:
            return [], []
        return to_images(pixels), to_images(tokenizer.decode(tokenizer.encode(pixels)))

    def recent_counts(self) -> Int[np.ndarray, " N"]:
        """Return how often each code was used in the last steps."""
        none = torch.zeros(self.tokenizer.config.n_codes, dtype=torch.int64)
        return sum((counts.cpu() for counts in self._recent_counts), none).numpy()

    def positions(self, batch: int) -> range:
        first = batch * self.config.batch_images
        return range(first, first + self.config.batch_images)

    def skip(self, batches: Sequence[int]) -> None:
        self._skipped = tuple(batches)

    def state_dict(self) -> dict[str, Any]:
        states = {name: part.state_dict() for name, part in self._parts().items()}
        return states | {"recent_counts": list(self._recent_counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self._recent_counts.clear()
        self._recent_counts.extend(counts.to(self.device) for counts in state["recent_counts"])

    def _parts(self) -> dict[str, Any]:
        parts = {
            "tokenizer": self.tokenizer,
            "optimizer": self.optimizer,
            "codebook": self.codebook,
            "averaged": self.averaged,
            "adversary": self.adversary,
        }
        return {name: part for name, part in parts.items() if part is not None}

    # ── parts of a step ──────────────────────────────────────────────────────────────────────

    def _loss(
        self,
        step: int,
        output: TokenizerOutput,
        pixels: Float[Tensor, "B 3 Y X"],
        batch: ImageBatch,
    ) -> tuple[Float[Tensor, ""], dict[str, float | Tensor]]:
        """Return the weighted loss and its parts, each unweighted."""
        config, reconstruction = self.config, output.reconstruction.float()
        l1, l2 = l1_and_l2(reconstruction, pixels)
        parts = {"loss_l1": l1, "loss_l2": l2}
        reconstruction_loss = config.l1_weight * l1 + config.l2_weight * l2
        if self.perceptual is not None:
            assert config.perceptual is not None
            parts["loss_perceptual"] = self.perceptual(reconstruction, pixels).mean()
            weighted = config.perceptual.weight * parts["loss_perceptual"]
            reconstruction_loss = reconstruction_loss + weighted
        for region, distance in zip(config.regions, self.region_distances, strict=True):
            boxes = [
                [(each.box, each.weight) for each in regions if each.kind == region.kind]
                for regions in batch.regions
            ]
            found = region_loss(
                distance, reconstruction, pixels, boxes, side=region.side, max_regions=region.most
            )
            parts[f"loss_region_{region.kind}"] = found
            reconstruction_loss = reconstruction_loss + region.weight * found
        parts["loss_quantizer"] = output.quantizer_loss
        loss = reconstruction_loss + config.codebook_weight * output.quantizer_loss
        if self.adversary is not None and self.adversary.is_active(step):
            adversarial, weight = self.adversary.generator_loss(
                reconstruction, reconstruction_loss, self._last_weight
            )
            parts |= {"loss_adversarial": adversarial, "adversarial_weight": weight}
            loss = loss + weight * adversarial
        return loss, {name: part.detach() for name, part in parts.items()}

    def _update_codebook(
        self, step: int, output: TokenizerOutput, generator: torch.Generator
    ) -> dict[str, float | Tensor]:
        self._recent_counts.append(self.world.sum(self._counts(output.codes)))
        recent = torch.stack(tuple(self._recent_counts)).sum(0)
        metrics: dict[str, float | Tensor] = {
            "codebook_use": codebook_use(recent),
            "perplexity": perplexity(recent),
        }
        if self.codebook is not None:
            restarted = self.codebook.update(
                _vectors(output.latents),
                output.codes.flatten(),
                generator,
                restart=step < self.config.restart_until * self.total_steps,
            )
            metrics["restarted_codes"] = float(restarted)
        return metrics

    def _live_codebook(self) -> CodebookTrainer | None:
        quantizer = self.tokenizer.quantize
        if not quantizer.restarts:
            return None
        kind = self.tokenizer.config.quantizer.kind
        return CodebookTrainer(
            quantizer.embedding.weight,
            ema=kind == "ema",
            decay=self.config.codebook_decay,
            normalise=kind == "l2",
            world=self.world,
        )

    @property
    def _last_weight(self) -> Tensor:
        """The weight of the decoder's last layer, for the adaptive adversarial weight."""
        assert self.tokenizer.decoder is not None
        return self.tokenizer.decoder.conv_out.weight

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"
        )

    def _pixels(self, images: UInt8[Tensor, "B 3 Y X"]) -> Float[Tensor, "B 3 Y X"]:
        return to_pixels(images.to(self.device), self.tokenizer.config.preprocessing)

    def _counts(self, codes: Int[Tensor, "B G"]) -> Int[Tensor, " N"]:
        return torch.bincount(codes.flatten(), minlength=self.tokenizer.config.n_codes)


def _vectors(latents: Float[Tensor, "B Z y x"]) -> Float[Tensor, "M Z"]:
    """Return the latents in the quantizer's layout: a vector per code, raster order, float32."""
    return latents.detach().float().permute(0, 2, 3, 1).flatten(0, 2)


def check_image_training(
    model: ImageTokenizerConfig, config: ImageTokenizerTrainConfig, total_steps: int, size: int
) -> None:
    """Raise ConfigError if the options of a training run do not fit each other.

    Args:
        size: number of processes.
    """
    learning_rate(config.schedule, 0, total_steps)
    if not model.has_decoder:
        raise ConfigError(
            "image_tokenizer.has_decoder is false, but training needs a decoder; leave it out."
        )
    check_shared(config.batch_images, size)
    if config.adversarial is not None:
        with torch.device("meta"):
            build_discriminator(config.adversarial.discriminator, model.resolution)


def _distance(net: FeatureNetConfig, side: int, device: torch.device) -> PerceptualDistance:
    distance = load_perceptual_distance(net)
    distance.check_side(side)
    return distance.to(device)


def _repeated(images: Sequence[Image], regions: tuple[RegionConfig, ...]) -> Sequence[Image]:
    """Repeat images with regions as often as the config of their kinds says."""
    repeats = {region.kind: region.repeats for region in regions}
    return [
        image
        for image in images
        for _ in range(max((repeats.get(region.kind, 1) for region in image.regions), default=1))
    ]


def _squares(
    images: Sequence[Image], config: ImageTokenizerConfig, most: int
) -> UInt8[Tensor, "N 3 Y X"]:
    """Return the first readable images as squares."""
    squares: list[np.ndarray] = []
    for image in images:
        if len(squares) == most:
            break
        with suppress(DataError):
            squares.append(open_square(image.source, config.resolution, config.preprocessing))
    if not squares:
        return torch.zeros(0, 3, config.resolution, config.resolution, dtype=torch.uint8)
    return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2)
