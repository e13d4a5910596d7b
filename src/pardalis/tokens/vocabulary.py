"""The vocabulary: one space of token ids in which every modality is a range.

    0 .. 7                     special ids (bos, pad, eos, ...)
    8 .. 8 + n_codes           image ids, one for each entry of the image codebook
    8 + n_codes .. size        text ids, one for each token of the text tokenizer

No token is recognised by its name. Image ids are contiguous, so the part of the output head that
generates images is a slice. An imported vocabulary may have its special ids in other places, and
stores the number that each id has in its own files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pardalis.errors import BundleError

N_SPECIAL = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """Special ids and id ranges of one model.

    The order of the first four follows Chameleon (arXiv 2405.09818): ``<s>``, ``<pad>``, ``</s>``,
    ``<unk>``.
    """

    image: range  # image ids: code c of the codebook is id image.start + c
    text: range  # text ids: token t of the text tokenizer is id text.start + t
    bos_id: int = 0  # begins a document
    pad_id: int = 1  # fills a row
    eos_id: int = 2  # ends a document
    unk_id: int = 3  # the unknown token of an imported text tokenizer; read, never written
    end_image_id: int = 4  # closes an image
    begin_image_id: int = 5  # opens an image
    end_turn_id: int = 6  # closes a turn of a conversation
    # In an imported vocabulary: the number that each id has in the files it came from, such as the
    # text tokenizer's. A range means that all are unchanged.
    foreign_ids: Sequence[int] | None = None

    @classmethod
    def build(cls, n_codes: int, n_text: int) -> "Vocabulary":
        """Lay out a vocabulary for ``n_codes`` codes and ``n_text`` text tokens."""
        image = range(N_SPECIAL, N_SPECIAL + n_codes)
        return cls(image=image, text=range(image.stop, image.stop + n_text))

    @property
    def size(self) -> int:
        """Number of ids, special ones included."""
        if self.foreign_ids is not None:
            return len(self.foreign_ids)
        return max(self.image.stop, self.text.stop)

    @property
    def readable_unk_id(self) -> int | None:
        """The id of the unknown token; None in our own vocabularies, which cover every byte."""
        return None if self.foreign_ids is None else self.unk_id

    @property
    def n_codes(self) -> int:
        return len(self.image)

    def text_id(self, text_token: int) -> int:
        """Return the id of a token of the text tokenizer; the unknown token has the last number."""
        return self.text[text_token] if text_token < len(self.text) else self.unk_id

    def text_token(self, text_id: int) -> int:
        """Return the text tokenizer's token of an id: the inverse of :meth:`text_id`."""
        return text_id - self.text.start if text_id in self.text else len(self.text)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a JSON file."""
        return {
            "image": [self.image.start, self.image.stop],
            "text": [self.text.start, self.text.stop],
            **{name: getattr(self, name) for name in _SINGLE_IDS},
            **({} if self.foreign_ids is None else {"foreign_ids": _plain(self.foreign_ids)}),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Vocabulary":
        """Rebuild a vocabulary; raises BundleError for wrong keys or foreign ids."""
        expected = {"image", "text", *_SINGLE_IDS}
        if set(values) - {"foreign_ids"} != expected:
            raise BundleError(
                f"A vocabulary needs exactly the keys {sorted(expected)}, found {sorted(values)}."
            )
        image, text = range(*values["image"]), range(*values["text"])
        singles = {name: values[name] for name in _SINGLE_IDS}
        foreign_ids = _foreign_ids(values.get("foreign_ids"), max(image.stop, text.stop))
        return cls(image=image, text=text, **singles, foreign_ids=foreign_ids)

    def name_of(self, token_id: int) -> str:
        """Return the name of an id for messages: ``<bos>``, ``<image 17>`` or ``<text 803>``."""
        for name in _SINGLE_IDS:
            if token_id == getattr(self, name):
                return f"<{name.removesuffix('_id')}>"
        if token_id in self.image:
            return f"<image {token_id - self.image.start}>"
        if token_id in self.text:
            return f"<text {token_id - self.text.start}>"
        return f"<unused {token_id}>" if 0 <= token_id < self.size else f"<outside {token_id}>"


def _plain(foreign_ids: Sequence[int]) -> int | list[int]:
    """Return foreign ids for a JSON file: how many there are, when all are unchanged."""
    return len(foreign_ids) if isinstance(foreign_ids, range) else list(foreign_ids)


def _foreign_ids(plain: Any, least: int) -> Sequence[int] | None:
    """Undo :func:`_plain`; raises BundleError unless they are a permutation of enough ids."""
    if plain is None:
        return None
    ids = (
        range(plain) if isinstance(plain, int) else tuple(plain) if isinstance(plain, list) else ()
    )
    if len(ids) < least or set(ids) != set(range(len(ids))):
        raise BundleError(
            f"A vocabulary's foreign_ids must be a permutation of its ids, {least} or more; copy "
            "the whole bundle again."
        )
    return ids


_SINGLE_IDS = (
    "bos_id",
    "pad_id",
    "eos_id",
    "unk_id",
    "end_image_id",
    "begin_image_id",
    "end_turn_id",
)
