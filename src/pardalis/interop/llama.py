"""Text-only models of Llama's layout, which become mixed-modal decoders that are yet to learn.

The text half of embedding and head is the model's own. The rows of the new ids (image codes, and
the single ids that it lacks) are drawn as :class:`NewRows` says.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pardalis.errors import BundleError, ConfigError
from pardalis.interop.huggingface import decoder_config, decoder_from, open_folder, read_config
from pardalis.interop.licences import licences_of
from pardalis.interop.model import ForeignModel, check_tensors, decoder_shapes, reorder_ids
from pardalis.interop.names import lines
from pardalis.interop.tensors import LazyTensor, Tensors
from pardalis.interop.vocabulary import SINGLE_NAMES, extend_text_vocabulary, to_foreign
from pardalis.model import ModelConfig
from pardalis.seeds import derive
from pardalis.tokens import TextTokenizer
from pardalis.vq import ImageTokenizerConfig

MODEL_TYPES = ("llama", "mistral")
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@dataclass(frozen=True, kw_only=True, slots=True)
class NewRows:
    """How the rows of new ids in embedding and head begin.

    ``normal``: normal with the config's ``init_std``, as a model trained from nothing.
    ``mean``: the mean of the old rows plus normal noise of a hundredth of their own spread, so
    that at first all new ids are about as likely as an average old one (Hewitt 2021).
    """

    init: Literal["normal", "mean"] = "mean"
    seed: int = 0

    def draw(self, name: str, old: Tensor, n: int, std: float) -> Tensor:
        """Return n new rows for a matrix with these old ones; (n, D), of its dtype."""
        generator = torch.Generator().manual_seed(derive(self.seed, "new rows", name))
        noise = torch.randn(n, old.shape[1], generator=generator)
        if self.init == "normal":
            return (noise * std).to(old.dtype)
        rows = old.float()
        return (rows.mean(0) + noise * rows.std(0) / 100).to(old.dtype)


def read_llama(
    folder: Path,
    image_tokenizer: ImageTokenizerConfig,
    image_tensors: Tensors,
    new_rows: NewRows | None = None,
) -> ForeignModel:
    """Read a text-only folder of Hugging Face's and join it with an image tokenizer.

    Raises:
        BundleError: something is missing, does not fit, or is an option that our decoder lacks.
    """
    new_rows = new_rows or NewRows()
    where = folder / "config.json"
    values = read_config(folder)
    if values.get("model_type") not in MODEL_TYPES:
        raise BundleError(
            f"{where} is of a model of type {values.get('model_type')!r}; of text-only models "
            f"{' and '.join(MODEL_TYPES)} can be imported."
        )
    config = decoder_config(values, where, qk_norm="none")
    tensors = open_folder(folder)
    if values.get("tie_word_embeddings") and _HEAD not in tensors and _EMBEDDING in tensors:
        tensors[_HEAD] = tensors[_EMBEDDING]  # ours are two matrices, which begin alike
    shapes = decoder_shapes(config)
    expected = {
        line.transformers.format(n=n): shapes[line.ours.format(n=n)]
        for line, n in lines(config.n_layers, qk_norm=False)
    }
    check_tensors(folder, expected, tensors)

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise BundleError(
            f"{path} is missing; save the tokenizer with the tokenizers library first."
        )
    vocabulary = extend_text_vocabulary(
        path.read_text(encoding="utf-8"),
        config.vocab_size,
        _single_ids(values, folder),
        image_tokenizer.n_codes,
        str(path),
    )
    decoder = decoder_from(tensors, config)
    extended = replace(config, vocab_size=vocabulary.size)
    decoder |= {
        name: _extend(decoder[name], name, extended, new_rows)
        for name in ("embedding.weight", "head.weight")
    }
    return ForeignModel(
        config=extended,
        vocabulary=vocabulary,
        text_tokenizer=TextTokenizer.load(path, vocabulary),
        image_tokenizer=image_tokenizer,
        decoder=reorder_ids(decoder, to_foreign(vocabulary)),
        image_tensors=image_tensors,
        origin=str(values["model_type"]),
        licences=licences_of(folder),
    )


def _extend(tensor: LazyTensor, name: str, config: ModelConfig, new_rows: NewRows) -> LazyTensor:
    n_new = config.vocab_size - tensor.shape[0]

    def extended(old: Tensor) -> Tensor:
        return torch.cat([old, new_rows.draw(name, old, n_new, config.init_std)])

    return tensor.map(extended, (config.vocab_size, tensor.shape[1]))


def _single_ids(values: dict[str, Any], folder: Path) -> dict[str, int]:
    """Return the single ids that a text-only model has: what its configs call so.

    Of several ends of a sequence the first is ours, and another one ends a turn.
    """
    generation = folder / "generation_config.json"
    merged = values | (json.loads(generation.read_text()) if generation.is_file() else {})
    singles: dict[str, int] = {}
    for name in ("bos", "pad", "eos"):
        found = merged.get(f"{name}_token_id")
        ids = [i for i in (found if isinstance(found, list) else [found]) if isinstance(i, int)]
        if ids and ids[0] >= 0:
            singles[f"{name}_id"] = ids[0]
        if name == "eos" and len(ids) > 1:
            singles["end_turn_id"] = ids[-1]
    if missing := [name for name in ("bos_id", "eos_id") if name not in singles]:
        raise ConfigError(
            f"{folder / 'config.json'} lacks {missing[0].replace('_id', '_token_id')}, with which "
            "documents begin or end; add it."
        )
    if singles.get("pad_id") in (singles["bos_id"], singles["eos_id"]):
        del singles["pad_id"]  # a common stand-in for having none
    assert set(singles) <= set(SINGLE_NAMES)
    return singles
