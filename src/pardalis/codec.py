"""Documents to token ids and back: both tokenizers joined in one vocabulary."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise

import numpy as np
import PIL.Image
import torch
from jaxtyping import UInt8

from pardalis.documents import Document, Image, Role, Segment, Text
from pardalis.errors import DataError
from pardalis.tokens import Encoded, Grammar, Ids, SpanKind, TextTokenizer, Vocabulary, render
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

    Args:
        image_fit: how images in turns of the user or the system fit the square. All others are
            cropped, so that a model does not learn to generate borders.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        text_tokenizer: TextTokenizer,
        image_tokenizer: ImageTokenizer,
        image_fit: ImageFit = "crop",
    ) -> None:
        self.vocabulary = vocabulary
        self.text_tokenizer = text_tokenizer
        self.image_tokenizer = image_tokenizer
        self.image_fit = image_fit
        self.grammar = Grammar(vocabulary, image_tokenizer.config.codes_per_image)

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
        return digest.hexdigest()[:16]

    # ── encoding ───────────────────────────────────────────────────────────────────────

    def encode(self, document: Document) -> Encoded:
        """Return the ids and weights of a document; raises DataError for an unreadable image."""
        [encoded] = self.encode_many([document])
        if isinstance(encoded, DataError):
            raise encoded
        return encoded

    def encode_prompt(self, document: Document) -> list[int]:
        """Return the ids of a prompt: a document without its eos.

        After the last turn of a conversation stands ``end_turn``, so that the assistant's follows.
        """
        ids: list[int] = self.encode(document).ids[:-1].tolist()
        last_role = document.segments[-1].role if document.segments else None
        return [*ids, self.vocabulary.end_turn_id] if last_role else ids

    def encode_many(self, documents: Sequence[Document]) -> list[Encoded | DataError]:
        """Encode documents, all images together; returns an error in its document's place."""
        opened = [self._open_images(document) for document in documents]
        squares = [square for result in opened if isinstance(result, list) for square in result]
        codes = iter(self.image_tokenizer.codes_of_squares(squares).tolist())
        return [
            self._encoded(document.segments, codes) if isinstance(result, list) else result
            for document, result in zip(documents, opened, strict=True)
        ]

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

    def _encoded(self, segments: Sequence[Segment], codes: Iterator[list[int]]) -> Encoded:
        parts = [(segment, self._segment_ids(segment, codes)) for segment in segments]
        if all(segment.role for segment in segments):
            parts = [(segment, ids) for segment, ids in parts if ids]
        end_turns, last = _end_turns([segment.role for segment, _ in parts])
        end_turn, weight = self.vocabulary.end_turn_id, parts[0][0].weight if parts else 1.0
        runs: list[tuple[list[int], float]] = [([self.vocabulary.bos_id], weight)]
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

    def _segment_ids(self, segment: Segment, codes: Iterator[list[int]]) -> list[int]:
        ids = self.vocabulary
        if isinstance(segment, Image):
            image = [ids.image.start + code for code in next(codes)]
            return [ids.begin_image_id, *image, ids.end_image_id]
        return list(map(ids.text_id, self.text_tokenizer.encode(segment.text)))

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
        there is an ``end_turn``. Special ids that a vocabulary adds are left out.

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
            if kind is SpanKind.END_TURN:
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
        return render(token_ids, self.grammar, self.text_tokenizer)

    def render_weighted(self, document: Encoded) -> str:
        """Return a document as :meth:`render` does, with a line for each run of equal weight.

        A line begins with ``[weight 0]``. If all weights are 1, there is one line without it.
        """
        if not document.is_weighted:
            return self.render(document.ids)
        cuts = np.flatnonzero(np.diff(document.weights)) + 1
        parts = [document[a:b] for a, b in pairwise([0, *cuts.tolist(), len(document)])]
        return "\n".join(f"[weight {part.weights[0]:g}] {self.render(part.ids)}" for part in parts)


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
