"""``pardalis chat``: a conversation of texts and images, in a terminal or by lines of a pipe."""

import argparse
import json
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pardalis.cli.common import (
    Commands,
    add_adapters,
    add_bundle,
    add_command,
    add_placement,
    chosen_adapters,
    chosen_dtype,
    printable,
    set_run,
)
from pardalis.cli.generate import add_options, config_of
from pardalis.cli.retrieval import add_retriever, chosen_retriever
from pardalis.errors import PardalisError, RequestError

if TYPE_CHECKING:
    from rich.console import Console

    from pardalis.documents import Document, Segment
    from pardalis.inference import Engine, GenerationConfig, Request, Response
    from pardalis.retrieval import Retrieved

_DESCRIPTION = """\
Talk with a model, in turns of texts and images. A word of a line that is the path of an image file
is that image; a path with spaces is quoted, as terminals do with a dropped file.

  pardalis chat BUNDLE
  pardalis chat BUNDLE --system "Be brief." --temperature 0.8
  pardalis chat BUNDLE --json < questions.txt

Generated images are saved in the folder --images, and shown where the terminal can. Ctrl-C stops
the answer, Ctrl-D ends. Conversations are written as the model's chat template says.
"""

_HELP = """\
/image PATH    add an image to the next message
/system TEXT   set what the system says first; without TEXT, nothing
/undo          take back the last message and its answer
/retry         answer the last message again
/reset         begin a new conversation
/seed N        set the random seed
/save FILE     write the conversation: FILE.html, FILE.md or FILE.jsonl (training data)
/help          this list
/quit          end, as Ctrl-D does
A message that begins with a slash is written with two."""

# A word of a line: in quotes, or with backslashes before its spaces.
_WORD = re.compile(r"""(?<!\S)(?:'[^']*'|"[^"]*"|(?:\\.|[^\s\\])+)""")
_RESERVE = 4  # one part of the context in this many is kept for the answer


def add(commands: Commands) -> None:
    parser = add_command(commands, "chat", "talk with a model in a terminal", _DESCRIPTION)
    add_bundle(parser)
    parser.add_argument("--system", default="", metavar="TEXT", help="what the system says first")
    parser.add_argument(
        "--images", type=Path, default=Path("chat-images"), metavar="FOLDER",
        help="folder of generated images (default: chat-images)",
    )  # fmt: skip
    group = parser.add_argument_group("what to generate and how to sample it")
    add_options(group, without=("chat", "logprobs"))
    add_adapters(group, "the first one is used")
    add_retriever(parser.add_argument_group("what is retrieved for each message"))
    group = parser.add_argument_group("memory and speed")
    add_placement(group)
    set_run(parser, _run)
    parser.set_defaults(one_line=True)  # of JSON for each event, so for a failure too


def _run(options: argparse.Namespace) -> None:
    from pardalis import load
    from pardalis.documents.document import is_unicode
    from pardalis.inference import Engine, EngineConfig

    if not is_unicode(options.system):
        raise RequestError("system is not UTF-8 text.")
    config, retriever = replace(config_of(options), chat=True), chosen_retriever(options)
    bundle = load(options.bundle, options.device, chosen_dtype(options))
    slots = 3 if config.guidance_method else 1
    engine_config = EngineConfig(
        max_slots=slots, quantum_steps=bundle.model.context, weights=options.weights
    )
    out = _Output(options.stdout, options.json)
    adapters = chosen_adapters(options)
    with Engine(bundle, engine_config, adapters=adapters, retriever=retriever) as engine:
        chat = Chat(engine, config, out, options.images, options.system)
        for line in _lines(out):
            chat.say(line)
            if chat.ended:
                break
    if chat.n_failed and not out.is_interactive:
        lines = "line" if chat.n_failed == 1 else "lines"
        raise RequestError(f"{chat.n_failed} {lines} failed; see the messages before this one.")


def _lines(out: "_Output") -> Iterator[str]:
    """Yield the lines of the user, from a terminal with editing, until the input ends."""
    reconfigure = getattr(sys.stdin, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="surrogateescape")
    if not out.is_interactive:
        for line in sys.stdin:
            yield line.rstrip("\r\n")
        return
    with suppress(ImportError):
        import readline  # noqa: F401  # lends its editing and history to input()
    out.note("/help lists the commands; Ctrl-C stops an answer, Ctrl-D ends.")
    while True:
        try:
            yield input("> ")
        except KeyboardInterrupt:
            sys.stdout.write("\n")
        except EOFError:
            sys.stdout.write("\n")
            return


