"""All errors that a user can cause, as one small tree.

    PardalisError
    ├─ ConfigError         a recipe, an override or an option is wrong      exit 2
    ├─ DataError           a source, image, shard or manifest is wrong      exit 3
    │  └─ GrammarError     a token sequence breaks the grammar
    ├─ BundleError         a bundle or a checkpoint does not fit            exit 4
    ├─ TrainingError       a training run cannot continue                   exit 5
    └─ RequestError        a request that cannot be completed               exit 6
       └─ QueueFullError   too many requests wait already

A message says what was found, what was needed, where, and what to do, in one or two sentences. It
names Python arguments and recipe fields, never flags or commands: the same error reaches Python,
the command line and HTTP. The message of a config begins with the bare field name (``max_slots
must be at least 1``), and :func:`pardalis.config.from_dict` puts the field's place in front of it.
Elsewhere an argument, a function or a stage stands in backticks (```image_tokenizer```). The
command line replaces such names by its flags and commands.

Misuse of a function by a programmer stays a ``ValueError`` or ``TypeError``.
"""


class PardalisError(Exception):
    """Base of all errors that a user can cause; ``exit_code`` is what the command line returns."""

    exit_code = 1


class ConfigError(PardalisError):
    """A recipe, an override or an option is wrong."""

    exit_code = 2


class DataError(PardalisError):
    """A source, image, document, shard or manifest is wrong."""

    exit_code = 3


class GrammarError(DataError):
    """A token sequence breaks the grammar.

    Attributes:
        position: index of the first wrong token (the sequence's length when it ends too early).
    """

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.position = position


class BundleError(PardalisError):
    """A bundle or a checkpoint is incomplete, too new, or does not fit."""

    exit_code = 4


class TrainingError(PardalisError):
    """A training run cannot continue; its last good checkpoint is intact."""

    exit_code = 5


class RequestError(PardalisError):
    """A request that cannot be completed as it was made."""

    exit_code = 6


class QueueFullError(RequestError):
    """Too many requests wait already; the same request can be submitted again later."""
