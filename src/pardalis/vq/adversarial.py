"""Losses of a tokenizer and a discriminator that play against each other.

Logits are high where the discriminator takes an image for real, and of any shape.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

AdversarialForm = Literal["hinge", "softplus"]

_LEAST_GRADIENT = 1e-4
_MOST_WEIGHT = 1e4


def generator_loss(form: AdversarialForm, fake_logits: Float[Tensor, "*fake"]) -> Float[Tensor, ""]:
    """Return what pushes reconstructions to look real: ``-D``, or ``softplus(-D)``, on average."""
    fake_logits = fake_logits.float()
    return -fake_logits.mean() if form == "hinge" else F.softplus(-fake_logits).mean()


def discriminator_loss(
    form: AdversarialForm,
    real_logits: Float[Tensor, "*real"],
    fake_logits: Float[Tensor, "*fake"],
) -> Float[Tensor, ""]:
    """Return half the sum of the two means: of real images and of reconstructions.

    ``hinge`` (arXiv 1705.02894) is VQ-GAN's; ``softplus`` (arXiv 1406.2661) is StyleGAN2's.
    """
    real_logits, fake_logits = real_logits.float(), fake_logits.float()
    if form == "hinge":
        return (F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()) / 2
    return (F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()) / 2


def r1_penalty(
    real_logits: Float[Tensor, "B *rest"], real_pixels: Float[Tensor, "B 3 Y X"]
) -> Float[Tensor, ""]:
    """Return the squared gradient of the logits at real images, on average (arXiv 1801.04406).

    The pixels need ``requires_grad``. It is E|grad|^2: the paper's loss is gamma / 2 of it.
    """
    (gradient,) = torch.autograd.grad(real_logits.sum(), real_pixels, create_graph=True)
    return gradient.float().square().sum((1, 2, 3)).mean()


def adaptive_weight(
    reconstruction_loss: Float[Tensor, ""],
    generator_loss: Float[Tensor, ""],
    last_weight: Float[Tensor, "..."],
    average: Callable[[Tensor], Tensor] = lambda gradient: gradient,
) -> Float[Tensor, ""]:
    """Return the weight that makes both losses pull the decoder's last weight alike hard.

    It is the ratio of their gradients' norms, detached (VQ-GAN, arXiv 2012.09841, equation 7).
    ``average`` takes a gradient to its mean over processes, so that all find the same weight.
    """
    norms = []
    for loss in (reconstruction_loss, generator_loss):
        (gradient,) = torch.autograd.grad(loss, last_weight, retain_graph=True)
        norms.append(average(gradient.detach()).float().norm())
    return (norms[0] / (norms[1] + _LEAST_GRADIENT)).clamp(0, _MOST_WEIGHT)
