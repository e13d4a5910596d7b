"""Documents to token ids and back: both tokenizers joined in one vocabulary."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import groupby, pairwise

import numpy as np
import PIL.Image
import torch
from jaxtyping import Integer, UInt8

from pardalis.documents import Document, Image, Role, Segment, Text
from pardalis.errors import DataError
from pardalis.tokens import (
    ChatTemplate,
    ControlTokenizer,
    Encoded,
    Grammar,
    Ids,
    SpanKind,
    TextTokenizer,
    Turn,
    Vocabulary,
    control_tokens,
    render,
    template_variables,
)
from pardalis.vq import ImageFit, ImageTokenizer, open_square

Square = UInt8[np.ndarray, "Y X 3"]


class Codec:
    """Encodes documents as token ids and decodes them.

    A document is ``bos``, its segments in order, ``eos``. An image is ``begin_image``, its codes in
    raster order, ``end_image``.

    In a conversation, where every segment has a role, ``end_turn`` separates the turns. They belong
    to the user and the assistant alternately, beginning with the user. Two marks, each an *empty
    turn* (an ``end_turn`` with nothing before it in its turn), express all else:

    * An empty turn after a turn says that the turn is the system's. The next is the user's.
    * An empty turn at the beginning, or after the mark of a system turn, says that the next turn is
      the assistant's.

    Segments without content are left out of a conversation, and one turn of the user alone has no
    ``end_turn``, so that its role is not stored. Where some segments have a role and others none,
    ``end_turn`` stands wherever the role changes.

    The tokens of a segment have its weight. An ``end_turn`` has that of the segment before it, or
    of the first if it stands before all, as ``bos`` has; ``eos`` has that of the last.

    A model that came with a chat template has its conversations written by that instead, token for
    token as transformers does. Images stand where the template puts them. The control token that
    ends a turn has the weight of the turn's last segment, and all else that the template adds has
    the least weight of the conversation.

    Args:
        image_fit: how images in turns of the user or the system fit the square. All others are
            cropped, so that a model does not learn to generate borders.
        chat_template: Jinja source; None: conversations are written as above.
        adds_bos: whether documents begin with ``bos``. A template decides that itself.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        text_tokenizer: TextTokenizer,
        image_tokenizer: ImageTokenizer,
        image_fit: ImageFit = "crop",
        *,
        chat_template: str | None = None,
        adds_bos: bool = True,
    ) -> None:
        self.vocabulary = vocabulary
        self.text_tokenizer = text_tokenizer
        self.image_tokenizer = image_tokenizer
        self.image_fit = image_fit
        self.adds_bos = adds_bos
        self.chat_template = None
        self._control: dict[str, int] = {}
        if chat_template is not None:
            self._control = control_tokens(vocabulary, text_tokenizer)
            variables = template_variables(vocabulary, self._control)
            self.chat_template = ChatTemplate(chat_template, self._control, variables)
            self._tokenizer = ControlTokenizer(vocabulary, text_tokenizer, self._control)
        self.grammar = Grammar(
            vocabulary,
            image_tokenizer.config.codes_per_image,
            adds_bos=adds_bos,
            control=None if chat_template is None else self._control.values(),
        )

    @classmethod
    def of(
        cls,
        text_tokenizer: TextTokenizer,
        image_tokenizer: ImageTokenizer,
        image_fit: ImageFit = "crop",
    ) -> "Codec":
        """Join two tokenizers in a new vocabulary."""
        vocabulary = Vocabulary.build(image_tokenizer.config.n_codes, text_tokenizer.size)
        return cls(vocabulary, text_tokenizer, image_tokenizer, image_fit)

    def fitting(self, image_fit: ImageFit) -> "Codec":
        """Return the codec with another ``image_fit``."""
        return Codec(
            self.vocabulary,
            self.text_tokenizer,
            self.image_tokenizer,
            image_fit,
            chat_template=None if self.chat_template is None else self.chat_template.source,
            adds_bos=self.adds_bos,
        )

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the vocabulary and both tokenizers; shards and bundles store it."""
        digest = hashlib.sha256(self.vocabulary.to_hash().encode())
        digest.update(self.text_tokenizer.to_json().encode())
        for name, tensor in sorted(self.image_tokenizer.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        if self.image_fit != "crop":
            digest.update(self.image_fit.encode())
        if self.chat_template is not None:
            digest.update(self.chat_template.source.encode())
        if not self.adds_bos:
            digest.update(b"no bos")
        return digest.hexdigest()[:16]

    # ── encoding ───────────────────────────────────────────────────────────────────────

    def encode(self, document: Document) -> Encoded:
        """Return the ids and weights of a document; raises DataError for an unreadable image."""
        [encoded] = self.encode_many([document])
        if isinstance(encoded, DataError):
            raise encoded
        return encoded

    def encode_prompt(self, document: Document) -> list[int]:
        """Return the ids of a prompt: a document without its eos, and at least ``bos``.

        After the last turn of a conversation stands ``end_turn``, or what the chat template puts
        there, so that the assistant's follows. With a template, a last turn of the assistant's is
        left open: the completion continues it.

        Raises:
            DataError: an image is unreadable, or the template does not take the conversation.
        """
        if self._is_templated(document):
            return self._by_template(document, self._image_ids([document])[0], prompt=True)[0]
        ids: list[int] = self.encode(document).ids[:-1].tolist()
        last_role = document.segments[-1].role if document.segments else None
        return [*ids, self.vocabulary.end_turn_id] if last_role else ids or [self.vocabulary.bos_id]

    def encode_continuation(self, document: Document) -> list[int]:
        """Return the ids of segments as they stand inside a document; roles are left out."""
        plain = Document(tuple(replace(segment, role=None) for segment in document.segments))
        ids: list[int] = self.encode(plain).ids[len(self.grammar.opening) : -1].tolist()
        return ids

    def encode_many(self, documents: Sequence[Document]) -> list[Encoded | DataError]:
        """Encode documents, all images together; returns an error in its document's place."""
        return [
            self._encode(document, images) if isinstance(images, list) else images
            for document, images in zip(documents, self._image_ids(documents), strict=True)
        ]

    def _encode(self, document: Document, images: list[list[int]]) -> Encoded | DataError:
        try:
            if not self._is_templated(document):
                return self._encoded(document.segments, iter(images))
            ids, parts = self._by_template(document, images)
        except DataError as error:
            return error
        own = [segment.weight for segment in document.segments]
        weights = np.array([*own, min(own)], dtype=np.float32)  # part -1 is the template's
        return Encoded(np.array(ids, dtype=np.int64), weights[parts])

    def token_roles(self, document: Document) -> list[Role | None]:
        """Return whose turn each token of a conversation belongs to.

        It is that of the segment whose weight the token has, and None for what a template adds.

        Raises:
            DataError: as :meth:`encode`.
        """
        roles = [segment.role for segment in document.segments]
        numbered = tuple(replace(s, weight=float(n)) for n, s in enumerate(document.segments, 1))
        if self._is_templated(document):
            [images] = self._image_ids([document])
            if isinstance(images, DataError):
                raise images
            parts = self._by_template(replace(document, segments=numbered), images)[1]
            return [*map([*roles, None].__getitem__, parts.tolist())]
        weights = self.encode(replace(document, segments=numbered)).weights
        return [roles[round(weight) - 1] for weight in weights.tolist()]

    def _image_ids(self, documents: Sequence[Document]) -> list[list[list[int]] | DataError]:
        """Return the ids of each image of each document, or why one cannot be read."""
        opened = [self._open_images(document) for document in documents]
        squares = [square for result in opened if isinstance(result, list) for square in result]
        codes = iter(self.image_tokenizer.codes_of_squares(squares).tolist())
        ids = self.vocabulary
        return [
            [
                [
                    ids.begin_image_id,
                    *(ids.image.start + code for code in next(codes)),
                    ids.end_image_id,
                ]
                for _ in result
            ]
            if isinstance(result, list)
            else result
            for result in opened
        ]

    # ── conversations of a chat template ───────────────────────────────────────────────────────

    def _is_templated(self, document: Document) -> bool:
        segments = document.segments
        return self.chat_template is not None and bool(segments) and all(s.role for s in segments)

    def _by_template(
        self, document: Document, images: list[list[int]] | DataError, *, prompt: bool = False
    ) -> tuple[list[int], Integer[np.ndarray, " n"]]:
        """Return the ids of a conversation, and the segment of each; -1: the template's own."""
        if isinstance(images, DataError):
            raise images
        assert self.chat_template is not None
        turns = [
            Turn(str(role), [s.text if isinstance(s, Text) else None for s in group])
            for role, group in groupby(document.segments, key=lambda segment: segment.role)
        ]
        rendered = self.chat_template.render(turns, prompt=prompt)
        if len({segment.weight for segment in document.segments}) > 1 and not prompt:
            rendered = self.chat_template.located(turns, rendered)
        return self._tokenizer.encode(rendered, images)

    def _open_images(self, document: Document) -> list[Square] | DataError:
        """Open the images of a document, each reduced at once to the square that is encoded."""
        config = self.image_tokenizer.config
        try:
            return [
                open_square(
                    image.source,
                    config.resolution,
                    config.preprocessing,
                    self.image_fit if image.role in ("user", "system") else "crop",
                )
                for image in document.images
            ]
        except DataError as error:
            return error

    # ── documents without a template ───────────────────────────────────────────────────────────

    def _encoded(self, segments: Sequence[Segment], images: Iterator[list[int]]) -> Encoded:
        parts = [(segment, self._segment_ids(segment, images)) for segment in segments]
        if all(segment.role for segment in segments):
            parts = [(segment, ids) for segment, ids in parts if ids]
        end_turns, last = _end_turns([segment.role for segment, _ in parts])
        end_turn, weight = self.vocabulary.end_turn_id, parts[0][0].weight if parts else 1.0
        runs: list[tuple[list[int], float]] = [(self.grammar.opening, weight)]
        for n, (segment, ids) in zip(end_turns, parts, strict=True):
            runs += [([end_turn] * n, weight), (ids, segment.weight)]
            weight = segment.weight
        runs.append(([end_turn] * last + [self.vocabulary.eos_id], weight))
        return Encoded(
            np.array([i for ids, _ in runs for i in ids], dtype=np.int64),
            np.repeat(
                np.array([weight for _, weight in runs], dtype=np.float32),
                [len(ids) for ids, _ in runs],
            ),
        )

    def _segment_ids(self, segment: Segment, images: Iterator[list[int]]) -> list[int]:
        if isinstance(segment, Image):
            return next(images)
        return list(map(self.vocabulary.text_id, self.text_tokenizer.encode(segment.text)))

    # ── decoding ───────────────────────────────────────────────────────────────────────

    def decode(
        self,
        token_ids: Ids,
        name: str = "",
        images: Sequence[PIL.Image.Image] | None = None,
    ) -> Document:
        """Return the document of token ids.

        Tolerates what a model leaves unfinished: a missing eos, and a last image cut short, whose
        missing codes repeat its first one (as Chameleon's release does). Segments have a role where
        there is an ``end_turn``, but none if conversations are written by a chat template. Special
        ids that a vocabulary adds, and a template's control tokens, are left out.

        Args:
            images: its images, if they are decoded already.

        Raises:
            GrammarError: a token id stands where the grammar does not allow it.
        """
        self.grammar.state_after(token_ids)
        parts = [
            (span.kind, [int(i) for i in token_ids[span.start : span.stop]])
            for span in self.grammar.spans(token_ids)
        ]
        if images is None:
            grids = [self._grid(ids) for kind, ids in parts if kind is SpanKind.IMAGE]
            images = self.image_tokenizer.images_of(torch.tensor(grids)) if grids else []
        next_image = iter(images)
        turns: list[list[Segment]] = [[]]
        for kind, ids in parts:
            if kind is SpanKind.END_TURN and self.chat_template is None:
                turns.append([])
            elif kind is SpanKind.IMAGE:
                turns[-1].append(Image(next(next_image)))
            elif kind is SpanKind.TEXT:
                text = self.text_tokenizer.decode([self.vocabulary.text_token(i) for i in ids])
                turns[-1].append(Text(text))
        segments = turns[0] if len(turns) == 1 else _with_roles(turns)
        return Document(tuple(segments), name=name)

    def _grid(self, image_ids: list[int]) -> list[int]:
        """Return all codes of an image; missing ones repeat the first."""
        codes = self.grammar.codes(image_ids)
        return codes + [codes[0] if codes else 0] * (self.grammar.codes_per_image - len(codes))

    def render(self, token_ids: Ids) -> str:
        """Return token ids as a readable line; see :func:`pardalis.tokens.render`."""
        names = {token_id: name for name, token_id in self._control.items()}
        return render(token_ids, self.grammar, self.text_tokenizer, names)

    def render_weighted(self, document: Encoded) -> str:
        """Return a document as :meth:`render` does, with a line for each run of equal weight.

        A line begins with ``[weight 0]``. If all weights are 1, there is one line without it.
        """
        if not document.is_weighted:
            return self.render(document.ids)
        runs = self.render_runs(document)
        return "\n".join(f"[weight {weight:g}] {text}" for weight, text in runs)

    def render_runs(self, document: Encoded) -> list[tuple[float, str]]:
        """Return each run of tokens of equal weight: the weight, and the tokens rendered."""
        cuts = np.flatnonzero(np.diff(document.weights)) + 1
        parts = [document[a:b] for a, b in pairwise([0, *cuts.tolist(), len(document)])]
        return [(float(part.weights[0]), self.render(part.ids)) for part in parts]


