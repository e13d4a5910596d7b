"""The vocabulary: one space of ids in which every modality is a range.

    0 .. 7                     special ids (bos, pad, eos, ...)
    8 .. 8 + n_codes           image ids, one for each entry of the image codebook
    8 + n_codes .. size        text ids, one for each piece of the text tokenizer

Nothing is ever recognised by its token's name. The image ids are contiguous, so the rows of the
output head that write a picture are a slice.
"""

from dataclasses import dataclass
from typing import Any

from pardalis.errors import BundleError

N_SPECIAL = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """Single ids and id ranges of one model.

    The order of the first four follows Chameleon (arXiv 2405.09818): ``<s>``, ``<pad>``, ``</s>``,
    ``<unk>``.
    """

    image: range  # image ids: code c of the codebook is id image.start + c
    text: range  # text ids: piece p of the text tokenizer is id text.start + p
    bos_id: int = 0  # begins a document
    pad_id: int = 1  # fills a row
    eos_id: int = 2  # ends a document
    unk_id: int = 3  # never written by our byte-level tokenizer; kept for foreign ones
    end_image_id: int = 4  # closes a picture
    begin_image_id: int = 5  # opens a picture
    end_turn_id: int = 6  # closes a turn of a conversation

    @classmethod
    def build(cls, n_codes: int, n_text: int) -> "Vocabulary":
        """Lay out a vocabulary for a codebook of ``n_codes`` and ``n_text`` text pieces."""
        image = range(N_SPECIAL, N_SPECIAL + n_codes)
        return cls(image=image, text=range(image.stop, image.stop + n_text))

    @property
    def size(self) -> int:
        """Number of ids, special ones included."""
        return max(self.image.stop, self.text.stop)

    @property
    def n_codes(self) -> int:
        return len(self.image)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a JSON file."""
        return {
            "image": [self.image.start, self.image.stop],
            "text": [self.text.start, self.text.stop],
            **{name: getattr(self, name) for name in _SINGLE_IDS},
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Vocabulary":
        """Rebuild a vocabulary; raises BundleError for missing or unknown keys."""
        expected = {"image", "text", *_SINGLE_IDS}
        if set(values) != expected:
            raise BundleError(
                f"A vocabulary needs exactly the keys {sorted(expected)}, found {sorted(values)}."
            )
        singles = {name: values[name] for name in _SINGLE_IDS}
        return cls(image=range(*values["image"]), text=range(*values["text"]), **singles)

    def name_of(self, token_id: int) -> str:
        """Name an id for a person: ``<bos>``, ``<image 17>`` or ``<text 803>``."""
        for name in _SINGLE_IDS:
            if token_id == getattr(self, name):
                return f"<{name.removesuffix('_id')}>"
        if token_id in self.image:
            return f"<image {token_id - self.image.start}>"
        if token_id in self.text:
            return f"<text {token_id - self.text.start}>"
        return f"<unused {token_id}>" if 0 <= token_id < self.size else f"<outside {token_id}>"


_SINGLE_IDS = (
    "bos_id",
    "pad_id",
    "eos_id",
    "unk_id",
    "end_image_id",
    "begin_image_id",
    "end_turn_id",
)
