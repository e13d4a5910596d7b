"""From jobs to batches: what the device is told about the rows that decode together."""

from math import isqrt

import torch

from pardalis.inference.automaton import NO_LIMIT, RowLimits
from pardalis.inference.guidance import Guide, largest_k
from pardalis.inference.sampling import Choice, Needs
from pardalis.inference.scheduler import ScheduledRequest, TokenSequence
from pardalis.inference.steps import DecodeBatch, Group, Kind, Lanes, Links, SpeculationWindow
from pardalis.tokens import Grammar, Phase, Rule


class BatchBuilder:
    """Puts batches together, and keeps the last one while its rows stay the same."""

    def __init__(self, grammar: Grammar, lanes: Lanes) -> None:
        self.grammar, self.lanes = grammar, lanes
        self.device = lanes.states.device
        self._in_lane: dict[int, TokenSequence] = {}  # whose state each lane holds
        self._last: tuple[object, DecodeBatch | None] = (
            None,
            None,
        )  # what it was made of, and the batch

    def ordered(self, jobs: list[ScheduledRequest], n_ids: int) -> list[ScheduledRequest]:
        """Return jobs so that those that write the same kind of ids stand side by side."""
        return sorted(jobs, key=lambda job: (kind_of(job, n_ids), job.key))

    def of(self, jobs: list[ScheduledRequest], n_ids: int, window: int) -> DecodeBatch:
        """Return the rows that decode as a batch, the former one if it was made of the same."""
        kinds = [Kind.CODES if window > 1 else kind_of(job, n_ids) for job in jobs]
        inside = window > 1 or all(job.state.codes_left >= n_ids for job in jobs)
        streams = main_then_linked(jobs)
        lanes = [stream.lane for stream in streams]
        made_of = (streams, lanes, kinds, [job.state.images for job in jobs], window, inside)
        if self._last[0] == made_of and self._last[1] is not None:
            return self._last[1]
        for job in jobs:
            for stream in job.streams:
                self._enter_lane(job, stream)
        groups = []
        for kind in Kind:
            if n := kinds.count(kind):
                first = kinds.index(kind)
                rows = slice(first, first + n)
                groups.append(self._group(kind, rows, jobs[rows]))
        batch = DecodeBatch(
            torch.tensor(lanes, device=self.device),
            self._limits(jobs),
            groups,
            inside,
            self._links(jobs),
            self._first_guesses(jobs, window) if window > 1 else None,
        )
        self._last = made_of, batch
        return batch

    def _first_guesses(self, jobs: list[ScheduledRequest], window: int) -> SpeculationWindow:
        """Begin to guess: every code is as the one above it, or as the last one."""
        n_codes, first_code = self.grammar.codes_per_image, self.grammar.vocabulary.image.start
        width = isqrt(n_codes)
        lines, guesses = [], []
        for job in jobs:
            done = n_codes - job.state.codes_left
            line = job.main.ids[len(job.main.ids) - done :] if done else []
            for place in range(done, n_codes + window):
                line.append(line[place - width] if place >= width else first_code)
            lines.append(line)
            guesses.append(line[done : done + window - 1])
        device = self.device
        return SpeculationWindow(
            width, torch.tensor(lines, device=device), torch.tensor(guesses, device=device)
        )

    def _enter_lane(self, job: ScheduledRequest, stream: TokenSequence) -> None:
        if self._in_lane.get(stream.lane) is stream:
            return
        # A lane that the stream had before holds what is out of date.
        self._in_lane = {lane: s for lane, s in self._in_lane.items() if s is not stream}
        self._in_lane[stream.lane] = stream
        state = job.state
        self.lanes.write(
            stream.lane,
            {
                "phase": state.phase,
                "codes_left": state.codes_left,
                "images": state.images,
                "turns": state.turns,
                "budget": state.budget or 0,
                "last": stream.ids[-1],
                "column": len(stream.ids) - 1,
            },
        )

    def _limits(self, jobs: list[ScheduledRequest]) -> RowLimits:
        def column(values: list[int]) -> torch.Tensor:
            return torch.tensor(values, device=self.device)

        limits = [job.request.limits for job in jobs]
        most = [NO_LIMIT if x.max_images is None else x.max_images for x in limits]
        return RowLimits(
            text=column([int(x.text) for x in limits]),
            max_images=column(most),
            one_turn=column([int(x.one_turn) for x in limits]),
            guided=column([int(job.guided) for job in jobs]),
            attached=column([job.state.images if job.linked else -1 for job in jobs]),
        )

    def _group(self, kind: Kind, rows: slice, jobs: list[ScheduledRequest]) -> Group:
        seeds = [job.request.seed for job in jobs]
        text = [job.request.text for job in jobs]
        image = [job.request.image for job in jobs]
        used = {Kind.TEXT: text, Kind.CODES: image, Kind.ANY: [*text, *image]}[kind]
        return Group(
            kind,
            rows,
            Choice.of(text, seeds, self.device),
            Choice.of(image, seeds, self.device),
            Needs.of(used),
        )

    def _links(self, jobs: list[ScheduledRequest]) -> Links | None:
        """Return which linked rows belong to which main row, None if there are no linked rows."""
        leader: list[int] = []
        alone, images = [], []
        for number, job in enumerate(jobs):
            alone.append(len(leader) if job.linked else 0)
            images.append(len(leader) + len(job.linked) - 1 if job.linked else 0)
            leader += [number] * len(job.linked)
        if not leader:
            return None
        guides = [job.request.guidance if job.linked else None for job in jobs]
        return Links(
            torch.tensor(leader, device=self.device),
            torch.tensor(alone, device=self.device),
            torch.tensor(images, device=self.device) if images != alone else None,
            Guide.of(guides, self.device),
            largest_k(guides),
        )


def kind_of(job: ScheduledRequest, n_ids: int) -> Kind:
    """Return what a job's row may come to write among its next ids."""
    ends = job.state.codes_left + 1 if job.state.phase is Phase.IMAGE else 0
    if ends >= n_ids or not job.request.limits.text:
        return Kind.CODES
    if job.rule is Rule.TEXT or job.rule is Rule.EOS:
        return Kind.TEXT  # a row that may not open an image now never may
    return Kind.ANY


def main_then_linked(jobs: list[ScheduledRequest]) -> list[TokenSequence]:
    return [job.main for job in jobs] + [stream for job in jobs for stream in job.linked]