def _end_turns(roles: Sequence[Role | None]) -> tuple[list[int], int]:
    """Return how many ``end_turn`` precede each segment of these roles, and follow the last."""
    is_conversation = all(roles)
    counts = []
    previous: Role | None = None
    for number, role in enumerate(roles):
        count = 0
        if number and role != previous:
            count += 1  # ends the turn before
            count += is_conversation and previous == "system"  # marks it
        if is_conversation and role == "assistant" and previous in (None, "system"):
            count += 1  # the user's turn is expected
        counts.append(count)
        previous = role
    return counts, 2 if is_conversation and previous == "system" else 0


def _with_roles(turns: Sequence[Sequence[Segment]]) -> list[Segment]:
    """Return the segments of a conversation with their roles.

    Args:
        turns: all but the last are ended by an ``end_turn``.
    """
    marked: list[tuple[Role, Sequence[Segment]]] = []
    expected: Role = "user"
    for number, turn in enumerate(turns):
        if turn:
            marked.append((expected, turn))
            expected = "assistant" if expected == "user" else "user"
        elif number and turns[number - 1] and number < len(turns) - 1:
            marked[-1] = ("system", turns[number - 1])
            expected = "user"
        else:
            expected = "assistant"
    return [replace(segment, role=role) for role, turn in marked for segment in turn]
