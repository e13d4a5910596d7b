"""How many codes each kind has in use after a short training with an encoder that moves.

Measured on the CPU: use of 1,000 codes by 4,096 new patches after 300 steps, and the mean squared
error of the patches, seeds 0, 1 and 2:

===================  =====================  =======================
kind                 use                    error
===================  =====================  =======================
vq                   0.056, 0.053, 0.058    0.110, 0.111, 0.108
ibq                  0.189, 0.164, 0.269    0.107, 0.112, 0.099
l2                   0.590, 0.771, 0.813    0.082, 0.075, 0.072
fsq                  0.715, 0.718, 0.672    0.086, 0.087, 0.086
simvq                0.924, 0.901, 0.904    0.082, 0.082, 0.079
vq with restarts     0.974, 0.970, 0.952    0.081, 0.082, 0.078
ema with restarts    0.961, 0.965, 0.971    0.076, 0.078, 0.077
l2 with restarts     0.937, 0.917, 0.946    0.077, 0.076, 0.078
===================  =====================  =======================

After 600 steps vq uses 0.108, 0.107 and 0.118, ibq 0.370, 0.301 and 0.461; most of what ibq gains
comes from its penalty of entropy.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pardalis.vq import (
    QUANTIZERS,
    CodebookTrainer,
    ImageTokenizer,
    ImageTokenizerConfig,
    codebook_use,
    initialise,
)

WIDTH, SIDE = 8, 16  # each batch is one map of 16 x 16 vectors
STEPS = 300


def patches(generator: torch.Generator, n: int) -> Tensor:
    """Return random patches of 4 x 4 pixels: two colours and a straight edge between, anywhere."""
    colours = torch.rand(2, n, 3, 1, generator=generator) * 2 - 1
    angles = torch.rand(n, 1, generator=generator) * 2 * torch.pi
    places = torch.randn(n, 1, generator=generator)
    x, y = torch.arange(16) % 4 - 1.5, torch.arange(16) // 4 - 1.5
    share = torch.sigmoid(4 * (angles.cos() * x + angles.sin() * y + places))[:, None]
    return (share * colours[0] + (1 - share) * colours[1]).flatten(1)


def as_map(vectors: Tensor, side: int = SIDE) -> Tensor:
    return vectors.view(-1, side, side, WIDTH).permute(0, 3, 1, 2)


def net(n_in: int, n_out: int, generator: torch.Generator) -> nn.Sequential:
    made = nn.Sequential(nn.Linear(n_in, 64), nn.SiLU(), nn.Linear(64, n_out))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.uniform_(-1, 1, generator=generator).div_(parameter.shape[-1] ** 0.5)
    return made


def train(kind: str, seed: int = 0, restarts: bool = False) -> tuple[float, float]:
    """Train an encoder, a quantizer and a decoder; return the use of 1,000 codes and the error."""
    torch.set_num_threads(1)
    config = ImageTokenizerConfig(
        resolution=SIDE, channels=8, channel_multipliers=(1,), n_res_blocks=1, norm_groups=0,
        z_channels=8, code_width=WIDTH, n_codes=1000, quantizer=QUANTIZERS[kind](),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    quantize = initialise(ImageTokenizer(config), seed).quantize
    encoder, decoder = net(48, WIDTH, generator), net(WIDTH, 48, generator)
    learnt = [p for m in (encoder, quantize, decoder) for p in m.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=3e-3, weight_decay=0.0)
    trainer = None
    if restarts:
        trainer = CodebookTrainer(quantize.embedding.weight, kind == "ema", 0.95, kind == "l2")
    for _ in range(STEPS):
        pixels = patches(generator, SIDE**2)
        vectors = encoder(pixels)
        if trainer and not trainer.started:
            trainer.start(vectors.detach(), generator)
        output = quantize(as_map(vectors))
        drawn = decoder(output.latents.permute(0, 2, 3, 1).flatten(0, 2))
        loss = F.mse_loss(drawn, pixels) + output.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if trainer:
            trainer.update(vectors.detach(), output.codes.flatten(), generator)
    with torch.no_grad():
        pixels = patches(generator, 64**2)
        codes = quantize.codes(as_map(encoder(pixels), 64)).flatten()
        error = F.mse_loss(decoder(quantize.entries()[codes]), pixels)
    use = codebook_use(torch.bincount(codes, minlength=config.n_codes))
    return use.item(), error.item()


@pytest.fixture(scope="module")
def use_of_vq() -> float:
    return train("vq")[0]


@pytest.mark.parametrize(("kind", "ratio"), [("l2", 5), ("simvq", 8), ("ibq", 2), ("fsq", 6)])
def test_vq_collapses_and_others_do_not(use_of_vq, kind, ratio):
    assert use_of_vq < 0.1
    assert train(kind)[0] > ratio * use_of_vq


def test_restarts_prevent_the_collapse_of_vq(use_of_vq):
    assert train("vq", restarts=True)[0] > 8 * use_of_vq
