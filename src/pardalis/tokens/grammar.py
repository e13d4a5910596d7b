"""The grammar: which token may follow which in a sequence of text and image tokens.

           text, end_turn, added                code (exactly n of them)
               ┌───────┐                           ┌───────┐
    bos        │       ▼     begin_image           │       ▼      end_image
    ────►  ┌──────────────┐ ─────────────► ┌──────────────────┐ ───────────┐
    START  │     TEXT     │                │      IMAGE       │            │
           └──────────────┘ ◄──────────────└──────────────────┘◄───────────┘
                  │ eos
                  ▼
                DONE

This module is the only implementation of the automaton. Data validation walks it
(:meth:`Grammar.validate`), decoding gets from it what may come next (:meth:`Grammar.rule`), and a
decoder on a device reads what each rule allows as a range (:meth:`Grammar.ranges`) of the ids in
the order of :meth:`Grammar.writable_ids`. Whatever needs the text or the images of a sequence
takes them from :meth:`Grammar.spans`. No other module knows how an image is laid out in token
ids or how many codes it has.

A special id that a vocabulary adds to those above stands where text may stand. It is generated only
if it is among :attr:`Vocabulary.writable`: ``end_mask`` only while a gap is filled, which it ends,
and masks never. The ids of a modality beyond text and images stand
nowhere yet.

A prompt may be a rotated document (:mod:`pardalis.tokens.infilling`) that ends with a mask for the
second time. What follows it is read and generated as it would be in the mask's place: text, whole
images, or the codes that an image lacks there.

Imported models differ in two things. Documents of some begin without bos. And in conversations that
a chat template writes, control tokens, bos and eos among them, stand where text may stand, at the
beginning too; such a conversation may end after any token outside an image. They are only read: in
what is generated, eos is the end.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from enum import Enum, IntEnum

import numpy as np
from jaxtyping import Bool

from pardalis.errors import GrammarError, RequestError
from pardalis.tokens.encoded import Ids
from pardalis.tokens.infilling import Rotated, open_gap
from pardalis.tokens.vocabulary import Vocabulary


class Phase(IntEnum):
    """The phase of the automaton."""

    START = 0  # at the beginning
    TEXT = 1  # between images
    IMAGE = 2  # inside an image
    DONE = 3  # after eos


class Rule(IntEnum):
    """Which ids may come next: one of :meth:`Grammar.ranges`."""

    BOS = 0  # only bos
    TEXT = 1  # text or a writable special id or end_turn or eos
    TEXT_OR_IMAGE = 2  # the same or begin_image
    GAP = 3  # text of a gap: as TEXT, or end_mask
    GAP_OR_IMAGE = 4  # the same or begin_image
    BEGIN_IMAGE = 5  # only begin_image
    CODE = 6  # an image id
    END_IMAGE = 7  # only end_image
    EOS = 8  # only eos
    NOTHING = 9  # the sequence is over


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The limits of one request."""

    max_new_tokens: int  # token budget, including eos
    text: bool = True  # whether text may be generated
    max_images: int | None = None  # images that may be begun; None: as many as fit
    one_turn: bool = False  # end_turn ends the completion, as in a conversation
    one_gap: bool = False  # end_mask ends the completion, which is the content of a mask


@dataclass(frozen=True, slots=True)
class State:
    """A position in the automaton: everything that decides which ids may come next."""

    phase: Phase = Phase.START
    codes_left: int = 0  # codes missing from the open image
    images: int = 0  # images begun after the prompt
    turns: int = 0  # turns and gaps ended after the prompt
    budget: int | None = None  # tokens that may still be generated; None: only reading


class SpanKind(Enum):
    """What a span of token ids holds."""

    BOS = "bos"
    EOS = "eos"
    END_TURN = "end_turn"
    TEXT = "text"  # text ids, as many as follow each other
    IMAGE = "image"  # begin_image, the codes that follow it and end_image
    SPECIAL = "special"  # a special id that the vocabulary adds
    CODES = "codes"  # image ids outside an image: malformed, or the rest of an image begun before
    OTHER = "other"  # an id that no document has at this place


