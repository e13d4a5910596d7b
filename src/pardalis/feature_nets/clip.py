"""CLIP (arXiv 2103.00020): texts and images in one space.

A folder holds what Hugging Face's ``CLIPModel`` writes: ``config.json``, ``model.safetensors`` and
``tokenizer.json``. Names follow it, so that its weights load as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from tokenizers import Tokenizer
from torch import Tensor, nn

from pardalis.errors import BundleError, ConfigError
from pardalis.feature_nets.net_folder import (
    check_shape,
    fill_from,
    padded,
    read_description,
    read_tokenizer,
    shape_from,
)

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
_BATCH = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class TowerShape:
    """The numbers of ``text_config`` or ``vision_config`` that decide a tower."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: Literal["quick_gelu", "gelu"] = "quick_gelu"
    layer_norm_eps: float = 1e-5


@dataclass(frozen=True, kw_only=True, slots=True)
class TextShape(TowerShape):
    """The tower of texts."""

    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    vocab_size: int = 49408
    max_position_embeddings: int = 77

    def __post_init__(self) -> None:
        check_shape(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionShape(TowerShape):
    """The tower of images; by default that of ViT-B/32."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 32

    def __post_init__(self) -> None:
        check_shape(self)
        if self.image_size % self.patch_size:
            raise ConfigError("image_size must be a multiple of patch_size.")


class Clip(nn.Module):
    """Both towers, each with its projection into the space that they share."""

    def __init__(self, text: TextShape, vision: VisionShape, width: int) -> None:
        super().__init__()
        self.text_model = _TextTower(text)
        self.vision_model = _VisionTower(vision)
        self.text_projection = nn.Linear(text.hidden_size, width, bias=False)
        self.visual_projection = nn.Linear(vision.hidden_size, width, bias=False)


class _TextTower(nn.Module):
    def __init__(self, shape: TextShape) -> None:
        super().__init__()
        width = shape.hidden_size
        self.embeddings = nn.ModuleDict(
            {
                "token_embedding": nn.Embedding(shape.vocab_size, width),
                "position_embedding": nn.Embedding(shape.max_position_embeddings, width),
            }
        )
        self.encoder = _encoder(shape)
        self.final_layer_norm = nn.LayerNorm(width, eps=shape.layer_norm_eps)

    def forward(self, ids: Int[Tensor, "B T"], lengths: Int[Tensor, " B"]) -> Float[Tensor, "B D"]:
        parts: Any = self.embeddings
        x = parts["token_embedding"](ids) + parts["position_embedding"].weight[: ids.shape[1]]
        for layer in self.encoder["layers"]:  # type: ignore[attr-defined]
            x = layer(x, is_causal=True)  # so that what fills up is read by nothing
        last: Tensor = self.final_layer_norm(x[torch.arange(len(x)), lengths - 1])
        return last


class _VisionTower(nn.Module):
    def __init__(self, shape: VisionShape) -> None:
        super().__init__()
        width, patch = shape.hidden_size, shape.patch_size
        self.embeddings = _Patches(width, patch, (shape.image_size // patch) ** 2 + 1)
        self.pre_layrnorm = nn.LayerNorm(width, eps=shape.layer_norm_eps)  # as the weights spell it
        self.encoder = _encoder(shape)
        self.post_layernorm = nn.LayerNorm(width, eps=shape.layer_norm_eps)

    def forward(self, pixels: Float[Tensor, "B 3 Y X"]) -> Float[Tensor, "B D"]:
        x = self.pre_layrnorm(self.embeddings(pixels))
        for layer in self.encoder["layers"]:  # type: ignore[attr-defined]
            x = layer(x, is_causal=False)
        first: Tensor = self.post_layernorm(x[:, 0])
        return first


class _Patches(nn.Module):
    def __init__(self, width: int, patch: int, n_positions: int) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.patch_embedding = nn.Conv2d(3, width, patch, patch, bias=False)
        self.position_embedding = nn.Embedding(n_positions, width)

    def forward(self, pixels: Float[Tensor, "B 3 Y X"]) -> Float[Tensor, "B T D"]:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(pixels), 1, -1)
        x: Tensor = torch.cat([first, patches], 1) + self.position_embedding.weight
        return x


def _encoder(shape: TowerShape) -> nn.ModuleDict:
    return nn.ModuleDict(
        {"layers": nn.ModuleList(_Layer(shape) for _ in range(shape.num_hidden_layers))}
    )


class _Layer(nn.Module):
    """Attention and feed-forward, each after its norm."""

    def __init__(self, shape: TowerShape) -> None:
        super().__init__()
        width, inner = shape.hidden_size, shape.intermediate_size
        self.n_heads, self.is_quick = shape.num_attention_heads, shape.hidden_act == "quick_gelu"
        names = ("q_proj", "k_proj", "v_proj", "out_proj")
        self.self_attn = nn.ModuleDict({name: nn.Linear(width, width) for name in names})
        self.layer_norm1 = nn.LayerNorm(width, eps=shape.layer_norm_eps)
        self.layer_norm2 = nn.LayerNorm(width, eps=shape.layer_norm_eps)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)})

    def forward(self, x: Float[Tensor, "B T D"], is_causal: bool) -> Float[Tensor, "B T D"]:
        own: Any = self.self_attn
        normed = self.layer_norm1(x)
        q, k, v = (
            own[name](normed).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        read = F.scaled_dot_product_attention(q, k, v, is_causal=is_causal)
        x = x + own["out_proj"](read.transpose(1, 2).flatten(2))
        inner = self.mlp["fc1"](self.layer_norm2(x))
        inner = inner * torch.sigmoid(1.702 * inner) if self.is_quick else F.gelu(inner)
        out: Tensor = x + self.mlp["fc2"](inner)
        return out


class ClipNet(nn.Module):
    """A frozen CLIP with its tokenizer and its preparation of images.

    Attributes:
        width: dimension of a vector.
    """

    def __init__(self, clip: Clip, tokenizer: Tokenizer, most_tokens: int, side: int) -> None:
        super().__init__()
        self.clip, self.side = clip, side
        self.width = clip.text_projection.out_features
        tokenizer.no_padding()
        tokenizer.enable_truncation(most_tokens)
        self._tokenizer = tokenizer
        self.requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Float[Tensor, "N D"]:
        """Return one vector of length 1 for each text; what exceeds 77 tokens is left out."""
        vectors = [torch.empty(0, self.width)]
        for start in range(0, len(texts), _BATCH):
            found = self._tokenizer.encode_batch(list(texts[start : start + _BATCH]))
            ids, mask = padded([each.ids for each in found])
            last = self.clip.text_model(ids, mask.sum(1))
            vectors.append(F.normalize(self.clip.text_projection(last), dim=1))
        return torch.cat(vectors)

    @torch.no_grad()
    def images(self, images: Sequence[PIL.Image.Image]) -> Float[Tensor, "N D"]:
        """Return one vector of length 1 for each image, of its central square."""
        vectors = [torch.empty(0, self.width)]
        for start in range(0, len(images), _BATCH):
            pixels = torch.stack([self._pixels(each) for each in images[start : start + _BATCH]])
            first = self.clip.vision_model(pixels)
            vectors.append(F.normalize(self.clip.visual_projection(first), dim=1))
        return torch.cat(vectors)

    def _pixels(self, image: PIL.Image.Image) -> Float[Tensor, "3 S S"]:
        """Resize the shorter side, crop the centre and normalise, as CLIP was trained."""
        image, side = image.convert("RGB"), self.side
        short = min(image.size)
        # The other side is rounded down, as by torchvision and transformers.
        width, height = (side if n == short else max(side, side * n // short) for n in image.size)
        resized = image.resize((width, height), PIL.Image.Resampling.BICUBIC)
        left, top = (width - side) // 2, (height - side) // 2
        square = np.asarray(resized.crop((left, top, left + side, top + side)))
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (_MEAN, _STD))
        return (torch.from_numpy(square.copy()).permute(2, 0, 1).float() / 255 - mean) / std


def load_clip(folder: Path) -> ClipNet:
    """Build a frozen CLIP with the weights of a folder, on the CPU.

    Raises:
        BundleError: a file of the folder is missing, damaged or of another kind of net.
    """
    values, path = read_description(folder, model_type="clip"), folder / "config.json"
    tables = [values.get(name) for name in ("text_config", "vision_config")]
    width = values.get("projection_dim", 512)
    if not all(isinstance(each, dict) for each in tables) or not _is_width(width):
        raise BundleError(
            f"{path} lacks a table text_config or vision_config, or its projection_dim is no "
            "number of dimensions; give the folder of a whole CLIP."
        )
    text: TextShape = shape_from(TextShape, tables[0] or {}, path)
    vision: VisionShape = shape_from(VisionShape, tables[1] or {}, path)
    with torch.device("meta"):
        clip = Clip(text, vision, width)
    fill_from(clip, folder, ignored="logit_scale", extra=_POSITIONS)
    tokenizer = read_tokenizer(folder, text.vocab_size)
    return ClipNet(clip, tokenizer, text.max_position_embeddings, vision.image_size)


_POSITIONS = tuple(f"{tower}_model.embeddings.position_ids" for tower in ("text", "vision"))


def _is_width(width: object) -> bool:
    return type(width) is int and 0 < width <= 2**16
