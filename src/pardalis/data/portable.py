"""A codec that goes to another process by value."""

from typing import Any

import torch
from safetensors.torch import load, save

from pardalis.codec import Codec
from pardalis.tokens import TextTokenizer, Vocabulary
from pardalis.vq import ImageFit, ImageTokenizer, ImageTokenizerConfig


class PortableCodec:
    """Pickled, it becomes the codec that it was made from, on the CPU.

    Tensors would be pickled as shared memory, of which containers often have 64 MiB.
    """

    def __init__(self, codec: Codec) -> None:
        self._codec = codec

    def __reduce__(self) -> tuple[Any, ...]:
        codec, images = self._codec, self._codec.image_tokenizer
        weights = {name: each.contiguous().cpu() for name, each in images.state_dict().items()}
        template = None if codec.chat_template is None else codec.chat_template.source
        return _codec_of, (
            codec.vocabulary, codec.text_tokenizer.to_json(), images.config, save(weights),
            images.compute_dtype, codec.image_fit, template, codec.adds_bos,
        )  # fmt: skip


def _codec_of(
    vocabulary: Vocabulary,
    text_tokenizer: str,
    config: ImageTokenizerConfig,
    weights: bytes,
    dtype: torch.dtype,
    image_fit: ImageFit,
    chat_template: str | None,
    adds_bos: bool,
) -> Codec:
    images = ImageTokenizer(config)
    images.load_state_dict(load(weights))
    return Codec(
        vocabulary,
        TextTokenizer.from_json(text_tokenizer, vocabulary),
        images.compute_in(dtype).eval(),
        image_fit,
        chat_template=chat_template,
        adds_bos=adds_bos,
    )