@dataclass(slots=True)
class _Exchange:
    message: "list[Segment]"
    answer: "list[Segment]" = field(default_factory=list)


class Chat:
    """A conversation, and what each line of the user does to it.

    Attributes:
        ended: whether the user has ended it.
        n_failed: lines that were refused.
    """

    def __init__(
        self,
        engine: "Engine",
        config: "GenerationConfig",
        out: "_Output",
        images: Path,
        system: str = "",
    ) -> None:
        self.engine, self.config, self.out, self.images = engine, config, out, images
        self.system = system
        self.ended, self.n_failed = False, 0
        self._exchanges: list[_Exchange] = []
        self._pending: list[Segment] = []  # images of the next message
        self._first = 0  # the first exchange that fits in the context
        self._n_answers = 0  # with the seed, decides what is sampled

    def say(self, line: str) -> None:
        """Do what a line says: a command, or a message, which is answered.

        What is wrong with it is told in a sentence, and leaves the conversation as it was.
        """
        try:
            name, _, argument = line.strip().partition(" ")
            command = self._commands.get(name)
            if command is not None:
                command(argument.strip())
            elif not line.startswith("//") and line.startswith("/") and not _has_image(line):
                raise RequestError(
                    f"There is no command {name!r}; /help lists them, and a message that begins "
                    "with a slash is written with two."
                )
            elif line.strip() or self._pending:
                self._message(line[1:] if line.startswith("//") else line)
        except PardalisError as error:
            self.n_failed += 1
            self.out.error(error)

    # ── commands ───────────────────────────────────────────────────────────────────────────────

    @cached_property
    def _commands(self) -> dict[str, Callable[[str], None]]:
        return {
            "/help": lambda _: self.out.note(_HELP),
            "/reset": lambda _: self._reset(),
            "/undo": lambda _: self._undo(),
            "/retry": lambda _: self._retry(),
            "/system": self._set_system,
            "/image": self._add_image,
            "/save": self._save,
            "/seed": self._set_seed,
            "/quit": lambda _: setattr(self, "ended", True),
        }

    def _reset(self) -> None:
        self._exchanges, self._pending, self._first = [], [], 0
        self.out.note("A new conversation.")

    def _undo(self) -> None:
        if not self._exchanges and not self._pending:
            raise RequestError("There is nothing to take back.")
        if self._pending:
            self._pending = []
        else:
            self._exchanges.pop()
        self._first = 0
        self.out.note(f"Taken back; the conversation has {len(self._exchanges)} messages.")

    def _retry(self) -> None:
        if not self._exchanges:
            raise RequestError("There is no message to answer again.")
        self._answer(self._exchanges[-1].message)

    def _set_system(self, text: str) -> None:
        self.system = _unicode(text)
        self.out.note(f"The system says: {text}" if text else "The system says nothing.")

    def _add_image(self, argument: str) -> None:
        from pardalis.documents import Image, open_image

        path = _path(argument)
        if not path.is_file():
            raise RequestError(f"No image at {str(path)!r}; /image needs the path of a file.")
        open_image(path)  # says at once what is wrong with it
        self._pending.append(Image(path, role="user"))
        self.out.note(f"{path} comes with the next message.")

    def _set_seed(self, argument: str) -> None:
        if not re.fullmatch(r"[0-9]{1,9}", argument):
            raise RequestError(f"/seed needs a whole number of at most 9 digits, got {argument!r}.")
        self.config, self._n_answers = replace(self.config, seed=int(argument)), 0
        self.out.note(f"The seed is {argument}.")

    def _save(self, argument: str) -> None:
        from pardalis.documents import to_html, to_markdown, write_jsonl
        from pardalis.files import write_text

        path, document = _path(argument), self._document(0)
        if path.suffix not in (".html", ".md", ".jsonl"):
            raise RequestError(f"/save needs the name of a .html, .md or .jsonl, got {argument!r}.")
        if path.exists():
            raise RequestError(f"{path} exists; choose another name.")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".jsonl":
                write_jsonl([document], path, path.parent / f"{path.stem}-images")
            elif path.suffix == ".md":
                write_text(path, to_markdown(document, path.parent))
            else:
                write_text(path, to_html(document))
        except OSError as error:
            raise RequestError(f"{path} cannot be written: {error.strerror or error}.") from error
        self.out.note(f"Written to {path}.")

    # ── messages ───────────────────────────────────────────────────────────────────────────────

    def _message(self, line: str) -> None:
        message = [*self._pending, *_segments(line)]
        self._answer(message, is_new=True)
        self._pending = []

    def _answer(self, message: "list[Segment]", is_new: bool = False) -> None:
        before = self._exchanges if is_new else self._exchanges[:-1]
        request, first = self._request([*before, _Exchange(message)])
        if first > self._first:
            self.out.note(
                f"The first {first} messages with their answers no longer fit in the model's "
                f"context of {self.engine.bundle.model.context:,} tokens, and are left out."
            )
        response = self._generate(request)
        answer = [replace(segment, role="assistant") for segment in response.segments]
        self._exchanges = [*before, _Exchange(message, answer)]
        self._first = first
        self._n_answers += 1

    def _request(self, exchanges: list[_Exchange]) -> "tuple[Request, int]":
        """Return the request of the last exchange, and the first that has room in it."""
        from pardalis.inference import to_request

        bundle = self.engine.bundle
        context = bundle.model.context
        reserve = min(self.config.max_new_tokens or context, context // _RESERVE)
        for first in range(self._first, len(exchanges)):
            is_last = first == len(exchanges) - 1
            document = self._document(first, exchanges)
            try:
                request = to_request(
                    bundle, document, self.config, number=self._n_answers,
                    retriever=self.engine.retriever,
                )  # fmt: skip
            except RequestError:
                if is_last:
                    raise
                continue
            if is_last or len(request.prompt_ids) + reserve <= context:
                return request, first
        raise AssertionError  # there is a last one

    def _document(self, first: int, exchanges: list[_Exchange] | None = None) -> "Document":
        from pardalis.documents import Document, Text

        every = self._exchanges if exchanges is None else exchanges
        system = [Text(self.system, "system")] if self.system else []
        said = [s for each in every[first:] for s in (*each.message, *each.answer)]
        return Document((*system, *said))

    def _generate(self, request: "Request") -> "Response":
        """Return the answer to a request, shown while it is generated; Ctrl-C ends it early."""
        from pardalis.inference import DocumentsRetrieved, ImageBegun, ImageDone, TextDelta

        completion = self.engine.submit_request(request)
        with _noticing_interrupts() as interrupts:
            while not self.engine.idle:
                if interrupts:
                    completion.abort()
                for event in self.engine.step():  # part of a long prompt gives none
                    match event:
                        case DocumentsRetrieved(documents=documents):
                            self.out.retrieved(documents)
                        case TextDelta(text=text):
                            self.out.text(text)
                        case ImageBegun():
                            self.out.image_begun()
                        case ImageDone(image=image):
                            self.out.image(image, self._store(image))
        response = completion.wait()
        self.out.answered(response)
        return response

    def _store(self, image: Any) -> Path:
        """Save an image under the first free number."""
        self.images.mkdir(parents=True, exist_ok=True)
        number = 1
        while (path := self.images / f"{number:04}.png").exists():
            number += 1
        image.save(path)
        return path


@contextmanager
def _noticing_interrupts() -> Iterator[list[int]]:
    """Yield a list that grows with each Ctrl-C, in place of an exception within a step."""
    interrupts: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: interrupts.append(number))
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)


