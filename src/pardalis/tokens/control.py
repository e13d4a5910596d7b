"""Text with control tokens among it to token ids: what a chat template has rendered.

The text tokenizer alone takes the name of a special token for text. Here the control tokens of a
text are given by their places, and all is encoded in one pass, as the tokenizer's own library does
it: some tokenizers begin a text otherwise than what follows a control token.
"""

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
from jaxtyping import Integer
from tokenizers import AddedToken, Tokenizer

from pardalis.errors import DataError
from pardalis.tokens.chat_template import ChatTemplate, Rendered, turn_end
from pardalis.tokens.text import TextTokenizer, encoded, refusing
from pardalis.tokens.vocabulary import Vocabulary

# Variables of templates, by the names of special ids.
_VARIABLES = {"bos": "bos_token", "eos": "eos_token", "pad": "pad_token", "unk": "unk_token"}


def control_tokens(vocabulary: Vocabulary, tokenizer: TextTokenizer) -> dict[str, int]:
    """Return the token ids that a chat template may write, by their names in its text.

    They are the added tokens of an imported tokenizer's file that are no text tokens, and the
    special ids of the vocabulary that have a name there. In our own vocabularies they are
    ``<bos>``, ``<end_turn>`` and so on.
    """
    if vocabulary.foreign_ids is None:
        return {f"<{name}>": i for name, i in vocabulary.special.items()}
    ours = {own_id: i for i, own_id in enumerate(vocabulary.foreign_ids)}
    special = tokenizer.added_tokens | {
        name: vocabulary.foreign_ids[i]
        for i in vocabulary.special.values()
        if (name := tokenizer.name_of(vocabulary.foreign_ids[i])) is not None
    }
    return {
        name: i
        for name, own_id in special.items()
        if (i := ours.get(own_id)) is not None
        and i not in vocabulary.text
        and i not in vocabulary.image
    }


def template_variables(vocabulary: Vocabulary, control: Mapping[str, int]) -> dict[str, str]:
    """Return ``bos_token``, ``eos_token`` and so on, for those that have a name."""
    names = {i: name for name, i in control.items()}
    return {
        variable: names[vocabulary.special[special]]
        for special, variable in _VARIABLES.items()
        if vocabulary.special[special] in names
    }


def with_template_end(
    vocabulary: Vocabulary, tokenizer: TextTokenizer, chat_template: str | None
) -> Vocabulary:
    """Return the vocabulary in which ``end_turn`` is the token that ends a turn in a template.

    It stays as it is without such a token, and if that has another name already, such as ``eos``,
    which ends a completion too.

    Raises:
        DataError, BundleError: the template takes no conversation, as :class:`ChatTemplate` says.
    """
    if chat_template is None:
        return vocabulary
    control = control_tokens(vocabulary, tokenizer)
    variables = template_variables(vocabulary, control)
    end = control.get(ChatTemplate(chat_template, control, variables).end_of_turn() or "")
    if end is None or end in vocabulary.special.values():
        return vocabulary
    return replace(vocabulary, special={**vocabulary.special, "end_turn": end})


def unmarked_turn_marks(
    vocabulary: Vocabulary, tokenizer: TextTokenizer, chat_template: str | None
) -> set[str]:
    """Return the added tokens that mark the turns of a chat template and pass for text.

    Their file does not mark them as special. Were they text, a user could end a turn by writing
    their names.

    Raises:
        BundleError: as :class:`ChatTemplate`.
    """
    control = control_tokens(vocabulary, tokenizer)
    unmarked = tokenizer.added_tokens.keys() - control.keys()
    if chat_template is None or not unmarked:
        return set()
    variables = template_variables(vocabulary, control)
    try:
        marks = ChatTemplate(chat_template, {*control, *unmarked}, variables).turn_marks()
    except DataError:  # it takes no such conversation
        return set()
    return unmarked & marks


class ControlTokenizer:
    """Encodes rendered conversations.

    Args:
        control: token ids of the control tokens by name.
    """

    def __init__(
        self, vocabulary: Vocabulary, tokenizer: TextTokenizer, control: Mapping[str, int]
    ) -> None:
        self._vocabulary, self._text, self._control = vocabulary, tokenizer, control

    @cached_property
    def _tokenizer(self) -> tuple[Tokenizer, dict[str, str], dict[int | None, str]]:
        """The tokenizer with a secret name for each control token, those names, and their ids."""
        tokenizer = self._text.another_encoder()
        nonce = secrets.token_hex(8)  # cannot be guessed, so no text contains such a name
        options = {
            token.content: {"lstrip": token.lstrip, "rstrip": token.rstrip}
            for token in tokenizer.get_added_tokens_decoder().values()
        }
        secret = {name: f"\ue0b0{nonce}{n}\ue0bf" for n, name in enumerate([*self._control, ""])}
        tokenizer.add_tokens(
            [
                AddedToken(other, normalized=False, **options.get(name, {}))
                for name, other in secret.items()
            ]
        )
        ids = {tokenizer.token_to_id(other): name for name, other in secret.items()}
        return tokenizer, secret, ids

    def encode(
        self, rendered: Rendered, images: Sequence[Sequence[int]]
    ) -> tuple[list[int], Integer[np.ndarray, " n"]]:
        """Return the token ids of a conversation, and the part of each; -1: the template's own.

        The token that ends a turn is of the turn's last part. A token of two parts is of the
        later one.

        Args:
            rendered: with the places of its texts, or without any, if the parts do not matter.
            images: the token ids of each image in order.

        Raises:
            DataError: as :meth:`TextTokenizer.encode`.
        """
        tokenizer, secret, names = self._tokenizer
        parts = _parts(rendered)
        events = [(start, stop, rendered.text[start:stop]) for start, stop in rendered.control]
        events += [(at, at, "") for at, _ in rendered.images]
        texts, owners, last = [], [], 0
        image_parts = iter([part for _, part in rendered.images])
        for start, stop, name in sorted(events, key=lambda event: event[:2]):
            part = parts[start] if name else next(image_parts)
            texts += [rendered.text[last:start], secret[name]]
            owners += [parts[last:start], np.full(len(secret[name]), part)]
            last = stop
        texts.append(rendered.text[last:])
        owners.append(parts[last:])
        of_character = np.concatenate(owners)
        with refusing(rendered.text):
            encoding = encoded(tokenizer, "".join(texts))
        next_image = iter(images)
        ids: list[int] = []
        of_token: list[int] = []
        for own_id, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
            if own_id not in names:
                new = [self._vocabulary.text_id(self._text.text_token(own_id, rendered.text))]
            elif control := names[own_id]:
                new = [self._control[control]]
            else:
                new = [*next(next_image)]
            ids += new
            owner = of_character[start : max(stop, start + 1)].max(initial=-1)
            of_token += [int(owner)] * len(new)
        return ids, np.array(of_token, dtype=np.int64)


def _parts(rendered: Rendered) -> Integer[np.ndarray, " n"]:
    """Return the part of each character; the end of a turn is of the part before it."""
    parts = np.full(len(rendered.text), -1)
    for part, (start, stop) in _places(rendered):
        first, last = turn_end(rendered, stop)
        parts[start if start >= 0 else stop : stop] = part
        parts[first:last] = part
    return parts


def _places(rendered: Rendered) -> Iterable[tuple[int, tuple[int, int]]]:
    images = ((part, (at, at)) for at, part in rendered.images)
    return sorted([*rendered.parts.items(), *images])
