"""All errors that a user can cause, as one small tree, with the exit codes of the command line.

    PardalisError
    ├─ ConfigError         a recipe, an override or an option is wrong      exit 2
    │  └─ BusyError        another process works in the folder              exit 75
    ├─ DataError           a source, image, shard or manifest is wrong      exit 3
    │  ├─ GrammarError     a token sequence breaks the grammar
    │  ├─ TemplateError    a chat template does not take a conversation
    │  └─ TextError        a text tokenizer cannot encode or decode a text
    ├─ BundleError         a bundle or a checkpoint does not fit            exit 4
    ├─ TrainingError       a training run cannot continue                   exit 5
    │  ├─ Diverged         its loss or its state is not finite, or diverged
    │  └─ Interrupted      a signal stopped it; it can be resumed           exit 75
    └─ RequestError        a request that cannot be completed               exit 6
       └─ QueueFullError   too many requests wait already

Code 1 is any other failure (a full disk, a bug), and 130, 143 or 129 an interrupt by Ctrl-C,
SIGTERM or SIGHUP where nothing had to be saved. 75 is EX_TEMPFAIL of sysexits.h: the same command,
run again, continues.

A message says what was found, what was needed, where, and what to do, in one or two sentences. It
names Python arguments and recipe fields, never flags or commands: the same error reaches Python,
the command line and HTTP. The message of a config begins with the bare field name (``max_slots
must be at least 1``), and :func:`pardalis.config.from_dict` puts the field's place in front of it.
Elsewhere an argument, a function or a stage stands in backticks (```image_tokenizer```). The
command line replaces such names by its flags and commands.

Misuse of a function by a programmer stays a ``ValueError`` or ``TypeError``.
"""

from typing import ClassVar


class PardalisError(Exception):
    """Base of all errors that a user can cause.

    Attributes:
        exit_code: what the command line returns.
        kind: the name of the class of failures, for programs.
        hint: what to do about any failure of this kind; the message says it for this one.
    """

    exit_code: ClassVar[int] = 1
    kind: ClassVar[str] = "other"
    hint: ClassVar[str] = "Read the message."


class ConfigError(PardalisError):
    """A recipe, an override or an option is wrong."""

    exit_code = 2
    kind = "config"
    hint = "Correct the recipe or the option that the message names."


class BusyError(ConfigError):
    """Another process works in the same folder; the same command can be run when it has ended."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h
    kind = "busy"
    hint = "Run the same command again when the other process has ended."


class DataError(PardalisError):
    """A source, image, document, shard or manifest is wrong."""

    exit_code = 3
    kind = "data"
    hint = "Correct the documents or the files that the message names."


class GrammarError(DataError):
    """A token sequence breaks the grammar.

    Attributes:
        position: index of the first wrong token (the sequence's length when it ends too early).
    """

    kind = "grammar"

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.position = position


class TemplateError(DataError):
    """A chat template does not take a conversation."""

    kind = "template"


class TextError(DataError):
    """A text tokenizer cannot encode a text, or decode tokens."""

    kind = "text"


class BundleError(PardalisError):
    """A bundle or a checkpoint is incomplete, too new, or does not fit."""

    exit_code = 4
    kind = "bundle"
    hint = "Give a bundle or a checkpoint that is complete and fits."


class TrainingError(PardalisError):
    """A training run cannot continue; the checkpoints that it has saved are intact."""

    exit_code = 5
    kind = "training"
    hint = "Read the message before running the command again; checkpoints are intact, if any."


class RequestError(PardalisError):
    """A request that cannot be completed as it was made."""

    exit_code = 6
    kind = "request"
    hint = "Change the request as the message says."


class QueueFullError(RequestError):
    """Too many requests wait already; the same request can be submitted again later."""

    kind = "queue_full"
    hint = "Submit the same request again later."
