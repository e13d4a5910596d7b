"""Text to token ids and back: a byte-level BPE on the ``tokenizers`` library.

Byte-level means that any string survives the round trip exactly, emoji and tabs included, and that
there is no unknown token. A *text token* is numbered from 0 within the text tokenizer;
:class:`~pardalis.tokens.Vocabulary` gives its token id in the joint vocabulary.

The tokenizer of an imported model is used as its file has it. That file numbers special and image
tokens too, so the vocabulary lists which of its ids are text tokens.
"""

import json
import math
import re
import secrets
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Encoding, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from pardalis.config import shown
from pardalis.errors import BundleError, ConfigError, TextError
from pardalis.files import parse_json, read_text, write_text
from pardalis.tokens.background import Feed, in_background
from pardalis.tokens.vocabulary import Vocabulary

N_BYTES = 256
_PANIC = "PanicException"  # of Rust, for what the library did not expect of a file
# Of what a tokenizer.json does to a text; those of published models lengthen it 150 times at most.
_MOST_STEPS, _MOST_GROWTH = 100, 1000
_LONGEST_TOKEN = 1000  # characters
_UNICODE = ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "BertNormalizer")
_UNICODE_GROWTH = 18  # of U+FDFA; done again, it changes nothing
_GROWTH = {"ByteLevel": 4, "Metaspace": 2, "WordPiece": 2, "BPEDecoder": 2, "Precompiled": math.inf}
_UNICODE_SHRINKAGE = 4  # of a character's UTF-8 at most, which has 4 bytes at most
_SPLITTERS = ("ByteLevel", "Metaspace", "Digits", "UnicodeScripts", "Prepend")  # these drop nothing
# Bytes of a pre-token in training, beyond which it is cut: the library's time grows with the square
# of its length. No word is that long; a row of dashes, base64 text or DNA may be.
LONGEST_PRE_TOKEN = 256
_LONG_TEXT = (
    50_000  # characters, from which the library's work takes so long that Ctrl-C must end it
)
_BYTE_NAME = re.compile(r"<0x[0-9A-F]{2}>")


def _is_failure(error: BaseException) -> bool:
    """Whether the library failed at what a file says, which it may do by a panic."""
    if isinstance(error, MemoryError):
        return False
    return isinstance(error, Exception) or type(error).__name__ == _PANIC


@contextmanager
def refusing(what: object) -> Iterator[None]:
    """Turn a failure of the library at a text or tokens into a TextError."""
    try:
        yield
    except BaseException as error:
        if not _is_failure(error):
            raise
        if isinstance(what, str) and not _is_unicode(what):
            raise TextError(
                "The text has half of a surrogate pair, which is no character; leave it out."
            ) from error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TextError(
            f"The text tokenizer fails at {shown(what)} ({reason}); use the tokenizer that belongs "
            "to the model."
        ) from error


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_steps(content: dict[str, Any]) -> None:
    """Check that a ``tokenizer.json`` takes time and memory in proportion to a text.

    Its steps are a small program: each may replace a character by many, for the next one to do it
    again.

    Raises:
        ValueError: there are too many steps, they lengthen a text too much, or a token is long.
    """
    for names in (("normalizer", "pre_tokenizer", "post_processor"), ("decoder",)):
        steps = [step for name in names for step in _steps(content.get(name))]
        if len(steps) > _MOST_STEPS or math.prod(_growths(steps)) > _MOST_GROWTH:
            raise ValueError(
                f"its {' and '.join(names)} may lengthen a text more than {_MOST_GROWTH:,} times"
            )
    vocab = content["model"].get("vocab", ())  # a table, or a list of tokens with scores
    tokens = [token if isinstance(token, str) else token[0] for token in vocab]
    tokens += [token["content"] for token in content.get("added_tokens", ())]
    longest = max(map(len, tokens), default=0)
    if longest > _LONGEST_TOKEN:
        raise ValueError(f"it has a token of {longest:,} characters")


