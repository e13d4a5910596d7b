"""What a page shows: its fenced blocks, and the commands inside its sentences, in order."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

_PROGRAM = r"(?:(?:\.venv/bin/)?(?:pardalis|python|pip|torchrun)|make|docker|serve)"
_COMMAND = re.compile(rf"{_PROGRAM} ")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(rf"(?<!`)`({_PROGRAM} [^`]+)`")
_COMMENT = re.compile(rf"^# +({_PROGRAM} .+)$", re.MULTILINE)  # a line of a recipe's header


@dataclass(frozen=True)
class Shown:
    """A fenced block, whose language may be empty, or a command of a sentence or a comment."""

    page: str
    line: int
    kind: str  # "block", "inline" or "comment"
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """The commands of a block that holds nothing else, one a line; else none."""
        lines = [x for x in self.text.replace("\\\n", " ").splitlines() if x.strip()]
        is_all = self.language in ("", "bash", "sh") and all(map(_COMMAND.match, lines))
        return lines if is_all else []


def shown(path: Path, root: Path) -> list[Shown]:
    """Return what a page of Markdown or the header of a recipe shows, in its order."""
    text, page = path.read_text(), str(path.relative_to(root))
    found: list[tuple[int, str, str, str]] = []
    if path.suffix == ".toml":
        header = re.match(r"(?:#.*\n)+", text)
        matches = _COMMENT.finditer(header[0] if header else "")
        found += [(match.start(), "comment", "", match[1]) for match in matches]
    else:
        found += [(m.start(), "block", m[1], m[2]) for m in _FENCE.finditer(text)]
        n_fences = len(re.findall(r"^\s*(?:```|~~~)", text, re.MULTILINE))
        assert n_fences == 2 * len(found), f"{page} has a fence that is not read"
        prose = _FENCE.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)
        for match in _INLINE.finditer(prose):
            found.append((match.start(), "inline", "", " ".join(match[1].split())))
    return [
        Shown(page, text.count("\n", 0, start) + 1, kind, language, content)
        for start, kind, language, content in sorted(found)
    ]


def arguments(command: str) -> list[str]:
    """Split a command as bash does: with its quotes, its ``$'...'`` and its comments."""
    script = f"printf '%s\\0' {command}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    return done.stdout.split("\0")[:-1]
