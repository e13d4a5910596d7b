import dataclasses
import json

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file

from pardalis.errors import BundleError, RequestError
from pardalis.vq import ImageTokenizer, initialise, tokenizer


def noise(width: int, height: int, seed: int = 0) -> PIL.Image.Image:
    array = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(array)


# ── images to pixels and back ──────────────────────────────────────────────────────────────────


def test_white_is_one_and_black_minus_one(small_tokenizer):
    images = [PIL.Image.new("RGB", (30, 20), colour) for colour in ("white", "black")]
    pixels = small_tokenizer.preprocess(images)
    assert pixels.shape == (2, 3, 16, 16)
    assert torch.equal(pixels[0], torch.ones(3, 16, 16))
    assert torch.equal(pixels[1], -torch.ones(3, 16, 16))


def test_values_are_truncated_and_clamped(small_tokenizer):
    values = torch.tensor([-9.0, -1.0, 0.0, 0.999, 1.0, 9.0])
    images = small_tokenizer.to_images(values.view(6, 1, 1, 1).expand(6, 3, 16, 16))
    assert [image.getpixel((0, 0))[0] for image in images] == [0, 0, 127, 254, 255, 255]


def test_pixels_come_back_within_one_level(small_tokenizer):
    """Truncation loses one level where float32 falls just short."""
    image = noise(16, 16)
    (back,) = small_tokenizer.to_images(small_tokenizer.preprocess([image]))
    assert np.abs(np.asarray(back).astype(int) - np.asarray(image)).max() <= 1


