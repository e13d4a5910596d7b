"""A token loop that runs the reference loop and returns its tokens one by one."""

import copy
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from pardalis.adapters import Adapter, merge
from pardalis.errors import QueueFullError
from pardalis.inference.config import EngineConfig
from pardalis.inference.reference import generate_reference
from pardalis.inference.request import Request
from pardalis.inference.token_loop import FinishReason, LoopStatistics, Progress
from pardalis.model import Decoder
from pardalis.tokens import Grammar


@dataclass
class _Completion:
    remaining: deque[int]
    reason: FinishReason
    paused: bool = False


class NaiveLoop:
    """Stands in for :class:`pardalis.inference.TokenLoop`; a step is one token per request."""

    def __init__(
        self,
        model: Decoder,
        grammar: Grammar,
        config: EngineConfig,
        adapters: Mapping[str, Adapter] | None = None,
    ) -> None:
        self.grammar, self.config = grammar, config
        self.models = {None: model} | {
            name: merge(copy.deepcopy(model), adapter) for name, adapter in (adapters or {}).items()
        }
        self.statistics = LoopStatistics()
        self.open: dict[int, _Completion] = {}
        self.n_submitted = 0

    def submit(self, request: Request, priority: int = 0) -> int:
        if len(self.open) >= self.config.max_slots + self.config.max_waiting:
            raise QueueFullError(
                f"{self.config.max_waiting} requests wait already; try again later."
            )
        ids = generate_reference(self.models[request.adapter], self.grammar, request)
        self.n_submitted += 1
        self.open[self.n_submitted] = _Completion(deque(ids), self._reason(request, ids))
        return self.n_submitted

    def _reason(self, request: Request, ids: list[int]) -> FinishReason:
        if not request.limits.text:
            return "images"
        if request.limits.one_turn and ids[-1] == self.grammar.vocabulary.end_turn_id:
            return "turn"
        return "length" if len(ids) == request.limits.max_new_tokens else "eos"

    def abort(self, key: int) -> None:
        if key in self.open:
            self.open[key] = _Completion(deque(), "aborted")

    def pause(self, key: int, paused: bool) -> None:
        if key in self.open:
            self.open[key].paused = paused

    @property
    def idle(self) -> bool:
        return all(completion.paused for completion in self.open.values())

    def step(self) -> list[Progress]:
        done = []
        for key, completion in list(self.open.items()):
            if completion.paused:
                continue
            ids = [completion.remaining.popleft()] if completion.remaining else []
            self.statistics.generated_tokens += len(ids)
            if completion.remaining:
                done.append(Progress(key, ids))
            else:
                done.append(Progress(key, ids, completion.reason))
                del self.open[key]
        self.statistics.passes += 1
        return done