def _check_added_ids(tokenizer: Tokenizer, content: dict[str, Any], where: Path | str) -> None:
    """Check that the added tokens of a ``tokenizer.json`` have the ids that it states.

    The library numbers them in succession, whatever the file says, so that every token behind a
    hole would be another one than the model was trained with.

    Raises:
        BundleError: one has another id.
    """
    for token in content.get("added_tokens", ()):
        name, stated = token["content"], token["id"]
        if (found := tokenizer.token_to_id(name)) != stated:
            raise BundleError(
                f"{where} states the id {shown(stated)} for its added token {shown(name)}, but the "
                f"tokenizers library numbers added tokens in succession and gives it {found}, "
                "since ids before it have no token. Name these ids in the file, as unused special "
                "tokens."
            )


def encoded(tokenizer: Tokenizer, text: str) -> Encoding:
    """Encode a text by the library, without what a file adds to it; Ctrl-C ends a long one."""
    if len(text) < _LONG_TEXT:
        return tokenizer.encode(text, add_special_tokens=False)
    # Unlike `encode`, it lets other threads work.
    encode = tokenizer.encode_batch
    return in_background(lambda: encode([text], add_special_tokens=False))[0]


def _of_text_alone(content: dict[str, Any], text_ids: Collection[int]) -> dict[str, Any] | None:
    """Return the ``tokenizer.json`` of a tokenizer that makes no other ids of a text than these.

    The library takes an added token that is not marked as special for itself wherever its name
    stands, and a model may make one by its merges. Here the first are marked, and the others have
    names that no text contains.

    Returns:
        None: the file is of such a tokenizer.
    """
    added, model = content.get("added_tokens", []), content["model"]
    unmarked = [token for token in added if not token["special"] and token["id"] not in text_ids]
    vocab = model.get("vocab")
    others = {
        name
        for name, i in (vocab.items() if isinstance(vocab, dict) else ())
        if i not in text_ids and len(name) > 1
    }
    merges = [merge if isinstance(merge, list) else merge.split(" ") for merge in _merges(model)]
    if model["type"] == "BPE" and not model.get("ignore_merges"):
        others &= {"".join(merge) for merge in merges}
    if not unmarked and not others:
        return None
    secret = {name: f"\ue0b0{secrets.token_hex(8)}\ue0bf" for name in others}
    changed = dict(model)
    if others:
        changed["vocab"] = {secret.get(name, name): i for name, i in vocab.items()}
        unknown = model.get("unk_token")
        changed |= {"unk_token": secret.get(unknown, unknown)} if "unk_token" in model else {}
    if merges:
        changed["merges"] = [
            merge for merge in merges if not others & {*merge, "".join(merge)}
        ]  # fmt: skip
    return {
        **content,
        "model": changed,
        "added_tokens": [
            {**token, "special": token["special"] or token["id"] not in text_ids}
            for token in added
            if token["content"] not in others
        ],
    }


def _merges(model: dict[str, Any]) -> list[Any]:
    return model.get("merges") or []


def _steps(step: Any) -> Iterator[dict[str, Any]]:
    if not isinstance(step, dict):
        return
    if step.get("type") != "Sequence":
        yield step
    for inner in step.values() if step.get("type") == "Sequence" else ():
        for each in inner if isinstance(inner, list) else ():
            yield from _steps(each)


def _growths(steps: Sequence[dict[str, Any]]) -> Iterator[float]:
    """Yield by how much each step lengthens a text at most."""
    is_decomposed = False
    for step in steps:
        match step:
            case {"type": "Replace", "content": str(text), "pattern": pattern}:
                yield max(1, len(text) + ("Regex" in pattern))  # which may match nothing
                is_decomposed &= text.isascii()
            case {"type": "Prepend", "prepend": str(text)}:
                yield 1 + len(text)
                is_decomposed &= text.isascii()
            case {"type": "TemplateProcessing", "single": list(items)}:
                yield max(1, len(items))
            case {"type": kind} if kind in _UNICODE:
                yield 1 if is_decomposed else _UNICODE_GROWTH
                is_decomposed = True
            case {"type": kind}:
                yield _GROWTH.get(kind, 1)