def test_any_kind_of_image_is_accepted(small_tokenizer, tmp_path):
    """Transparency and files are handled as the config says."""
    layer = PIL.Image.fromarray(np.asarray(noise(16, 16).convert("RGBA")) // 2)
    layer.save(tmp_path / "layer.png")
    ours, theirs = (
        ImageTokenizer(dataclasses.replace(small_tokenizer.config, preprocessing=name))
        for name in ("chameleon", "transformers")
    )
    pixels = ours.preprocess([layer, tmp_path / "layer.png"])
    assert torch.equal(pixels[0], pixels[1])
    other = (theirs.preprocess([layer]) + 1) / 0.0078 - (pixels[:1] + 1) / 2 * 255
    assert other.round().unique().tolist() == [0, 1]  # rounded, not truncated


# ── codes ────────────────────────────────────────────────────────────────────────────────────────


def test_training_and_inference_agree(small_tokenizer):
    pixels = small_tokenizer.preprocess([noise(16, 16, seed) for seed in range(3)])
    output = small_tokenizer(pixels)
    codes = small_tokenizer.encode(pixels)
    assert torch.equal(output.codes, codes)
    assert len(codes.unique()) > 1
    torch.testing.assert_close(output.reconstruction, small_tokenizer.decode(codes))


def test_results_do_not_depend_on_other_images_of_a_pass(small_tokenizer, monkeypatch):
    images = [noise(20, 20, seed) for seed in range(7)]
    codes = small_tokenizer.codes_of(images)
    shown = small_tokenizer.images_of(codes)
    monkeypatch.setitem(tokenizer._PIXELS_PER_PASS, "cpu", 3 * 16 * 16)  # 3, 3 and 1
    assert torch.equal(small_tokenizer.codes_of(images), codes)
    again = small_tokenizer.images_of(codes)
    for image, same in zip(shown, again, strict=True):
        assert np.array_equal(np.asarray(image), np.asarray(same))


def test_no_images_are_no_codes(small_tokenizer):
    codes = small_tokenizer.codes_of([])
    assert codes.shape == (0, 4)
    assert small_tokenizer.images_of(codes) == []


def test_decoding_is_differentiable(small_tokenizer):
    """With gradients the plain network decodes, without them the banded one."""
    codes = torch.arange(8).view(2, 4)
    pixels = small_tokenizer.decode(codes)
    pixels.square().sum().backward()
    assert small_tokenizer.post_quant_conv.weight.grad.abs().max() > 0
    with torch.no_grad():
        assert not small_tokenizer.decode(codes).requires_grad


# ── precision and compilation ─────────────────────────────────────────────────────────────────────


def test_bfloat16_gives_nearly_the_same(small_tokenizer):
    """Measured: 99.2 % of the codes, and pixels within 1 % of their spread."""
    pixels = small_tokenizer.preprocess([noise(16, 16, seed) for seed in range(32)])
    with torch.no_grad():
        codes = small_tokenizer.encode(pixels)
        decoded = small_tokenizer.decode(codes)
        small_tokenizer.compute_in(torch.bfloat16)
        agreement = (small_tokenizer.encode(pixels) == codes).float().mean()
        again = small_tokenizer.decode(codes)
    assert 0.97 < agreement < 1
    assert again.dtype == torch.float32
    assert 0 < (again - decoded).std() < 0.02 * decoded.std()


def test_compiled_networks_give_the_same(small_tokenizer, monkeypatch):
    """Each trunk is compiled once; torch.compile itself is replaced."""
    compiled = []

    def compile_(trunk):
        return lambda x: compiled.append(trunk) or trunk(x)

    monkeypatch.setattr(torch, "compile", compile_)
    images = [noise(16, 16, seed) for seed in range(3)]
    codes = small_tokenizer.codes_of(images)
    assert not compiled
    small_tokenizer.compute_in(torch.float32, compiled=True)
    assert torch.equal(small_tokenizer.codes_of(images), codes)
    small_tokenizer.images_of(codes)
    assert compiled == [small_tokenizer.encoder.trunk, small_tokenizer.decoder.trunk]
    small_tokenizer.compute_in(torch.float32)
    small_tokenizer.codes_of(images)
    assert len(compiled) == 2


@pytest.fixture
def without_decoder(small_tokenizer, tmp_path) -> ImageTokenizer:
    """The same weights without a decoder, saved and loaded."""
    config = dataclasses.replace(small_tokenizer.config, has_decoder=False)
    tokenizer = ImageTokenizer(config)
    weights = small_tokenizer.state_dict()
    tokenizer.load_state_dict({n: t for n, t in weights.items() if not n.startswith("decoder.")})
    tokenizer.save(tmp_path)
    return ImageTokenizer.load(tmp_path)


def test_encoding_without_a_decoder(small_tokenizer, without_decoder):
    images = [noise(16, 16, seed) for seed in range(3)]
    assert torch.equal(without_decoder.codes_of(images), small_tokenizer.codes_of(images))
    initialise(without_decoder, seed=0)
    assert without_decoder.codes_of(images).shape == (3, 4)


@pytest.mark.parametrize(
    "use",
    [
        lambda tokenizer: tokenizer.decode(torch.zeros(1, 4, dtype=torch.long)),
        lambda tokenizer: tokenizer.images_of(torch.zeros(2, 4, dtype=torch.long)),
        lambda tokenizer: tokenizer(torch.zeros(1, 3, 16, 16)),
    ],
)
def test_decoding_without_a_decoder_is_refused(without_decoder, use):
    with pytest.raises(
        RequestError,
        match=r"^This image tokenizer has no decoder \(Hugging Face's Chameleon folders have "
        r"none\), so it cannot decode images; import the model again with the original "
        r"vqgan\.ckpt\.$",
    ):
        use(without_decoder)


# ── files ────────────────────────────────────────────────────────────────────────────────────────


def test_save_and_load_round_trip(small_tokenizer, tmp_path):
    small_tokenizer.save(tmp_path / "tokenizer")
    loaded = ImageTokenizer.load(tmp_path / "tokenizer")
    assert loaded.config == small_tokenizer.config
    assert not loaded.training
    images = [noise(16, 16)]
    assert torch.equal(loaded.codes_of(images), small_tokenizer.codes_of(images))
    state = loaded.state_dict()
    assert all(
        torch.equal(state[name], value) for name, value in small_tokenizer.state_dict().items()
    )
    assert [p.requires_grad for p in loaded.parameters()] == [
        p.requires_grad for p in small_tokenizer.parameters()
    ]
    assert sorted(path.name for path in (tmp_path / "tokenizer").iterdir()) == [
        "config.json", "model.safetensors",
    ]  # fmt: skip


def edit_weights(folder, change) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


def test_weights_stored_in_16_bits_load_in_32(small_tokenizer, tmp_path):
    small_tokenizer.save(tmp_path)
    path = tmp_path / "model.safetensors"
    halves = {name: tensor.bfloat16() for name, tensor in load_file(path).items()}
    save_file(halves, path)
    weights = ImageTokenizer.load(tmp_path).state_dict()
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert all(torch.equal(weights[name], half.float()) for name, half in halves.items())


def test_mismatched_weights_are_named(small_tokenizer, tmp_path):
    small_tokenizer.save(tmp_path)

    def change(weights):
        del weights["quant_conv.bias"]
        weights["loss.discriminator"] = torch.zeros(1)
        weights["encoder.conv_in.bias"] = torch.zeros(5)

    edit_weights(tmp_path, change)
    with pytest.raises(
        BundleError,
        match=r"model\.safetensors do not fit their config: missing quant_conv\.bias; unexpected "
        r"loss\.discriminator; of another shape encoder\.conv_in\.bias \(5 instead of 12\)\.",
    ):
        ImageTokenizer.load(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(small_tokenizer, tmp_path, name):
    small_tokenizer.save(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(BundleError, match=rf"{name} is missing"):
        ImageTokenizer.load(tmp_path)


def test_a_truncated_file_is_named(small_tokenizer, tmp_path):
    small_tokenizer.save(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BundleError, match=r"model\.safetensors cannot be read .*: it is truncated"):
        ImageTokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header: header.update(version=4), "version 4; this Pardalis reads .* 1 to 3"),
        (lambda header: header.pop("config"), r"config\.json is not an image tokenizer's config"),
        (lambda header: header["config"].update(resolution=15), r"config\.json: resolution is 15"),
        (lambda header: header["config"].update(colour=1), r"config\.json: .*colour"),
    ],
)
def test_a_wrong_config_is_named(small_tokenizer, tmp_path, change, message):
    small_tokenizer.save(tmp_path)
    path = tmp_path / "config.json"
    header = json.loads(path.read_text())
    change(header)
    path.write_text(json.dumps(header))
    with pytest.raises(BundleError, match=message):
        ImageTokenizer.load(tmp_path)


def test_partial_image(codec):
    """Complete grid rows are close to their final pixels, and the rest is grey."""
    tokenizer = codec.image_tokenizer
    codes = [5, 9, 30, 2]
    [whole] = tokenizer.images_of(torch.tensor([codes]))
    assert tokenizer.partial_image(codes) == whole
    for n in range(4):
        pixels = np.asarray(tokenizer.partial_image(codes[:n]))
        rows = n // 2 * 8
        assert (pixels[rows:] == 128).all()
        assert rows == 0 or (pixels[:rows] != 128).any()
    [mirrored] = tokenizer.images_of(torch.tensor([[5, 9, 5, 9]]))
    half = tokenizer.partial_image(codes[:2])
    assert (np.asarray(half)[:8] == np.asarray(mirrored)[:8]).all()
