"""The networks in bands give what :mod:`pardalis.vq.network` gives, in less memory."""

import pytest
import torch
from random_weights import randomised
from torch.profiler import ProfilerActivity, profile

from pardalis.vq import ImageTokenizer, ImageTokenizerConfig, bands

CLOSE = 1e-5  # measured 2e-6 at most, of values around 3


def build(**changes) -> ImageTokenizer:
    torch.set_num_threads(1)
    values = {
        "resolution": 32, "channels": 8, "channel_multipliers": (1, 2, 2), "n_res_blocks": 1,
        "norm_groups": 4, "z_channels": 8, "code_width": 6, "n_codes": 32,
    }  # fmt: skip
    return randomised(ImageTokenizer(ImageTokenizerConfig(**values | changes)))


def noise(batch: int, side: int) -> torch.Tensor:
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


CASES = {
    "plain": {},
    "attention at two sides": {"attention_resolutions": (32, 8)},
    "no normalisation": {"norm_groups": 0},
    "folded pixels": {"patch_size": 2},
    "one level": {"channel_multipliers": (2,)},
    "sides that bands do not divide": {"resolution": 56},
}


@pytest.mark.parametrize(
    "band_bytes", [1, 8 * 32 * 4 * 6, 1 << 22], ids=["2 rows", "6 rows", "all"]
)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("batch", [1, 2])
@torch.no_grad()
def test_bands_equal_the_whole_map(case, batch, band_bytes, monkeypatch):
    monkeypatch.setattr(bands, "_BAND_BYTES", band_bytes)
    tokenizer = build(**CASES[case])
    pixels = noise(batch, tokenizer.config.resolution)
    before = pixels.clone()
    features, expected = bands.encode(tokenizer.encoder, pixels), tokenizer.encoder(pixels)
    torch.testing.assert_close(features, expected, rtol=0, atol=CLOSE)
    assert torch.equal(pixels, before)
    latents = expected.clone()
    decoded = bands.decode(tokenizer.decoder, expected)
    torch.testing.assert_close(decoded, tokenizer.decoder(expected), rtol=0, atol=CLOSE)
    assert torch.equal(expected, latents)


@torch.no_grad()
def test_codes_equal_those_of_the_whole_map(monkeypatch):
    monkeypatch.setattr(bands, "_BAND_BYTES", 1)
    tokenizer = build()
    pixels = noise(8, 32)
    codes = tokenizer.encode(pixels)
    assert len(codes.unique()) > 10
    assert torch.equal(codes, tokenizer.quantize.codes(tokenizer.latents(pixels)))


@torch.no_grad()
def test_norms_stay_accurate_far_from_zero():
    """The mean is 20 times the deviation, where a sum of squares loses all digits."""
    tokenizer = build(channel_multipliers=(1,))
    tokenizer.encoder.conv_in.bias.add_(20)
    pixels = noise(1, 32) * 0.5
    exact = build(channel_multipliers=(1,)).double()
    exact.load_state_dict(tokenizer.state_dict())
    features = bands.encode(tokenizer.encoder, pixels)
    expected = exact.encoder(pixels.double())
    torch.testing.assert_close(features.double(), expected, rtol=0, atol=1e-4)


def peak_bytes(run) -> int:
    """Return the peak memory of the tensors that a function creates."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    now = most = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


@torch.no_grad()
def test_memory_is_two_maps_instead_of_five(monkeypatch):
    monkeypatch.setattr(bands, "_BAND_BYTES", 1)
    tokenizer = build(resolution=128, channels=16, channel_multipliers=(1, 1, 2))
    pixels, one_map = noise(1, 128), 4 * 16 * 128**2
    latents = tokenizer.encoder(pixels)
    for network, in_bands, x in (
        (tokenizer.encoder, bands.encode, pixels),
        (tokenizer.decoder, bands.decode, latents),
    ):
        assert 2 * one_map < peak_bytes(lambda: in_bands(network, x)) < 2.6 * one_map  # noqa: B023
        assert peak_bytes(lambda: network(x)) > 3.9 * one_map  # noqa: B023
