"""Adversarial losses of an image tokenizer and its discriminator.

The discriminator's logits are high for real images and have any shape.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

AdversarialForm = Literal["hinge", "softplus"]

_EPSILON = 1e-4  # added to the gradient norm in the denominator
_MAX_WEIGHT = 1e4


def generator_loss(form: AdversarialForm, fake_logits: Float[Tensor, "*fake"]) -> Float[Tensor, ""]:
    """Return the generator's loss: the mean of ``-D`` (hinge) or of ``softplus(-D)``."""
    fake_logits = fake_logits.float()
    return -fake_logits.mean() if form == "hinge" else F.softplus(-fake_logits).mean()


def discriminator_loss(
    form: AdversarialForm,
    real_logits: Float[Tensor, "*real"],
    fake_logits: Float[Tensor, "*fake"],
) -> Float[Tensor, ""]:
    """Return the discriminator's loss: half the mean on real images plus half that on fakes.

    ``hinge`` (arXiv 1705.02894) is VQ-GAN's; ``softplus`` (arXiv 1406.2661) is StyleGAN2's.
    """
    real_logits, fake_logits = real_logits.float(), fake_logits.float()
    if form == "hinge":
        return (F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()) / 2
    return (F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()) / 2


def r1_penalty(
    real_logits: Float[Tensor, "B *rest"], real_pixels: Float[Tensor, "B 3 Y X"]
) -> Float[Tensor, ""]:
    """Return the mean squared gradient norm of the logits at real images (arXiv 1801.04406).

    The pixels need ``requires_grad``. The paper's loss is gamma / 2 times this value, E|grad|^2.
    """
    (gradient,) = torch.autograd.grad(real_logits.sum(), real_pixels, create_graph=True)
    return gradient.float().square().sum((1, 2, 3)).mean()


def adaptive_weight(
    reconstruction_loss: Float[Tensor, ""],
    generator_loss: Float[Tensor, ""],
    last_weight: Float[Tensor, "..."],
    average: Callable[[Tensor], Tensor] = lambda gradient: gradient,
) -> Float[Tensor, ""]:
    """Return the adversarial weight that balances both losses at the decoder's last layer.

    It is the ratio of their gradient norms, detached (VQ-GAN, arXiv 2012.09841, equation 7).
    ``average`` averages a gradient over processes, so that all of them use the same weight.
    """
    norms = []
    for loss in (reconstruction_loss, generator_loss):
        (gradient,) = torch.autograd.grad(loss, last_weight, retain_graph=True)
        norms.append(average(gradient.detach()).float().norm())
    return (norms[0] / (norms[1] + _EPSILON)).clamp(0, _MAX_WEIGHT)