def _shrinkages(steps: Iterable[dict[str, Any]]) -> Iterator[float]:
    """Yield by how much each step before the model shortens a text at most."""
    for step in steps:
        match step:
            case {"type": "Replace", "content": str(text), "pattern": {"String": str(pattern)}}:
                yield max(1.0, len(pattern.encode()) / len(text.encode())) if text else math.inf
            case {"type": "Split", "behavior": behavior}:
                yield math.inf if behavior == "Removed" else 1.0
            case {"type": kind} if kind in _UNICODE and kind != "BertNormalizer":
                yield _UNICODE_SHRINKAGE
            case {"type": kind}:
                yield 1.0 if kind in _SPLITTERS else math.inf


def _most_bytes(content: dict[str, Any]) -> int:
    """Return how many bytes of UTF-8 a token of a ``tokenizer.json`` stands for at most.

    Where it may drop text, or give one token to any number of characters, there is no such number;
    no text that people write has more than the one returned.
    """
    model = content["model"]
    vocab: Any = model.get("vocab", ())
    steps = [s for name in ("normalizer", "pre_tokenizer") for s in _steps(content.get(name))]
    is_byte_level = any(step.get("type") == "ByteLevel" for step in steps)
    if is_byte_level:
        knows_all = all(byte in vocab for byte in pre_tokenizers.ByteLevel.alphabet())
    else:
        knows_all = bool(model.get("byte_fallback")) and all(
            f"<0x{byte:02X}>" in vocab for byte in range(N_BYTES)
        )
    knows_all |= model.get("unk_token") is not None and not model.get("fuse_unk")
    added = [token for token in content.get("added_tokens", ()) if not token["special"]]
    strips = any(token["lstrip"] or token["rstrip"] for token in added)
    shrinkage = math.prod(_shrinkages(steps))
    if model["type"] != "BPE" or not knows_all or strips or math.isinf(shrinkage):
        return _LONGEST_TOKEN
    # A name has a character for each byte if the tokenizer is byte-level; an unknown one is of 4.
    lengths = [len(name) if is_byte_level else len(name.encode()) for name in vocab]
    lengths += [len(token["content"].encode()) for token in added]
    return math.ceil(shrinkage * max([4, *lengths]))


