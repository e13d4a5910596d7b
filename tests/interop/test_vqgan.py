"""Imported image tokenizers of VQ-GAN and LlamaGen give the same codes and pixels."""

import argparse
import functools
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from random_weights import randomised
from torch import Tensor, nn

from pardalis import vq
from pardalis.errors import BundleError, ConfigError, PardalisError
from pardalis.interop import import_image_tokenizer
from pardalis.interop.tensors import lazy
from pardalis.interop.vqgan import read_vqgan, write_vqgan
from pardalis.vq import ImageTokenizer, ImageTokenizerConfig

SMALL = ImageTokenizerConfig(
    resolution=16, channels=32, channel_multipliers=(1, 2), n_res_blocks=1, z_channels=16,
    code_width=8, n_codes=64, attention_resolutions=(8,),
)  # fmt: skip


def pixels(side: int, n: int = 3) -> Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def empty(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return tensors of any shape that take four bytes in a file."""
    return {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in module.state_dict().items()}


@functools.cache
def small() -> ImageTokenizer:
    return randomised(ImageTokenizer(SMALL))


# ── the original layout ──────────────────────────────────────────────────────────────────────────


def described(config: ImageTokenizerConfig, **ddconfig) -> dict:
    """Return the content of a ``.yaml`` of the original library."""
    return {
        "model": {
            "base_learning_rate": 4.5e-6,
            "target": "taming.models.vqgan.VQModel",
            "params": {
                "embed_dim": config.code_width,
                "n_embed": config.n_codes,
                "ddconfig": {
                    "double_z": False,
                    "z_channels": config.z_channels,
                    "resolution": config.resolution,
                    "in_channels": 3,
                    "out_ch": 3,
                    "ch": config.channels,
                    "ch_mult": list(config.channel_multipliers),
                    "num_res_blocks": config.n_res_blocks,
                    "attn_resolutions": list(config.attention_resolutions),
                    "dropout": 0.0,
                    **ddconfig,
                },
                "lossconfig": {"target": "taming.modules.losses.vqperceptual.VQLPIPS"},
            },
        },
        "data": {"target": "main.DataModuleFromConfig"},
    }


def foreign_object() -> object:
    """Return an object whose class does not exist when its pickle is read."""
    module = types.ModuleType("lightning_of_old")
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})
    sys.modules[module.__name__] = module
    found = module.ModelCheckpoint()
    found.monitor = "val/rec_loss"
    return found


@pytest.fixture
def original(tmp_path) -> Callable[..., tuple[Path, Path]]:
    """Return a function that writes a checkpoint as its training leaves it, and its ``.yaml``."""

    def write(
        state: dict[str, Tensor], description: dict, changes: dict[str, Tensor | None] | None = None
    ) -> tuple[Path, Path]:
        state = {"loss.discriminator.main.0.weight": torch.ones(2), **state, **(changes or {})}
        callback = foreign_object()
        checkpoint = {
            "epoch": 3,
            "global_step": 100,
            "pytorch-lightning_version": "1.0.8",
            "state_dict": {name: t for name, t in state.items() if t is not None},
            "callbacks": {type(callback): {"best_model_score": torch.tensor(0.5)}, "x": callback},
            "optimizer_states": [{"state": {0: {"step": 3, "exp_avg": torch.ones(2)}}}],
            "lr_schedulers": [],
        }
        torch.save(checkpoint, tmp_path / "vqgan.ckpt")
        del sys.modules["lightning_of_old"]
        (tmp_path / "vqgan.yaml").write_text(yaml.safe_dump(description))
        return tmp_path / "vqgan.ckpt", tmp_path / "vqgan.yaml"

    return write


def test_the_original_layout_is_imported_bit_for_bit(compare, original, tmp_path):
    theirs = small()
    weights, description = original(theirs.state_dict(), described(SMALL))
    config = import_image_tokenizer(weights, tmp_path / "ours", description)
    ours = ImageTokenizer.load(tmp_path / "ours")
    assert config == ours.config == SMALL
    codes = theirs.encode(pixels(16))
    assert len(codes.unique()) > 5
    compare("original VQ-GAN, written and read", "codes", ours.encode(pixels(16)), codes)
    compare("original VQ-GAN, written and read", "pixels", ours.decode(codes), theirs.decode(codes))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_round_trip(tmp_path, dtype):
    weights = randomised(ImageTokenizer(SMALL)).to(dtype).state_dict()
    write_vqgan(SMALL, {name: lazy(t) for name, t in weights.items()}, tmp_path)
    config, tensors = read_vqgan(tmp_path / "vqgan.ckpt", tmp_path / "vqgan.yaml")
    assert config == SMALL
    assert list(tensors) == list(weights)
    for name, tensor in weights.items():
        assert tensors[name].dtype == tensors[name].read().dtype == dtype
        assert torch.equal(tensors[name].read(), tensor)


@pytest.mark.parametrize("kind", ["ema", "l2", "simvq"])
def test_other_kinds_are_written_as_a_plain_codebook(compare, tmp_path, kind):
    """Its entries are what the codes decode to, so codes and images stay."""
    theirs = randomised(ImageTokenizer(replace(SMALL, quantizer=vq.QUANTIZERS[kind]())))
    if kind == "simvq":
        with torch.no_grad():
            theirs.quantize.embedding_proj.weight.div_(SMALL.code_width**0.5)
    state = {name: lazy(t) for name, t in theirs.state_dict().items()}
    write_vqgan(theirs.config, state, tmp_path)
    config, tensors = read_vqgan(tmp_path / "vqgan.ckpt", tmp_path / "vqgan.yaml")
    assert config == SMALL
    ours = ImageTokenizer(config)
    ours.load_state_dict({name: tensor.read() for name, tensor in tensors.items()})
    codes = theirs.encode(pixels(16))
    assert len(codes.unique()) > 3
    name = f"kind {kind}, written as a plain codebook"
    with torch.no_grad():
        compare(name, "codes", ours.encode(pixels(16)), codes)
        compare(name, "pixels", ours.decode(codes), theirs.decode(codes))


def test_exports_are_read_by_the_original_library(tmp_path):
    weights = small().state_dict()
    write_vqgan(SMALL, {name: lazy(t) for name, t in weights.items()}, tmp_path)
    state = torch.load(tmp_path / "vqgan.ckpt", weights_only=True)["state_dict"]
    assert {name: tuple(t.shape) for name, t in state.items()} == shapes_of(ImageTokenizer(SMALL))
    assert all(torch.equal(state[name], weights[name]) for name in weights)
    params = yaml.safe_load((tmp_path / "vqgan.yaml").read_text())["model"]["params"]
    expected = described(SMALL)["model"]["params"]
    assert params["ddconfig"] == expected["ddconfig"]
    assert (params["n_embed"], params["embed_dim"]) == (64, 8)


# Of Chameleon's vqgan.yaml, and of the two that the original library published for ImageNet.
CHAMELEON = {
    "ch": 128, "ch_mult": [1, 1, 2, 2, 4], "num_res_blocks": 2, "attn_resolutions": [],
    "z_channels": 256, "resolution": 512,
}  # fmt: skip
IMAGENET = {**CHAMELEON, "attn_resolutions": [16], "resolution": 256}


def read_published(original, n_codes: int, ddconfig: dict) -> tuple[ImageTokenizerConfig, dict]:
    description = described(vq.chameleon(), **ddconfig)
    description["model"]["params"]["n_embed"] = n_codes
    expected = ImageTokenizerConfig(
        resolution=ddconfig["resolution"],
        channels=ddconfig["ch"],
        channel_multipliers=tuple(ddconfig["ch_mult"]),
        n_res_blocks=ddconfig["num_res_blocks"],
        z_channels=ddconfig["z_channels"],
        code_width=256,
        n_codes=n_codes,
        attention_resolutions=tuple(ddconfig["attn_resolutions"]),
    )
    with torch.device("meta"):
        shapes = shapes_of(ImageTokenizer(expected))
    config, tensors = read_vqgan(*original(empty(shapes), description))
    assert config == expected
    return config, tensors


def test_chameleons_config_equals_our_preset(original):
    config, tensors = read_published(original, 8192, CHAMELEON)
    assert config == vq.chameleon()
    assert sum(t.n_elements for t in tensors.values()) == 68_718_467
    for part, size in (("encoder.", 27_194_880), ("decoder.", 39_294_851)):
        assert sum(t.n_elements for n, t in tensors.items() if n.startswith(part)) == size


@pytest.mark.parametrize("n_codes", [1024, 16384])
def test_imagenets_attends_where_16_places_are(original, n_codes):
    _, tensors = read_published(original, n_codes, IMAGENET)
    attention = {name.rpartition(".attn.")[0] for name in tensors if ".attn." in name}
    assert attention == {"encoder.down.4", "decoder.up.4"}  # 256 halved four times
    numbers = {name.split(".")[4] for name in tensors if "decoder.up.4.attn." in name}
    assert numbers == {"0", "1", "2"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"double_z": True}, r"double_z = True \(supported: False\). Nothing was written"),
        ({"in_channels": 182, "out_ch": 182}, r"in_channels = 182 \(supported: 3\); out_ch = 182"),
        ({"resamp_with_conv": False}, r"resamp_with_conv = False \(supported: True\)"),
        ({"attn_type": "none"}, r"attn_type = 'none' \(supported: 'vanilla'\)"),
        ({"tanh_out": True}, r"tanh_out = True \(supported: False\)"),
        ({"ch": "32"}, "channels must be of type int, got '32'"),
        ({"ch_mult": 4}, "channel_multipliers must be a list, got 4"),
        ({"resolution": 15}, "resolution is 15, but patch_size 1 and 2 levels downsample by 2"),
        ({"z_channels": 8}, r"of another shape .*quant_conv.weight \(8x16x1x1 instead of 8x8x1x1"),
        ({"num_res_blocks": 2}, "missing encoder.down.0.block.1"),
        ({"attn_resolutions": []}, "unexpected encoder.down.1.attn.0.norm.weight"),
    ],
)  # fmt: skip
def test_another_network_is_refused(original, tmp_path, changes, message):
    paths = original(small().state_dict(), described(SMALL, **changes))
    refused(*paths, tmp_path, message)


def refused(weights: Path, description: Path | None, tmp_path: Path, message: str) -> None:
    with pytest.raises(PardalisError, match=message) as caught:
        import_image_tokenizer(weights, tmp_path / "ours", description)
    assert type(caught.value) is BundleError
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ours").exists()


def test_remapped_codes_are_refused(original, tmp_path):
    description = described(SMALL)
    description["model"]["params"]["remap"] = "used.npy"
    paths = original(small().state_dict(), description)
    refused(*paths, tmp_path, r"remap = 'used.npy' \(supported: none\)")


QUANTIZERS = {
    "Gumbel": ("quantize.proj.weight", "quantize.proj.bias", "quantize.embed.weight"),
    "running means": ("quantize.embedding.cluster_size", "quantize.embedding.embed_avg"),
    "remapped": ("quantize.used",),
}


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_another_quantizer_is_refused(original, tmp_path, kind):
    names = QUANTIZERS[kind]
    changes = dict.fromkeys(names, torch.ones(2))
    if kind == "Gumbel":
        changes["quantize.embedding.weight"] = None
    paths = original(small().state_dict(), described(SMALL), changes)
    message = "no such quantizer; only quantize.embedding.weight is supported: found "
    refused(*paths, tmp_path, message + ", ".join(names))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder.down.0.block.0.conv1.weight": None}, "missing encoder.down.0.block.0.conv1.w"),
        ({"decoder.conv_out.bias": None}, "missing decoder.conv_out.bias"),
        ({"decoder.conv_out.bias": torch.ones(4)}, r"decoder.conv_out.bias \(4 instead of 3\)"),
        ({"decoder.extra.bias": torch.ones(4)}, "unexpected decoder.extra.bias"),
    ],
)
def test_weights_that_do_not_fit_are_refused(original, tmp_path, changes, message):
    paths = original(small().state_dict(), described(SMALL), changes)
    refused(*paths, tmp_path, message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "vqgan.yaml, which describes weights of the original VQ-GAN, is missing"),
        ("a: [", r"does not describe an image tokenizer \(ParserError\)"),
        (b"\xff\xfe\x00", r"does not describe an image tokenizer \(ValueError\)"),
        ("", r"does not describe an image tokenizer \(TypeError\)"),
        ("model:\n  params: [1]", r"does not describe an image tokenizer \(TypeError\)"),
        ("model:\n  params:\n    ddconfig: [1]", r"does not describe an image tokenizer"),
        ("model:\n  params:\n    unet_config: 1", r"image tokenizer \(no 'ddconfig'\); give the"),
        (yaml.safe_dump({"model": {"params": {"ddconfig": described(SMALL)["model"]["params"][
            "ddconfig"], "embed_dim": 4}}}), r"image tokenizer \(no 'n_embed'\)"),
    ],
)  # fmt: skip
def test_another_yaml_is_refused(original, tmp_path, content, message):
    paths = original(small().state_dict(), described(SMALL))
    paths[1].unlink()
    if content is not None:
        paths[1].write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(*paths, tmp_path, message)


def test_the_yaml_of_the_same_name_is_found(original, tmp_path):
    weights, description = original(small().state_dict(), described(SMALL))
    assert read_vqgan(weights)[0] == SMALL
    description.rename(tmp_path / "other.yaml")
    refused(weights, None, tmp_path, "vqgan.yaml, which describes weights")


def test_an_unknown_layout_is_refused(tmp_path):
    names = ("encoder.down_blocks.0.resnets.0.conv1.weight", "quantize.embedding.weight")
    torch.save(dict.fromkeys(names, torch.ones(2)), tmp_path / "vq.pt")
    refused(tmp_path / "vq.pt", None, tmp_path, "is not an image tokenizer that can be imported")
    (tmp_path / "vq.pt").write_bytes(b"not a checkpoint")
    refused(tmp_path / "vq.pt", None, tmp_path, "vq.pt cannot be read")
    refused(tmp_path / "no.pt", None, tmp_path, "no.pt is missing")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 2}, r"patch_size is 2 \(needed: 1\)"),
        ({"norm_groups": 8}, r"norm_groups is 8 \(needed: 32\)"),
        ({"channels": 24}, r"channels is 24 \(needed: 32 divides all widths\)"),
        ({"quantizer": vq.QUANTIZERS["ibq"]()}, "quantizer.kind is 'ibq'"),
        ({"quantizer": vq.QUANTIZERS["fsq"]()}, "quantizer.kind is 'fsq'"),
    ],
)
def test_options_that_the_original_layout_cannot_hold_are_refused(tmp_path, changes, message):
    values = {f: getattr(SMALL, f) for f in ImageTokenizerConfig.__dataclass_fields__}
    with pytest.raises(BundleError, match=message):
        write_vqgan(ImageTokenizerConfig(**values | changes), {}, tmp_path)
    assert not list(tmp_path.iterdir())


# ── where it is written ──────────────────────────────────────────────────────────────────────────


def test_only_an_empty_or_new_folder_is_written_to(original, tmp_path):
    paths = original(small().state_dict(), described(SMALL))
    folder = tmp_path / "ours"
    folder.mkdir()
    import_image_tokenizer(paths[0], folder, paths[1])  # an empty folder holds nothing
    for target in (folder, tmp_path, paths[1]):
        with pytest.raises(ConfigError, match="exists and is not empty"):
            import_image_tokenizer(paths[0], target, paths[1])
    assert all(path.is_file() for path in paths)


# ── LlamaGen ─────────────────────────────────────────────────────────────────────────────────────
# Its names and its arithmetic, written down anew.


class Residual(nn.Module):
    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(32, width_in, eps=1e-6)
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1)
        self.norm2 = nn.GroupNorm(32, width, eps=1e-6)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        if width_in != width:
            self.nin_shortcut = nn.Conv2d(width_in, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(swish(self.norm2(self.conv1(swish(self.norm1(x))))))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, width, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (conv(h).flatten(2) for conv in (self.q, self.k, self.v))
        shares = torch.einsum("bct,bcs->bts", q, k).div(q.shape[1] ** 0.5).softmax(-1)
        return x + self.proj_out(torch.einsum("bts,bcs->bct", shares, v).view_as(x))


class Stage(nn.Module):
    """Blocks on one side of the map; ``step`` names what follows them."""

    def __init__(self, width_in: int, width: int, n: int, attends: bool, step: str | None) -> None:
        super().__init__()
        self.res = nn.ModuleList(Residual(width if i else width_in, width) for i in range(n))
        self.attn = nn.ModuleList(Attention(width) for _ in range(n if attends else 0))
        if step == "downsample":
            self.downsample = nn.ModuleDict({"conv": nn.Conv2d(width, width, 3, stride=2)})
        elif step == "upsample":
            self.upsample = nn.ModuleDict({"conv": nn.Conv2d(width, width, 3, padding=1)})

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.res):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        if hasattr(self, "downsample"):
            x = self.downsample["conv"](F.pad(x, (0, 1, 0, 1)))
        elif hasattr(self, "upsample"):
            x = self.upsample["conv"](x.repeat_interleave(2, 2).repeat_interleave(2, 3))
        return x


def middle(width: int) -> nn.ModuleList:
    return nn.ModuleList([Residual(width, width), Attention(width), Residual(width, width)])


class LlamaGenEncoder(nn.Module):
    def __init__(self, ch: int, mult: tuple[int, ...], n: int, z: int) -> None:
        super().__init__()
        widths, last = [ch * m for m in mult], len(mult) - 1
        self.conv_in = nn.Conv2d(3, ch, 3, padding=1)
        self.conv_blocks = nn.ModuleList(
            Stage(widths[i - 1] if i else ch, widths[i], n, i == last,
                  None if i == last else "downsample")
            for i in range(len(mult))
        )  # fmt: skip
        self.mid = middle(widths[-1])
        self.norm_out = nn.GroupNorm(32, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], z, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        for part in (self.conv_in, *self.conv_blocks, *self.mid):
            x = part(x)
        return self.conv_out(swish(self.norm_out(x)))


class LlamaGenDecoder(nn.Module):
    """Its blocks are numbered in the order of computation."""

    def __init__(self, ch: int, mult: tuple[int, ...], n: int, z: int) -> None:
        super().__init__()
        widths = [ch * m for m in reversed(mult)]
        self.conv_in = nn.Conv2d(z, widths[0], 3, padding=1)
        self.mid = middle(widths[0])
        self.conv_blocks = nn.ModuleList(
            Stage(widths[max(i - 1, 0)], widths[i], n + 1, i == 0,
                  None if i == len(mult) - 1 else "upsample")
            for i in range(len(mult))
        )  # fmt: skip
        self.norm_out = nn.GroupNorm(32, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        for part in (self.conv_in, *self.mid, *self.conv_blocks):
            x = part(x)
        return self.conv_out(swish(self.norm_out(x)))


class LlamaGen(nn.Module):
    def __init__(
        self,
        ch: int = 128,
        mult: tuple[int, ...] = (1, 1, 2, 2, 4),
        n: int = 2,
        z: int = 256,
        n_codes: int = 16384,
        code_width: int = 8,
    ) -> None:
        super().__init__()
        self.encoder = LlamaGenEncoder(ch, mult, n, z)
        self.decoder = LlamaGenDecoder(ch, mult, n, z)
        self.quantize = nn.Module()
        self.quantize.embedding = nn.Embedding(n_codes, code_width)
        self.quantize.register_buffer("codebook_used", torch.zeros(65536))
        self.quant_conv = nn.Conv2d(z, code_width, 1)
        self.post_quant_conv = nn.Conv2d(code_width, z, 1)

    def entries(self) -> Tensor:
        return F.normalize(self.quantize.embedding.weight, dim=1)

    def latents(self, x: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(x))

    def encode(self, x: Tensor) -> Tensor:
        vectors = F.normalize(self.latents(x), dim=1).flatten(2).transpose(1, 2)
        return (vectors.unsqueeze(2) - self.entries()).square().sum(3).argmin(2)

    def decode(self, codes: Tensor) -> Tensor:
        side = int(codes.shape[1] ** 0.5)
        entries = self.entries()[codes].transpose(1, 2).unflatten(2, (side, side))
        return self.decoder(self.post_quant_conv(entries))


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


LLAMAGENS = {
    "three levels": ({"ch": 32, "mult": (1, 2, 2), "z": 16, "n_codes": 64}, 16),
    "one block, one level": ({"ch": 32, "mult": (2,), "n": 1, "z": 16, "n_codes": 64}, 4),
    "as VQ-16, a quarter as wide": ({"ch": 32, "z": 64, "n_codes": 512}, 64),
    "as VQ-8, a quarter as wide": (
        {"ch": 32, "mult": (1, 2, 2, 4), "z": 64, "n_codes": 512, "code_width": 4}, 32,
    ),
}  # fmt: skip
# Largest difference measured, of latents and pixels: 8.3e-6, on one core of an AMD EPYC.
CLOSE = 3e-5


@pytest.mark.parametrize("case", LLAMAGENS)
@torch.no_grad()
def test_llamagens_codes_and_pixels(compare, tmp_path, case):
    shape, side = LLAMAGENS[case]
    theirs = randomised(LlamaGen(**shape))
    torch.save({"model": theirs.state_dict()}, tmp_path / "vq.pt")
    config = import_image_tokenizer(tmp_path / "vq.pt", tmp_path / "ours", resolution=side)
    ours = ImageTokenizer.load(tmp_path / "ours")
    assert config == ours.config
    n_codes = shape["n_codes"]
    codes = torch.randint(
        n_codes, (2, config.codes_per_image), generator=torch.Generator().manual_seed(2)
    )
    name, x = f"LlamaGen, {case}", pixels(side)
    assert len(theirs.encode(x).unique()) > 10
    compare(name, "latents", ours.latents(x), theirs.latents(x), atol=CLOSE)
    compare(name, "codes", ours.encode(x), theirs.encode(x))
    compare(name, "pixels", ours.decode(codes), theirs.decode(codes), atol=CLOSE)


@pytest.mark.parametrize(
    ("mult", "resolution", "grid"),
    [((1, 1, 2, 2, 4), None, 16), ((1, 1, 2, 2, 4), 384, 24), ((1, 2, 2, 4), None, 32)],
)
def test_the_shape_follows_from_the_weights(tmp_path, mult, resolution, grid):
    with torch.device("meta"):
        theirs = LlamaGen(mult=mult)
    torch.save({"model": empty(shapes_of(theirs))}, tmp_path / "vq.pt")
    config, tensors = read_vqgan(tmp_path / "vq.pt", resolution=resolution)
    assert config == ImageTokenizerConfig(
        resolution=resolution or 256,
        channels=128,
        channel_multipliers=mult,
        n_res_blocks=2,
        z_channels=256,
        code_width=8,
        n_codes=16384,
        attention_resolutions=(grid,),
        quantizer=vq.QUANTIZERS["l2"](),
    )
    assert config.grid == grid
    n_theirs = sum(parameter.numel() for parameter in theirs.parameters())
    assert sum(tensor.n_elements for tensor in tensors.values()) == n_theirs


@functools.cache
def small_llamagen() -> dict[str, Tensor]:
    shape, _ = LLAMAGENS["three levels"]
    return randomised(LlamaGen(**shape)).state_dict()


@pytest.mark.parametrize("form", ["bare", "model", "training", "averaged"])
def test_checkpoints_of_training_and_published_ones(tmp_path, form):
    state = small_llamagen()
    other = {name: tensor + 1 for name, tensor in state.items()}
    training = {
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4}]},
        "discriminator": {"main.0.weight": torch.ones(2)},
        "steps": 7,
        "args": argparse.Namespace(vq_model="VQ-16", codebook_size=16384),
    }
    forms = {
        "bare": state,
        "model": {"model": state},
        "training": {"model": state, **training},
        # its own scripts take the running average of the weights where there is one
        "averaged": {"model": other, **training, "ema": state},
    }
    torch.save(forms[form], tmp_path / "vq.pt")
    _, tensors = read_vqgan(tmp_path / "vq.pt", resolution=16)
    for ours, theirs in (
        ("decoder.up.2.attn.1.proj_out.weight", "decoder.conv_blocks.0.attn.1.proj_out.weight"),
        ("encoder.mid.block_2.conv1.bias", "encoder.mid.2.conv1.bias"),
        ("quantize.embedding.weight", "quantize.embedding.weight"),
    ):
        assert torch.equal(tensors[ours].read(), state[theirs])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder.conv_in.weight": None}, "lacks 'encoder.conv_in.weight'"),
        ({"quantize.embedding.weight": None}, "lacks 'quantize.embedding.weight'"),
        ({"encoder.conv_blocks.1.res.0.conv1.weight": None}, "lacks 'encoder.conv_blocks.1.res.0"),
        ({"decoder.mid.0.conv1.weight": None}, "missing decoder.mid.block_1.conv1.weight"),
        ({"decoder.conv_blocks.3.res.0.conv1.weight": torch.ones(2)}, "unexpected decoder.up.-1"),
        ({"encoder.norm_out.running_mean": torch.ones(2)}, "unexpected encoder.norm_out.running"),
        ({"quant_conv.bias": torch.ones(4)}, r"quant_conv.bias \(4 instead of 8\)"),
    ],
)
def test_other_weights_than_llamagens_are_refused(tmp_path, changes, message):
    state = {name: t for name, t in (small_llamagen() | changes).items() if t is not None}
    torch.save({"model": state}, tmp_path / "vq.pt")
    refused(tmp_path / "vq.pt", None, tmp_path, message)


@pytest.mark.parametrize("resolution", [0, 255])
def test_llamagens_resolution_must_fit(tmp_path, resolution):
    torch.save(small_llamagen(), tmp_path / "vq.pt")
    with pytest.raises(BundleError, match=f"resolution (must be|is).*{resolution}"):
        read_vqgan(tmp_path / "vq.pt", resolution=resolution)


def test_llamagens_shape_has_no_file(tmp_path):
    torch.save(small_llamagen(), tmp_path / "vq.pt")
    with pytest.raises(ConfigError, match=r"`config` does not apply: the shape of vq\.pt follows"):
        read_vqgan(tmp_path / "vq.pt", tmp_path / "vq.yaml")


def test_a_resolution_is_not_for_the_original_layout(original):
    paths = original(small().state_dict(), described(SMALL))
    with pytest.raises(
        ConfigError, match=r"`resolution` does not apply: .*gives that of vqgan.ckpt"
    ):
        read_vqgan(*paths, resolution=32)
