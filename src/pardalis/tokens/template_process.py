"""Rendering of chat templates, limited in time, memory and length of the text.

A template is a program that came with a model. No list of forbidden operations bounds it: strings
grow by ``*``, ``~``, filters, formats and methods. So it runs in a process of its own
(``template_worker.py``), whose limits the kernel keeps. The process starts at the first
conversation (0.1 s), renders all that follow, and ends with the object.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pardalis.errors import BundleError, TemplateError
from pardalis.files import parse_json

SECONDS = 5  # of processor time, for the renderings of one conversation
MEMORY = 2**30  # bytes
CHARACTERS = 2**24  # of one rendered text
_LONGEST_LINE = 2**29  # bytes: a few texts, each of whose characters may be escaped
_WORKER = Path(__file__).with_name("template_worker.py")  # not imported: only it needs Jinja


class TemplateProcess:
    """Renders one template; safe to share between threads, and to keep over a fork."""

    def __init__(self, source: str) -> None:
        self.source = source
        self._lock = threading.Lock()
        self._worker: subprocess.Popen[bytes] | None = None
        self._end: weakref.finalize[Any, Any] | None = None
        self._starter = 0  # id of the process that started the worker

    def __reduce__(self) -> Any:
        return type(self), (self.source,)

    def render(self, calls: Sequence[dict[str, Any]]) -> list[str | TemplateError]:
        """Return the text of each call, or why the template does not give one.

        Args:
            calls: the variables of the template, as plain values.

        Raises:
            BundleError: the template is no template, or takes too much time.
        """
        with self._lock:
            answers = self._answers(calls)
        if isinstance(answers, dict):
            raise BundleError(
                f"The chat template cannot be read: {answers['broken']}. Correct it, or leave it "
                "out."
            )
        return [
            answer["text"]
            if "text" in answer
            else TemplateError(
                f"The chat template does not take this conversation: {answer['error']}."
            )
            for answer in answers
        ]

    def _answers(self, calls: Sequence[dict[str, Any]]) -> Any:
        line = b""
        try:
            worker = self._started()
            assert worker.stdin is not None and worker.stdout is not None
            with suppress(BrokenPipeError):
                worker.stdin.write(json.dumps(calls).encode() + b"\n")
                worker.stdin.flush()
                line = worker.stdout.readline(_LONGEST_LINE)
        finally:
            # An answer that was not read whole would be taken for that of the next conversation.
            code = None if line.endswith(b"\n") else self._stop()
        if code is None:
            return parse_json(line)
        if code == -signal.SIGPROF:
            raise BundleError(
                f"The chat template takes more than {SECONDS} s for one conversation; correct it."
            )
        raise BundleError(
            f"The process that renders the chat template failed (code {code}); is the template "
            "nested too deeply?"
        )

    def _started(self) -> "subprocess.Popen[bytes]":
        if self._starter != os.getpid():  # none yet, or this process is a fork
            self._stop()
        if self._worker is None:
            self._worker = subprocess.Popen(
                # -P: the program's folder is no place to import from
                [sys.executable, "-P", str(_WORKER), *map(str, (SECONDS, MEMORY, CHARACTERS))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C in a terminal does not reach it
            )
            self._starter = os.getpid()
            self._end = weakref.finalize(self, _stop, self._worker, self._starter)
            assert self._worker.stdin is not None
            with suppress(BrokenPipeError):
                self._worker.stdin.write(json.dumps(self.source).encode() + b"\n")
        return self._worker

    def _stop(self) -> int:
        """End the worker; return its exit code, 0 if there was none."""
        code = self._end() if self._end is not None else 0
        self._worker = self._end = None
        return code or 0


def _stop(worker: "subprocess.Popen[bytes]", starter: int) -> int:
    for pipe in (worker.stdin, worker.stdout):
        if pipe is not None:
            with suppress(OSError):  # what was not written is lost
                pipe.close()
    if os.getpid() != starter:  # a fork has copies of the pipes, but the worker is its parent's
        worker.returncode = 0
        return 0
    try:
        return worker.wait(timeout=1)  # it ends when its input does
    except subprocess.TimeoutExpired:
        worker.kill()
        return worker.wait()