class TextTokenizer:
    """A trained BPE.

    Args:
        tokenizer: of the library.
        text_tokens: the tokenizer's own id of each text token; default: all of its ids in order.
        unk_token: its own id of the unknown token, which gets the last number, ``size``.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        text_tokens: Sequence[int] | None = None,
        unk_token: int | None = None,
    ) -> None:
        # A special token's name within a text is text, not that token.
        tokenizer.encode_special_tokens = True
        # Files of other libraries keep the last settings of truncation and padding.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        if isinstance(tokenizer.model, models.BPE):
            tokenizer.model.dropout = None  # of training; the same text has the same tokens here
        self._tokenizer = tokenizer
        self.text_tokens = range(tokenizer.get_vocab_size()) if text_tokens is None else text_tokens
        self._own_ids = [*self.text_tokens] if unk_token is None else [*self.text_tokens, unk_token]
        self._token_of = {own_id: token for token, own_id in enumerate(self._own_ids)}

    @property
    def size(self) -> int:
        """Number of text tokens without the unknown token."""
        return len(self.text_tokens)

    @cached_property
    def most_bytes(self) -> int:
        """How many bytes of UTF-8 a text token stands for at most.

        A tokenizer that may drop text has no such number; then none is written that has more.
        """
        return _most_bytes(parse_json(self.to_json()))

    def encode(self, text: str) -> list[int]:
        """Return the text tokens of a text.

        Text that reads like a special token is text. The time is in proportion to the length of a
        text, whatever its words are, and Ctrl-C ends it.

        Raises:
            TextError: an imported tokenizer gives a token that is not a text token, or fails, or
                the text is no Unicode.
        """
        with refusing(text):
            own_ids = encoded(self._encoder, text).ids
        return [self.text_token(own_id, text) for own_id in own_ids]

    @cached_property
    def _encoder(self) -> Tokenizer:
        """The tokenizer, or one that makes no other tokens of a text than text tokens."""
        if isinstance(self.text_tokens, range) and len(self._own_ids) == len(self.text_tokens):
            return self._tokenizer  # all ids are text tokens
        changed = _of_text_alone(parse_json(self.to_json()), frozenset(self.text_tokens))
        return self._tokenizer if changed is None else _encoding(json.dumps(changed))

    def another_encoder(self) -> Tokenizer:
        """Return a tokenizer of the library that encodes texts alike, to add tokens to."""
        return _encoding(self._encoder.to_str())

    def text_token(self, own_id: int, text: str) -> int:
        """Return the text token of the tokenizer's own id, which ``text`` was encoded with.

        Raises:
            TextError: it is not a text token.
        """
        token = self._token_of.get(own_id)
        if token is None:
            raise TextError(
                f"The text tokenizer encodes {text[:40]!r} with the special token "
                f"{self.name_of(own_id)!r}, which is not a text token; rewrite that text."
            )
        return token

    @property
    def added_tokens(self) -> dict[str, int]:
        """The tokenizer's own ids of the tokens that its file adds to the model's, by name."""
        added = self._tokenizer.get_added_tokens_decoder()
        return {token.content: own_id for own_id, token in added.items()}

    def name_of(self, own_id: int) -> str | None:
        """Return the name of the tokenizer's own id; None if it has no such id."""
        return self._tokenizer.id_to_token(own_id)

    def begins_with(self, own_id: int) -> bool:
        """Whether the tokenizer's file lets each text begin with this token, such as ``bos``."""
        with refusing("a"):
            return self._tokenizer.encode("a", add_special_tokens=True).ids[:1] == [own_id]

    def decode(self, text_tokens: Sequence[int]) -> str:
        """Return the text of text tokens; bytes that do not form UTF-8 become U+FFFD.

        The unknown token is left out if the tokenizer has none.

        Raises:
            TextError: an imported tokenizer cannot decode them.
        """
        own_ids = [self._own_ids[token] for token in text_tokens if token < len(self._own_ids)]
        with refusing(own_ids):
            return self._tokenizer.decode(own_ids, skip_special_tokens=False)

    def is_byte(self, text_token: int) -> bool:
        """Return whether a text token is a byte token by its name, such as ``<0xE2>``.

        Imported tokenizers have byte tokens, and decode a run of them as one.
        """
        name = self._tokenizer.id_to_token(self._own_ids[text_token])
        return name is not None and _BYTE_NAME.fullmatch(name) is not None

    def to_json(self) -> str:
        """Return the content of a ``tokenizer.json``."""
        return self._tokenizer.to_str(pretty=False)

    def save(self, path: Path) -> None:
        """Write a ``tokenizer.json`` that the ``tokenizers`` library can open."""
        write_text(path, self.to_json())

    @classmethod
    def load(cls, path: Path, vocabulary: Vocabulary | None = None) -> "TextTokenizer":
        """Read a ``tokenizer.json``.

        Args:
            vocabulary: of an imported model; it lists which of the file's ids are text tokens.

        Raises:
            BundleError: the file is missing or unreadable, or lacks text tokens of the vocabulary.
        """
        if not path.is_file():
            raise BundleError(f"No text tokenizer at {path}; train one or copy the whole bundle.")
        try:
            content = read_text(path)
        except (OSError, ValueError) as error:
            raise BundleError(
                f"{path} is not a text tokenizer that can be read: {error}; copy it again."
            ) from error
        return cls.from_json(content, vocabulary, path)

    @classmethod
    def from_json(
        cls, content: str, vocabulary: Vocabulary | None = None, where: Path | str = "The tokenizer"
    ) -> "TextTokenizer":
        """Read the content of a ``tokenizer.json``; ``where`` names it in messages.

        Arguments and errors are otherwise those of :meth:`load`.
        """
        try:
            tokenizer, parsed = Tokenizer.from_str(content), parse_json(content)
            check_steps(parsed)
        except BaseException as error:  # a bare Exception for parse errors, and panics of Rust
            if not _is_failure(error):
                raise
            raise BundleError(
                f"{where} is not a text tokenizer that can be read: {error}; copy it again."
            ) from error
        _check_added_ids(tokenizer, parsed, where)
        if vocabulary is None or vocabulary.foreign_ids is None:
            size = tokenizer.get_vocab_size()
            if gaps := set(range(size)) - set(tokenizer.get_vocab().values()):
                raise BundleError(
                    f"{where} has {size} tokens, but none with id {min(gaps)}; ids must be "
                    "consecutive from 0 on. Copy the file again."
                )
            return cls(tokenizer)
        if len(vocabulary.text) > tokenizer.get_vocab_size():
            raise BundleError(
                f"{where} has {tokenizer.get_vocab_size()} tokens, but its model has "
                f"{len(vocabulary.text)} text tokens. Do not mix files of different models."
            )
        foreign = vocabulary.foreign_ids
        text_tokens = [foreign[i] for i in vocabulary.text]
        if missing := [own_id for own_id in text_tokens if tokenizer.id_to_token(own_id) is None]:
            raise BundleError(
                f"{where} lacks {len(missing)} of the {len(text_tokens)} text tokens of its model, "
                f"the first with id {missing[0]}. Do not mix files of different models."
            )
        return cls(tokenizer, text_tokens, foreign[vocabulary.unk_id])