# ── lines ────────────────────────────────────────────────────────────────────────────────────────


def _segments(line: str) -> "list[Segment]":
    """Return the texts and images of a line."""
    from pardalis.documents import Image, Text

    segments: list[Segment] = []
    last = 0
    for start, stop, path in _images(line):
        if text := line[last:start].strip():
            segments.append(Text(_unicode(text), "user"))
        segments.append(Image(path, role="user"))
        last = stop
    if text := line[last:].strip() if last else line:
        segments.append(Text(_unicode(text), "user"))
    return segments


def _images(line: str) -> Iterator[tuple[int, int, Path]]:
    """Yield where the words that name image files stand in a line; marks may follow a name."""
    from pardalis.documents.readers.folder import image_suffixes

    for word in _WORD.finditer(line):
        named = word[0].rstrip("?!.,;:)")
        path = _path(named)
        try:
            if path.suffix.lower() in image_suffixes() and path.is_file():
                yield word.start(), word.start() + len(named), path
        except (OSError, ValueError):  # no name of a file
            continue


def _has_image(line: str) -> bool:
    return any(start == 0 for start, _, _ in _images(line))


def _path(argument: str) -> Path:
    """Return the path that a shell would read: in quotes, or with backslashes."""
    argument = argument.strip()
    if len(argument) > 1 and argument[0] == argument[-1] and argument[0] in "'\"":
        return Path(argument[1:-1])
    path = Path(re.sub(r"\\(.)", r"\1", argument))
    return path.expanduser() if argument.startswith("~/") else path


