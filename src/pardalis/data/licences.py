"""The licences of sources as a table for readers."""

from collections.abc import Sequence

NOT_STATED = "not stated"

Stated = tuple[str, str, str]
"""A source, its licence, and the attribution that it asks for."""


def licence_table(name: str, sources: Sequence[Stated]) -> str:
    """Return Markdown: the licences of the sources of something with a name."""
    rows = [("source", "licence", "attribution"), ("---",) * 3, *sources]
    table = "\n".join("| " + " | ".join(map(_cell, row)) + " |" for row in rows)
    return f"# Licences of the sources of {_cell(name)}\n\n{table}\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
