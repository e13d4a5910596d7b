"""Bundles as models of EleutherAI's lm-evaluation-harness, ``lm-eval``, and its command with them.

    python -m pardalis.evaluate.lm_eval --model pardalis --model_args bundle=BUNDLE --tasks arc_easy

takes all arguments of ``lm_eval``, which itself knows no models of other packages. In Python a
model is given as an object::

    lm_eval.simple_evaluate(model=PardalisLM("BUNDLE"), tasks=["arc_easy"])

Context and continuation are tokenized together and split where the context's own tokens end, and
what does not fit is cut off at the left, as the harness does with models of transformers. Three
things differ from those: an opening bos stays when a context is cut, and is context of each window
of a long document; it is never predicted; and a window ends one token earlier, because the last
token of a continuation counts towards the context.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import torch

from pardalis.bundle import Bundle, load
from pardalis.documents import Document, Text
from pardalis.errors import ConfigError, PardalisError, RequestError
from pardalis.files import parse_json
from pardalis.imports import optional_package
from pardalis.inference import (
    Completion,
    GenerationConfig,
    KeptEngine,
    Request,
    Score,
    ScoreRequest,
    to_document,
    to_request,
)
from pardalis.inference.adapters import open_adapters
from pardalis.progress import bar

with optional_package("lm-eval's models", "lm-eval"):
    import lm_eval.models  # noqa: F401  # registers its own models, which it leaves out after ours
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

_WINDOW = 256  # requests that run together
_ADAPTER = "adapter"  # its name in the engine
_DTYPES = {"stored": None, "float32": torch.float32, "bfloat16": torch.bfloat16}

Instances: TypeAlias = Sequence[Any]
"""Requests of the harness; ``args`` of each holds what its method takes."""


class _Conversation(str):
    """A conversation where the harness expects a text: the messages as JSON."""


@register_model("pardalis")
class PardalisLM(LM):
    """A bundle, as the harness asks it.

    Args:
        bundle: what :func:`pardalis.load` returns, or the path of a bundle or of a run.
        adapter: the folder of an adapter of the bundle's model; default: none.
        dtype: ``stored``, ``float32`` or ``bfloat16``, for a bundle that is a path.
        device: the same; default: cpu.
        max_gen_toks: tokens to generate where a task does not say how many.
        seed: of generations that sample.
        batch_size, max_batch_size: what the harness always gives; the engine batches by itself.

    Raises:
        ConfigError: the dtype or the device is unknown.
        BundleError: there is no bundle at the path, or the adapter is another model's.
    """

    def __init__(
        self,
        bundle: Bundle | Path | str,
        adapter: Path | str | None = None,
        dtype: str = "stored",
        device: str | None = None,
        max_gen_toks: int = 256,
        seed: int = 0,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if dtype not in _DTYPES:
            raise ConfigError(f"dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}.")
        if not isinstance(bundle, Bundle):
            bundle = load(bundle, device or "cpu", _DTYPES[dtype])
        self.bundle = bundle
        self.adapters = open_adapters(self.bundle, {} if adapter is None else {_ADAPTER: adapter})
        self.engine = KeptEngine(self.bundle, self.adapters)
        self.adapter = None if adapter is None else _ADAPTER
        self.max_gen_toks, self.seed = max_gen_toks, seed

    # ── what the harness asks ──────────────────────────────────────────────────────────────────

    def loglikelihood(self, requests: Instances) -> list[tuple[float, bool]]:
        """Return the log-probability of each continuation, and whether it is the most likely one.

        Args:
            requests: each with a context and a continuation.

        Raises:
            RequestError: a continuation has no tokens, or fills the context alone.
        """
        encoded = [self._score_request(*self._encode(*request.args)) for request in requests]
        results = []
        for request, score in zip(requests, self._scores(encoded), strict=True):
            results.append((score.log_prob, score.greedy))
            self.cache_hook.add_partial("loglikelihood", request.args, results[-1])
        return results

    def loglikelihood_rolling(self, requests: Instances) -> list[float]:
        """Return the log-probability of each text; a long one is read in windows.

        Args:
            requests: each with a text.
        """
        encoded = [list(self._windows(request.args[0])) for request in requests]
        scores = iter(self._scores([window for windows in encoded for window in windows]))
        results = []
        for request, windows in zip(requests, encoded, strict=True):
            results.append(sum(next(scores).log_prob for _ in windows))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, results[-1])
        return results

    def generate_until(self, requests: Instances) -> list[str]:
        """Return the continuation of each context, up to the first of its stops.

        Args:
            requests: each with a context and options: ``until``, ``max_gen_toks``, ``do_sample``,
                ``temperature``, ``top_p``, ``top_k`` and other fields of ``GenerationConfig``.

        Raises:
            RequestError: an option is unknown or wrong, or leaves no room for the context.
        """
        encoded = [self._request(number, *each.args) for number, each in enumerate(requests)]
        results = []
        completions = self._complete("generating", encoded)
        for request, completion in zip(requests, completions, strict=True):
            results.append(completion.wait().text)
            self.cache_hook.add_partial("generate_until", request.args, results[-1])
        return results

    # ── conversations ──────────────────────────────────────────────────────────────────────────

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return a conversation, which the bundle's own template writes when it is encoded.

        A last turn of the assistant's, which the task begins, stays open if there is a template.
        """
        return _Conversation(json.dumps(chat_history))

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Return the source of the bundle's template; empty if it has none."""
        template = self.bundle.codec.chat_template
        return "" if template is None else template.source

    @property
    def tokenizer_name(self) -> str:
        """What identifies the tokenizer and the template in the harness's caches."""
        return self.bundle.codec.fingerprint

    # ── tokens ─────────────────────────────────────────────────────────────────────────────────

    def _prompt_ids(self, context: str) -> list[int]:
        if isinstance(context, _Conversation):
            return self.bundle.codec.encode_prompt(to_document(parse_json(context)))
        return self.bundle.codec.encode_prompt(_document(context))

    def _encode(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Return the ids of a context and of its continuation."""
        if isinstance(context, _Conversation):
            after = self.bundle.codec.encode_continuation(_document(continuation))
            return self._prompt_ids(context), after
        stripped = context.rstrip()  # spaces belong to the word that follows them
        if not stripped:
            after = self.bundle.codec.encode_continuation(_document(context + continuation))
            return self._prompt_ids(""), after
        whole = self._prompt_ids(context + continuation)
        prompt_ids = self._prompt_ids(stripped)
        return prompt_ids, whole[len(prompt_ids) :]

    def _score_request(self, prompt_ids: Sequence[int], after: Sequence[int]) -> ScoreRequest:
        """Cut a prompt at the left so that its continuation fits."""
        room = self.bundle.model.context - len(after)
        return ScoreRequest(
            prompt_ids=tuple(self._last(prompt_ids, room)),
            continuation_ids=tuple(after),
            adapter=self.adapter,
        )

    def _last(self, prompt_ids: Sequence[int], room: int) -> list[int]:
        """Return the opening of a prompt and its last ids, together at most ``room``."""
        n = self.bundle.codec.grammar.opening_length(prompt_ids)
        if room <= n:
            raise RequestError(
                f"The context of the model has {self.bundle.model.context} tokens, which leaves no "
                "room for a prompt before what is scored or generated; shorten that "
                "(`max_gen_toks`, for what is generated)."
            )
        rest = prompt_ids[n:]
        return [*prompt_ids[:n], *rest[max(0, len(rest) - (room - n)) :]]

    def _windows(self, text: str) -> Iterator[ScoreRequest]:
        """Yield the windows of a text; all its tokens are predicted once."""
        codec = self.bundle.codec
        opening = codec.grammar.opening
        begin = self._prompt_ids("")
        most = self.bundle.model.context - len(begin) - len(opening)
        ids = codec.encode_continuation(_document(text))
        for number, pair in enumerate(get_rolling_token_windows(ids, begin[-1], most, 1)):
            before, predicted = make_disjoint_window(pair)
            yield self._score_request([*opening, *before] if number else begin, predicted)

    def _request(self, number: int, context: str, options: Mapping[str, Any]) -> Request:
        values = dict(normalize_gen_kwargs(dict(options), self.max_gen_toks))
        if not values.pop("do_sample"):
            values["temperature"] = 0.0
        config = GenerationConfig(mode="text", adapter=self.adapter, seed=self.seed).with_options(
            {
                "stop": [text for text in values.pop("until") if text],
                "max_new_tokens": values.pop("max_gen_toks") + 1,  # and eos
                **values,
            }
        )
        assert config.max_new_tokens is not None
        room = self.bundle.model.context - config.max_new_tokens
        prompt_ids = self._last(self._prompt_ids(context), room)
        request = to_request(self.bundle, [], config, number=number)
        limits = replace(
            request.limits,
            max_new_tokens=config.max_new_tokens,
            one_turn=isinstance(context, _Conversation),
        )
        return replace(request, prompt_ids=tuple(prompt_ids), limits=limits)

    # ── the engine ─────────────────────────────────────────────────────────────────────────────

    def _scores(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        completions = self._complete("scoring", requests)
        return [Score.of(completion.log_probs) for completion in completions]

    def _complete(
        self, what: str, requests: Sequence[Request] | Sequence[ScoreRequest]
    ) -> Iterator[Completion]:
        with bar(what, len(requests), "requests") as advance:
            for start in range(0, len(requests), _WINDOW):
                done = self.engine.complete(requests[start : start + _WINDOW])
                yield from done
                advance(len(done))


def _document(text: str) -> Document:
    return Document((Text(text),) if text else ())


def main() -> int:
    """Run the command of the harness, which now knows the model ``pardalis``."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except PardalisError as error:
        sys.stderr.write(f"pardalis: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
