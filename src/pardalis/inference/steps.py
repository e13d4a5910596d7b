"""Decoding steps on the device, without branches or synchronisation of the host.

The composition of a batch is fixed while its steps run. Until they are done, only the device knows
which tokens the sequences generate, where their images begin and end, and which sequences are over.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pardalis.inference.adapters import LoadedAdapters
from pardalis.inference.automaton import STATE_FIELDS, Automaton, SlotLimits, SlotState
from pardalis.inference.cache import PassLayout
from pardalis.inference.compiled import CompiledSteps
from pardalis.inference.guidance import GuidanceTensors, apply_guidance
from pardalis.inference.log_probs import LogProbTensors, log_probs_of
from pardalis.inference.sampling import SamplerNeeds, SamplingTensors, prepare_ids, sample
from pardalis.inference.weights import Head, keep_numbers
from pardalis.model import LanguageModel
from pardalis.tokens import Rule

Tensors = TypeVar("Tensors")  # a dataclass of tensors

SCORED_TOP = 1  # most likely tokens reported at each place of a scored continuation


class HeadSlice(IntEnum):
    """The slice of the output head that covers what a sequence may generate in a batch's steps."""

    ALL = 0
    TEXT = 1  # all but image tokens: the sequence is never inside an image
    IMAGE = 2  # image tokens, or the one token that the rule forces


class SlotStates:
    """The state of every slot, kept on the device between batches; slot 0 is unused."""

    def __init__(self, n_slots: int, device: torch.device) -> None:
        self.states = torch.zeros(len(STATE_FIELDS), n_slots + 1, dtype=torch.long, device=device)

    def write(self, slot: int, state: dict[str, int]) -> None:
        """Set the state of a slot from values on the host."""
        self.states[:, slot] = torch.tensor([state[name] for name in STATE_FIELDS])

    def load(self, slots: Int[Tensor, " B"]) -> SlotState:
        return SlotState(*self.states[:, slots].unbind())

    def store(self, slots: Int[Tensor, " B"], state: SlotState) -> None:
        self.states[:, slots] = torch.stack([getattr(state, name) for name in STATE_FIELDS])


@dataclass(frozen=True, slots=True)
class GuidanceBranches:
    """The guidance sequences of a batch, which follow its conditional sequences.

    ``conditional`` indexes the conditional sequences; ``unconditional`` and ``image_conditional``
    index the guidance sequences.
    """

    conditional: Int[Tensor, " U"]  # the sequence that each guidance sequence belongs to
    unconditional: Int[Tensor, " B"]  # branch of each conditional sequence; arbitrary if unguided
    image_conditional: Int[Tensor, " B"] | None  # ``unconditional`` where there is no such branch
    guidance: GuidanceTensors
    largest_k: int  # largest k of contrastive decoding; 0: unused


@dataclass(frozen=True, slots=True)
class HeadGroup:
    """Adjacent conditional sequences of a batch that use the same slice of the head."""

    head_slice: HeadSlice
    span: slice  # in the batch
    text: SamplingTensors
    image: SamplingTensors
    needs: SamplerNeeds


@dataclass(slots=True)
class SpeculationWindow:
    """Speculated codes of a batch whose conditional sequences are all inside images."""

    grid_width: int
    codes: Int[Tensor, "B codes"]  # token ids of the open images; arbitrary where not yet known
    guesses: Int[Tensor, "B guessed"]  # guesses of the next token ids

    @property
    def size(self) -> int:
        """The most codes that a pass may generate for a sequence."""
        return self.guesses.shape[1] + 1


@dataclass(frozen=True, slots=True)
class Reported:
    """The conditional sequences of a batch whose log-probabilities are reported."""

    sequences: Int[Tensor, " L"]
    n_top: int  # most likely tokens reported at each place


@dataclass(frozen=True, slots=True)
class DecodeBatch:
    """Sequences that decode together, and everything that is fixed while they do."""

    slots: Int[Tensor, " R"]  # conditional sequences first, then guidance sequences
    limits: SlotLimits
    groups: list[HeadGroup]
    inside_images: bool  # every conditional sequence stays inside its image
    branches: GuidanceBranches | None = None
    window: SpeculationWindow | None = None
    reported: Reported | None = None

    @property
    def window_size(self) -> int:
        """Tokens that a step reads of each sequence."""
        return 1 if self.window is None else self.window.size

    @property
    def n_conditional(self) -> int:
        return self.groups[-1].span.stop


