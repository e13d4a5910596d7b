"""The grammar: what may follow what in a sequence of text and picture ids.

              text, end_turn                    code (exactly n of them)
               ┌───────┐                           ┌───────┐
    bos        │       ▼     begin_image           │       ▼      end_image
    ────►  ┌──────────────┐ ─────────────► ┌──────────────────┐ ───────────┐
    START  │     TEXT     │                │      IMAGE       │            │
           └──────────────┘ ◄──────────────└──────────────────┘◄───────────┘
                  │ eos
                  ▼
                DONE

This automaton is written here and nowhere else. Data validation walks it
(:meth:`Grammar.validate`), decoding asks it what may come next (:meth:`Grammar.rule`), and a
decoder on a device reads what each rule allows as a range (:meth:`Grammar.ranges`) of the ids in
the order of :meth:`Grammar.written_ids`. It is the only place that knows how many codes a picture
has, and so whether a picture still fits.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
from jaxtyping import Bool

from pardalis.errors import GrammarError, RequestError
from pardalis.tokens.vocabulary import Vocabulary


class Mode(IntEnum):
    """Where in a sequence the automaton stands."""

    START = 0  # nothing read yet
    TEXT = 1  # between pictures
    IMAGE = 2  # inside a picture
    DONE = 3  # after eos


class Rule(IntEnum):
    """Which ids may come next: one of :meth:`Grammar.ranges`."""

    BOS = 0  # only bos
    TEXT = 1  # text or end_turn or eos
    TEXT_OR_PICTURE = 2  # text or end_turn or eos or begin_image
    OPEN_PICTURE = 3  # only begin_image
    CODE = 4  # an image id
    CLOSE_PICTURE = 5  # only end_image
    EOS = 6  # only eos
    NOTHING = 7  # the sequence is over


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one request allows."""

    room: int  # ids that may be written, eos included
    text: bool = True  # may text be written?
    max_pictures: int | None = None  # pictures that may be opened; None: as many as fit
    one_turn: bool = False  # end_turn ends the answer, as in a conversation


@dataclass(frozen=True, slots=True)
class State:
    """A position in the automaton: everything that decides which ids may come next."""

    mode: Mode = Mode.START
    codes_left: int = 0  # codes missing from the open picture
    pictures: int = 0  # pictures opened since writing began
    turns: int = 0  # turns closed since writing began
    room: int | None = None  # ids that may still be written; None: only reading


