"""What the generating functions return: a document that knows how it came about."""

from dataclasses import dataclass

from pardalis.documents import Document, Text
from pardalis.documents.notebook import document_html, escaped
from pardalis.inference.events import Usage
from pardalis.inference.log_probs import TokenLogProb
from pardalis.inference.token_loop import FinishReason
from pardalis.retrieval import Retrieved

_SHOWN = 60  # characters of text in __repr__


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Response(Document):
    """A completion without its prompt: a document, with why it ended and what it used.

    It equals every document of the same segments, name and licence.
    """

    reason: FinishReason  # as docs/generate.md lists them
    usage: Usage
    log_probs: tuple[TokenLogProb, ...] = ()  # of all its tokens, if they were asked for
    # Of infilling, whose segments are the whole document: what was filled in for each mask.
    filled: tuple[Document, ...] = ()
    retrieved: tuple[Retrieved, ...] = ()  # documents that stood before the prompt, the best first

    @property
    def truncated(self) -> bool:
        """Whether the token budget ended it: ``max_new_tokens``, or the model's context."""
        return self.reason == "length"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Document):
            return NotImplemented
        return (self.segments, self.name, self.licence) == (
            other.segments,
            other.name,
            other.licence,
        )

    __hash__ = Document.__hash__

    def __repr__(self) -> str:
        text = "".join(s.text if isinstance(s, Text) else "[image]" for s in self.segments)
        shown = text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
        return f"<Response {shown!r}, {self._facts}>"

    def _repr_html_(self) -> str:
        return f"{document_html(self)}<small>{escaped(self._facts)}</small>"

    @property
    def _facts(self) -> str:
        ended = f"reason={self.reason!r}{', truncated' if self.truncated else ''}"
        return f"{ended}, {self.usage.prompt_tokens} + {self.usage.completion_tokens} tokens"
