"""Text ⇄ pieces: a byte-level BPE on the ``tokenizers`` library.

Byte-level means that any string survives the round trip exactly, emoji and tabs included, and that
there is no unknown piece. Pieces are numbered from 0; where they stand in the vocabulary is the
vocabulary's business.

The tokenizer of an imported model is used as its file has it. That file numbers special and image
tokens too, so which of its ids are pieces of text is said beside it.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pardalis.errors import BundleError, ConfigError, DataError
from pardalis.files import write_text
from pardalis.tokens.vocabulary import Vocabulary

N_BYTES = 256
_BYTE_NAME = re.compile(r"<0x[0-9A-F]{2}>")


class TextTokenizer:
    """A trained BPE.

    Args:
        tokenizer: of the library.
        pieces: the tokenizer's own id of each piece; all of its ids in order when left out.
        unknown: its own id of what it has no piece for, which is numbered last, at ``size``.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        pieces: Sequence[int] | None = None,
        unknown: int | None = None,
    ) -> None:
        # A special token's name within a text is text, not that token.
        tokenizer.encode_special_tokens = True
        # Files of others keep the lengths that were last asked for.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.pieces = range(tokenizer.get_vocab_size()) if pieces is None else pieces
        self._own_ids = [*self.pieces] if unknown is None else [*self.pieces, unknown]
        self._piece_of = {own_id: piece for piece, own_id in enumerate(self._own_ids)}

    @property
    def size(self) -> int:
        """Number of pieces, the unknown one not counted."""
        return len(self.pieces)

    def encode(self, text: str) -> list[int]:
        """Split a text into piece numbers.

        Raises:
            DataError: an imported tokenizer writes something that is not a piece of text.
        """
        own_ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        try:
            return [self._piece_of[own_id] for own_id in own_ids]
        except KeyError as error:
            raise DataError(
                f"The text tokenizer cuts {text[:40]!r} so that it holds "
                f"{self._tokenizer.id_to_token(error.args[0])!r}, which is no text but a special "
                "token; rewrite that text."
            ) from None

    def decode(self, pieces: Sequence[int]) -> str:
        """Join pieces; bytes that do not form UTF-8 (a cut character) become U+FFFD.

        The unknown piece of a tokenizer that has none is left out.
        """
        own_ids = [self._own_ids[piece] for piece in pieces if piece < len(self._own_ids)]
        return self._tokenizer.decode(own_ids, skip_special_tokens=False)

    def is_byte(self, piece: int) -> bool:
        """Tell whether a piece stands for one byte of a character by its name, ``<0xE2>``.

        Imported tokenizers have such pieces, and decode a run of them as one.
        """
        name = self._tokenizer.id_to_token(self._own_ids[piece])
        return name is not None and _BYTE_NAME.fullmatch(name) is not None

    def to_json(self) -> str:
        """Return the content of a ``tokenizer.json``."""
        return self._tokenizer.to_str(pretty=False)

    def save(self, path: Path) -> None:
        """Write one ``tokenizer.json``, which the ``tokenizers`` library opens as it is."""
        write_text(path, self.to_json())

    @classmethod
    def load(cls, path: Path, vocabulary: Vocabulary | None = None) -> "TextTokenizer":
        """Read a ``tokenizer.json``.

        Args:
            vocabulary: of an imported model, which says what in the file is text.

        Raises:
            BundleError: the file is missing or unreadable, or lacks pieces of the vocabulary.
        """
        if not path.is_file():
            raise BundleError(f"No text tokenizer at {path}; train one or copy the whole bundle.")
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for every parse error
            raise BundleError(
                f"{path} is not a text tokenizer that can be read: {error}"
            ) from error
        if vocabulary is None or vocabulary.foreign_ids is None:
            return cls(tokenizer)
        foreign = vocabulary.foreign_ids
        pieces = [foreign[i] for i in vocabulary.text]
        if missing := [own_id for own_id in pieces if tokenizer.id_to_token(own_id) is None]:
            raise BundleError(
                f"{path} lacks {len(missing)} of the {len(pieces)} pieces of text that its model "
                f"knows, first id {missing[0]}. Do not mix files of different models."
            )
        return cls(tokenizer, pieces, foreign[vocabulary.unk_id])


class TextStream:
    """Decodes pieces as they come.

    What :meth:`push` and :meth:`end` return joins to what ``tokenizer.decode`` makes of all pieces:
    text that the next piece may still change, such as half a character, is held back.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._before: list[int] = []  # the last piece whose text is out; some decoders look back
        self._held: list[int] = []

    def push(self, pieces: Sequence[int]) -> str:
        """Return the text that is certain after these pieces and was not before."""
        return "".join(map(self._pushed, pieces))

    def end(self) -> str:
        """Return the rest; what is pushed next begins a new text."""
        text = self._text_held()
        self._before, self._held = [], []
        return text

    def _pushed(self, piece: int) -> str:
        self._held.append(piece)
        text = self._text_held()
        if text.endswith("\ufffd") or self._tokenizer.is_byte(piece):
            return ""
        self._before, self._held = [piece], []
        return text

    def _text_held(self) -> str:
        decode = self._tokenizer.decode
        return decode(self._before + self._held)[len(decode(self._before)) :]


def train_text_tokenizer(texts: Iterable[str], vocab_size: int) -> TextTokenizer:
    """Train a byte-level BPE on texts.

    Args:
        texts: the training text, streamed.
        vocab_size: size of the result, the 256 bytes included. Little text may give fewer merges.

    Raises:
        ConfigError: ``vocab_size`` is below the 256 bytes that make every string expressible.
    """
    if vocab_size < N_BYTES:
        raise ConfigError(
            f"A byte-level text tokenizer needs at least {N_BYTES} pieces, got {vocab_size}; "
            "raise text_tokenizer.vocab_size."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return TextTokenizer(tokenizer)
