"""The grammar on the device: the state of every slot in tensors, advanced without branching.

This is :class:`pardalis.tokens.Grammar` for a whole batch, without host synchronisation: each field
of :class:`pardalis.tokens.State` is a tensor, and each ``match`` is a ``where``. A test compares
both step by step.
"""

from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Int
from torch import Tensor

from pardalis.tokens import Grammar, Phase, Rule

NO_LIMIT = 2**31 - 1


@dataclass(slots=True)
class SlotState:
    """:class:`pardalis.tokens.State` of each sequence, and its last token with its position."""

    phase: Int[Tensor, " B"]
    codes_left: Int[Tensor, " B"]
    images: Int[Tensor, " B"]
    turns: Int[Tensor, " B"]
    budget: Int[Tensor, " B"]
    last: Int[Tensor, " B"]  # id of the newest token, which the model has not read yet
    position: Int[Tensor, " B"]  # position of the newest token


@dataclass(slots=True)
class SlotLimits:
    """:class:`pardalis.tokens.Limits` of each sequence's request, and its guidance."""

    text: Int[Tensor, " B"]  # 0 or 1
    max_images: Int[Tensor, " B"]  # NO_LIMIT: as many as fit
    one_turn: Int[Tensor, " B"]  # 0 or 1
    one_gap: Int[Tensor, " B"]  # 0 or 1
    guided: Int[Tensor, " B"]  # 1: codes are generated with guidance branches only
    branched_image: Int[Tensor, " B"]  # SlotState.images of the image that has branches; -1: none


STATE_FIELDS = [field.name for field in fields(SlotState)]


class Automaton:
    """Rules and transitions of one grammar, for the sequences of a batch."""

    def __init__(self, grammar: Grammar, device: torch.device) -> None:
        self.vocabulary = grammar.vocabulary
        ends = grammar.vocabulary.end_turn_id, grammar.vocabulary.end_mask_id
        self.ends = torch.tensor([i for i in ends if i is not None], device=device)
        self.n_codes = len(self.vocabulary.image)
        self.codes_per_image = grammar.codes_per_image
        self.tokens_per_image = grammar.tokens_per_image
        ranges = grammar.ranges()
        self.range_start = torch.tensor([allowed.start for allowed in ranges], device=device)
        self.range_stop = torch.tensor([allowed.stop for allowed in ranges], device=device)
        self.writable_ids = torch.tensor(grammar.writable_ids(), device=device)

    def rule(self, state: SlotState, limits: SlotLimits) -> Int[Tensor, " B"]:
        """Return the :class:`pardalis.tokens.Rule` of each sequence.

        NOTHING also stands for a sequence that must wait for its guidance branches.
        """
        may_open = state.images < limits.max_images
        fits = state.budget >= self.tokens_per_image + 1  # one token is reserved for eos
        plain = torch.where(may_open & fits, int(Rule.TEXT_OR_IMAGE), int(Rule.TEXT))
        gap = torch.where(may_open & fits, int(Rule.GAP_OR_IMAGE), int(Rule.GAP))
        text = torch.where(limits.one_gap == 1, gap, plain)
        text = torch.where(state.budget == 1, int(Rule.EOS), text)
        images_only = torch.where(may_open, int(Rule.BEGIN_IMAGE), int(Rule.NOTHING))
        outside = torch.where(limits.text == 1, text, images_only)
        is_one = (limits.one_turn == 1) | (limits.one_gap == 1)
        closed = (state.budget <= 0) | (is_one & (state.turns > 0))
        outside = torch.where(closed, int(Rule.NOTHING), outside)
        waits = (limits.guided == 1) & (state.images != limits.branched_image)
        code = torch.where(waits, int(Rule.NOTHING), int(Rule.CODE))
        inside = torch.where(state.codes_left > 0, code, int(Rule.END_IMAGE))
        rule = torch.where(state.phase == Phase.IMAGE, inside, outside)
        rule = torch.where(state.phase == Phase.START, int(Rule.BOS), rule)
        return torch.where(state.phase == Phase.DONE, int(Rule.NOTHING), rule)

    def advance(
        self, state: SlotState, rule: Int[Tensor, " B"], token_id: Int[Tensor, " B"]
    ) -> SlotState:
        """Return the state after one more token that the rule allowed; NOTHING changes nothing."""
        active = rule != Rule.NOTHING
        opens = active & (token_id == self.vocabulary.begin_image_id)
        is_code = rule == Rule.CODE
        phase = torch.where(opens, int(Phase.IMAGE), state.phase)
        to_text = (rule == Rule.END_IMAGE) | (rule == Rule.BOS)
        phase = torch.where(to_text, int(Phase.TEXT), phase)
        phase = torch.where(active & (token_id == self.vocabulary.eos_id), int(Phase.DONE), phase)
        one = active.long()
        return SlotState(
            phase=phase,
            codes_left=torch.where(opens, self.codes_per_image, state.codes_left - is_code.long()),
            images=state.images + opens.long(),
            turns=state.turns + (active & torch.isin(token_id, self.ends)).long(),
            budget=state.budget - one,
            last=torch.where(active, token_id, state.last),
            position=state.position + one,
        )

    def advance_codes(
        self, state: SlotState, token_id: Int[Tensor, " B"], n_codes: Int[Tensor, " B"] | int
    ) -> SlotState:
        """Return the state after n codes, for sequences that stay inside their images."""
        return replace(
            state,
            codes_left=state.codes_left - n_codes,
            budget=state.budget - n_codes,
            last=token_id,
            position=state.position + n_codes,
        )
