import dataclasses

import pytest
import torch
from torch import nn
from transformers import ChameleonVQVAE, ChameleonVQVAEConfig

from pardalis.vq import ImageTokenizer, ImageTokenizerConfig, chameleon, initialise, tiny
from pardalis.vq.network import normalisation

# systems of this family are told apart by these counts; Chameleon's official code gives them
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


def test_keys_are_those_of_the_original_layout():
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


def test_the_encoder_equals_that_of_transformers():
    """Its names are ours, so the weights map by identity; its code search must agree too."""
    config = ImageTokenizerConfig(
        resolution=32, channels=32, channel_multipliers=(1, 2, 2), n_res_blocks=2,
        z_channels=16, code_width=8, n_codes=64,
    )  # fmt: skip
    torch.set_num_threads(1)
    theirs = ChameleonVQVAE(
        ChameleonVQVAEConfig(
            embed_dim=8, num_embeddings=64, latent_channels=16, resolution=32, base_channels=32,
            channel_multiplier=[1, 2, 2], num_res_blocks=2,
        )
    ).eval()  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    ours = ImageTokenizer(config).eval()
    missing, unexpected = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert not unexpected
    assert all(name.startswith(("decoder.", "post_quant_conv.")) for name in missing)
    pixels = torch.rand((2, 3, 32, 32), generator=generator) * 2 - 1
    with torch.no_grad():
        # measured difference: below 1e-6 for latents of size up to 1
        torch.testing.assert_close(
            ours.latents(pixels), theirs.quant_conv(theirs.encoder(pixels)), rtol=1e-5, atol=1e-5
        )
        assert torch.equal(ours.encode(pixels), theirs.encode(pixels).image_tokens.view(2, 64))


@pytest.mark.parametrize(
    ("channels", "most", "groups"),
    [(128, 32, 32), (48, 32, 24), (20, 32, 20), (64, 8, 8), (30, 4, 3)],
)
def test_groups_divide_the_channels(channels, most, groups):
    norm = normalisation(channels, most)
    assert isinstance(norm, nn.GroupNorm)
    assert (norm.num_groups, norm.eps) == (groups, 1e-6)


def test_no_groups_is_no_normalisation():
    assert isinstance(normalisation(32, 0), nn.Identity)
    with torch.device("meta"):
        assert not any("norm" in name for name in ImageTokenizer(tiny()).state_dict())


@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_sides_of_feature_maps(small_config, patch_size):
    config = dataclasses.replace(small_config, patch_size=patch_size)
    tokenizer = ImageTokenizer(config).eval()
    codes = tokenizer.encode(torch.zeros(2, 3, 16, 16))
    assert codes.shape == (2, config.codes_per_picture) == (2, (16 // (2 * patch_size)) ** 2)
    assert tokenizer.decode(codes).shape == (2, 3, 16, 16)


def test_attention_stands_where_the_config_says(small_config):
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
