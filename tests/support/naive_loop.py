"""A token loop that computes every answer by the naive loop and hands it out id by id."""

from collections import deque
from dataclasses import dataclass

from pardalis.errors import QueueFullError
from pardalis.inference.config import EngineConfig
from pardalis.inference.reference import generate_reference
from pardalis.inference.request import Request
from pardalis.inference.token_loop import FinishReason, LoopStatistics, Progress
from pardalis.model import Decoder
from pardalis.tokens import Grammar


@dataclass
class _Written:
    left: deque[int]
    reason: FinishReason
    paused: bool = False


class NaiveLoop:
    """What :class:`pardalis.inference.TokenLoop` does, with one id of each request a step."""

    def __init__(self, model: Decoder, grammar: Grammar, config: EngineConfig) -> None:
        self.model, self.grammar, self.config = model, grammar, config
        self.statistics = LoopStatistics()
        self.open: dict[int, _Written] = {}
        self.n_submitted = 0

    def submit(self, request: Request, priority: int = 0) -> int:
        if len(self.open) >= self.config.max_slots + self.config.max_waiting:
            raise QueueFullError(
                f"{self.config.max_waiting} requests wait already; try again later."
            )
        ids = generate_reference(self.model, self.grammar, request)
        self.n_submitted += 1
        self.open[self.n_submitted] = _Written(deque(ids), self._reason(request, ids))
        return self.n_submitted

    def _reason(self, request: Request, ids: list[int]) -> FinishReason:
        if not request.limits.text:
            return "images"
        if request.limits.one_turn and ids[-1] == self.grammar.vocabulary.end_turn_id:
            return "turn"
        return "length" if len(ids) == request.limits.max_new_tokens else "eos"

    def abort(self, key: int) -> None:
        if key in self.open:
            self.open[key] = _Written(deque(), "aborted")

    def pause(self, key: int, paused: bool) -> None:
        if key in self.open:
            self.open[key].paused = paused

    @property
    def idle(self) -> bool:
        return all(written.paused for written in self.open.values())

    def step(self) -> list[Progress]:
        done = []
        for key, written in list(self.open.items()):
            if written.paused:
                continue
            ids = [written.left.popleft()] if written.left else []
            self.statistics.generated_tokens += len(ids)
            if written.left:
                done.append(Progress(key, ids))
            else:
                done.append(Progress(key, ids, written.reason))
                del self.open[key]
        self.statistics.passes += 1
        return done
