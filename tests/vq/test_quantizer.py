import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pardalis.vq import QUANTIZERS, ImageTokenizer, QuantizerConfig, initialise, nearest_codes, tiny
from pardalis.vq.config import levels_for
from pardalis.vq.quantizer import (
    codes_of_values,
    most_aligned_codes,
    round_to_levels,
    values_of_codes,
)

KINDS = list(QUANTIZERS)
LEVELS = st.lists(st.integers(3, 9), min_size=1, max_size=4)


def made(kind: str = "vq", **options) -> QuantizerConfig:
    return QUANTIZERS[kind](**options)


def quantizer(config, **options):
    """A new quantizer with 60 codes, which every kind supports."""
    config = dataclasses.replace(config, n_codes=60, quantizer=made(**options))
    return initialise(ImageTokenizer(config), seed=1).quantize


def random_quantizer_and_vectors(config, kind):
    """With entries and vectors of different lengths."""
    module = quantizer(config, kind=kind)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module, torch.randn(5, config.code_width, 2, 2, generator=generator)


def vectors_of(latents):
    return latents.permute(0, 2, 3, 1).flatten(0, 2)


def ones_against_zeros(config, **options):
    """Latents of 1 and a codebook of 0; returns the loss and both gradients."""
    module = quantizer(config, **options)
    with torch.no_grad():
        module.embedding.weight.zero_()
    latents = torch.ones(2, config.code_width, 2, 2, requires_grad=True)
    loss = module(latents).loss
    loss.backward()
    return loss.item(), latents.grad, module.embedding.weight.grad


# ── the search ───────────────────────────────────────────────────────────────────────────────────


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 200), st.integers(0, 10**6))
def test_blocks_find_what_the_whole_matrix_finds(n_vectors, n_codes, block_elements, seed):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(n_vectors, 5, generator=generator)
    codebook = torch.randn(n_codes, 5, generator=generator)
    whole = (vectors[:, None].double() - codebook[None].double()).square().sum(2).argmin(1)
    assert torch.equal(nearest_codes(vectors, codebook, block_elements), whole)
    aligned = (vectors.double() @ codebook.double().T).argmax(1)
    assert torch.equal(most_aligned_codes(vectors, codebook, block_elements), aligned)


@pytest.mark.parametrize("search", [nearest_codes, most_aligned_codes])
def test_no_block_exceeds_its_elements(monkeypatch, search):
    sizes = []
    addmm = torch.addmm

    def spy(*args, **kwargs):
        result = addmm(*args, **kwargs)
        sizes.append(result.numel())
        return result

    monkeypatch.setattr(torch, "addmm", spy)
    search(torch.randn(1000, 4), torch.randn(50, 4), block_elements=4000)
    assert len(sizes) == 13
    assert max(sizes) == 4000


# ── common to all kinds ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
def test_training_and_use_agree(small_config, kind):
    module, latents = random_quantizer_and_vectors(small_config, kind)
    quantized = module(latents)
    assert len(quantized.codes.unique()) > 4
    assert torch.equal(module.codes(latents), quantized.codes)
    torch.testing.assert_close(module.latents(quantized.codes), quantized.latents)
    assert quantized.loss.ndim == 0


@pytest.mark.parametrize("kind", KINDS)
def test_codes_are_in_raster_order(small_config, kind):
    module, latents = random_quantizer_and_vectors(small_config, kind)
    codes = torch.tensor([[3, 1, 4, 59], [5, 9, 2, 6]])
    decoded, entries = module.latents(codes), module.entries()
    assert entries.shape == (60, small_config.code_width)
    assert torch.equal(decoded[0, :, 0, 1], entries[1])
    assert torch.equal(decoded[0, :, 1, 0], entries[4])
    alone = module.codes(latents[2:3, :, 1:, :1])
    assert alone.tolist() == [[module.codes(latents)[2, 2].item()]]


@pytest.mark.parametrize("kind", ["vq", "ema", "simvq"])
def test_codes_are_the_nearest_entries(small_config, kind):
    module, latents = random_quantizer_and_vectors(small_config, kind)
    distances = torch.cdist(vectors_of(latents).double(), module.entries().double())
    assert torch.equal(module.codes(latents).flatten(), distances.argmin(1))
    assert torch.equal(module.codes(module.latents(torch.arange(60).view(-1, 4))).flatten(),
                       torch.arange(60))  # fmt: skip


