"""Document ⇄ ids: joins the text tokenizer and the image tokenizer in one vocabulary."""

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property

import PIL.Image
import torch

from pardalis.documents import Document, Image, Role, Segment, Text
from pardalis.errors import DataError
from pardalis.tokens import Grammar, SpanKind, TextTokenizer, Vocabulary, render
from pardalis.vq import Fit, ImageTokenizer, open_square

_ROLES: tuple[Role, Role] = ("user", "assistant")


class Codec:
    """Turns documents into ids and ids into documents.

    A document is ``bos``, its segments in order, ``eos``; an image is ``begin_image``, its codes
    row by row, ``end_image``; where the role of a conversation changes stands ``end_turn``.

    Args:
        image_fit: how images that a user or the system shows fit the square. All others are
            cropped, so that a model does not learn to draw borders.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        text_tokenizer: TextTokenizer,
        image_tokenizer: ImageTokenizer,
        image_fit: Fit = "crop",
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
        image_fit: Fit = "crop",
    ) -> "Codec":
        """Join two tokenizers in a new vocabulary."""
        vocabulary = Vocabulary.build(image_tokenizer.config.n_codes, text_tokenizer.size)
        return cls(vocabulary, text_tokenizer, image_tokenizer, image_fit)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all that ids depend on: while it stays, a document keeps its ids."""
        digest = hashlib.sha256(repr(sorted(self.vocabulary.to_dict().items())).encode())
        digest.update(self.text_tokenizer.to_json().encode())
        for name, tensor in sorted(self.image_tokenizer.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        if self.image_fit != "crop":
            digest.update(self.image_fit.encode())
        return digest.hexdigest()[:16]

    # ── document → ids ───────────────────────────────────────────────────────────────────────

    def encode(self, document: Document) -> list[int]:
        """Return the ids of a whole document; raises DataError for an unreadable image."""
        [ids] = self.encode_many([document])
        if isinstance(ids, DataError):
            raise ids
        return ids

    def encode_prompt(self, document: Document) -> list[int]:
        """Return the ids after which an answer is written: a document without its eos.

        After a conversation's last turn stands ``end_turn``, so that what follows is the answer.
        """
        ids = self.encode(document)[:-1]
        last_role = document.segments[-1].role if document.segments else None
        return [*ids, self.vocabulary.end_turn_id] if last_role else ids

    def encode_many(self, documents: Sequence[Document]) -> list[list[int] | DataError]:
        """Encode documents, all images in one batch; an error stands in its document's place."""
        opened = [self._open_images(document) for document in documents]
        images = [image for result in opened if isinstance(result, list) for image in result]
        codes = iter(self.image_tokenizer.codes_of(images).tolist() if images else [])
        return [
            self._ids(document.segments, codes) if isinstance(result, list) else result
            for document, result in zip(documents, opened, strict=True)
        ]

    def _open_images(self, document: Document) -> list[PIL.Image.Image] | DataError:
        """Open the images of a document, each reduced at once to the square that is encoded."""
        config = self.image_tokenizer.config
        try:
            return [
                PIL.Image.fromarray(
                    open_square(
                        image.source,
                        config.resolution,
                        config.preprocessing,
                        self.image_fit if image.role in ("user", "system") else "crop",
                    )
                )
                for image in document.images
            ]
        except DataError as error:
            return error

    def _ids(self, segments: Sequence[Segment], codes: Iterator[list[int]]) -> list[int]:
        ids = self.vocabulary
        out = [ids.bos_id]
        for previous, segment in zip((None, *segments), segments, strict=False):
            if previous is not None and previous.role != segment.role:
                out.append(ids.end_turn_id)
            if isinstance(segment, Image):
                image = [ids.image.start + code for code in next(codes)]
                out += [ids.begin_image_id, *image, ids.end_image_id]
            else:
                out += map(ids.text_id, self.text_tokenizer.encode(segment.text))
        return [*out, ids.eos_id]

    # ── ids → document ───────────────────────────────────────────────────────────────────────

    def decode(
        self,
        token_ids: Sequence[int],
        name: str = "",
        images: Sequence[PIL.Image.Image] | None = None,
    ) -> Document:
        """Return the document that ids stand for.

        Tolerates what a model leaves unfinished: a missing eos, and a last image cut short, whose
        missing codes repeat its first one (as Chameleon's release does). Turns become the roles
        user, assistant, user, ...

        Args:
            images: its images, where they are decoded already.

        Raises:
            GrammarError: an id stands where it may not.
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
        has_turns = any(kind is SpanKind.END_TURN for kind, _ in parts)
        segments: list[Segment] = []
        turn = 0
        for kind, ids in parts:
            role = _ROLES[turn % 2] if has_turns else None
            if kind is SpanKind.END_TURN:
                turn += 1
            elif kind is SpanKind.IMAGE:
                segments.append(Image(next(next_image), role=role))
            elif kind is SpanKind.TEXT:
                text = self.text_tokenizer.decode([self.vocabulary.piece(i) for i in ids])
                segments.append(Text(text, role=role))
        return Document(tuple(segments), name=name)

    def _grid(self, image_ids: list[int]) -> list[int]:
        """Return all codes of an image; missing ones repeat the first."""
        codes = self.grammar.codes(image_ids)
        return codes + [codes[0] if codes else 0] * (self.grammar.codes_per_image - len(codes))

    def render(self, token_ids: Sequence[int]) -> str:
        """Write ids as one line for a person; see :func:`pardalis.tokens.render`."""
        return render(token_ids, self.grammar, self.text_tokenizer)