def _unicode(text: str) -> str:
    from pardalis.documents.document import is_unicode

    if not is_unicode(text):
        raise RequestError(
            f"The line {text[:40]!a} is not in the encoding {sys.stdin.encoding!r} of the "
            "input; convert it."
        )
    return text


# ── output ───────────────────────────────────────────────────────────────────────────────────────


class _Output:
    """Shows what happens: in a terminal, as plain text, or as one JSON object a line."""

    def __init__(self, stdout: Any, as_json: bool) -> None:
        self.stdout, self.as_json = stdout, as_json
        self._stored: list[str] = []  # images of this answer
        self._at_start = True  # of a line

    @cached_property
    def is_interactive(self) -> bool:
        return not self.as_json and sys.stdin.isatty() and self.stdout.isatty()

    @cached_property
    def _console(self) -> "Console":
        from rich.console import Console

        return Console(file=self.stdout, highlight=False)

    def retrieved(self, documents: "Sequence[Retrieved]") -> None:
        if self.as_json:
            self._event("retrieved", documents=[asdict(each) for each in documents])
            return
        for each in documents:
            self.note(
                f"Retrieved by {each.by}, score {each.score:.2f}: {printable(each.name)} "
                f"({printable(each.source)})."
            )

    def text(self, text: str) -> None:
        if self.as_json:
            self._event("text", text=text)
        else:
            self._write(printable(text) if self.stdout.isatty() else text)

    def image_begun(self) -> None:
        if self.as_json:
            self._event("image_begun")
        elif self.is_interactive:
            self._write_line("")
            self._console.print("an image ...", style="dim")

    def image(self, image: Any, path: Path) -> None:
        self._stored.append(str(path))
        if self.as_json:
            self._event("image", path=str(path))
            return
        if self.is_interactive:
            from pardalis.cli.terminal import protocol_of, show_image

            show_image(self._console, image, protocol_of(self._console))
        self._write_line(f"[{path}]")

    def answered(self, response: "Response") -> None:
        if self.as_json:
            self._event(
                "answer",
                text=response.text,
                images=self._stored,
                reason=response.reason,
                usage=asdict(response.usage),
            )
        else:
            self._write_line("")
        self._stored = []
        if response.truncated:
            self.note(f"The answer is cut at {response.usage.completion_tokens} tokens.")
        elif response.reason == "aborted":
            self.note("Stopped.")

    def note(self, text: str) -> None:
        if self.as_json:
            self._event("note", text=text)
        elif self.is_interactive:
            self._console.print(text, style="dim", markup=False)
        else:
            sys.stderr.write(text + "\n")

    def error(self, error: PardalisError) -> None:
        if self.as_json:
            self._event("error", error=str(error), kind=error.kind)
        elif self.is_interactive:
            self._console.print(str(error), style="red", markup=False)
        else:
            sys.stderr.write(f"{error}\n")

    def _event(self, event: str, **values: Any) -> None:
        is_unicode = "utf" in (self.stdout.encoding or "utf-8").lower()
        self.stdout.write(
            json.dumps({"event": event, **values}, ensure_ascii=not is_unicode) + "\n"
        )
        self.stdout.flush()

    def _write(self, text: str) -> None:
        self.stdout.write(text)
        self.stdout.flush()
        self._at_start = text.endswith("\n")

    def _write_line(self, text: str) -> None:
        """Write a line of its own; an empty one only ends that which is begun."""
        before = "" if self._at_start else "\n"
        self._write(before + (text + "\n" if text else ""))
        self._at_start = True
