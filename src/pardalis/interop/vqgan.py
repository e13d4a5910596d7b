"""Image tokenizers in the layout of the original VQ-GAN, which Chameleon's has, and of LlamaGen.

=========  ==========================================================  ============================
layout     files                                                       names
=========  ==========================================================  ============================
taming     a ``.ckpt`` and the ``.yaml`` that describes it             as in :mod:`pardalis.vq`
llamagen   a ``.pt``; the shape follows from the weights               translated by ``LLAMAGEN``
=========  ==========================================================  ============================

The other parts of a training checkpoint (discriminator, perceptual net) are dropped.
"""

import logging
import re
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from pardalis import config as configs
from pardalis.bundle import new_folder, require_new
from pardalis.errors import BundleError, ConfigError
from pardalis.files import read_text, write_text
from pardalis.interop.model import (
    check_tensors,
    describing,
    image_tokenizer_shapes,
    reasons,
    refuse,
    unlike,
)
from pardalis.interop.tensors import (
    LazyTensor,
    Tensors,
    open_tensors,
    write_checkpoints,
    write_safetensors,
)
from pardalis.vq import ImageTokenizer, ImageTokenizerConfig, L2Config, build_quantizer

logger = logging.getLogger(__name__)

NORM_GROUPS = 32  # groups of every GroupNorm; a constant in the code of all these layouts

# Field of ImageTokenizerConfig → key of ``params.ddconfig`` (or of ``params``).
_DD_KEYS = {
    "resolution": "resolution",
    "channels": "ch",
    "channel_multipliers": "ch_mult",
    "n_res_blocks": "num_res_blocks",
    "z_channels": "z_channels",
    "attention_resolutions": "attn_resolutions",
}
_PARAM_KEYS = {"code_width": "embed_dim", "n_codes": "n_embed"}
# Other keys of ``params.ddconfig`` that change the network, with the only supported value.
_FIXED = {
    "double_z": False,
    "in_channels": 3,
    "out_ch": 3,
    "resamp_with_conv": True,
    "attn_type": "vanilla",
    "tanh_out": False,
}

# Patterns of LlamaGen's names, and the names in pardalis.vq. LlamaGen numbers the levels of the
# decoder from the smallest feature map up, pardalis.vq and the original VQ-GAN from the largest.
LLAMAGEN = (
    (r"encoder\.conv_blocks\.(\d+)\.res\.", r"encoder.down.\1.block."),
    (r"encoder\.conv_blocks\.(\d+)\.", r"encoder.down.\1."),
    (r"decoder\.conv_blocks\.(\d+)\.res\.", r"decoder.up.\1.block."),
    (r"decoder\.conv_blocks\.(\d+)\.", r"decoder.up.\1."),
    (r"coder\.mid\.0\.", r"coder.mid.block_1."),
    (r"coder\.mid\.1\.", r"coder.mid.attn_1."),
    (r"coder\.mid\.2\.", r"coder.mid.block_2."),
)
_COUNTER = "quantize.codebook_used"  # a training statistic of LlamaGen
_LLAMAGEN_RESOLUTION = 256

_QUANTIZER = "quantize."
_CODEBOOK = _QUANTIZER + "embedding.weight"
_NEAREST: tuple[str, ...] = ("vq", "ema", "l2", "simvq")

_PARTS = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")


def import_image_tokenizer(
    weights: Path, folder: Path, config: Path | None = None, resolution: int | None = None
) -> ImageTokenizerConfig:
    """Convert a foreign image tokenizer to a folder that :meth:`ImageTokenizer.load` reads.

    Args:
        weights: a ``.ckpt``, ``.pt`` or ``.safetensors`` file.
        config: the ``.yaml`` of the original layout, if its path differs from that of the weights
            in more than the suffix; LlamaGen's layout has none.
        resolution: pixels per side for LlamaGen's layout, whose weights do not tell (default: 256).

    Raises:
        BundleError: a file is missing, or the network differs from :mod:`pardalis.vq`.
        ConfigError: an argument does not apply to the weights, or the folder is not empty.
    """
    require_new(folder)
    found, tensors = read_vqgan(weights, config, resolution)
    with new_folder(folder) as partial:
        write_safetensors(partial / "model.safetensors", tensors, "Image tokenizer")
        ImageTokenizer.save_config(partial, found)
    return found


