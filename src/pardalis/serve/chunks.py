"""What the two older endpoints of OpenAI write in the same way: completions, and their chunks."""

import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, TypeVar

from pardalis.inference import DocumentsRetrieved, Finished, Usage
from pardalis.serve.answer import Answer, Item, told
from pardalis.serve.endpoint import Writer
from pardalis.serve.errors import APIError
from pardalis.serve.event_stream import DONE, event
from pardalis.serve.filters import Refusal
from pardalis.serve.schema import ChunkedBody
from pardalis.serve.service import Service, new_id

B = TypeVar("B", bound=ChunkedBody)


class ChunkWriter(Writer[B]):
    """Writes answers as a completion, or as its chunks.

    Attributes:
        prefix: of ids.
        kinds: what a completion and a chunk call themselves.
    """

    prefix: ClassVar[str]
    kinds: ClassVar[tuple[str, str]]

    def __init__(self, service: Service, body: B, options: dict[str, Any]) -> None:
        super().__init__(service, body, options)
        self._head = {
            "id": new_id(self.prefix),
            "created": int(time.time()),
            "model": body.model,
            "seed": options["seed"],
        }
        self._used: list[Usage] = []
        self._refused: set[int] = set()

    @abstractmethod
    def choice(self, number: int, answer: Answer) -> dict[str, Any]:
        """Return a whole answer; :meth:`whole` adds why it ended."""

    @abstractmethod
    def parts(self, number: int, item: Item) -> Iterator[dict[str, Any]]:
        """Yield the choices of the chunks of an item; those of ``DocumentsRetrieved`` and of
        ``Finished`` are empty."""

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        choices = [self.choice(number, answer) for number, answer in enumerate(answers)]
        for choice, answer in zip(choices, answers, strict=True):
            choice["finish_reason"] = _reason(answer.finished, answer.refusal is not None)
        used = _usage([answer.usage for answer in answers])
        body = {**self._head, "object": self.kinds[0], "choices": choices, "usage": used}
        return body | told(answers[0].retrieved)

    def write(self, number: int, item: Item) -> Iterator[str]:
        reason, more = None, {}
        if isinstance(item, DocumentsRetrieved):
            more = told(item)
        elif isinstance(item, Refusal):
            self._refused.add(number)
        elif isinstance(item, Finished):
            self._used.append(item.usage)
            reason = _reason(item, number in self._refused)
        for part in self.parts(number, item):
            yield self.chunk([{**part, "finish_reason": reason}], **more)

    def end(self) -> Iterator[str]:
        if self.body.stream_options and self.body.stream_options.include_usage:
            yield self.chunk([], usage=_usage(self._used))
        yield DONE

    def failed(self, error: APIError) -> str:
        return event(error.body)

    def chunk(self, choices: list[dict[str, Any]], **more: Any) -> str:
        return event({**self._head, "object": self.kinds[1], "choices": choices, **more})


def _reason(finished: Finished | None, refused: bool) -> str:
    """Return why an answer has ended, in OpenAI's words, which have none for a failure."""
    if refused:
        return "content_filter"
    reasons = {"length": "length", "failed": "error"}
    return reasons.get(finished.reason if finished else "failed", "stop")


def _usage(used: Sequence[Usage]) -> dict[str, Any]:
    """Return the tokens of answers to one prompt, which counts once."""
    prompt = used[0].prompt_tokens if used else 0
    completion = sum(each.completion_tokens for each in used)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"image_tokens": used[0].prompt_image_tokens if used else 0},
        "completion_tokens_details": {
            "image_tokens": sum(each.completion_image_tokens for each in used)
        },
    }