class Grammar:
    """The automaton for one vocabulary and one picture size.

    Args:
        vocabulary: the id ranges.
        codes_per_picture: n, the codes between begin_image and end_image (1,024 in Chameleon).
    """

    def __init__(self, vocabulary: Vocabulary, codes_per_picture: int) -> None:
        self.vocabulary = vocabulary
        self.codes_per_picture = codes_per_picture

    @property
    def picture_ids(self) -> int:
        """Ids of a whole picture: begin_image, its codes, end_image."""
        return self.codes_per_picture + 2

    # ── reading ──────────────────────────────────────────────────────────────────────────────

    def advance(self, state: State, token_id: int, position: int = 0) -> State:
        """Return the state after one more id; raises GrammarError if the id may not stand here."""
        ids = self.vocabulary
        room = None if state.room is None else state.room - 1
        match state.mode:
            case Mode.START if token_id == ids.bos_id:
                return replace(state, mode=Mode.TEXT, room=room)
            case Mode.TEXT if token_id in ids.text:
                return replace(state, room=room)
            case Mode.TEXT if state.room is None and token_id == ids.readable_unk_id:
                return state  # never written
            case Mode.TEXT if token_id == ids.end_turn_id:
                return replace(state, turns=state.turns + 1, room=room)
            case Mode.TEXT if token_id == ids.begin_image_id:
                return replace(
                    state,
                    mode=Mode.IMAGE,
                    codes_left=self.codes_per_picture,
                    pictures=state.pictures + 1,
                    room=room,
                )
            case Mode.TEXT if token_id == ids.eos_id:
                return replace(state, mode=Mode.DONE, room=room)
            case Mode.IMAGE if state.codes_left > 0 and token_id in ids.image:
                return replace(state, codes_left=state.codes_left - 1, room=room)
            case Mode.IMAGE if state.codes_left == 0 and token_id == ids.end_image_id:
                return replace(state, mode=Mode.TEXT, room=room)
        raise GrammarError(
            f"Found {ids.name_of(token_id)} at position {position}; {self._expected(state)}.",
            position,
        )

    def state_after(self, token_ids: Sequence[int], state: State | None = None) -> State:
        """Walk a prompt or a part of a sequence; raises GrammarError at its first wrong id."""
        state = state or State()
        for position, token_id in enumerate(token_ids):
            state = self.advance(state, int(token_id), position)
        return state

    def validate(self, token_ids: Sequence[int]) -> None:
        """Check a whole document; raises GrammarError saying where it is wrong and why."""
        state = self.state_after(token_ids)
        if state.mode is not Mode.DONE:
            raise GrammarError(
                f"The sequence ends at position {len(token_ids)}; {self._expected(state)}.",
                len(token_ids),
            )

    def _expected(self, state: State) -> str:
        match state.mode:
            case Mode.START:
                return "expected <bos>, with which every document begins"
            case Mode.TEXT:
                return "expected text, <end_turn>, <begin_image> or <eos> outside a picture"
            case Mode.IMAGE if state.codes_left > 0:
                found = self.codes_per_picture - state.codes_left
                return (
                    f"expected an image id, since the open picture has {found} of its "
                    f"{self.codes_per_picture} codes"
                )
            case Mode.IMAGE:
                return (
                    f"expected <end_image>, since the open picture has all of its "
                    f"{self.codes_per_picture} codes"
                )
            case Mode.DONE:
                return "expected nothing after <eos>"

    # ── writing ──────────────────────────────────────────────────────────────────────────────

    def begin(self, prompt_ids: Sequence[int], limits: Limits) -> State:
        """Return the state from which an answer to a prompt is written.

        Raises:
            GrammarError: the prompt itself is malformed.
            RequestError: the limits leave no room for what they demand.
        """
        state = self.state_after(prompt_ids)
        if state.mode is Mode.DONE:
            raise RequestError(
                "The prompt ends with <eos>, so nothing can follow it; leave it out."
            )
        if not limits.text and limits.max_pictures is None:
            raise RequestError("A request without text needs max_pictures: how many to draw.")
        demanded = state.codes_left + 1 if state.mode is Mode.IMAGE else 0
        if not limits.text:
            demanded += self.picture_ids * (limits.max_pictures or 0)
        if limits.room < max(demanded, 1):
            raise RequestError(
                f"After the prompt of {len(prompt_ids)} ids there is room for {limits.room} more, "
                f"but {max(demanded, 1)} are needed (a picture takes {self.picture_ids}); shorten "
                "the prompt, ask for fewer pictures or raise the limit."
            )
        return State(state.mode, state.codes_left, room=limits.room)

    def rule(self, state: State, limits: Limits) -> Rule:
        """Say which ids may come next when writing under limits.

        Args:
            state: of :meth:`begin`, advanced by what has been written.

        Whatever a model prefers, the sequence stays well-formed, every picture is completed, and
        where text is written the last id that fits is eos.
        """
        room = limits.room if state.room is None else state.room
        match state.mode:
            case Mode.START:
                return Rule.BOS
            case Mode.DONE:
                return Rule.NOTHING
            case Mode.IMAGE:
                return Rule.CODE if state.codes_left > 0 else Rule.CLOSE_PICTURE
        if room <= 0 or (limits.one_turn and state.turns > 0):
            return Rule.NOTHING
        may_open = limits.max_pictures is None or state.pictures < limits.max_pictures
        if not limits.text:
            return Rule.OPEN_PICTURE if may_open else Rule.NOTHING
        if room == 1:
            return Rule.EOS
        # After the picture one id must be left for eos.
        if may_open and room >= self.picture_ids + 1:
            return Rule.TEXT_OR_PICTURE
        return Rule.TEXT

    def written_ids(self) -> list[int]:
        """Return every id that may ever be written, ordered so that each rule allows a range.

        Image ids come first, so a row that is inside a picture needs only the first
        ``vocabulary.n_codes`` of them.
        """
        ids = self.vocabulary
        singles = [ids.eos_id, ids.end_turn_id, ids.begin_image_id, ids.end_image_id, ids.bos_id]
        return [*ids.image, *ids.text, *singles]

    def ranges(self) -> list[range]:
        """Return for each rule which of :meth:`written_ids` it allows, by their index."""
        codes = len(self.vocabulary.image)
        eos = codes + len(self.vocabulary.text)
        end_turn, begin_image, end_image, bos = range(eos + 1, eos + 5)
        allowed = {
            Rule.BOS: range(bos, bos + 1),
            Rule.TEXT: range(codes, end_turn + 1),
            Rule.TEXT_OR_PICTURE: range(codes, begin_image + 1),
            Rule.OPEN_PICTURE: range(begin_image, begin_image + 1),
            Rule.CODE: range(codes),
            Rule.CLOSE_PICTURE: range(end_image, end_image + 1),
            Rule.EOS: range(eos, eos + 1),
            Rule.NOTHING: range(0),
        }
        return [allowed[rule] for rule in Rule]

    def allowed_ids(self) -> Bool[np.ndarray, "rules V"]:
        """Return the ranges as a table: row r is True at the ids that ``Rule(r)`` allows."""
        table = np.zeros((len(Rule), self.vocabulary.size), dtype=bool)
        written = np.array(self.written_ids())
        for rule, allowed in enumerate(self.ranges()):
            table[rule, written[allowed.start : allowed.stop]] = True
        return table