@dataclass(frozen=True, slots=True)
class Generated:
    """What steps generated."""

    ids: Int[Tensor, "B T"]  # -1: none
    log_probs: LogProbTensors | None  # of the batch's reported sequences

    def on_host(self) -> "Generated":
        """Copy to the host; from a GPU, the copy is complete once the host has synchronised."""
        log_probs = None if self.log_probs is None else self.log_probs.on_host()
        return Generated(self.ids.to("cpu", non_blocking=True), log_probs)


@runtime_checkable
class BackEnd(Protocol):
    """Runs decoding steps instead of torch, on the same weights, cache and slots."""

    def decode(
        self, batch: DecodeBatch, layout: PassLayout, n_steps: int
    ) -> tuple[Int[Tensor, "B T"], Float[Tensor, "steps RW D"] | None] | None:
        """Run steps of a batch without adapters; see ``NativeSteps.decode``."""
        ...

    def read(
        self, layout: PassLayout, number: int, ids: Int[Tensor, " T"], positions: Int[Tensor, " T"]
    ) -> Float[Tensor, "T D"] | None:
        """Read a part of a prompt without an adapter; see ``NativeSteps.read``."""
        ...


class StepRunner:
    """Runs batches on one model."""

    def __init__(
        self,
        model: LanguageModel,
        head: Head,
        automaton: Automaton,
        slots: SlotStates,
        compile: bool = False,  # decoding steps only; prefill and adapters stay eager
        adapters: LoadedAdapters | None = None,
        native: BackEnd | None = None,
    ) -> None:
        self.model, self.head, self.automaton, self.slots = model, head, automaton, slots
        self.native = native
        self._adapters = adapters
        self._decode_hidden, self._sample = self._hidden, sample
        self.compiled = CompiledSteps(model, self._hidden) if compile else None
        if self.compiled is not None:
            self._decode_hidden, self._sample = self._compiled_hidden, self.compiled.sample
        self.n_codes = automaton.n_codes
        self.hashed_ids = prepare_ids(automaton.writable_ids)

    def reload(self, model: LanguageModel, head: Head, native: BackEnd | None = None) -> None:
        """Continue with another packed model and its head; compiled steps stay compiled."""
        if self.compiled is not None:
            keep_numbers(self.model, model)
        self.model, self.head, self.native = model, head, native
        if self.compiled is not None:
            self.compiled.model = model

    def decode(self, batch: DecodeBatch, layout: PassLayout, n_steps: int) -> Generated:
        """Run steps; return what each conditional sequence generated."""
        if self.native is not None:
            ran = self.native.decode(batch, layout, n_steps)
            if ran is not None:
                return self._reported(batch, *ran)
        state = self.slots.load(batch.slots)
        step = self._step if batch.window is None else self._speculative_step
        generated: list[Tensor] = []
        log_probs: list[LogProbTensors] = []
        for _ in range(n_steps):
            state, ids, hidden = step(batch, state, layout)
            generated.append(ids)
            log_probs += self._log_probs(batch, hidden, ids)
        self.slots.store(batch.slots, state)
        return Generated(
            torch.cat(generated, dim=1), LogProbTensors.joined(log_probs) if log_probs else None
        )

    def _reported(
        self,
        batch: DecodeBatch,
        ids: Int[Tensor, "B T"],
        hidden: Float[Tensor, "steps RW D"] | None,
    ) -> Generated:
        """Add the log-probabilities of what steps generated, if the batch reports any."""
        if hidden is None:
            return Generated(ids, None)
        log_probs: list[LogProbTensors] = []
        of_steps = torch.split(ids, batch.window_size, dim=1)
        for states, of_step in zip(hidden, of_steps, strict=True):
            log_probs += self._log_probs(batch, states, of_step)
        return Generated(ids, LogProbTensors.joined(log_probs))

    def prefill(
        self,
        batch: DecodeBatch | None,
        layout: PassLayout,
        ids: Sequence[int],  # tokens of the prompts, concatenated
        positions: Sequence[int],  # of these tokens in their sequences
        scored: Sequence[int] = (),  # tokens whose next tokens are scored, as indices into ids
        next_ids: Sequence[int] = (),  # these next tokens
    ) -> tuple[Generated | None, LogProbTensors | None]:
        """Read parts of prompts, beside one decoding step of a batch that comes first.

        Returns what the batch generated, and the scores in one row.
        """
        device = layout.table.device
        prompt_ids, prompt_positions = torch.tensor([ids, positions], device=device)
        generated = None
        hidden: Tensor
        if self.native is not None and (
            read := self._read(batch, layout, prompt_ids, prompt_positions)
        ):
            generated, hidden = read
        elif batch is None:
            hidden = self._hidden(layout, prompt_ids, prompt_positions)
        else:
            state = self.slots.load(batch.slots)
            last = _with_branches(batch, state.last[: batch.n_conditional])
            hidden = self._hidden(
                layout, torch.cat([last, prompt_ids]), torch.cat([state.position, prompt_positions])
            )
            state, new_ids = self._generate(batch, state, hidden[: len(last)])
            self.slots.store(batch.slots, state)
            generated = Generated(new_ids, next(self._log_probs(batch, hidden, new_ids), None))
            hidden = hidden[len(last) :]
        if not scored:
            return generated, None
        rows, targets = torch.tensor([scored, next_ids], device=device)
        return generated, log_probs_of(hidden[None, rows], self.head, targets[None], SCORED_TOP)

    def _read(
        self,
        batch: DecodeBatch | None,
        layout: PassLayout,
        ids: Int[Tensor, " T"],
        positions: Int[Tensor, " T"],
    ) -> tuple[Generated | None, Float[Tensor, "T D"]] | None:
        """Read parts of prompts as :meth:`prefill` does, but not in torch; None: it could not."""
        assert self.native is not None
        n_decoded = 0 if batch is None else len(batch.slots)
        hidden: list[Tensor] = []
        lengths = [part.n_tokens for part in layout.parts[n_decoded:]]
        spans = zip(torch.split(ids, lengths), torch.split(positions, lengths), strict=True)
        for number, span in enumerate(spans, n_decoded):
            of_part = self.native.read(layout, number, *span)
            if of_part is None:
                return None
            hidden.append(of_part)
        if batch is None:
            return None, torch.cat(hidden)
        ran = self.native.decode(batch, layout, 1)
        return None if ran is None else (self._reported(batch, *ran), torch.cat(hidden))

    def _hidden(
        self, layout: PassLayout, ids: Int[Tensor, " T"], positions: Int[Tensor, " T"]
    ) -> Float[Tensor, "T D"]:
        if self._adapters is None or layout.adapter_of_token is None:
            return self.model.hidden(ids[None], positions[None], cache=layout.place(positions))[0]
        with self._adapters.using(layout.adapters, layout.adapter_of_token):
            cache = layout.place(positions)
            hidden = self.model.hidden(ids[None], positions[None], cache=cache)[0]
            return self._adapters.marked(hidden)

    def _compiled_hidden(
        self, layout: PassLayout, ids: Int[Tensor, " T"], positions: Int[Tensor, " T"]
    ) -> Float[Tensor, "T D"]:
        assert self.compiled is not None
        is_plain = layout.adapter_of_token is None
        run = self.compiled.hidden if is_plain else self._hidden
        return run(layout, ids, positions)

    def _log_probs(
        self, batch: DecodeBatch, hidden: Float[Tensor, "RW D"], ids: Int[Tensor, "B W"]
    ) -> Iterator[LogProbTensors]:
        """Yield the log-probabilities of what one step generated, if the batch reports any."""
        if batch.reported is not None:
            chosen, window = batch.reported.sequences, ids.shape[1]
            states = hidden[: ids.numel()].view(-1, window, hidden.shape[1])[chosen]
            yield log_probs_of(states, self.head, ids[chosen], batch.reported.n_top)

    # ── one token per sequence ───────────────────────────────────────────────────────────────

    def _step(
        self, batch: DecodeBatch, state: SlotState, layout: PassLayout
    ) -> tuple[SlotState, Int[Tensor, "B 1"], Float[Tensor, "R D"]]:
        last = _with_branches(batch, state.last[: batch.n_conditional])
        hidden = self._decode_hidden(layout, last, state.position)
        return *self._generate(batch, state, hidden), hidden

    def _generate(
        self, batch: DecodeBatch, state: SlotState, hidden: Float[Tensor, "R D"]
    ) -> tuple[SlotState, Int[Tensor, "B 1"]]:
        """Sample a token for every conditional sequence, and advance all sequences."""
        n, branches = batch.n_conditional, batch.branches
        if batch.inside_images:
            ids = self._sample_ids(batch, None, state, hidden)
            return self.automaton.advance_codes(state, _with_branches(batch, ids), 1), ids[:, None]
        conditional = _map(lambda x: x[:n], state)
        rule = self.automaton.rule(conditional, batch.limits)
        ids = self._sample_ids(batch, rule, state, hidden)
        conditional = self.automaton.advance(conditional, rule, ids)
        generated = torch.where(rule == Rule.NOTHING, -1, ids)[:, None]
        if branches is None:
            return conditional, generated
        others = _map(lambda x: x[n:], state)
        others.position = others.position + (rule == Rule.CODE).long()[branches.conditional]
        return _map(lambda *parts: torch.cat(parts), conditional, others), generated

    def _sample_ids(
        self,
        batch: DecodeBatch,
        rule: Int[Tensor, " B"] | None,
        state: SlotState,
        hidden: Float[Tensor, "R D"],
    ) -> Int[Tensor, " B"]:
        """Sample a token for every conditional sequence; ``rule`` None: a code for each."""
        branch_logits = None
        if batch.branches is not None:
            branch_logits = self.head.image(hidden[batch.n_conditional :])
        index = state.position + 1
        chosen = [
            self._sample_group(batch, group, rule, index, hidden, branch_logits)
            for group in batch.groups
        ]
        return self.automaton.writable_ids[torch.cat(chosen)]

    def _sample_group(
        self,
        batch: DecodeBatch,
        group: HeadGroup,
        rule: Int[Tensor, " B"] | None,
        index: Int[Tensor, " R"],
        hidden: Float[Tensor, "R D"],
        branch_logits: Float[Tensor, "U codes"] | None,
    ) -> Int[Tensor, " G"]:
        """Return each sequence's choice, as an index into the writable ids."""
        span, ids, n_codes = group.span, self.hashed_ids, self.n_codes
        index, hidden = index[span], hidden[span]
        if group.head_slice is HeadSlice.IMAGE:
            logits = _guided(batch, span, self.head.image(hidden), branch_logits)
            codes = self._sample(logits, None, group.image, index, ids[:n_codes], group.needs)
            if rule is None:
                return codes
            forced = self.automaton.range_start[rule[span]]
            return torch.where(rule[span] == Rule.CODE, codes, forced)
        assert rule is not None
        rule = rule[span]
        start, stop = self.automaton.range_start[rule], self.automaton.range_stop[rule]
        if group.head_slice is HeadSlice.TEXT:
            logits = self.head.text(hidden)
            allowed = start - n_codes, stop - n_codes
            return n_codes + self._sample(
                logits, allowed, group.text, index, ids[n_codes:], group.needs
            )
        logits = self.head.all(hidden)
        if branch_logits is not None:
            logits[:, :n_codes] = _guided(batch, span, logits[:, :n_codes], branch_logits)
        is_code = rule == Rule.CODE
        sampling = _map(lambda a, b: torch.where(is_code, a, b), group.image, group.text)
        return self._sample(logits, (start, stop), sampling, index, ids, group.needs)

    # ── several codes per sequence ───────────────────────────────────────────────────────────

    def _speculative_step(
        self, batch: DecodeBatch, state: SlotState, layout: PassLayout
    ) -> tuple[SlotState, Int[Tensor, "B W"], Float[Tensor, "RW D"]]:
        """Verify guessed codes in one pass; generate those that single steps would generate.

        Since the noise is a function of the position, the codes up to and including the first
        wrong guess are exactly those of single steps.
        """
        assert batch.window is not None
        window, n = batch.window, batch.n_conditional
        conditional = _map(lambda x: x[:n], state)
        read = _with_branches(batch, torch.cat([conditional.last[:, None], window.guesses], dim=1))
        offsets = torch.arange(window.size, device=read.device)
        positions = state.position[:, None] + offsets
        hidden = self._decode_hidden(layout, read.flatten(), positions.flatten())
        codes = self.automaton.writable_ids[self._sample_window(batch, positions[:n] + 1, hidden)]
        n_right = (codes[:, :-1] == window.guesses).long().cumprod(1).sum(1)
        n_accepted = torch.minimum(1 + n_right, conditional.codes_left)
        generated = torch.where(offsets < n_accepted[:, None], codes, -1)
        self._update_guesses(window, conditional.codes_left, n_accepted, codes)
        last = codes.gather(1, (n_accepted - 1).clamp(min=0)[:, None])[:, 0]
        last = torch.where(n_accepted > 0, last, conditional.last)
        n_accepted, last = (_with_branches(batch, x) for x in (n_accepted, last))
        return self.automaton.advance_codes(state, last, n_accepted), generated, hidden

    def _sample_window(
        self, batch: DecodeBatch, index: Int[Tensor, "B W"], hidden: Float[Tensor, "RW D"]
    ) -> Int[Tensor, "B W"]:
        """Sample a code at every position of the windows, as if all guesses were right."""
        size, [group] = index.shape[1], batch.groups
        logits, branch_logits = self.head.image(hidden).split_with_sizes(
            [index.numel(), len(hidden) - index.numel()]
        )
        logits = _guided(batch, group.span, logits, branch_logits, size)
        sampling = _map(lambda x: x.repeat_interleave(size), group.image)
        ids = self.hashed_ids[: self.n_codes]
        codes = self._sample(logits, None, sampling, index.flatten(), ids, group.needs)
        return codes.view_as(index)

    def _update_guesses(
        self,
        window: SpeculationWindow,
        codes_left: Int[Tensor, " B"],
        n_accepted: Int[Tensor, " B"],
        codes: Int[Tensor, "B W"],
    ) -> None:
        """Guess the next codes: those sampled beyond the accepted ones, else the code above."""
        done = self.automaton.codes_per_image - codes_left
        last = window.codes.shape[1] - 1
        offsets = torch.arange(codes.shape[1], device=codes.device)
        places = (done[:, None] + offsets).clamp(max=last)
        window.codes.scatter_(1, places, codes)
        next_places = done[:, None] + n_accepted[:, None] + offsets[:-1]
        above = (next_places - window.grid_width).clamp(min=0, max=last)
        sampled = next_places < done[:, None] + codes.shape[1]
        source = torch.where(sampled, next_places.clamp(max=last), above)
        window.guesses.copy_(window.codes.gather(1, source))