class TextStream:
    """Incremental decoding of text tokens.

    The results of :meth:`push` and :meth:`end` join to ``tokenizer.decode`` of all text tokens.
    Text that the next token may still change, such as half a character, is held back.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._before: list[int] = []  # the last token that was decoded; some decoders need it
        self._held: list[int] = []

    def push(self, text_tokens: Sequence[int]) -> str:
        """Return the text that these tokens complete."""
        return "".join(map(self._pushed, text_tokens))

    def end(self) -> str:
        """Return the text that was held back; the next token begins a new text."""
        text = self._text_held()
        self._before, self._held = [], []
        return text

    def _pushed(self, text_token: int) -> str:
        self._held.append(text_token)
        text = self._text_held()
        if text.endswith("\ufffd") or self._tokenizer.is_byte(text_token):
            return ""
        self._before, self._held = [text_token], []
        return text

    def _text_held(self) -> str:
        decode = self._tokenizer.decode
        return decode(self._before + self._held)[len(decode(self._before)) :]


def _encoding(content: str) -> Tokenizer:
    """Return the tokenizer of a ``tokenizer.json``, for which a special token's name is text."""
    tokenizer = Tokenizer.from_str(content)
    tokenizer.encode_special_tokens = True
    return tokenizer


def train_text_tokenizer(texts: Iterable[str], vocab_size: int) -> TextTokenizer:
    """Train a byte-level BPE on texts; Ctrl-C ends it at any time.

    A pre-token, such as a word, of more than :data:`LONGEST_PRE_TOKEN` bytes is learnt from in
    parts of that length, so that the time is in proportion to the length of the texts. Halves of
    surrogate pairs are left out.

    Args:
        texts: the training texts, read once.
        vocab_size: number of text tokens, the 256 bytes included; little text may give fewer.

    Raises:
        ConfigError: ``vocab_size`` is below the 256 bytes that make every string expressible.
    """
    if vocab_size < N_BYTES:
        raise ConfigError(
            f"A byte-level text tokenizer needs at least {N_BYTES} tokens, got {vocab_size}; "
            "raise `vocab_size`."
        )
    tokenizer = Tokenizer(models.BPE())
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
    parts = pre_tokenizers.Split(Regex(f".{{{LONGEST_PRE_TOKEN}}}"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([by_bytes, parts])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    with Feed(lambda fed: tokenizer.train_from_iterator(fed, trainer)) as feed:
        for text in texts:
            feed.put(text.encode(errors="ignore").decode())  # without halves of surrogate pairs
    tokenizer.pre_tokenizer = by_bytes
    return TextTokenizer(tokenizer)
