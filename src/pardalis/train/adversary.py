"""Adversarial training of an image tokenizer: the discriminator, its optimizer and its losses.

The discriminator learns to tell images from reconstructions, and the tokenizer to mislead it. Two
forms are in use, and every difference between them is a field of the config:

=============  =====================================  ======================================
               taming (arXiv 2012.09841)              Chameleon's config
=============  =====================================  ======================================
discriminator  PatchGAN                               StyleGAN2
form           hinge                                  softplus
weight         adaptive, by the last layer's          constant 0.5
               gradients, times 0.8
penalty        none                                   R1 every 16th step, gamma 10
=============  =====================================  ======================================
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from pardalis.config import check_above, check_at_least
from pardalis.parallel import World
from pardalis.seeds import derive
from pardalis.train.optimizer import AdamWConfig, Optimizer, OptimizerConfig
from pardalis.vq.adversarial import (
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    r1_penalty,
)
from pardalis.vq.discriminator import DiscriminatorConfig, PatchConfig, build_discriminator


@dataclass(frozen=True, kw_only=True, slots=True)
class AdversarialConfig:
    """The adversarial part of the loss."""

    weight: float = 0.5  # weight of the tokenizer's adversarial loss
    adaptive: bool = False  # scale it by the gradients of the other losses at the last layer
    form: Literal["softplus", "hinge"] = "softplus"
    start_step: int = 0  # first step with adversarial training
    r1_weight: float = 0.0  # gamma of R1, the penalty of the discriminator's gradient
    r1_every: int = 16  # steps between penalties, each of which is multiplied by this number
    learning_rate_ratio: float = 1.0  # the discriminator's learning rate over the tokenizer's
    discriminator: DiscriminatorConfig = field(default_factory=PatchConfig)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: AdamWConfig(beta1=0.5, beta2=0.9, weight_decay=0.0, fused=True)
    )

    def __post_init__(self) -> None:
        check_at_least(self, weight=0, start_step=0, r1_weight=0, r1_every=1)
        check_above(self, learning_rate_ratio=0)


class Adversary:
    """A discriminator in training.

    Args:
        peak: largest learning rate of the tokenizer's schedule.
    """

    def __init__(
        self,
        config: AdversarialConfig,
        resolution: int,
        seed: int,
        world: World,
        peak: float,
    ) -> None:
        self.config = config
        self.world = world
        self.network = build_discriminator(config.discriminator, resolution)
        self.network.initialise(derive(seed, "discriminator"))
        self.network.to(world.device).train()
        self.optimizer = Optimizer(
            self.network, config.optimizer, peak * config.learning_rate_ratio
        )

    def is_active(self, step: int) -> bool:
        return step >= self.config.start_step

    def generator_loss(
        self,
        reconstruction: Float[Tensor, "B 3 Y X"],
        other_losses: Float[Tensor, ""],
        last_weight: Tensor,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Return the tokenizer's adversarial loss, and its weight.

        Args:
            other_losses: sum of the reconstruction losses, for the adaptive weight.
            last_weight: weight of the decoder's last layer.
        """
        self.network.requires_grad_(False)
        loss = generator_loss(self.config.form, self.network(reconstruction))
        weight = torch.tensor(self.config.weight, device=loss.device)
        if self.config.adaptive:
            weight = weight * adaptive_weight(other_losses, loss, last_weight, self.world.mean)
        return loss, weight

    def update(
        self,
        step: int,
        learning_rate: float,
        pixels: Float[Tensor, "B 3 Y X"],
        reconstruction: Float[Tensor, "B 3 Y X"],
    ) -> dict[str, Tensor | float]:
        """Update the discriminator and return its metrics."""
        config = self.config
        self.optimizer.set_learning_rate(learning_rate * config.learning_rate_ratio)
        self.network.requires_grad_(True)
        real = self.network(pixels)
        fake = self.network(reconstruction.detach())
        loss = discriminator_loss(config.form, real, fake)
        metrics: dict[str, Tensor | float] = {
            "loss_discriminator": loss.detach(),
            "logits_real": real.detach().mean(),
            "logits_fake": fake.detach().mean(),
            "r1": float("nan"),
        }
        if config.r1_weight > 0 and (step - config.start_step) % config.r1_every == 0:
            inputs = pixels.detach().requires_grad_()
            penalty = r1_penalty(self.network(inputs), inputs)
            loss = loss + config.r1_weight / 2 * config.r1_every * penalty
            metrics["r1"] = penalty.detach()
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.world.average_gradients(self.network.parameters())
        self.optimizer.step()
        return metrics

    def state_dict(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
