"""From scheduled requests to the tensors of a batch."""

from dataclasses import asdict
from math import isqrt

import torch

from pardalis.inference.automaton import NO_LIMIT, SlotLimits
from pardalis.inference.guidance import GuidanceTensors, largest_k
from pardalis.inference.sampling import SamplerNeeds, SamplingTensors
from pardalis.inference.scheduler import ScheduledRequest, TokenSequence
from pardalis.inference.steps import (
    DecodeBatch,
    GuidanceBranches,
    HeadGroup,
    HeadSlice,
    Reported,
    SlotStates,
    SpeculationWindow,
)
from pardalis.tokens import Grammar, Phase, Rule


class BatchBuilder:
    """Builds batches, and reuses the last one while its sequences stay the same."""

    def __init__(self, grammar: Grammar, slots: SlotStates) -> None:
        self.grammar, self.slots = grammar, slots
        self.device = slots.states.device
        self._in_slot: dict[int, TokenSequence] = {}  # the sequence whose state each slot holds
        self._last: tuple[object, DecodeBatch] | None = None  # the inputs and the batch

    def order(self, requests: list[ScheduledRequest], n_tokens: int) -> list[ScheduledRequest]:
        """Return requests so that those that use the same slice of the head are adjacent."""
        return sorted(requests, key=lambda r: (head_slice_of(r, n_tokens), r.key))

    def build(self, requests: list[ScheduledRequest], n_tokens: int, window: int) -> DecodeBatch:
        """Return the batch in which ordered requests generate up to n tokens each.

        With a speculation window above 1 every request stays inside an image.
        """
        speculates = window > 1
        slices = [HeadSlice.IMAGE if speculates else head_slice_of(r, n_tokens) for r in requests]
        inside_images = speculates or all(r.state.codes_left >= n_tokens for r in requests)
        sequences = in_batch_order(requests)
        slots = [sequence.slot for sequence in sequences]
        images = [r.state.images for r in requests]
        inputs = (sequences, slots, slices, images, window, inside_images)
        if self._last is not None and self._last[0] == inputs:
            return self._last[1]
        for scheduled in requests:
            for sequence in scheduled.sequences:
                self._write_slot(scheduled, sequence)
        groups = []
        for head_slice in HeadSlice:
            if n := slices.count(head_slice):
                first = slices.index(head_slice)
                span = slice(first, first + n)
                groups.append(self._group(head_slice, span, requests[span]))
        batch = DecodeBatch(
            self._tensor(slots),
            self._limits(requests),
            groups,
            inside_images,
            self._branches(requests),
            self._first_guesses(requests, window) if speculates else None,
            self._reported(requests),
        )
        self._last = inputs, batch
        return batch

    def _tensor(self, values: list[int] | list[list[int]]) -> torch.Tensor:
        return torch.tensor(values, device=self.device)

    def _first_guesses(self, requests: list[ScheduledRequest], window: int) -> SpeculationWindow:
        """Start speculation: each code is guessed as the one above it in the image."""
        n_codes, first_code = self.grammar.codes_per_image, self.grammar.vocabulary.image.start
        width = isqrt(n_codes)
        codes, guesses = [], []
        for scheduled in requests:
            ids, done = scheduled.conditional.ids, n_codes - scheduled.state.codes_left
            image = ids[len(ids) - done :] if done else []
            for place in range(done, n_codes + window):
                image.append(image[place - width] if place >= width else first_code)
            codes.append(image)
            guesses.append(image[done : done + window - 1])
        return SpeculationWindow(width, self._tensor(codes), self._tensor(guesses))

    def _write_slot(self, scheduled: ScheduledRequest, sequence: TokenSequence) -> None:
        if self._in_slot.get(sequence.slot) is sequence:
            return
        # The state in a slot that the sequence had before is out of date.
        self._in_slot = {slot: s for slot, s in self._in_slot.items() if s is not sequence}
        self._in_slot[sequence.slot] = sequence
        newest = {"last": sequence.ids[-1], "position": len(sequence.ids) - 1}
        self.slots.write(sequence.slot, asdict(scheduled.state) | newest)

    def _limits(self, requests: list[ScheduledRequest]) -> SlotLimits:
        limits = [r.request.limits for r in requests]
        max_images = [NO_LIMIT if x.max_images is None else x.max_images for x in limits]
        return SlotLimits(
            text=self._tensor([int(x.text) for x in limits]),
            max_images=self._tensor(max_images),
            one_turn=self._tensor([int(x.one_turn) for x in limits]),
            one_gap=self._tensor([int(x.one_gap) for x in limits]),
            guided=self._tensor([int(r.guided) for r in requests]),
            branched_image=self._tensor(
                [r.state.images if r.guidance_sequences else -1 for r in requests]
            ),
        )

    def _group(
        self, head_slice: HeadSlice, span: slice, requests: list[ScheduledRequest]
    ) -> HeadGroup:
        seeds = [r.request.seed for r in requests]
        text = [r.request.text for r in requests]
        image = [r.request.image for r in requests]
        used = {HeadSlice.TEXT: text, HeadSlice.IMAGE: image}.get(head_slice, text + image)
        return HeadGroup(
            head_slice,
            span,
            SamplingTensors.of(text, seeds, self.device),
            SamplingTensors.of(image, seeds, self.device),
            SamplerNeeds.of(used),
        )

    def _reported(self, requests: list[ScheduledRequest]) -> Reported | None:
        """Return the sequences whose log-probabilities are reported, None if there are none."""
        sequences = [n for n, r in enumerate(requests) if r.request.logprobs]
        if not sequences:
            return None
        return Reported(self._tensor(sequences), max(r.request.logprobs for r in requests))

    def _branches(self, requests: list[ScheduledRequest]) -> GuidanceBranches | None:
        """Return which guidance sequences belong to which request, None if there are none."""
        conditional: list[int] = []
        unconditional, image_conditional = [], []
        for number, scheduled in enumerate(requests):
            first, n = len(conditional), len(scheduled.guidance_sequences)
            unconditional.append(first if n else 0)
            image_conditional.append(first + n - 1 if n else 0)
            conditional += [number] * n
        if not conditional:
            return None
        guidance = [r.request.guidance if r.guidance_sequences else None for r in requests]
        same = image_conditional == unconditional
        return GuidanceBranches(
            self._tensor(conditional),
            self._tensor(unconditional),
            None if same else self._tensor(image_conditional),
            GuidanceTensors.of(guidance, self.device),
            largest_k(guidance),
        )


def head_slice_of(scheduled: ScheduledRequest, n_tokens: int) -> HeadSlice:
    """Return the slice of the head that covers a request's next n tokens."""
    state = scheduled.state
    until_end = state.codes_left + 1 if state.phase is Phase.IMAGE else 0
    if until_end >= n_tokens or not scheduled.request.limits.text:
        return HeadSlice.IMAGE
    if scheduled.rule in (Rule.TEXT, Rule.GAP, Rule.EOS):
        return HeadSlice.TEXT  # once no image may be opened, none ever may
    return HeadSlice.ALL


def in_batch_order(requests: list[ScheduledRequest]) -> list[TokenSequence]:
    """Return the conditional sequences, then the guidance sequences."""
    return [r.conditional for r in requests] + [s for r in requests for s in r.guidance_sequences]
