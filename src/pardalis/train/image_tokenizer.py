"""Training of the image tokenizer on pictures held in memory: one AdamW update per step.

The step number decides everything that is drawn (pictures, restarts of codes), so no generator is
ever saved. The loss is that of pixels and codebook; there is no perceptual or adversarial part.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from pardalis.data.order import Order
from pardalis.errors import ConfigError, DataError
from pardalis.seeds import derive
from pardalis.train.optimizer import AdamWConfig, adamw, load_optimizer_state, set_learning_rate
from pardalis.train.schedule import ScheduleConfig, learning_rate
from pardalis.vq.codebook import LiveCodebook, codebook_use, perplexity
from pardalis.vq.config import ImageTokenizerConfig
from pardalis.vq.init import initialise
from pardalis.vq.losses import l1_and_l2, psnr
from pardalis.vq.preprocessing import to_pixels
from pardalis.vq.tokenizer import ImageTokenizer

# One batch is too small to show a large codebook's use, so it is counted over some steps.
_USE_WINDOW_STEPS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageTokenizerTrainConfig:
    """What decides the numbers of a run, besides the tokenizer's shape and the pictures."""

    batch_pictures: int = 32  # pictures of one update
    schedule: ScheduleConfig = field(
        default_factory=lambda: ScheduleConfig(
            learning_rate=1.5e-3, warmup_steps=20, floor_ratio=0.05
        )
    )
    optimizer: AdamWConfig = field(
        default_factory=lambda: AdamWConfig(weight_decay=0.0, fused=True)
    )
    l1_weight: float = 0.0  # of the mean absolute difference of pixels in [-1, 1]
    l2_weight: float = 4.0  # of the mean squared difference
    codebook_decay: float = 0.95  # share of a code's mean use, and mean vector, that a step keeps
    restart_until: float = 0.8  # share of the run after which dead codes are left alone
    grad_clip: float = 1.0  # largest norm of the whole gradient; inf: never clipped
    seed: int = 0  # root of initial values, order of pictures and restarts

    def __post_init__(self) -> None:
        if self.batch_pictures < 1:
            raise ConfigError(f"batch_pictures must be at least 1, got {self.batch_pictures}.")
        if not (
            self.l1_weight >= 0 and self.l2_weight >= 0 and self.l1_weight + self.l2_weight > 0
        ):
            raise ConfigError(
                "l1_weight and l2_weight must be 0 or more, and one of them above 0, got "
                f"{self.l1_weight} and {self.l2_weight}."
            )
        for name in ("codebook_decay", "restart_until"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must lie in [0, 1], got {getattr(self, name)}.")
        if not self.grad_clip > 0:
            raise ConfigError(f"grad_clip must be above 0, got {self.grad_clip}.")


class ImageTokenizerTask:
    """The image tokenizer as a task of the training loop.

    Args:
        model_config: shape of the tokenizer, which begins with fresh weights.
        config: how it is trained.
        pictures: RGB of the tokenizer's resolution, kept in host memory.
        heldout: pictures to evaluate; never learnt.
        total_steps: of the run, for the schedule.

    Raises:
        DataError: there is no picture, or the pictures do not have the tokenizer's resolution.
    """

    def __init__(
        self,
        model_config: ImageTokenizerConfig,
        config: ImageTokenizerTrainConfig,
        pictures: UInt8[Tensor, "N 3 Y X"],
        heldout: UInt8[Tensor, "M 3 Y X"] | None = None,
        *,
        total_steps: int,
        device: torch.device | str = "cpu",
    ) -> None:
        learning_rate(config.schedule, 0, total_steps)  # refuses a schedule that does not fit
        for some in (pictures, heldout):
            if some is not None:
                _check_pictures(some, model_config.resolution)
        if not model_config.has_decoder:
            raise ConfigError(
                "image_tokenizer.has_decoder is false, but training draws; leave it out."
            )
        self.config = config
        self.pictures = pictures
        self.heldout = heldout
        self.total_steps = total_steps
        self.device = torch.device(device)
        self.tokenizer = initialise(ImageTokenizer(model_config), config.seed).to(self.device)
        self.optimizer = adamw(self.tokenizer, config.optimizer)
        self.codebook = LiveCodebook(
            self.tokenizer.quantize.embedding.weight,
            follows_means=model_config.quantizer.kind == "ema",
            decay=config.codebook_decay,
            normalise=model_config.quantizer.normalise,
        )
        self._order = Order(len(pictures), config.seed, "pictures")
        self._recent_counts: deque[Int[Tensor, " N"]] = deque(maxlen=_USE_WINDOW_STEPS)

    def step(self, step: int) -> dict[str, float | Tensor]:
        """Do one update from the pictures of this step, then tend the codebook."""
        config = self.config
        rate = learning_rate(config.schedule, step, self.total_steps)
        set_learning_rate(self.optimizer, rate)
        generator = torch.Generator().manual_seed(derive(config.seed, "codebook", step))
        pixels = self._pixels(self.pictures[self._members(step)])
        self.tokenizer.train()
        if not self.codebook.started:
            with torch.no_grad():
                self.codebook.start(_vectors(self.tokenizer.latents(pixels)), generator)
        output = self.tokenizer(pixels)
        loss = output.losses.total(config.l1_weight, config.l2_weight)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        norm = torch.nn.utils.clip_grad_norm_(self.tokenizer.parameters(), config.grad_clip)
        self.optimizer.step()
        restarted = self.codebook.update(
            _vectors(output.latents),
            output.codes.flatten(),
            generator,
            restart=step < config.restart_until * self.total_steps,
        )
        self._recent_counts.append(self._counts(output.codes))
        recent = torch.stack(tuple(self._recent_counts)).sum(0)
        return {
            "loss": loss.detach(),
            "loss_l1": output.losses.l1.detach(),
            "loss_l2": output.losses.l2.detach(),
            "loss_quantizer": output.losses.quantizer.detach(),
            "codebook_use": codebook_use(recent),
            "perplexity": perplexity(recent),
            "restarted_codes": float(restarted),
            "grad_norm": norm.detach(),
            "learning_rate": rate,
            "pictures": float(len(pixels)),
        }

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Return how well held-out pictures come back, and how many codes they use."""
        if self.heldout is None or len(self.heldout) == 0:
            return {}
        self.tokenizer.eval()
        psnr_sum = l1_sum = 0.0
        counts = torch.zeros(self.tokenizer.config.n_codes, dtype=torch.int64, device=self.device)
        for bytes_ in torch.split(self.heldout, self.config.batch_pictures):
            pixels = self._pixels(bytes_)
            codes = self.tokenizer.encode(pixels)
            reconstruction = self.tokenizer.decode(codes)
            counts += self._counts(codes)
            psnr_sum += float(psnr(reconstruction, pixels).sum())
            l1_sum += float(l1_and_l2(reconstruction, pixels)[0]) * len(pixels)
        return {
            "heldout_psnr": psnr_sum / len(self.heldout),
            "heldout_l1": l1_sum / len(self.heldout),
            "heldout_codebook_use": codebook_use(counts).item(),
            "heldout_perplexity": perplexity(counts).item(),
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            "tokenizer": self.tokenizer.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "codebook": self.codebook.state_dict(),
            "recent_counts": list(self._recent_counts),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.tokenizer.load_state_dict(state["tokenizer"])
        load_optimizer_state(self.optimizer, state["optimizer"])
        self.codebook.load_state_dict(state["codebook"])
        self._recent_counts.clear()
        self._recent_counts.extend(counts.to(self.device) for counts in state["recent_counts"])

    def _members(self, step: int) -> list[int]:
        """Return the pictures of a step: all of them once, then again in another order."""
        first = step * self.config.batch_pictures
        return [self._order.at(first + i)[1] for i in range(self.config.batch_pictures)]

    def _pixels(self, pictures: UInt8[Tensor, "B 3 Y X"]) -> Float[Tensor, "B 3 Y X"]:
        return to_pixels(pictures.to(self.device), self.tokenizer.config.preprocessing)

    def _counts(self, codes: Int[Tensor, "B G"]) -> Int[Tensor, " N"]:
        return torch.bincount(codes.flatten(), minlength=self.tokenizer.config.n_codes)


def _vectors(latents: Float[Tensor, "B Z y x"]) -> Float[Tensor, "M Z"]:
    """Lay the latents out as the quantizer does: one row per code, in raster order."""
    return latents.detach().permute(0, 2, 3, 1).flatten(0, 2)


def _check_pictures(pictures: UInt8[Tensor, "N 3 Y X"], resolution: int) -> None:
    if len(pictures) == 0:
        raise DataError("There is no picture to train or evaluate the image tokenizer with.")
    if pictures.shape[2:] != (resolution, resolution):
        raise DataError(
            f"The pictures have {pictures.shape[3]} x {pictures.shape[2]} pixels and the image "
            f"tokenizer {resolution} x {resolution}; scale them with pardalis.vq.open_square."
        )
