"""Decoding steps on the device: read, choose, advance; the host neither branches nor looks.

What a batch is made of is fixed while its steps run. What the rows write, where their images
begin and end, and whether they are over is known to the device alone until the steps are done.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pardalis.inference.automaton import STATE_FIELDS, Automaton, RowLimits, RowState
from pardalis.inference.cache import Rows
from pardalis.inference.compiled import Compiled
from pardalis.inference.guidance import Guide, guided
from pardalis.inference.sampling import Choice, Needs, prepare_ids, sample
from pardalis.inference.weights import Head
from pardalis.model import Decoder
from pardalis.tokens import Rule

Columns = TypeVar("Columns")


class Kind(IntEnum):
    """Which ids a row can write during a batch's steps, and so which of the head it needs."""

    ANY = 0
    TEXT = 1  # never inside an image: all but image ids
    CODES = 2  # image ids, or the one id that the rule forces


class Lanes:
    """The state of every row that may run, kept on the device between batches; lane 0 is unused."""

    def __init__(self, n_lanes: int, device: torch.device) -> None:
        self.states = torch.zeros(len(STATE_FIELDS), n_lanes + 1, dtype=torch.long, device=device)

    def write(self, lane: int, state: dict[str, int]) -> None:
        """Set the state of a lane from what the host knows."""
        self.states[:, lane] = torch.tensor([state[name] for name in STATE_FIELDS])

    def read(self, lanes: Int[Tensor, " B"]) -> RowState:
        """Return the state of some lanes."""
        return RowState(*self.states[:, lanes].unbind())

    def store(self, lanes: Int[Tensor, " B"], state: RowState) -> None:
        """Put back the state of some lanes."""
        columns = [getattr(state, name) for name in STATE_FIELDS]
        self.states[:, lanes] = torch.stack(columns)


@dataclass(frozen=True, slots=True)
class Links:
    """The linked rows of a batch, which follow its main rows."""

    leader: Int[Tensor, " U"]  # the main row that each belongs to
    alone: Int[Tensor, " B"]  # of each main row, which linked row has no context; 0: any will do
    images: Int[Tensor, " B"] | None  # and which has its images, ``alone`` where there are none
    guide: Guide
    largest_k: int  # of the contrastive ones; 0 when there is none


@dataclass(frozen=True, slots=True)
class Group:
    """Main rows of one kind, which stand side by side."""

    kind: Kind
    rows: slice
    text: Choice
    image: Choice
    needs: Needs


@dataclass(slots=True)
class SpeculationWindow:
    """Guesses of a batch whose rows are all inside images."""

    width: int  # codes in a row of an image
    drawn: Int[Tensor, "B codes"]  # ids of the open images; unknown ones may be anything
    guesses: Int[Tensor, "B guessed"]  # of the next ids

    @property
    def size(self) -> int:
        """Codes that a pass may settle."""
        return self.guesses.shape[1] + 1


@dataclass(frozen=True, slots=True)
class DecodeBatch:
    """Rows that run together, and all that is fixed while they do."""

    lanes: Int[Tensor, " R"]  # of the main rows, then of the linked ones
    limits: RowLimits
    groups: list[Group]
    inside: bool  # every main row stays inside its image
    links: Links | None = None
    window: SpeculationWindow | None = None

    @property
    def window_size(self) -> int:
        """Ids that a step reads of each row."""
        return 1 if self.window is None else self.window.size

    @property
    def n_main(self) -> int:
        return self.groups[-1].rows.stop


