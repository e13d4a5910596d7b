"""Texts that somebody else has put into an image."""

_LONGEST = 200  # characters


def one_line(text: str) -> str:
    """Return the begin of a text on one line, so that it cannot pass for a line of our own."""
    return " ".join(text.split())[:_LONGEST]