@pytest.mark.parametrize("kind", ["vq", "ema", "simvq"])
def test_the_gradient_passes_straight_through(small_config, kind):
    module, latents = random_quantizer_and_vectors(small_config, kind)
    output = module(latents.requires_grad_()).latents
    seed = torch.randn_like(output)
    (gradient,) = torch.autograd.grad(output, latents, seed)
    assert torch.equal(gradient, seed)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_changes_nothing(small_config, kind):
    module, latents = random_quantizer_and_vectors(small_config, kind)
    expected = module(latents)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = module(latents)
        assert torch.equal(module.codes(latents), expected.codes)
    assert torch.equal(found.latents, expected.latents)
    assert torch.equal(found.loss, expected.loss)
    halves = module(latents.bfloat16())
    assert halves.latents.dtype == torch.float32
    assert torch.equal(halves.codes, module.codes(latents.bfloat16().float()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_of_each_kind_learns_and_comes_back(small_config, tmp_path, kind):
    config = dataclasses.replace(small_config, n_codes=60, quantizer=QUANTIZERS[kind]())
    tokenizer = initialise(ImageTokenizer(config), seed=0)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(4, 3, 16, 16, generator=generator) * 2 - 1
    output = tokenizer(pixels)
    loss = (output.reconstruction - pixels).square().mean() + tokenizer.quantize(
        output.latents
    ).loss
    loss.backward()
    still = {name for name, p in tokenizer.named_parameters() if p.grad is None or not p.grad.any()}
    frozen = {"quantize.embedding.weight"} if kind in ("ema", "simvq") else set()
    assert {name for name in still if name.startswith("quant")} == frozen
    tokenizer.save(tmp_path)
    loaded = ImageTokenizer.load(tmp_path)
    assert loaded.config == config
    assert torch.equal(loaded.encode(pixels), tokenizer.eval().encode(pixels))
    assert {n for n, p in loaded.named_parameters() if not p.requires_grad} == frozen


def test_who_restarts(small_config):
    restarting = {kind for kind in KINDS if quantizer(small_config, kind=kind).restarts}
    assert restarting == {"vq", "ema", "l2"}


# ── vq and ema ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("legacy", "ratio"), [(True, 4.0), (False, 0.25)])
def test_legacy_decides_which_side_beta_weighs(small_config, legacy, ratio):
    """The loss is 1 + beta either way; the pulls on latents and codes trade places."""
    loss, on_latents, on_codes = ones_against_zeros(small_config, legacy=legacy)
    assert loss == pytest.approx(1.25)
    assert on_latents.sum().abs() / on_codes.sum().abs() == pytest.approx(ratio)


def test_equal_losses_of_both_kinds_of_weighing_have_the_stated_gradients(small_config):
    """With latents of 1 and codes of 0, d(loss)/d(latent) is 2 / n, weighed by 1 or beta."""
    n = 2 * small_config.code_width * 2 * 2
    for legacy, weights in ((True, (1.0, 0.25)), (False, (0.25, 1.0))):
        _, on_latents, on_codes = ones_against_zeros(small_config, legacy=legacy)
        assert on_latents.unique().tolist() == pytest.approx([weights[0] * 2 / n])
        assert on_codes.sum().item() == pytest.approx(-weights[1] * 2)


def test_only_chosen_entries_of_vq_learn(small_config):
    module, latents = random_quantizer_and_vectors(small_config, "vq")
    quantized = module(latents)
    quantized.loss.backward()
    moved = module.embedding.weight.grad.abs().sum(1).nonzero().flatten()
    assert torch.equal(moved, quantized.codes.unique())
    assert len(moved) < 30


def test_an_ema_codebook_has_no_gradient(small_config):
    loss, on_latents, on_codes = ones_against_zeros(small_config, kind="ema", beta=0.5)
    assert loss == pytest.approx(0.5)
    assert on_latents.abs().sum() > 0
    assert on_codes is None


# ── l2 ───────────────────────────────────────────────────────────────────────────────────────────


@settings(deadline=None, max_examples=20)
@given(st.floats(-3, 3), st.floats(-3, 3))
def test_lengths_do_not_matter_to_l2(on_latents, on_entries):
    generator = torch.Generator().manual_seed(0)
    module, latents = random_quantizer_and_vectors(dataclasses.replace(tiny(), code_width=8), "l2")
    expected = module(latents)
    with torch.no_grad():
        lengths = 10 ** (on_entries * torch.rand(60, 1, generator=generator))
        module.embedding.weight.mul_(lengths)
    found = module(latents * 10**on_latents)
    assert torch.equal(found.codes, expected.codes)
    torch.testing.assert_close(found.latents, expected.latents)
    torch.testing.assert_close(found.loss, expected.loss)


def test_codes_of_l2_are_those_of_the_nearest_direction(small_config):
    module, latents = random_quantizer_and_vectors(small_config, "l2")
    entries = module.embedding.weight.detach()
    nearest = torch.cosine_similarity(vectors_of(latents)[:, None], entries[None], dim=2).argmax(1)
    quantized = module(latents * 5)
    assert torch.equal(quantized.codes.flatten(), nearest)
    directions = entries[nearest] / entries[nearest].norm(dim=1, keepdim=True)
    torch.testing.assert_close(vectors_of(quantized.latents), directions)


def test_the_loss_of_l2_is_taken_on_the_sphere(small_config):
    """By hand: at a right angle two directions are the root of 2 apart, whatever their lengths."""
    module = quantizer(small_config, kind="l2")
    width = small_config.code_width
    with torch.no_grad():
        module.embedding.weight.zero_()[:, 0] = 7.0
    latents = torch.zeros(1, width, 2, 2)
    latents[:, 1] = 0.2
    latents.requires_grad_()
    loss = module(latents).loss
    assert loss.item() == pytest.approx(1.25 * 2 / width)
    loss.backward()
    assert latents.grad[:, 1].abs().max() < 1e-6  # a longer vector is no better
    assert (latents.grad[:, 0] < 0).all()


@pytest.mark.parametrize(("legacy", "ratio"), [(True, 4.0), (False, 0.25)])
def test_legacy_of_l2(small_config, legacy, ratio):
    """Two directions at a right angle pull at each other alike but for their weights."""
    module = quantizer(small_config, kind="l2", legacy=legacy)
    with torch.no_grad():
        module.embedding.weight.zero_()[:, 0] = 1.0
    latents = torch.zeros(1, small_config.code_width, 2, 2)
    latents[:, 1] = 1.0
    module(latents.requires_grad_()).loss.backward()
    on_codes = module.embedding.weight.grad.sum(0).norm()
    assert latents.grad.sum((0, 2, 3)).norm() / on_codes == pytest.approx(ratio)


def test_the_gradient_passes_straight_through_to_the_direction(small_config):
    module, latents = random_quantizer_and_vectors(small_config, "l2")
    output = module(latents.requires_grad_()).latents
    seed = torch.randn_like(output)
    (gradient,) = torch.autograd.grad(output, latents, seed)
    (expected,) = torch.autograd.grad(latents / latents.norm(dim=1, keepdim=True), latents, seed)
    torch.testing.assert_close(gradient, expected)


# ── simvq ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("kind", "share"), [("simvq", 1.0), ("vq", 0.5)])
def test_one_step_moves_all_entries_of_simvq_and_few_of_vq(small_config, kind, share):
    module, latents = random_quantizer_and_vectors(small_config, kind)
    book, before = module.embedding.weight.clone(), module.entries().detach().clone()
    module(latents).loss.backward()
    learnt = [p for p in module.parameters() if p.requires_grad]
    torch.optim.SGD(learnt, lr=0.1).step()
    moved = (module.entries() != before).any(1).float().mean()
    assert moved == 1.0 if share == 1.0 else 0 < moved < share
    assert torch.equal(module.embedding.weight, book) == (kind == "simvq")


@pytest.mark.parametrize(("legacy", "ratio"), [(True, 4.0), (False, 0.25)])
def test_legacy_of_simvq(small_config, legacy, ratio):
    """With the map's weight at 0 all entries are its bias, which stands for the codebook."""
    module = quantizer(small_config, kind="simvq", legacy=legacy)
    with torch.no_grad():
        module.embedding_proj.weight.zero_()
    latents = torch.ones(2, small_config.code_width, 2, 2, requires_grad=True)
    module(latents).loss.backward()
    on_codes = module.embedding_proj.bias.grad.sum()
    assert latents.grad.sum().abs() / on_codes.abs() == pytest.approx(ratio)


# ── ibq ──────────────────────────────────────────────────────────────────────────────────────────


def test_ibq_equals_its_definition(small_config):
    """Its paper's straight-through one-hot, its code's loss, and the entropies, all written out."""
    module, latents = random_quantizer_and_vectors(small_config, "ibq")
    theirs, ours = (latents.clone().requires_grad_() for _ in range(2))
    book = module.embedding.weight
    z = vectors_of(theirs)
    logits = z @ book.T
    soft = torch.softmax(logits, 1)
    hard = torch.nn.functional.one_hot(logits.argmax(1), 60).float()
    propagated = (hard - soft.detach() + soft) @ book
    chosen = hard @ book
    sharp = torch.softmax(logits / 0.01, 1)
    logs = torch.log_softmax(logits / 0.01, 1)
    mean = sharp.mean(0)
    entropy = -(sharp * logs).sum(1).mean() + (mean * (mean + 1e-5).log()).sum()
    loss = ((propagated - z) ** 2).mean() + ((chosen.detach() - z) ** 2).mean()
    loss = loss + 0.25 * ((chosen - z.detach()) ** 2).mean() + 0.05 * entropy
    found = module(ours)
    torch.testing.assert_close(vectors_of(found.latents), propagated)
    torch.testing.assert_close(found.loss, loss)
    seed = torch.randn(propagated.shape, generator=torch.Generator().manual_seed(4))
    expected = torch.autograd.grad((propagated * seed).sum() + loss, (theirs, book))
    gradients = torch.autograd.grad(
        (vectors_of(found.latents) * seed).sum() + found.loss, (ours, book)
    )
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-5)


def test_entries_of_ibq_that_were_not_chosen_learn_too(small_config):
    module = quantizer(small_config, kind="ibq", entropy_weight=0.0)
    latents = torch.randn(5, small_config.code_width, 2, 2)
    quantized = module(latents)
    assert len(quantized.codes.unique()) < 30
    quantized.latents.square().sum().backward()
    assert (module.embedding.weight.grad.abs().sum(1) > 0).all()


# ── fsq ──────────────────────────────────────────────────────────────────────────────────────────


@settings(deadline=None, max_examples=40)
@given(LEVELS)
def test_every_code_of_fsq_comes_back(levels):
    """From codes to values and back, and from numbers before the bounds to each code."""
    codes = torch.arange(torch.tensor(levels).prod().item())
    values = values_of_codes(codes, levels)
    assert torch.equal(codes_of_values(values, levels), codes)
    assert len(values.unique(dim=0)) == len(codes)
    assert values.min() >= -1
    assert values.max() <= 1
    counts = torch.tensor(levels)
    reach, offset = (counts - 1) * 1.001 / 2, (1 - counts % 2) / 2
    inside = ((values * (counts // 2) + offset) / reach).clamp(-0.9999, 0.9999)
    numbers = inside.atanh() - (offset / reach).atanh()
    assert torch.equal(round_to_levels(numbers, levels), values)


@given(LEVELS)
def test_far_and_middle_numbers(levels):
    ends = round_to_levels(torch.tensor([[-1e4], [0.0], [1e4]]).expand(3, len(levels)), levels)
    codes = codes_of_values(ends, levels)
    assert codes[0] == 0
    assert codes[2] == torch.tensor(levels).prod() - 1
    assert (ends[1] == 0).all()


def test_digits_by_hand():
    """8 levels are -1, -3/4 ... 3/4 and 5 are -1, -1/2 ... 1; the first is the lowest digit."""
    values = values_of_codes(torch.tensor([0, 1, 8, 39]), (8, 5))
    assert values.tolist() == [[-1, -1], [-0.75, -1], [-1, -0.5], [0.75, 1]]


def test_rounding_has_gradient_1():
    """The gradient is that of the bound alone, written out."""
    numbers = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), requires_grad=True)
    (gradient,) = torch.autograd.grad(round_to_levels(numbers, (8, 5)).sum(), numbers)
    shift = torch.tensor([0.5 / (3.5 * 1.001), 0.0]).atanh()
    slope = torch.tensor([3.5 / 4, 2 / 2]) * 1.001
    torch.testing.assert_close(gradient, slope * (1 - (numbers + shift).tanh() ** 2))


def test_a_module_reaches_every_code(small_config):
    module = quantizer(small_config, kind="fsq")  # 60 codes: 10 x 6
    assert module.levels == (10, 6)
    values = values_of_codes(torch.arange(60), module.levels)
    counts = torch.tensor(module.levels)
    reach = (counts - 1) * 1.001 / 2
    numbers = ((values * (counts // 2) + 0.5) / reach).clamp(-0.999, 0.999).atanh()
    numbers = numbers - (0.5 / reach).atanh()
    with torch.no_grad():
        weight, bias = module.project_in.weight, module.project_in.bias
        vectors = (numbers - bias) @ torch.linalg.pinv(weight).T
    latents = vectors.view(15, 2, 2, -1).permute(0, 3, 1, 2)
    assert torch.equal(module.codes(latents).flatten(), torch.arange(60))
    assert module(latents).loss == 0


@pytest.mark.parametrize(
    ("n_codes", "levels"),
    [
        (240, (8, 6, 5)), (1000, (8, 5, 5, 5)), (4375, (7, 5, 5, 5, 5)),
        (15360, (8, 8, 8, 6, 5)), (64000, (8, 8, 8, 5, 5, 5)),  # the paper's table 1
        (1024, (16, 8, 8)), (8192, (16, 8, 8, 8)), (65536, (16, 8, 8, 8, 8)), (32, (32,)),
    ],
)  # fmt: skip
def test_levels_follow_from_the_number_of_codes(n_codes, levels):
    assert levels_for(n_codes) == levels
