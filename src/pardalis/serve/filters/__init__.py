"""Filters judge what clients send and what the model answers.

A filter is a function that returns None, which lets something pass, or why it is refused::

    def request_filter(document: Document) -> str | None     # the prompt, its images decoded
    def answer_filter(part: str | PIL.Image.Image) -> str | None     # a whole text, or an image
"""

from pardalis.serve.filters.judge import Judge, Refusal
from pardalis.serve.filters.names import BUILT_IN, AnswerFilter, Filters, Part, RequestFilter

__all__ = [
    "BUILT_IN",
    "AnswerFilter",
    "Filters",
    "Judge",
    "Part",
    "Refusal",
    "RequestFilter",
]