def _guided(
    batch: DecodeBatch,
    span: slice,
    logits: Float[Tensor, "GW codes"],
    branch_logits: Float[Tensor, "UW codes"] | None,
    window: int = 1,  # positions of each sequence in both logits
) -> Float[Tensor, "GW codes"]:
    """Return logits of codes after guidance, for the sequences of a group."""
    branches = batch.branches
    if branches is None or branch_logits is None:
        return logits
    guidance = _map(lambda x: x[span], branches.guidance)
    if window > 1:
        guidance = _map(lambda x: x.repeat_interleave(window), guidance)
        branch_logits = branch_logits.view(-1, window, logits.shape[1])
    image_conditional = None
    if branches.image_conditional is not None:
        image_conditional = branch_logits[branches.image_conditional[span]].flatten(0, -2)
    unconditional = branch_logits[branches.unconditional[span]].flatten(0, -2)
    return apply_guidance(
        logits, unconditional, image_conditional, guidance, largest_k=branches.largest_k
    )


def _map(function: Callable[..., Tensor], *parts: Tensors) -> Tensors:
    """Apply a function to each field of dataclasses of tensors."""
    names = [field.name for field in fields(parts[0])]  # type: ignore[arg-type]
    return type(parts[0])(*(function(*(getattr(p, name) for p in parts)) for name in names))


def _with_branches(batch: DecodeBatch, x: Int[Tensor, "B *rest"]) -> Int[Tensor, "R *rest"]:
    """Append to the values of conditional sequences those for their guidance sequences."""
    return x if batch.branches is None else torch.cat([x, x[batch.branches.conditional]])
