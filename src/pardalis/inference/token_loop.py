"""The token loop: requests in, ids out, with one device step after another in between."""

from dataclasses import dataclass
from typing import Literal

from pardalis.inference.config import EngineConfig
from pardalis.inference.request import Request
from pardalis.model import Decoder
from pardalis.tokens import Grammar

FinishReason = Literal[
    "eos",  # the model ended its answer
    "turn",  # it ended its turn of a conversation
    "pictures",  # every picture that was asked for is drawn
    "length",  # the room is used up
    "aborted",
]


@dataclass(frozen=True, slots=True)
class Progress:
    """What one step did for one request."""

    key: int  # of TokenLoop.submit
    ids: list[int]  # written since the last progress; may be empty
    finished: FinishReason | None = None


@dataclass(slots=True)
class LoopStatistics:
    """Counts since the loop was built."""

    passes: int = 0  # of the model over some rows
    prefilled_ids: int = 0  # prompt ids that were computed
    reused_ids: int = 0  # prompt ids whose keys and values were found in the cache
    written_ids: int = 0
    preempted: int = 0  # times a request gave its memory to another
    guessed: int = 0  # picture codes guessed ahead
    accepted: int = 0  # guesses that were right


class TokenLoop:
    """Answers many requests at once, id by id.

    Raises:
        RequestError: by :meth:`submit`: the limits leave no room for what they demand.
        GrammarError: by :meth:`submit`: a prompt is malformed.
    """

    def __init__(self, model: Decoder, grammar: Grammar, config: EngineConfig) -> None:
        self.model, self.grammar, self.config = model, grammar, config
        self.statistics = LoopStatistics()

    def submit(self, request: Request, priority: int = 0) -> int:
        """Add a request and return its key; a higher priority goes first."""
        raise NotImplementedError

    def abort(self, key: int) -> None:
        """End a request; its last progress says ``aborted``. An unknown key is ignored."""
        raise NotImplementedError

    def pause(self, key: int, paused: bool) -> None:
        """Hold a request back, or let it go on; nothing of it is lost meanwhile."""
        raise NotImplementedError

    @property
    def idle(self) -> bool:
        """Whether no request is left that could go on."""
        raise NotImplementedError

    def step(self) -> list[Progress]:
        """Run the next passes of the model; return what they wrote."""
        raise NotImplementedError