class Steps:
    """Runs batches on one model.

    Args:
        compiled: compile what decoding steps do; prompts are read as before.
    """

    def __init__(
        self,
        model: Decoder,
        head: Head,
        automaton: Automaton,
        lanes: Lanes,
        compiled: bool = False,
    ) -> None:
        self.model, self.head, self.automaton, self.lanes = model, head, automaton, lanes
        self._hidden_of_newest, self._pick = self._hidden, sample
        self.compiled = Compiled(model, self._hidden) if compiled else None
        if self.compiled is not None:
            self._hidden_of_newest, self._pick = self.compiled.hidden, self.compiled.sample
        self.n_codes = automaton.n_codes
        self.hashed_ids = prepare_ids(automaton.writable_ids)

    def run(self, batch: DecodeBatch, rows: Rows, n_steps: int) -> Int[Tensor, "B steps"]:
        """Run steps; return the ids that each main row wrote, -1 where it wrote none."""
        state = self.lanes.read(batch.lanes)
        step = self._step if batch.window is None else self._settle
        written = []
        for _ in range(n_steps):
            state, ids = step(batch, state, rows)
            written.append(ids)
        self.lanes.store(batch.lanes, state)
        return torch.cat(written, dim=1)

    def read(
        self, batch: DecodeBatch | None, rows: Rows, ids: Sequence[int], columns: Sequence[int]
    ) -> Int[Tensor, "B 1"] | None:
        """Read parts of prompts, beside one step of a batch, whose rows come first.

        Args:
            ids: of the prompts' rows, one after another.
            columns: where they stand in their streams.
        """
        device = rows.table.device
        prompt_ids, prompt_columns = torch.tensor([ids, columns], device=device)
        if batch is None:
            self._hidden(rows, prompt_ids, prompt_columns)
            return None
        state = self.lanes.read(batch.lanes)
        newest = self._newest(batch, state)
        hidden = self._hidden(
            rows, torch.cat([newest, prompt_ids]), torch.cat([state.column, prompt_columns])
        )
        state, written = self._choose(batch, state, hidden[: len(newest)])
        self.lanes.store(batch.lanes, state)
        return written

    def _hidden(
        self, rows: Rows, ids: Int[Tensor, " T"], columns: Int[Tensor, " T"]
    ) -> Float[Tensor, "T D"]:
        return self.model.hidden(ids[None], columns[None], cache=rows.place(columns))[0]

    def _newest(self, batch: DecodeBatch, state: RowState) -> Int[Tensor, " R"]:
        """Return the newest id of every row; linked rows read what their leaders wrote."""
        if batch.links is None:
            return state.last
        mains = state.last[: batch.n_main]
        return torch.cat([mains, mains[batch.links.leader]])

    # ── one id a row ─────────────────────────────────────────────────────────────────────────

    def _step(
        self, batch: DecodeBatch, state: RowState, rows: Rows
    ) -> tuple[RowState, Int[Tensor, "B 1"]]:
        hidden = self._hidden_of_newest(rows, self._newest(batch, state), state.column)
        return self._choose(batch, state, hidden)

    def _choose(
        self, batch: DecodeBatch, state: RowState, hidden: Float[Tensor, "R D"]
    ) -> tuple[RowState, Int[Tensor, "B 1"]]:
        """Sample an id for every main row, and advance all rows."""
        linked = None if batch.links is None else self.head.image(hidden[batch.n_main :])
        if batch.inside:
            chosen = self._sample(batch, batch.groups[0], None, state.column + 1, hidden, linked)
            ids = self.automaton.writable_ids[chosen]
            if batch.links is not None:
                ids = torch.cat([ids, ids[batch.links.leader]])
            state = self.automaton.advance_inside(state, ids, 1)
            return state, ids[: batch.n_main, None]
        mains = _part(state, slice(batch.n_main))
        rule = self.automaton.rule(mains, batch.limits)
        index = mains.column + 1
        chosen = torch.cat(
            [self._sample(batch, group, rule, index, hidden, linked) for group in batch.groups]
        )
        ids = self.automaton.writable_ids[chosen]
        mains = self.automaton.advance(mains, rule, ids)
        wrote = torch.where(rule == Rule.NOTHING, -1, ids)[:, None]
        if batch.links is None:
            return mains, wrote
        others = _part(state, slice(batch.n_main, None))
        others.column = others.column + (rule == Rule.CODE).long()[batch.links.leader]
        return _joined(mains, others), wrote

    def _sample(
        self,
        batch: DecodeBatch,
        group: Group,
        rule: Int[Tensor, " B"] | None,
        index: Int[Tensor, " _"],
        hidden: Float[Tensor, "R D"],
        linked: Float[Tensor, "U codes"] | None,
    ) -> Int[Tensor, " G"]:
        """Return each row's choice, by its number in the order of written ids."""
        rows, ids, n_codes = group.rows, self.hashed_ids, self.n_codes
        index = index[rows]
        if group.kind is Kind.CODES:
            codes = self._guided(batch, rows, self.head.image(hidden[rows]), linked)
            drawn = self._pick(codes, None, group.image, index, ids[:n_codes], group.needs)
            if rule is None:
                return drawn
            return torch.where(rule[rows] == Rule.CODE, drawn, self.automaton.first[rule[rows]])
        assert rule is not None
        rule = rule[rows]
        first, stop = self.automaton.first[rule], self.automaton.stop[rule]
        if group.kind is Kind.TEXT:
            logits = self.head.text(hidden[rows])
            allowed = first - n_codes, stop - n_codes
            return n_codes + self._pick(
                logits, allowed, group.text, index, ids[n_codes:], group.needs
            )
        logits = self.head.all(hidden[rows])
        if linked is not None:
            logits[:, :n_codes] = self._guided(batch, rows, logits[:, :n_codes], linked)
        choice = _chosen_by(rule == Rule.CODE, group.image, group.text)
        return self._pick(logits, (first, stop), choice, index, ids, group.needs)

    def _guided(
        self,
        batch: DecodeBatch,
        rows: slice,
        logits: Float[Tensor, "G codes"],
        linked: Float[Tensor, "U codes"] | None,
    ) -> Float[Tensor, "G codes"]:
        """Return the logits of codes as guidance changes them."""
        links = batch.links
        if links is None or linked is None:
            return logits
        images = None if links.images is None else linked[links.images[rows]]
        guide = _part(links.guide, rows)
        alone = linked[links.alone[rows]]
        return guided(logits, alone, images, guide, largest_k=links.largest_k)

    # ── several codes a row ──────────────────────────────────────────────────────────────────

    def _settle(
        self, batch: DecodeBatch, state: RowState, rows: Rows
    ) -> tuple[RowState, Int[Tensor, "B W"]]:
        """Read guessed codes in one pass; write those that the rows would have drawn one by one.

        With noise that is a function of the place, what a row draws is a fixed point: the codes
        drawn before and at the first wrong guess are those of one step after another.
        """
        assert batch.window is not None
        window, size = batch.window, batch.window.size
        mains = _part(state, slice(batch.n_main))
        read = torch.cat([mains.last[:, None], window.guesses], dim=1)
        if batch.links is not None:
            read = torch.cat([read, read[batch.links.leader]])
        ahead = torch.arange(size, device=read.device)
        columns = state.column[:, None] + ahead
        hidden = self._hidden_of_newest(rows, read.flatten(), columns.flatten())
        drawn = self.automaton.writable_ids[
            self._sample_window(batch, columns[: batch.n_main] + 1, hidden)
        ]
        right = (drawn[:, :-1] == window.guesses).long().cumprod(1).sum(1)
        settled = torch.minimum(1 + right, mains.codes_left)
        wrote = torch.where(ahead < settled[:, None], drawn, -1)
        self._guess(window, mains.codes_left, settled, drawn)
        last = drawn.gather(1, (settled - 1).clamp(min=0)[:, None])[:, 0]
        last = torch.where(settled > 0, last, mains.last)
        if batch.links is not None:
            leader = batch.links.leader
            settled, last = (torch.cat([x, x[leader]]) for x in (settled, last))
        return self.automaton.advance_inside(state, last, settled), wrote

    def _sample_window(
        self, batch: DecodeBatch, index: Int[Tensor, "B W"], hidden: Float[Tensor, "RW D"]
    ) -> Int[Tensor, "B W"]:
        """Return what every place of the windows draws, given that the guesses before are right."""
        size = index.shape[1]
        [group] = batch.groups
        repeat = torch.arange(batch.n_main, device=index.device).repeat_interleave(size)
        logits = self.head.image(hidden)
        own = logits[: repeat.shape[0]]
        if batch.links is not None:
            links, linked = batch.links, logits[repeat.shape[0] :].view(-1, size, self.n_codes)
            images = None if links.images is None else linked[links.images].flatten(0, 1)
            own = guided(
                own,
                linked[links.alone].flatten(0, 1),
                images,
                _part(links.guide, repeat),
                largest_k=links.largest_k,
            )
        choice = _part(group.image, repeat)
        ids = self.hashed_ids[: self.n_codes]
        return self._pick(own, None, choice, index.flatten(), ids, group.needs).view_as(index)

    def _guess(
        self,
        window: SpeculationWindow,
        codes_left: Int[Tensor, " B"],
        settled: Int[Tensor, " B"],
        drawn: Int[Tensor, "B W"],
    ) -> None:
        """Guess the next codes: what was drawn beyond the settled ones, else the code above."""
        done = self.automaton.codes_per_image - codes_left
        last = window.drawn.shape[1] - 1
        ahead = torch.arange(drawn.shape[1], device=drawn.device)
        places = (done[:, None] + ahead).clamp(max=last)
        window.drawn.scatter_(1, places, drawn)
        next_places = done[:, None] + settled[:, None] + ahead[:-1]
        above = (next_places - window.width).clamp(min=0, max=last)
        known = next_places < done[:, None] + drawn.shape[1]
        source = torch.where(known, next_places.clamp(max=last), above)
        window.guesses.copy_(window.drawn.gather(1, source))


def _part(columns: Columns, rows: Any) -> Columns:
    """Return some rows of a dataclass of tensors."""
    names = [field.name for field in fields(columns)]  # type: ignore[arg-type]
    return type(columns)(*(getattr(columns, name)[rows] for name in names))


def _chosen_by(condition: Tensor, a: Columns, b: Columns) -> Columns:
    """Return rows of one dataclass of tensors where the condition holds, else of another."""
    names = [field.name for field in fields(a)]  # type: ignore[arg-type]
    return type(a)(*(torch.where(condition, getattr(a, n), getattr(b, n)) for n in names))


def _joined(a: Columns, b: Columns) -> Columns:
    """Return the rows of two dataclasses of tensors, one after the other."""
    names = [field.name for field in fields(a)]  # type: ignore[arg-type]
    return type(a)(*(torch.cat([getattr(a, n), getattr(b, n)]) for n in names))
