"""Text ⇄ pieces: a byte-level BPE on the ``tokenizers`` library.

Byte-level means that any string survives the round trip exactly, emoji and tabs included, and that
there is no unknown piece. Pieces are numbered from 0; where they stand in the vocabulary is the
vocabulary's business.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pardalis.errors import BundleError, ConfigError
from pardalis.files import write_text

N_BYTES = 256


class TextTokenizer:
    """A trained byte-level BPE."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @property
    def size(self) -> int:
        """Number of pieces."""
        return self._tokenizer.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Split a text into piece numbers."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, pieces: Sequence[int]) -> str:
        """Join pieces; bytes that do not form UTF-8 (a cut character) become U+FFFD."""
        return self._tokenizer.decode(list(pieces), skip_special_tokens=False)

    def to_json(self) -> str:
        """Return the content of a ``tokenizer.json``."""
        return self._tokenizer.to_str(pretty=False)

    def save(self, path: Path) -> None:
        """Write one ``tokenizer.json``, which the ``tokenizers`` library opens as it is."""
        write_text(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> "TextTokenizer":
        """Read a ``tokenizer.json``; raises BundleError if it is missing or unreadable."""
        if not path.is_file():
            raise BundleError(f"No text tokenizer at {path}; train one or copy the whole bundle.")
        try:
            return cls(Tokenizer.from_file(str(path)))
        except Exception as error:  # the library raises bare Exception for every parse error
            raise BundleError(
                f"{path} is not a text tokenizer that can be read: {error}"
            ) from error


def train_text_tokenizer(texts: Iterable[str], n_pieces: int) -> TextTokenizer:
    """Train a byte-level BPE on texts.

    Args:
        texts: the training text, streamed.
        n_pieces: size of the result, the 256 bytes included. Little text may give fewer merges.

    Raises:
        ConfigError: ``n_pieces`` is below the 256 bytes that make every string expressible.
    """
    if n_pieces < N_BYTES:
        raise ConfigError(
            f"A byte-level text tokenizer needs at least {N_BYTES} pieces, got {n_pieces}; "
            "raise text_tokenizer.n_pieces."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=n_pieces,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return TextTokenizer(tokenizer)