def read_vqgan(
    weights: Path, config: Path | None = None, resolution: int | None = None
) -> tuple[ImageTokenizerConfig, dict[str, LazyTensor]]:
    """Return config and tensors; arguments and errors as in :func:`import_image_tokenizer`."""
    every = open_tensors(weights)
    tensors = {name: t for name, t in every.items() if name.startswith(_PARTS)}
    if others := len(every) - len(tensors):
        logger.info("%s: %d tensors that only training needs are dropped.", weights.name, others)
    tensors.pop(_COUNTER, None)
    quantizer = [name for name in tensors if name.startswith(_QUANTIZER) and name != _CODEBOOK]
    refuse(
        weights,
        f"Pardalis has no such quantizer; only {_CODEBOOK} is supported",
        reasons({f"found {', '.join(quantizer)}": quantizer}),
    )
    if any(name.startswith("encoder.conv_blocks.") for name in tensors):
        if config is not None:
            raise ConfigError(
                f"`config` does not apply: the shape of {weights.name} follows from LlamaGen's "
                "weights. Leave it out."
            )
        found = _llamagen_config(tensors, weights, resolution)
        tensors = _from_llamagen(tensors, len(found.channel_multipliers))
    elif any(name.startswith("encoder.down.") for name in tensors):
        config = config or weights.with_suffix(".yaml")
        if resolution is not None:
            raise ConfigError(
                f"`resolution` does not apply: {config} gives that of {weights.name}. Leave it out."
            )
        found = _taming_config(config)
    else:
        raise BundleError(
            f"{weights} is not an image tokenizer that can be imported: its names are neither "
            "those of the original VQ-GAN (encoder.down.0.block.0...) nor LlamaGen's "
            "(encoder.conv_blocks.0.res.0...)."
        )
    check_tensors(weights, image_tokenizer_shapes(found), tensors)
    return found, tensors


