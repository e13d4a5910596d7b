"""The grammar on the device: the state of every row in tensors, advanced without a branch.

It is :class:`pardalis.tokens.Grammar` once more, for many rows at a time and with no read by the
host: each field of :class:`pardalis.tokens.State` is a tensor, each ``match`` a ``where``. A test
walks both side by side.
"""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Int
from torch import Tensor

from pardalis.tokens import Grammar, Phase, Rule

NO_LIMIT = 2**31 - 1


@dataclass(slots=True)
class RowState:
    """Where each row stands: :class:`pardalis.tokens.State` and the last id with its column."""

    phase: Int[Tensor, " B"]
    codes_left: Int[Tensor, " B"]
    images: Int[Tensor, " B"]
    turns: Int[Tensor, " B"]
    budget: Int[Tensor, " B"]
    last: Int[Tensor, " B"]  # the newest id, which the model has not read
    column: Int[Tensor, " B"]  # of that id in its stream


@dataclass(slots=True)
class RowLimits:
    """What each row's request allows: :class:`pardalis.tokens.Limits`."""

    text: Int[Tensor, " B"]  # 0 or 1
    max_images: Int[Tensor, " B"]  # NO_LIMIT: as many as fit
    one_turn: Int[Tensor, " B"]  # 0 or 1
    guided: Int[Tensor, " B"]  # 1: codes need linked rows
    attached: Int[Tensor, " B"]  # the image (by RowState.images) whose linked rows take part


STATE_FIELDS = [field.name for field in fields(RowState)]


class Automaton:
    """Rules and transitions of one grammar, for rows of a batch."""

    def __init__(self, grammar: Grammar, device: torch.device) -> None:
        self.ids = grammar.vocabulary
        self.n_codes = len(self.ids.image)
        self.codes_per_image, self.tokens_per_image = (
            grammar.codes_per_image,
            grammar.tokens_per_image,
        )
        ranges = grammar.ranges()
        self.first = torch.tensor([allowed.start for allowed in ranges], device=device)
        self.stop = torch.tensor([allowed.stop for allowed in ranges], device=device)
        self.writable_ids = torch.tensor(grammar.writable_ids(), device=device)

    def rule(self, state: RowState, limits: RowLimits) -> Int[Tensor, " B"]:
        """Return each row's :class:`pardalis.tokens.Rule`; NOTHING for one that must wait."""
        may_open = state.images < limits.max_images
        fits = (
            state.budget >= self.tokens_per_image + 1
        )  # after the image one id must be left for eos
        text = torch.where(may_open & fits, int(Rule.TEXT_OR_IMAGE), int(Rule.TEXT))
        text = torch.where(state.budget == 1, int(Rule.EOS), text)
        silent = torch.where(may_open, int(Rule.BEGIN_IMAGE), int(Rule.NOTHING))
        between = torch.where(limits.text == 1, text, silent)
        closed = (state.budget <= 0) | ((limits.one_turn == 1) & (state.turns > 0))
        between = torch.where(closed, int(Rule.NOTHING), between)
        waits = (limits.guided == 1) & (state.images != limits.attached)
        code = torch.where(waits, int(Rule.NOTHING), int(Rule.CODE))
        inside = torch.where(state.codes_left > 0, code, int(Rule.END_IMAGE))
        rule = torch.where(state.phase == Phase.IMAGE, inside, between)
        rule = torch.where(state.phase == Phase.START, int(Rule.BOS), rule)
        return torch.where(state.phase == Phase.DONE, int(Rule.NOTHING), rule)

    def advance(
        self, state: RowState, rule: Int[Tensor, " B"], token_id: Int[Tensor, " B"]
    ) -> RowState:
        """Return the state after one more id, which the rule allowed; NOTHING changes nothing."""
        active = rule != Rule.NOTHING
        opens = active & (token_id == self.ids.begin_image_id)
        is_code = rule == Rule.CODE
        phase = torch.where(opens, int(Phase.IMAGE), state.phase)
        to_text = (rule == Rule.END_IMAGE) | (rule == Rule.BOS)
        phase = torch.where(to_text, int(Phase.TEXT), phase)
        phase = torch.where(active & (token_id == self.ids.eos_id), int(Phase.DONE), phase)
        one = active.long()
        return RowState(
            phase=phase,
            codes_left=torch.where(opens, self.codes_per_image, state.codes_left - is_code.long()),
            images=state.images + opens.long(),
            turns=state.turns + (active & (token_id == self.ids.end_turn_id)).long(),
            budget=state.budget - one,
            last=torch.where(active, token_id, state.last),
            column=state.column + one,
        )

    def advance_inside(
        self, state: RowState, token_id: Int[Tensor, " B"], n_codes: Int[Tensor, " B"] | int
    ) -> RowState:
        """Return the state after codes, for rows that stay inside their images."""
        return RowState(
            phase=state.phase,
            codes_left=state.codes_left - n_codes,
            images=state.images,
            turns=state.turns,
            budget=state.budget - n_codes,
            last=token_id,
            column=state.column + n_codes,
        )
