"""The token loop: continuous batching of requests, with decoding steps on the device."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Literal

import torch

from pardalis.adapters import Adapter
from pardalis.errors import ConfigError, RequestError
from pardalis.inference.adapters import LoadedAdapters
from pardalis.inference.automaton import Automaton
from pardalis.inference.batches import BatchBuilder, head_slice_of, in_batch_order
from pardalis.inference.cache import PagedCache, PassLayout, SequencePart
from pardalis.inference.config import EngineConfig
from pardalis.inference.log_probs import TokenLogProb
from pardalis.inference.native.library import Library
from pardalis.inference.native.steps import NativeSteps, library_for
from pardalis.inference.request import Request, ScoreRequest
from pardalis.inference.scheduler import PassPlan, ScheduledRequest, Scheduler, TokenSequence
from pardalis.inference.speculation import WindowPolicy
from pardalis.inference.steps import (
    SCORED_TOP,
    DecodeBatch,
    Generated,
    SlotStates,
    StepRunner,
)
from pardalis.inference.weights import Head, packed
from pardalis.model import LanguageModel
from pardalis.tokens import Grammar, Phase, Rule

# Tokens up to which a pass is bound by reading the weights, so that more cost little.
_MEMORY_BOUND_TOKENS = {"cpu": 16, "cuda": 128}

FinishReason = Literal[
    "eos",  # the model generated eos
    "turn",  # the model ended its turn of a conversation
    "gap",  # the model ended the content of a mask
    "images",  # max_images images are complete, in a request without text
    "length",  # the token budget is used up
    "stop",  # the text has reached a stop string; from the engine, which knows text
    "scored",  # the continuation of a ScoreRequest has its log-probabilities
    "aborted",
]


@dataclass(frozen=True, slots=True)
class Progress:
    """What one call of :meth:`TokenLoop.step` did for one request."""

    key: int  # from TokenLoop.submit
    ids: list[int]  # tokens generated or scored since the last progress; may be empty
    finished: FinishReason | None = None
    log_probs: Sequence[TokenLogProb] = ()  # of these tokens, if the request asks for them


@dataclass(slots=True)
class LoopStatistics:
    """Counts since the loop was created."""

    passes: int = 0  # forward passes of the model
    prefilled_tokens: int = 0  # prompt tokens that were computed
    reused_tokens: int = 0  # prompt tokens whose keys and values were found in the cache
    generated_tokens: int = 0
    peak_sequences: int = 0  # most sequences decoded in one pass, guidance sequences included
    preempted: int = 0  # times a request lost its pages to another
    guessed: int = 0  # speculated image codes
    accepted: int = 0  # speculated image codes that were right


class TokenLoop:
    """Generates and scores tokens for many requests at once.

    Raises:
        RequestError: by :meth:`submit`: the request can never run.
        QueueFullError: by :meth:`submit`: too many requests wait already.
        GrammarError: by :meth:`submit`: a prompt is malformed.
        ConfigError: the device has not enough memory for the cache.
    """

    def __init__(
        self,
        model: LanguageModel,
        grammar: Grammar,
        config: EngineConfig,
        adapters: Mapping[str, Adapter] | None = None,
    ) -> None:
        self.grammar, self.config = grammar, config
        self.device = model.device
        context, page_size = model.context, config.page_size
        n_tokens = config.cache_tokens or config.max_slots * (context + page_size)
        n_pages = 1 + n_tokens // page_size
        library = self._library(model, bool(adapters))
        self.cache = _cache(model, n_pages, page_size, library)
        self._n_positions = min(context, n_pages * page_size)
        self.windows = WindowPolicy(
            config.speculation_window,
            _MEMORY_BOUND_TOKENS[self.device.type],
            grammar.codes_per_image,
        )
        on_gpu = self.device.type == "cuda"
        self.overlap = on_gpu if config.overlap is None else config.overlap
        self.adapters = LoadedAdapters(adapters or {}, model) if adapters else None
        names = self.adapters.names if self.adapters else ()
        self.scheduler = Scheduler(
            config, n_pages, grammar, context, self.windows.largest, 1 + self.overlap, names
        )
        self.slots = SlotStates(config.max_slots, self.device)
        self.batches = BatchBuilder(grammar, self.slots)
        self.automaton = Automaton(grammar, self.device)
        model_, head, native = self._prepared(model, library)
        self.runner = StepRunner(
            model_, head, self.automaton, self.slots, config.compile, self.adapters, native
        )
        self.statistics = LoopStatistics()
        self._layout = _layout(model)
        self._requests: dict[int, ScheduledRequest] = {}
        self._aborted: list[int] = []
        self._in_flight: _StepsInFlight | None = None
        self._last_sync = 0.0  # time of perf_counter

    def _library(self, model: LanguageModel, adapters: bool) -> Library | None:
        """Return the library that decodes with a model, if one can."""
        if not self.config.native or self.config.compile or self.device.type != "cpu":
            return None
        return library_for(model, adapters)

    def _prepared(
        self, model: LanguageModel, library: Library | None
    ) -> tuple[LanguageModel, Head, NativeSteps | None]:
        """Return the model and its head as they decode fastest, and the steps in C++, if any."""
        weights = self.config.weights
        copy = packed(model, weights, self.adapters, self._n_positions, library)
        embedding = getattr(copy, "embedding", None)
        head = Head(model, self.grammar, weights, self.adapters, library, embedding)
        if library is None:
            return copy, head, None
        return copy, head, NativeSteps(library, copy, head, self.automaton, self.slots)

    def reload(self, model: LanguageModel) -> None:
        """Take the weights of a model of the same config: the same module, changed, or another.

        What comes after equals, to the bit, what a new loop gives. Cached prefixes are dropped.

        Raises:
            RequestError: a request has not finished.
            ConfigError: the model has other sizes, another dtype or another device, or the loop has
                adapters, which are of its model.
        """
        if self.adapters:
            raise ConfigError(
                f"The adapters {', '.join(self.adapters.names)} are of the model that they were "
                "trained on; make a new engine for another one."
            )
        if self._requests:
            raise RequestError(
                f"{len(self._requests)} requests have not finished, and the model cannot change "
                "before that; read them to their end or abort them, then call `reload` again."
            )
        layout = _layout(model)
        for name in [*self._layout, *layout]:
            found, needed = layout.get(name), self._layout.get(name)
            if found != needed:
                raise ConfigError(
                    f"The new model differs in {name}: {found}, where the loop was made for "
                    f"{needed}; make a new loop for it."
                )
        self._in_flight = None  # steps of requests that were aborted meanwhile
        library = self._library(model, bool(self.adapters))
        self.runner.reload(*self._prepared(model, library))
        self.scheduler.pool.forget_prefixes()
        if self.cache.dtype == _cache_dtype(model, library):
            self.cache.clear()
        else:
            self.cache = _cache(model, self.cache.n_pages, self.cache.page_size, library)

    def submit(self, request: Request | ScoreRequest, priority: int = 0) -> int:
        """Add a request and return its key; a higher priority goes first.

        The continuation of a :class:`ScoreRequest` comes as the progress of its tokens, with their
        log-probabilities. Its prompt and those of other requests are computed once, as far as they
        have whole cache pages in common.
        """
        scheduled = self.scheduler.submit(request, priority)
        self._requests[scheduled.key] = scheduled
        return scheduled.key

    def abort(self, key: int) -> None:
        """End a request; its last progress says ``aborted``. An unknown key is ignored."""
        if scheduled := self._requests.pop(key, None):
            self.scheduler.finish(scheduled)
            self._aborted.append(key)

    def pause(self, key: int, paused: bool) -> None:
        """Pause or resume a request, without loss. An unknown key is ignored."""
        if scheduled := self._requests.get(key):
            self.scheduler.pause(scheduled, paused)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do until a request is submitted or resumed."""
        return self.scheduler.idle and not self._aborted and self._in_flight is None

    @property
    def keys(self) -> list[int]:
        """Keys of the requests that have not finished."""
        return list(self._requests)

    @torch.inference_mode()
    def step(self) -> list[Progress]:
        """Run the next passes of the model; return what they generated."""
        progress = [Progress(key, [], "aborted") for key in self._aborted]
        self._aborted.clear()
        if self._in_flight is not None:
            return progress + self._collect()
        plan = self.scheduler.plan()
        self.statistics.reused_tokens += plan.reused_tokens
        self.statistics.preempted += len(plan.preempted)
        if plan.prefill:
            progress += self._prefill(plan)
        elif plan.decode:
            self._in_flight = self._decode(plan)
            if not self.overlap:
                progress += self._collect()
        return progress

    def _decode(self, plan: PassPlan) -> "_StepsInFlight":
        window, steps = self._window(plan)
        n_tokens = window * steps
        requests = self.batches.order(plan.decode, n_tokens)
        batch = self.batches.build(requests, n_tokens, window)
        lengths = [len(sequence.ids) for sequence in in_batch_order(requests)]
        self.statistics.peak_sequences = max(self.statistics.peak_sequences, len(lengths))
        return self._launch(requests, batch, steps, lengths)

    def _launch(
        self, requests: list[ScheduledRequest], batch: DecodeBatch, steps: int, lengths: list[int]
    ) -> "_StepsInFlight":
        """Launch steps of a batch whose sequences have at most these lengths."""
        size, sequences = batch.window_size, in_batch_order(requests)
        lengths = [n + steps * size for n in lengths]
        parts = [
            SequencePart(s.pages, size, n, s.adapter)
            for s, n in zip(sequences, lengths, strict=True)
        ]
        start = time.perf_counter()
        generated = self.runner.decode(batch, PassLayout(self.cache, parts), steps).on_host()
        copied = None
        if self.device.type == "cuda":
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record()
        return _StepsInFlight(requests, sequences, batch, steps, lengths, generated, copied, start)

    def _collect(self) -> list[Progress]:
        """Read what the steps in flight generated, after launching the next ones if possible."""
        flight, following = self._in_flight, None
        assert flight is not None
        if self.overlap and self._can_continue(flight):
            following = self._launch(
                flight.requests, flight.batch, flight.steps, flight.max_lengths
            )
        self._in_flight = following
        if flight.copied is not None:
            flight.copied.synchronize()
        progress = self._progress(flight.requests, flight.generated)
        self.statistics.passes += flight.steps
        if flight.batch.inside_images:
            self._observe(flight, sum(len(p.ids) for p in progress))
        return progress

    def _can_continue(self, flight: "_StepsInFlight") -> bool:
        """Whether the same batch may run more steps before the last ones are read."""
        n_tokens = flight.steps * flight.batch.window_size
        unchanged = in_batch_order(flight.requests) == flight.sequences and all(
            r.key in self._requests
            and r.slots
            and head_slice_of(r, 2 * n_tokens) == head_slice_of(r, n_tokens)
            for r in flight.requests
        )
        if flight.batch.inside_images:
            unchanged &= all(r.state.codes_left >= 2 * n_tokens for r in flight.requests)
        has_pages = all(
            len(sequence.pages) * self.config.page_size >= length + n_tokens
            for sequence, length in zip(flight.sequences, flight.max_lengths, strict=True)
        )
        return unchanged and has_pages and not self.scheduler.has_waiting

    def _observe(self, flight: "_StepsInFlight", n_codes: int) -> None:
        """Record how many codes the passes of an image-only batch generated, and how fast."""
        window = flight.batch.window_size
        now = time.perf_counter()
        seconds = now - max(flight.start, self._last_sync)
        self._last_sync = now
        self.windows.observe(len(flight.batch.slots), window, flight.steps, n_codes, seconds)
        n_passes = flight.steps * len(flight.requests)
        self.statistics.guessed += n_passes * (window - 1)
        self.statistics.accepted += max(n_codes - n_passes, 0) if window > 1 else 0

    def _window(self, plan: PassPlan) -> tuple[int, int]:
        """Return the speculation window and the number of passes."""
        if any(len(r.conditional.ids) == len(r.request.prompt_ids) for r in plan.decode):
            return 1, 1  # the first token is returned at once
        codes_left = min(r.state.codes_left for r in plan.decode)
        n_sequences = sum(len(r.sequences) for r in plan.decode)
        if codes_left == 0:
            return 1, plan.steps
        window = self.windows.choose(n_sequences)
        inside = -(-codes_left // window)  # an open image has the pages of all its codes
        steps = plan.steps if window == 1 else min(plan.steps, inside)
        if self.config.steps_per_sync is None:
            steps = max(steps, min(self.windows.passes(n_sequences, window), inside))
        return window, steps

    def _prefill(self, plan: PassPlan) -> list[Progress]:
        """Read parts of prompts beside one decoding step."""
        requests = self.batches.order(plan.decode, 1)
        parts = [
            SequencePart(s.pages, 1, len(s.ids) + 1, s.adapter) for s in in_batch_order(requests)
        ]
        ids: list[int] = []
        positions: list[int] = []
        scored: list[int] = []
        next_ids: list[int] = []
        for sequence, n in plan.prefill:
            start, stop = sequence.computed, sequence.computed + n
            parts.append(SequencePart(sequence.pages, n, stop, sequence.adapter))
            ids += sequence.ids[start:stop]
            positions += range(start, stop)
            if sequence.unscored is not None:
                scored += range(len(ids) - stop + sequence.unscored, len(ids))
                next_ids += sequence.ids[sequence.unscored + 1 : stop + 1]
        batch = self.batches.build(requests, 1, 1) if requests else None
        layout = PassLayout(self.cache, parts)
        generated, scores = self.runner.prefill(batch, layout, ids, positions, scored, next_ids)
        self.statistics.passes += 1
        self.statistics.prefilled_tokens += len(ids)
        unscored = {s: s.unscored for s, _ in plan.prefill if s.unscored is not None}
        for sequence, n in plan.prefill:
            self.scheduler.record_prefill(sequence, n)
        progress = [] if generated is None else self._progress(requests, generated)
        if scores is not None:
            progress += self._scored(unscored, scores.tokens(0, next_ids, SCORED_TOP))
        return progress

    def _scored(
        self, unscored: dict[TokenSequence, int], tokens: Sequence[TokenLogProb]
    ) -> list[Progress]:
        """Share the scores of one pass among its sequences; finish those that are over.

        Args:
            unscored: the sequences in their order, with ``TokenSequence.unscored`` before the pass.
        """
        progress, rest = [], iter(tokens)
        requests = {r.conditional: r for r in self._requests.values()}
        for sequence, before in unscored.items():
            assert sequence.unscored is not None
            log_probs = list(islice(rest, sequence.unscored - before))
            if not log_probs:
                continue
            key = requests[sequence].key
            finished: FinishReason | None = None
            if sequence.ready:
                finished = "scored"
                self.scheduler.finish(self._requests.pop(key))
            ids = [token.token_id for token in log_probs]
            progress.append(Progress(key, ids, finished, log_probs))
        return progress

    def _progress(self, requests: list[ScheduledRequest], generated: Generated) -> list[Progress]:
        """Record generated tokens; finish the requests that are over."""
        progress, reported = [], count()
        for scheduled, padded in zip(requests, generated.ids.tolist(), strict=True):
            log_probs: Sequence[TokenLogProb] = ()
            if n_top := scheduled.request.logprobs:
                assert generated.log_probs is not None
                log_probs = generated.log_probs.tokens(next(reported), padded, n_top)
            if scheduled.key not in self._requests:  # aborted or finished during the steps
                continue
            ids = [token_id for token_id in padded if token_id >= 0]
            self.scheduler.record_tokens(scheduled, ids)
            self.statistics.generated_tokens += len(ids)
            finished: FinishReason | None = None
            if scheduled.rule is Rule.NOTHING:
                self.scheduler.finish(scheduled)
                del self._requests[scheduled.key]
                finished = _finish_reason(scheduled)
            progress.append(Progress(scheduled.key, ids, finished, log_probs))
        return progress


@dataclass(frozen=True, slots=True)
class _StepsInFlight:
    """Decoding steps that were launched and not yet read."""

    requests: list[ScheduledRequest]
    sequences: list[TokenSequence]  # in the order of the batch
    batch: DecodeBatch
    steps: int
    max_lengths: list[int]  # most tokens of each sequence after the steps
    generated: Generated  # on the host, once it is copied
    copied: torch.cuda.Event | None  # None: copied already
    start: float  # time of perf_counter


def _cache_dtype(model: LanguageModel, library: Library | None) -> torch.dtype:
    """Return the dtype of keys and values: the model's, but the library computes in 32 bits."""
    return model.head.weight.dtype if library is None else torch.float32


def _cache(
    model: LanguageModel, n_pages: int, page_size: int, library: Library | None
) -> PagedCache:
    """Make a cache; raises ConfigError if there is not enough memory for it."""
    spec, device, dtype = model.cache_spec(), model.device, _cache_dtype(model, library)
    try:
        return PagedCache(spec, n_pages, page_size, dtype, device)
    except (MemoryError, RuntimeError) as error:  # torch raises the second
        per_token = sum(2 * layer.n_kv_heads * layer.d_head for layer in spec)
        numbers = per_token * n_pages * page_size
        raise ConfigError(
            f"The keys and values of {n_pages * page_size} tokens take "
            f"{numbers * dtype.itemsize / 2**30:,.1f} GiB, which {device} does not have; lower "
            "`max_slots` or `cache_tokens`."
        ) from error


def _layout(model: LanguageModel) -> dict[str, object]:
    """Return everything that a model must have in common with one that takes its place."""
    tensors = {
        name: f"{tuple(x.shape)} {x.dtype} {x.device}" for name, x in model.state_dict().items()
    }
    return {"context": model.context, "the cache": model.cache_spec(), **tensors}


def _finish_reason(scheduled: ScheduledRequest) -> FinishReason:
    limits, state = scheduled.request.limits, scheduled.state
    if state.phase is Phase.DONE:
        return "eos" if state.budget else "length"  # the last token of the budget is always eos
    if state.turns and (limits.one_turn or limits.one_gap):
        return "gap" if limits.one_gap else "turn"
    return "length" if limits.text else "images"


def generate_ids(
    model: LanguageModel,
    grammar: Grammar,
    requests: Sequence[Request],
    config: EngineConfig | None = None,
    adapters: Mapping[str, Adapter] | None = None,
) -> list[list[int]]:
    """Run requests together; return the tokens that follow each prompt."""
    loop = TokenLoop(model, grammar, config or EngineConfig(max_waiting=len(requests)), adapters)
    completions: dict[int, list[int]] = {loop.submit(request): [] for request in requests}
    while not loop.idle:
        for progress in loop.step():
            completions[progress.key] += progress.ids
    return list(completions.values())
