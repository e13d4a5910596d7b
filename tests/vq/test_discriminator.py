import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pardalis.errors import ConfigError
from pardalis.vq.adversarial import r1_penalty
from pardalis.vq.discriminator import (
    Discriminator,
    PatchConfig,
    PatchDiscriminator,
    StyleGAN2Config,
    build_discriminator,
    minibatch_std,
)

CONFIGS = {
    "patch": PatchConfig(channels=4, n_layers=2),
    "stylegan2": StyleGAN2Config(channels=1),
}


@pytest.fixture(params=CONFIGS)
def small(request) -> Discriminator:
    torch.set_num_threads(1)
    return build_discriminator(CONFIGS[request.param], resolution=32).initialise(0)


def pixels(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_patches_have_the_published_names_and_sizes():
    with torch.device("meta"):
        network = build_discriminator(PatchConfig(), resolution=256)
    shapes = {name: tuple(p.shape) for name, p in network.named_parameters()}
    assert shapes == {
        "main.0.weight": (64, 3, 4, 4),
        "main.0.bias": (64,),
        "main.2.weight": (128, 64, 4, 4),
        "main.3.weight": (128,),
        "main.3.bias": (128,),
        "main.5.weight": (256, 128, 4, 4),
        "main.6.weight": (256,),
        "main.6.bias": (256,),
        "main.8.weight": (512, 256, 4, 4),
        "main.9.weight": (512,),
        "main.9.bias": (512,),
        "main.11.weight": (1, 512, 4, 4),
        "main.11.bias": (1,),
    }


def test_the_receptive_field_is_70_pixels():
    network = PatchDiscriminator(channels=2, n_layers=3).initialise(0).eval()
    image = pixels(1, 3, 128, 128).requires_grad_()
    logits = network(image)
    assert logits.shape == (1, 1, 14, 14)
    (gradient,) = torch.autograd.grad(logits[0, 0, 7, 7], image)
    rows = gradient.abs().sum((0, 1, 3)).nonzero().flatten()
    assert int(rows.max() - rows.min()) + 1 == 70


def test_stylegan2_has_the_published_names_and_sizes():
    with torch.device("meta"):
        network = build_discriminator(StyleGAN2Config(), resolution=512)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    # The first layer and block, and what follows the last.
    assert shapes["blocks.0.0.weight"] == (64, 3, 1, 1)
    assert shapes["blocks.0.1.bias"] == (64,)
    assert {name: shape for name, shape in shapes.items() if name.startswith("blocks.1.")} == {
        "blocks.1.conv1.0.weight": (64, 64, 3, 3),
        "blocks.1.conv1.1.bias": (64,),
        "blocks.1.conv2.0.kernel": (4, 4),
        "blocks.1.conv2.1.weight": (128, 64, 3, 3),
        "blocks.1.conv2.2.bias": (128,),
        "blocks.1.skip.0.kernel": (4, 4),
        "blocks.1.skip.1.weight": (128, 64, 1, 1),
    }
    widths = [shapes[f"blocks.{block}.conv2.1.weight"][0] for block in range(1, 8)]
    assert widths == [128, 256, 512, 512, 512, 512, 512]  # at 256, 128, ... 4 pixels
    assert shapes["final_conv.0.weight"] == (512, 513, 3, 3)
    assert shapes["final_linear.0.weight"] == (512, 8192)
    assert shapes["final_linear.1.weight"] == (1, 512)
    assert sum(p.numel() for p in network.parameters()) == 28_982_849


def test_stylegan2_keeps_the_variance_of_activations():
    """By scaled weights, the gain of LeakyReLU and the scaled sum of each block.

    Smooth images pass; noise is what the blur before each halving takes away.
    """
    config = StyleGAN2Config(channels=8)
    network = build_discriminator(config, 256).initialise(0)
    smooth = F.interpolate(pixels(4, 3, 4, 4), size=(256, 256), mode="bicubic") * 2
    with torch.no_grad():
        assert 0.2 < float(network.blocks(smooth).square().mean().sqrt()) < 3


def test_a_new_discriminator_takes_any_batch_size(small):
    for n in (1, 3, 4, 6):
        logits = small(pixels(n, 3, 32, 32))
        assert len(logits) == n and logits.isfinite().all()


def test_initial_weights_depend_on_seed_and_name_only(small):
    first = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    again = small.initialise(0).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = small.initialise(1).state_dict()
    drawn = [name for name, p in small.named_parameters() if not name.endswith("bias")]
    assert not any(torch.equal(first[name], other[name]) for name in drawn)
    assert all((p == 0).all() for name, p in small.named_parameters() if name.endswith("bias"))


def test_initial_weights_have_the_published_deviation():
    patch = build_discriminator(PatchConfig(channels=32), 64).initialise(0)
    patch.requires_grad_(False)
    assert float(patch.main[5].weight.std()) == pytest.approx(0.02, rel=0.02)
    assert float(patch.main[6].weight.mean()) == pytest.approx(1, abs=0.01)
    style = build_discriminator(StyleGAN2Config(channels=8), 64).initialise(0)
    style.requires_grad_(False)
    assert float(style.blocks[1].conv1[0].weight.std()) == pytest.approx(1, rel=0.02)


def test_training_separates_real_from_fake(small):
    real, fake = pixels(4, 3, 32, 32) * 0.3 + 0.5, pixels(4, 3, 32, 32, seed=1) * 0.3 - 0.5
    optimizer = torch.optim.Adam(small.parameters(), lr=1e-2, betas=(0.5, 0.9))
    for _ in range(15):
        loss = F.softplus(-small(real)).mean() + F.softplus(small(fake)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.3  # 1.39 is chance


def test_the_gradient_of_r1_equals_finite_differences(small, monkeypatch):
    """With smooth activations, since LeakyReLU has no second derivative at 0."""
    monkeypatch.setattr("pardalis.vq.discriminator._leaky_relu", F.softplus)
    for module in small.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.LeakyReLU):
                setattr(module, name, nn.Softplus())
    image = pixels(4, 3, 32, 32).requires_grad_()
    small, parameters = small.double(), list(small.parameters())

    def penalty() -> torch.Tensor:
        seen = image.double()
        (gradient,) = torch.autograd.grad(small(seen).sum(), seen, create_graph=True)
        return gradient.square().sum((1, 2, 3)).mean()

    torch.testing.assert_close(r1_penalty(small(seen := image.double()), seen), penalty().float())
    gradients = torch.autograd.grad(penalty(), parameters, materialize_grads=True)
    weights = [name for name, _ in small.named_parameters() if name.endswith("weight")]
    assert sum(bool(gradient.any()) for gradient in gradients) >= len(weights)
    length = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    values = []
    for step in (3e-4, -6e-4):
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.add_(step * gradient / length)
        values.append(float(penalty().detach()))
    assert (values[0] - values[1]) / 6e-4 == pytest.approx(float(length), rel=1e-3)


@pytest.mark.parametrize(("batch", "group"), [(1, 1), (2, 2), (4, 4), (8, 4), (6, 6), (9, 9)])
def test_minibatch_std_uses_groups_of_four_if_possible(batch, group):
    x = torch.randn(batch, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    found = minibatch_std(x)
    assert found.shape == (batch, 1, 4, 4)
    for row in range(batch):
        members = x[row // group * group :][:group]
        expected = (members.var(0, unbiased=False) + 1e-8).sqrt().mean()
        torch.testing.assert_close(found[row], expected.expand(1, 4, 4))


def test_blur_is_the_published_filter():
    style = build_discriminator(CONFIGS["stylegan2"], 32)
    kernel = style.blocks[1].conv2[0].kernel
    line = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    torch.testing.assert_close(kernel, line[:, None] * line[None])
    # Padding 2 and 1: a convolution of 3 or of 1 with stride 2 then gives half the side.
    x = torch.ones(1, 2, 8, 8)
    assert style.blocks[1].conv2[0](x).shape[-1] == 9
    assert style.blocks[1].skip[0](x).shape[-1] == 7


@pytest.mark.parametrize("name", ["channels", "n_layers"])
def test_zero_channels_or_layers_are_refused(name):
    with pytest.raises(ConfigError, match=f"{name} must be at least 1, got 0"):
        PatchConfig(**{name: 0})


def test_images_too_small_for_the_patches_are_refused():
    config = PatchConfig(channels=2)
    assert build_discriminator(config, 24).initialise(0)(pixels(2, 3, 24, 24)).shape == (2, 1, 1, 1)
    with pytest.raises(ConfigError, match="needs images of 24 pixels or more, got 16"):
        build_discriminator(config, 16)


@pytest.mark.parametrize("resolution", [4, 48, 200])
def test_stylegan2_needs_a_power_of_two(resolution):
    with pytest.raises(ConfigError, match=f"a power of two from 8, got {resolution}"):
        build_discriminator(StyleGAN2Config(), resolution)
