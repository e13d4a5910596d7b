"""The grammar on the device: the state of every row in tensors, advanced without a branch.

It is :class:`pardalis.tokens.Grammar` once more, for many rows at a time and with no read by the
host: each field of :class:`pardalis.tokens.State` is a tensor, each ``match`` a ``where``. A test
walks both side by side.
"""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Int
from torch import Tensor

from pardalis.tokens import Grammar, Mode, Rule

NO_LIMIT = 2**31 - 1


@dataclass(slots=True)
class RowState:
    """Where each row stands: :class:`pardalis.tokens.State` and the last id with its column."""

    mode: Int[Tensor, " B"]
    codes_left: Int[Tensor, " B"]
    pictures: Int[Tensor, " B"]
    turns: Int[Tensor, " B"]
    room: Int[Tensor, " B"]
    last: Int[Tensor, " B"]  # the newest id, which the model has not read
    column: Int[Tensor, " B"]  # of that id in its stream


@dataclass(slots=True)
class RowLimits:
    """What each row's request allows: :class:`pardalis.tokens.Limits`."""

    text: Int[Tensor, " B"]  # 0 or 1
    max_pictures: Int[Tensor, " B"]  # NO_LIMIT: as many as fit
    one_turn: Int[Tensor, " B"]  # 0 or 1
    guided: Int[Tensor, " B"]  # 1: codes need linked rows
    attached: Int[Tensor, " B"]  # the picture (by RowState.pictures) whose linked rows take part


STATE_FIELDS = [field.name for field in fields(RowState)]


class Automaton:
    """Rules and transitions of one grammar, for rows of a batch."""

    def __init__(self, grammar: Grammar, device: torch.device) -> None:
        self.ids = grammar.vocabulary
        self.n_codes = len(self.ids.image)
        self.codes_per_picture, self.picture_ids = grammar.codes_per_picture, grammar.picture_ids
        ranges = grammar.ranges()
        self.first = torch.tensor([allowed.start for allowed in ranges], device=device)
        self.stop = torch.tensor([allowed.stop for allowed in ranges], device=device)
        self.written_ids = torch.tensor(grammar.written_ids(), device=device)

    def rule(self, state: RowState, limits: RowLimits) -> Int[Tensor, " B"]:
        """Return each row's :class:`pardalis.tokens.Rule`; NOTHING for one that must wait."""
        may_open = state.pictures < limits.max_pictures
        fits = state.room >= self.picture_ids + 1  # after the picture one id must be left for eos
        text = torch.where(may_open & fits, int(Rule.TEXT_OR_PICTURE), int(Rule.TEXT))
        text = torch.where(state.room == 1, int(Rule.EOS), text)
        silent = torch.where(may_open, int(Rule.OPEN_PICTURE), int(Rule.NOTHING))
        between = torch.where(limits.text == 1, text, silent)
        closed = (state.room <= 0) | ((limits.one_turn == 1) & (state.turns > 0))
        between = torch.where(closed, int(Rule.NOTHING), between)
        waits = (limits.guided == 1) & (state.pictures != limits.attached)
        code = torch.where(waits, int(Rule.NOTHING), int(Rule.CODE))
        inside = torch.where(state.codes_left > 0, code, int(Rule.CLOSE_PICTURE))
        rule = torch.where(state.mode == Mode.IMAGE, inside, between)
        rule = torch.where(state.mode == Mode.START, int(Rule.BOS), rule)
        return torch.where(state.mode == Mode.DONE, int(Rule.NOTHING), rule)

    def advance(
        self, state: RowState, rule: Int[Tensor, " B"], token_id: Int[Tensor, " B"]
    ) -> RowState:
        """Return the state after one more id, which the rule allowed; NOTHING changes nothing."""
        active = rule != Rule.NOTHING
        opens = active & (token_id == self.ids.begin_image_id)
        is_code = rule == Rule.CODE
        mode = torch.where(opens, int(Mode.IMAGE), state.mode)
        to_text = (rule == Rule.CLOSE_PICTURE) | (rule == Rule.BOS)
        mode = torch.where(to_text, int(Mode.TEXT), mode)
        mode = torch.where(active & (token_id == self.ids.eos_id), int(Mode.DONE), mode)
        one = active.long()
        return RowState(
            mode=mode,
            codes_left=torch.where(
                opens, self.codes_per_picture, state.codes_left - is_code.long()
            ),
            pictures=state.pictures + opens.long(),
            turns=state.turns + (active & (token_id == self.ids.end_turn_id)).long(),
            room=state.room - one,
            last=torch.where(active, token_id, state.last),
            column=state.column + one,
        )

    def advance_inside(
        self, state: RowState, token_id: Int[Tensor, " B"], n_codes: Int[Tensor, " B"] | int
    ) -> RowState:
        """Return the state after codes, for rows that stay inside their pictures."""
        return RowState(
            mode=state.mode,
            codes_left=state.codes_left - n_codes,
            pictures=state.pictures,
            turns=state.turns,
            room=state.room - n_codes,
            last=token_id,
            column=state.column + n_codes,
        )
