import dataclasses

import pytest
import torch
from torch import nn

from pardalis.vq import ImageTokenizer, chameleon, initialise, tiny
from pardalis.vq.network import Downsample, GroupNorm, Upsample, normalisation

# counts of Chameleon's official code
CHAMELEON_COUNTS = {
    "encoder": 27_194_880,
    "decoder": 39_294_851,
    "quantize": 2_097_152,
    "quant_conv": 65_792,
    "post_quant_conv": 65_792,
}


def test_chameleon_has_the_published_number_of_parameters():
    with torch.device("meta"):
        tokenizer = ImageTokenizer(chameleon())
    counts = {
        name: sum(p.numel() for p in getattr(tokenizer, name).parameters())
        for name in CHAMELEON_COUNTS
    }
    assert counts == CHAMELEON_COUNTS
    assert sum(p.numel() for p in tokenizer.parameters()) == 68_718_467


def test_parameter_names_are_those_of_the_original():
    with torch.device("meta"):
        names = set(ImageTokenizer(chameleon()).state_dict())
    assert {
        "encoder.conv_in.weight",
        "encoder.down.0.block.1.norm1.weight",
        "encoder.down.2.block.0.nin_shortcut.bias",
        "encoder.down.3.downsample.conv.weight",
        "encoder.mid.attn_1.proj_out.weight",
        "encoder.norm_out.bias",
        "decoder.up.0.block.2.conv2.weight",
        "decoder.up.4.upsample.conv.weight",
        "decoder.mid.block_2.norm2.weight",
        "decoder.conv_out.weight",
        "quantize.embedding.weight",
        "quant_conv.weight",
        "post_quant_conv.bias",
    } <= names
    for absent in ("encoder.down.4.downsample.conv.weight", "decoder.up.0.upsample.conv.weight"):
        assert absent not in names


@pytest.mark.parametrize(
    ("channels", "most", "groups"),
    [(128, 32, 32), (48, 32, 24), (20, 32, 20), (64, 8, 8), (30, 4, 3)],
)
def test_groups_divide_the_channels(channels, most, groups):
    norm = normalisation(channels, most)
    assert isinstance(norm, nn.GroupNorm)
    assert (norm.num_groups, norm.eps) == (groups, 1e-6)


@pytest.mark.parametrize("mean", [0.0, 5.0])
def test_norms_are_accurate_in_channels_last(mean):
    """Measured: 3e-6 at most; PyTorch's kernel has an error of 3e-3 at a mean of 5."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 12, 64, 64, generator=generator) * 0.3 + mean
    norm = GroupNorm(4, 12, eps=1e-6)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(12, generator=generator))
        norm.bias.copy_(torch.randn(12, generator=generator))
        result = norm(maps.contiguous(memory_format=torch.channels_last))
    assert result.is_contiguous(memory_format=torch.channels_last)
    groups = maps.double().view(2, 4, -1)
    spread = (groups.square().mean(2) - groups.mean(2).square() + 1e-6).sqrt()
    unit = ((groups - groups.mean(2, keepdim=True)) / spread[:, :, None]).view_as(maps)
    expected = unit * norm.weight[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(result.double(), expected.detach(), rtol=0, atol=1e-5)


@torch.no_grad()
def numbered_kernel(module) -> None:
    """Give one channel the kernel 1 2 3 / 4 5 6 / 7 8 9 and a bias of 1000."""
    module.conv.weight.copy_(torch.arange(1.0, 10).view(1, 1, 3, 3))
    module.conv.bias.fill_(1000)


def test_downsampling_pads_right_and_bottom_only():
    """At the top left the whole kernel covers ones, at the bottom right only 1 2 4 5."""
    step = Downsample(1)
    numbered_kernel(step)
    halved = step(torch.ones(1, 1, 4, 4))
    assert halved[0, 0].tolist() == [[1045, 1027], [1021, 1012]]


def test_upsampling_repeats_each_pixel():
    """1 2 becomes 1 1 2 2 twice, padded by zeros."""
    step = Upsample(1)
    numbered_kernel(step)
    doubled = step(torch.tensor([[[[1.0, 2.0]]]]))
    top = [5 + 6 + 8 + 9, 4 + 5 + 2 * 6 + 7 + 8 + 2 * 9, 4 + 2 * 5 + 2 * 6 + 7 + 2 * 8 + 2 * 9]
    bottom = [2 + 3 + 5 + 6, 1 + 2 + 2 * 3 + 4 + 5 + 2 * 6, 1 + 2 * 2 + 2 * 3 + 4 + 2 * 5 + 2 * 6]
    top.append(2 * (4 + 5 + 7 + 8))
    bottom.append(2 * (1 + 2 + 4 + 5))
    assert (doubled[0, 0] - 1000).tolist() == [top, bottom]


def test_no_groups_is_no_normalisation():
    assert isinstance(normalisation(32, 0), nn.Identity)
    with torch.device("meta"):
        assert not any("norm" in name for name in ImageTokenizer(tiny()).state_dict())


@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_sides_of_feature_maps(small_config, patch_size):
    config = dataclasses.replace(small_config, patch_size=patch_size)
    tokenizer = ImageTokenizer(config).eval()
    codes = tokenizer.encode(torch.zeros(2, 3, 16, 16))
    assert codes.shape == (2, config.codes_per_image) == (2, (16 // (2 * patch_size)) ** 2)
    assert tokenizer.decode(codes).shape == (2, 3, 16, 16)


def test_attention_is_at_the_configured_resolutions(small_config):
    names = set(ImageTokenizer(small_config).state_dict())
    assert "encoder.down.0.attn.0.q.weight" in names  # side 4
    assert "decoder.up.0.attn.1.q.weight" in names
    assert not any(name.startswith("encoder.down.1.attn") for name in names)  # side 2


def test_initial_weights_depend_on_seed_and_name_only(small_config):
    one, same, other = (
        initialise(ImageTokenizer(small_config), seed).state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["encoder.conv_in.weight"], other["encoder.conv_in.weight"])
    assert not one["encoder.mid.block_1.conv2.weight"].any()
    assert one["quantize.embedding.weight"].abs().max() <= 1 / small_config.n_codes
    more = initialise(ImageTokenizer(dataclasses.replace(small_config, n_res_blocks=2)), 1)
    assert torch.equal(one["decoder.conv_out.weight"], more.state_dict()["decoder.conv_out.weight"])
