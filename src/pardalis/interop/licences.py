"""The terms of imported weights, which go with them."""

from pathlib import Path

_PATTERNS = ("LICENSE*", "LICENCE*", "USE_POLICY*", "NOTICE*")


def licences_of(*folders: Path) -> str:
    """Return the licence texts that lie in folders as one Markdown text, or say that none does."""
    found = {p for f in folders for pattern in _PATTERNS for p in f.glob(pattern)}
    paths = sorted(path for path in found if path.is_file())
    heading = f"# Weights imported from {folders[0].resolve().name}\n"
    if not paths:
        return heading + "\nNo licence lay beside them. Their terms are those of their source.\n"
    texts = [f"## {p.name}\n\n{p.read_text(errors='replace').strip()}\n" for p in paths]
    return "\n".join([heading, *texts])