def _read_yaml(path: Path) -> Any:
    """Return the plain values of a ``.yaml``; raises OSError, ValueError or YAMLError."""
    text = read_text(path)
    try:
        # An alias repeats a value. Nested aliases make a few lines endlessly many values.
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise ValueError("it has aliases")
        return yaml.safe_load(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _taming_config(path: Path) -> ImageTokenizerConfig:
    if not path.is_file():
        raise BundleError(
            f"{path}, which describes weights of the original VQ-GAN, is missing; put it there, or "
            "give its path as `config`."
        )
    try:
        params = _read_yaml(path)["model"]["params"]
        dd = params["ddconfig"]
        shape = {ours: dd[theirs] for ours, theirs in _DD_KEYS.items()}
        shape |= {ours: params[theirs] for ours, theirs in _PARAM_KEYS.items()}
        remap = params.get("remap")
        wrong = [
            *unlike(dd, _FIXED),
            *reasons({f"remap = {configs.shown(remap)} (supported: none)": remap}),
        ]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else type(error).__name__
        raise BundleError(
            f"{path} does not describe an image tokenizer ({reason}); give the .yaml that belongs "
            "to the weights."
        ) from error
    refuse(path, "Pardalis cannot hold this image tokenizer", wrong)
    with describing(path):
        return configs.from_dict(ImageTokenizerConfig, shape)


def _llamagen_config(tensors: Tensors, path: Path, resolution: int | None) -> ImageTokenizerConfig:
    """Infer the config from the weights; the codebook is l2, and the last level has attention."""
    resolution = _LLAMAGEN_RESOLUTION if resolution is None else resolution
    level, block = "encoder.conv_blocks.{}.", "encoder.conv_blocks.0.res.{}."
    n_levels, n_blocks = _count(tensors, level), _count(tensors, block)
    with describing(path):
        channels = tensors["encoder.conv_in.weight"].shape[0]
        widths = [tensors[f"{level.format(i)}res.0.conv1.weight"].shape[0] for i in range(n_levels)]
        n_codes, code_width = tensors[_CODEBOOK].shape
        return ImageTokenizerConfig(
            resolution=resolution,
            channels=channels,
            channel_multipliers=tuple(width // channels for width in widths),
            n_res_blocks=n_blocks,
            z_channels=tensors["quant_conv.weight"].shape[1],
            code_width=code_width,
            n_codes=n_codes,
            attention_resolutions=(resolution // 2 ** (n_levels - 1),),
            quantizer=L2Config(),
        )


def _count(tensors: Tensors, pattern: str) -> int:
    """Return how many consecutive indices from 0 occur in names that begin with a pattern."""
    n = 0
    while any(name.startswith(pattern.format(n)) for name in tensors):
        n += 1
    return n


def _from_llamagen(tensors: Tensors, n_levels: int) -> dict[str, LazyTensor]:
    renamed = {}
    for name, tensor in tensors.items():
        for pattern, ours in LLAMAGEN:
            name = re.sub(pattern, ours, name, count=1)
        if name.startswith("decoder.up."):
            first, second, level, rest = name.split(".", 3)
            name = f"{first}.{second}.{n_levels - 1 - int(level)}.{rest}"
        renamed[name] = tensor
    return renamed


def write_vqgan(config: ImageTokenizerConfig, tensors: Tensors, folder: Path) -> None:
    """Write ``vqgan.yaml`` and ``vqgan.ckpt`` in the original layout.

    Raises:
        BundleError: the layout cannot hold the tokenizer; the message lists every option that does
            not fit.
    """
    refuse(folder, "The original VQ-GAN's layout cannot hold this image tokenizer", unheld(config))
    plain = configs.to_dict(config)
    ddconfig = {theirs: plain[ours] for ours, theirs in _DD_KEYS.items()}
    ddconfig |= {"double_z": False, "in_channels": 3, "out_ch": 3, "dropout": 0.0}
    params = {
        **{theirs: plain[ours] for ours, theirs in _PARAM_KEYS.items()},
        "ddconfig": ddconfig,
        "lossconfig": {"target": "torch.nn.Identity"},
        "ckpt_path": None,
    }
    described = {"model": {"target": "taming.models.vqgan.VQModel", "params": params}}
    write_text(folder / "vqgan.yaml", yaml.safe_dump(described, sort_keys=False))
    held = plain_codebook(config, tensors)
    write_checkpoints({folder / "vqgan.ckpt": held}, "Image tokenizer", under="state_dict")


def unheld(config: ImageTokenizerConfig) -> list[str]:
    """Return why the original layout cannot hold an image tokenizer; an empty list if it can."""
    kind = config.quantizer.kind
    return reasons({
        f"image_tokenizer.patch_size is {config.patch_size} (needed: 1)": config.patch_size != 1,
        f"image_tokenizer.norm_groups is {config.norm_groups} (needed: {NORM_GROUPS})":
            config.norm_groups != NORM_GROUPS,
        f"image_tokenizer.channels is {config.channels} (needed: {NORM_GROUPS} divides all widths)":
            any(config.channels * m % NORM_GROUPS for m in config.channel_multipliers),
        f"image_tokenizer.quantizer.kind is {kind!r} (needed: one of {', '.join(_NEAREST)}, whose "
        "codes are the nearest entries of a codebook)": kind not in _NEAREST,
    })  # fmt: skip


def plain_codebook(config: ImageTokenizerConfig, tensors: Tensors) -> dict[str, LazyTensor]:
    """Return an image tokenizer's tensors with the quantizer reduced to one codebook.

    The original layout has nothing else. For the kinds that :func:`unheld` accepts, codes and
    images stay the same.
    """
    if config.quantizer.kind in ("vq", "ema"):
        return dict(tensors)
    theirs = {name: t for name, t in tensors.items() if not name.startswith(_QUANTIZER)}
    codebook = tensors[_CODEBOOK]

    def entries() -> Tensor:
        quantizer = build_quantizer(config)
        quantizer.load_state_dict({
            name.removeprefix(_QUANTIZER): tensor.to(torch.float32).read()
            for name, tensor in tensors.items() if name.startswith(_QUANTIZER)
        })  # fmt: skip
        return quantizer.entries().detach().to(codebook.dtype)

    return {**theirs, _CODEBOOK: LazyTensor(codebook.shape, codebook.dtype, entries)}
