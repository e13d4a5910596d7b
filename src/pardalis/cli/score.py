"""``pardalis score``: how likely given texts are, and whether questions are answered right."""

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pardalis.cli.common import (
    Commands,
    add_adapters,
    add_bundle,
    add_command,
    add_dtype,
    chosen_adapters,
    chosen_dtype,
    print_result,
    set_run,
)
from pardalis.errors import DataError, PardalisError, RequestError

if TYPE_CHECKING:
    from pardalis.documents import Document, Rejection
    from pardalis.inference import Score
    from pardalis.inference.prompt_lines import Line

_ANSWER_TOKENS = 48  # token budget of an answer

_DESCRIPTION = """\
Print the log-probability of the continuation on each line of a JSONL file, and whether it is what
the model would generate by taking the most likely token each time.

  {"prompt": "The capital of France is", "continuation": " Paris"}
  {"prompt": [{"image": "owl.png"}, "What is this?"], "continuation": "an owl"}
  {"prompt": "owl", "continuation": {"image": "owl.png"}}

The probabilities are those of the model's softmax over its whole vocabulary. --json prints those of
all tokens, too. Lines with the same prompt are best kept together.

The lines may also be documents, as the reader jsonl takes them, each a continuation of nothing. If
all continuations are texts, the last line has the bits per byte of all together.

  {"segments": [{"text": "Owls are birds of prey."}]}

Or they are questions, which the model answers as in a conversation with a user, always with the
most likely token. An answer is right if its first sentence has one of the given texts.

  {"prompt": "What is the capital of France?", "answers": ["Paris"]}
"""


def add(commands: Commands) -> None:
    parser = add_command(commands, "score", "score given texts, or answers", _DESCRIPTION)
    add_bundle(parser)
    parser.add_argument(
        "file", metavar="FILE", type=Path, help="JSONL file of continuations, documents, questions"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default: cpu)")
    add_dtype(parser)
    add_adapters(parser, "the first one is used")
    set_run(parser, _run)


def _run(options: argparse.Namespace) -> None:
    from pardalis.inference.prompt_lines import json_or_none, read_lines

    path = options.file
    if path.suffix != ".jsonl":
        raise RequestError(f"A file of continuations is a .jsonl file, got {path}.")
    lines = read_lines(path)
    first = json_or_none(lines[0].content.encode())
    keys = first.keys() if isinstance(first, dict) else ()
    if "answers" in keys:
        _answer(options, lines)
    else:
        _score(options, lines, is_of_documents="segments" in keys)


def _score(options: argparse.Namespace, lines: Sequence["Line"], *, is_of_documents: bool) -> None:
    from pardalis import load, score
    from pardalis.documents import Document, read_jsonl
    from pardalis.inference import ScoreRequest, to_document, to_score_requests
    from pardalis.inference.prompt_lines import parse_continuation

    path = options.file
    places: list[str] = []
    continuations: list[Document] = []

    def pairs() -> Iterator[tuple[Any, Document]]:
        documents = read_jsonl(path) if is_of_documents else iter(())
        for line in lines:
            places.append(f"{path.name}:{line.number}")
            prompt: Any = Document(())
            if is_of_documents:
                continuations.append(_plain(next(documents)))
            else:
                prompt, parts = parse_continuation(line, path)
                continuations.append(to_document(parts))
            yield prompt, continuations[-1]

    requests: list[ScoreRequest] = []
    bundle = load(options.bundle, options.device, chosen_dtype(options))
    adapters = chosen_adapters(options)
    try:
        requests.extend(to_score_requests(bundle, pairs(), next(iter(adapters), None)))
    except PardalisError as error:
        raise RequestError(f"{places[-1]}: {error}") from error
    scores = score(bundle, requests, adapters=adapters)
    n_bytes = [_bytes(continuation) for continuation in continuations]
    print_result(
        options,
        [
            {"log_prob": s.log_prob, "greedy": s.greedy, "log_probs": s.log_probs, "bytes": n}
            for s, n in zip(scores, n_bytes, strict=True)
        ],
        *(
            f"{s.log_prob:.4f} in {len(s.log_probs)} tokens{', greedy' if s.greedy else ''}"
            for s in scores
        ),
        *_bits_per_byte(scores, n_bytes),
    )


def _plain(item: "Document | Rejection") -> "Document":
    """Return a document of a file that can be scored as a whole."""
    from pardalis.documents import Rejection

    if isinstance(item, Rejection):
        raise DataError(item.reason)
    if any(segment.role for segment in item.segments):
        raise RequestError(
            "The document is a conversation, which cannot be scored as a whole; give its turns as "
            '"prompt" and "continuation".'
        )
    return item


def _bytes(continuation: "Document") -> int | None:
    """Return the length of a text in UTF-8; None: there is an image in it."""
    return None if continuation.images else len(continuation.text.encode())


def _bits_per_byte(scores: Sequence["Score"], n_bytes: Sequence[int | None]) -> Iterator[str]:
    """Yield what all continuations cost together, if all are texts."""
    counts = [n for n in n_bytes if n is not None]
    if len(counts) == len(n_bytes):
        bits = -math.fsum(score.log_prob for score in scores) / math.log(2)
        n_tokens = sum(len(score.log_probs) for score in scores)
        yield (
            f"{bits / sum(counts):.4f} bits per byte: {len(counts):,} texts, {sum(counts):,} "
            f"bytes, {n_tokens:,} tokens"
        )


def _answer(options: argparse.Namespace, lines: Sequence["Line"]) -> None:
    from pardalis import load
    from pardalis.evaluate.answers import first_sentence, is_right
    from pardalis.inference import GenerationConfig, generate_many
    from pardalis.inference.prompt_lines import parse_question

    def located(line: "Line", error: PardalisError) -> RequestError:
        return RequestError(f"{options.file.name}:{line.number}: {error}")

    questions = []
    for line in lines:
        try:
            questions.append(parse_question(line, options.file))
        except PardalisError as error:
            raise located(line, error) from error
    bundle = load(options.bundle, options.device, chosen_dtype(options))
    adapters = chosen_adapters(options)
    config = GenerationConfig(
        mode="text",
        chat=True,
        temperature=0.0,
        max_new_tokens=_ANSWER_TOKENS,
        adapter=next(iter(adapters), None),
    )
    prompts = [prompt for prompt, _ in questions]
    results = []
    found = generate_many(bundle, prompts, config, errors="return", adapters=adapters)
    for line, (_, accepted), answer in zip(lines, questions, found, strict=True):
        if isinstance(answer, PardalisError):
            raise located(line, answer) from answer
        results.append((answer.text, is_right(answer.text, accepted)))
    print_result(
        options,
        [{"answer": text, "is_right": right} for text, right in results],
        *(f"{'right' if right else 'wrong'}: {first_sentence(text)}" for text, right in results),
        f"{sum(right for _, right in results)} of {len(results)} answers are right",
    )