@dataclass(frozen=True, slots=True)
class Span:
    """Token ids ``start`` to ``stop`` of a sequence, which belong together."""

    kind: SpanKind
    start: int
    stop: int
    complete: bool = True  # False: an image without all its codes and its end_image


class Grammar:
    """The automaton for one vocabulary and one image size.

    Args:
        vocabulary: the id ranges.
        codes_per_image: n, the codes between begin_image and end_image (1,024 in Chameleon).
        adds_bos: whether documents begin with bos.
        control: the ids that a chat template may write; None: there is no template.

    Attributes:
        opening: the ids with which every document begins: bos, or none.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        codes_per_image: int,
        *,
        adds_bos: bool = True,
        control: Collection[int] | None = None,
    ) -> None:
        self.vocabulary = vocabulary
        self.codes_per_image = codes_per_image
        self.opening = [vocabulary.bos_id] if adds_bos else []
        self._has_template = control is not None
        self._readable = {*vocabulary.extra_special.values()}  # where text may stand
        if control is not None:
            images = {vocabulary.begin_image_id, vocabulary.end_image_id}
            self._readable |= {*control, vocabulary.bos_id, vocabulary.eos_id} - images
        writable = [vocabulary.special[name] for name in vocabulary.writable]
        self._gap_ends = [i for i in writable if i == vocabulary.end_mask_id]
        self._writable = [i for i in writable if i not in [*vocabulary.masks, *self._gap_ends]]
        self._kinds: dict[int | None, SpanKind] = {  # kind of the span that an id begins
            **dict.fromkeys(self._readable, SpanKind.SPECIAL),
            **dict.fromkeys(vocabulary.text, SpanKind.TEXT),
            **dict.fromkeys(vocabulary.image, SpanKind.CODES),
            vocabulary.readable_unk_id: SpanKind.TEXT,
            vocabulary.bos_id: SpanKind.BOS,
            vocabulary.eos_id: SpanKind.EOS,
            vocabulary.end_turn_id: SpanKind.END_TURN,
            vocabulary.begin_image_id: SpanKind.IMAGE,
        }

    @property
    def tokens_per_image(self) -> int:
        """Tokens of a whole image: begin_image, its codes, end_image."""
        return self.codes_per_image + 2

    # ── reading ──────────────────────────────────────────────────────────────────────────────

    def advance(self, state: State, token_id: int, position: int = 0) -> State:
        """Return the state after one more id; raises GrammarError if it is not allowed here."""
        ids = self.vocabulary
        budget = None if state.budget is None else state.budget - 1
        match state.phase:
            case Phase.START if token_id == ids.bos_id:
                return replace(state, phase=Phase.TEXT, budget=budget)
            case Phase.START if self._has_template or not self.opening:
                return self.advance(replace(state, phase=Phase.TEXT), token_id, position)
            case Phase.TEXT if token_id in ids.text:
                return replace(state, budget=budget)
            case Phase.TEXT if token_id == ids.end_mask_id:
                return replace(state, turns=state.turns + 1, budget=budget)
            case Phase.TEXT if token_id in self._writable:
                return replace(state, budget=budget)
            case Phase.TEXT if state.budget is None and (
                token_id == ids.readable_unk_id or token_id in self._readable
            ):
                return state  # never generated
            case Phase.TEXT if token_id == ids.end_turn_id:
                return replace(state, turns=state.turns + 1, budget=budget)
            case Phase.TEXT if token_id == ids.begin_image_id:
                return replace(
                    state,
                    phase=Phase.IMAGE,
                    codes_left=self.codes_per_image,
                    images=state.images + 1,
                    budget=budget,
                )
            case Phase.TEXT if token_id == ids.eos_id:
                return replace(state, phase=Phase.DONE, budget=budget)
            case Phase.IMAGE if state.codes_left > 0 and token_id in ids.image:
                return replace(state, codes_left=state.codes_left - 1, budget=budget)
            case Phase.IMAGE if state.codes_left == 0 and token_id == ids.end_image_id:
                return replace(state, phase=Phase.TEXT, budget=budget)
        raise GrammarError(
            f"Found {ids.name_of(token_id)} at position {position}; {self._expected(state)}.",
            position,
        )

    def state_after(
        self, token_ids: Ids, state: State | None = None, first_position: int = 0
    ) -> State:
        """Walk a prompt or a part of a sequence; raises GrammarError at its first wrong id."""
        state = state or State()
        for position, token_id in enumerate(token_ids, first_position):
            state = self.advance(state, int(token_id), position)
        return state

    def state_at(self, token_ids: Ids) -> State:
        """Return the state in which the completion of a prompt begins.

        That of a prompt which ends with a mask for the second time is the state in the mask's
        place.

        Raises:
            GrammarError: the prompt is malformed, or another mask stands in the same image.
        """
        number = open_gap(token_ids, self.vocabulary)
        if number is None:
            return self.state_after(token_ids)
        rotated = Rotated.of(token_ids, self.vocabulary)
        state = self.state_after(rotated.filled(before=number))
        if state.phase is Phase.IMAGE:
            before, after = self._codes_around(rotated, number)
            state = replace(state, codes_left=self.codes_per_image - len(before) - len(after))
            if state.codes_left < 1:
                raise GrammarError(
                    f"The image around {self.vocabulary.name_of(int(token_ids[-1]))} has "
                    f"{len(before) + len(after)} codes of {self.codes_per_image}, so none is "
                    "missing; leave the mask out.",
                    rotated.places[number],
                )
        return state

    def masked_image(self, token_ids: Ids) -> tuple[list[int], list[int]] | None:
        """Return the codes before and behind the gap that a prompt leaves in an image.

        None: the prompt does not end with a mask for the second time, or that stands in text.
        """
        number = open_gap(token_ids, self.vocabulary)
        if number is None:
            return None
        rotated = Rotated.of(token_ids, self.vocabulary)
        if self.state_after(rotated.filled(before=number)).phase is not Phase.IMAGE:
            return None
        return self._codes_around(rotated, number)

    def _codes_around(self, rotated: Rotated, number: int) -> tuple[list[int], list[int]]:
        image, place = self.vocabulary.image, rotated.places[number]
        first = stop = place
        while first and rotated.body[first - 1] in image:
            first -= 1
        while stop + 1 < len(rotated.body) and rotated.body[stop + 1] in image:
            stop += 1
        around = [
            rotated.body[i] if 0 <= i < len(rotated.body) else -1 for i in (first - 1, stop + 1)
        ]
        if around != [self.vocabulary.begin_image_id, self.vocabulary.end_image_id]:
            raise GrammarError(
                f"The image around {self.vocabulary.name_of(rotated.body[place])} does not end "
                "with <end_image>, or has another mask; an image has one mask.",
                place,
            )
        return self.codes(rotated.body[first:place]), self.codes(rotated.body[place : stop + 1])

    def validate(self, token_ids: Ids) -> None:
        """Check a whole document; raises GrammarError with the position and the reason."""
        state = self.state_after(token_ids)
        may_end = self._has_template and state.phase is Phase.TEXT
        if state.phase is not Phase.DONE and not may_end:
            raise GrammarError(
                f"The sequence ends at position {len(token_ids)}; {self._expected(state)}.",
                len(token_ids),
            )

    def _expected(self, state: State) -> str:
        match state.phase:
            case Phase.START:
                return "expected <bos>, with which every document begins"
            case Phase.TEXT:
                return "expected text, <end_turn>, <begin_image> or <eos> outside an image"
            case Phase.IMAGE if state.codes_left > 0:
                found = self.codes_per_image - state.codes_left
                return (
                    f"expected an image id, since the open image has {found} of its "
                    f"{self.codes_per_image} codes"
                )
            case Phase.IMAGE:
                return (
                    f"expected <end_image>, since the open image has all of its "
                    f"{self.codes_per_image} codes"
                )
            case Phase.DONE:
                return "expected nothing after <eos>"

    # ── parsing ──────────────────────────────────────────────────────────────────────────────

    def spans(self, token_ids: Ids) -> list[Span]:
        """Cut a sequence, or a part of one, into spans that join to the whole.

        Any ids are accepted. They are the beginning of a document if and only if ``BOS`` stands
        first and only there, ``EOS`` last at most, an incomplete image last at most, and no span
        is ``CODES`` or ``OTHER``. With a chat template, ``BOS`` and ``EOS`` stand anywhere.
        """
        kinds = [self._kinds.get(int(token_id), SpanKind.OTHER) for token_id in token_ids]
        spans: list[Span] = []
        while (start := spans[-1].stop if spans else 0) < len(kinds):
            kind, stop, complete = kinds[start], start + 1, True
            if kind is SpanKind.IMAGE:
                end = start + 1 + self.codes_per_image
                while stop < min(end, len(kinds)) and kinds[stop] is SpanKind.CODES:
                    stop += 1
                last = token_ids[end] if stop == end < len(kinds) else None
                complete = bool(last == self.vocabulary.end_image_id)
                stop += complete
            elif kind in (SpanKind.TEXT, SpanKind.CODES):
                while stop < len(kinds) and kinds[stop] is kind:
                    stop += 1
            spans.append(Span(kind, start, stop, complete))
        return spans

    def codes(self, image_ids: Ids) -> list[int]:
        """Return the codebook entries of an ``IMAGE`` or ``CODES`` span's token ids."""
        image = self.vocabulary.image
        return [i - image.start for i in map(int, image_ids) if i in image]

    def unconditional(self, token_ids: Sequence[int], *, masked: bool = False) -> list[int]:
        """Return the context of the unconditional branch of guidance: bos and the open image.

        Of an image with a mask that is being filled, it is all of the image and the filled codes.

        Args:
            token_ids: a sequence that ends inside an image, or with codes that fill one.
            masked: a mask stands before an open image, in the place of all text (CM3Leon).
        """
        ids, start = list(token_ids), self.spans(token_ids)[-1].start
        if ids[start] == self.vocabulary.begin_image_id:
            return [*self.opening, *(self.vocabulary.masks[:1] if masked else []), *ids[start:]]
        start -= ids[start] in self.vocabulary.image  # where the mask occurs again
        place = ids.index(ids[start])
        first = place - ids[place::-1].index(self.vocabulary.begin_image_id)
        stop = ids.index(self.vocabulary.end_image_id, place) + 1
        return [*self.opening, *ids[first:stop], *ids[start:]]

    def images_only(self, token_ids: Sequence[int]) -> list[int]:
        """Return the context of the image-conditional branch: bos and all images, no text."""
        images = [span for span in self.spans(token_ids) if span.kind is SpanKind.IMAGE]
        return [*self.opening, *(i for s in images for i in token_ids[s.start : s.stop])]

    def opening_length(self, token_ids: Ids) -> int:
        """Return how many of the first ids are the opening: all of it, or none."""
        n = len(self.opening)
        return n if [int(i) for i in token_ids[:n]] == self.opening else 0

    # ── writing ──────────────────────────────────────────────────────────────────────────────

    def begin(self, prompt_ids: Sequence[int], limits: Limits) -> State:
        """Return the state in which the completion of a prompt begins.

        Raises:
            GrammarError: the prompt is malformed.
            RequestError: the limits contradict each other or the token budget is too small.
        """
        state = self.state_at(prompt_ids)
        if state.phase is Phase.DONE:
            raise RequestError(
                "The prompt ends with <eos>, so nothing can follow it; leave it out."
            )
        if not limits.text and limits.max_images is None:
            raise RequestError("A request without text needs max_images: how many to generate.")
        demanded = state.codes_left + 1 if state.phase is Phase.IMAGE else 0
        if not limits.text:
            demanded += self.tokens_per_image * (limits.max_images or 0)
        if limits.max_new_tokens < max(demanded, 1):
            raise RequestError(
                f"After the prompt of {len(prompt_ids)} tokens the token budget is "
                f"{limits.max_new_tokens}, but {max(demanded, 1)} are needed (an image takes "
                f"{self.tokens_per_image}); shorten the prompt, ask for fewer images or raise "
                "max_new_tokens."
            )
        return State(state.phase, state.codes_left, budget=limits.max_new_tokens)

    def rule(self, state: State, limits: Limits) -> Rule:
        """Return which ids may come next under limits.

        Args:
            state: of :meth:`begin`, advanced by what has been generated.

        Whatever a model prefers, the sequence stays well-formed and every image is completed. Where
        text is allowed, the last token of the budget is eos.
        """
        budget = limits.max_new_tokens if state.budget is None else state.budget
        match state.phase:
            case Phase.START:
                return Rule.BOS
            case Phase.DONE:
                return Rule.NOTHING
            case Phase.IMAGE:
                return Rule.CODE if state.codes_left > 0 else Rule.END_IMAGE
        if budget <= 0 or ((limits.one_turn or limits.one_gap) and state.turns > 0):
            return Rule.NOTHING
        may_open = limits.max_images is None or state.images < limits.max_images
        if not limits.text:
            return Rule.BEGIN_IMAGE if may_open else Rule.NOTHING
        if budget == 1:
            return Rule.EOS
        # After the image one id must be left for eos.
        if may_open and budget >= self.tokens_per_image + 1:
            return Rule.GAP_OR_IMAGE if limits.one_gap else Rule.TEXT_OR_IMAGE
        return Rule.GAP if limits.one_gap else Rule.TEXT

    def writable_ids(self) -> list[int]:
        """Return every id that may be generated, ordered so that each rule allows a range.

        Image ids come first, so a sequence inside an image needs only the first
        ``vocabulary.n_codes`` of them.
        """
        ids = self.vocabulary
        singles = [ids.eos_id, ids.end_turn_id, ids.begin_image_id, ids.end_image_id, ids.bos_id]
        return [*ids.image, *self._gap_ends, *ids.text, *self._writable, *singles]

    def ranges(self) -> list[range]:
        """Return for each rule the indices of :meth:`writable_ids` that it allows."""
        codes = len(self.vocabulary.image)
        text = codes + len(self._gap_ends)
        eos = text + len(self.vocabulary.text) + len(self._writable)
        end_turn, begin_image, end_image, bos = range(eos + 1, eos + 5)
        allowed = {
            Rule.BOS: range(bos, bos + 1),
            Rule.TEXT: range(text, end_turn + 1),
            Rule.TEXT_OR_IMAGE: range(text, begin_image + 1),
            Rule.GAP: range(codes, end_turn + 1),
            Rule.GAP_OR_IMAGE: range(codes, begin_image + 1),
            Rule.BEGIN_IMAGE: range(begin_image, begin_image + 1),
            Rule.CODE: range(codes),
            Rule.END_IMAGE: range(end_image, end_image + 1),
            Rule.EOS: range(eos, eos + 1),
            Rule.NOTHING: range(0),
        }
        return [allowed[rule] for rule in Rule]

    def allowed_ids(self) -> Bool[np.ndarray, "rules V"]:
        """Return the ranges as a table: ``table[r]`` is True at the ids that ``Rule(r)`` allows."""
        table = np.zeros((len(Rule), self.vocabulary.size), dtype=bool)
        written = np.array(self.writable_ids())
        for rule, allowed in enumerate(self.ranges()):
            table[rule, written[allowed.start : allowed.stop]] = True
        return table
