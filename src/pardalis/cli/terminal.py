"""What a terminal can show of images."""

import base64
import io
import os
from collections.abc import Mapping
from typing import Literal

import PIL.Image
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

Protocol = Literal["kitty", "iterm2", "blocks", "none"]

_COLUMNS = 40  # of a preview
_KITTY_CHUNK = 4096  # characters, the most that the protocol allows


def protocol_of(console: Console, environment: Mapping[str, str] = os.environ) -> Protocol:
    """Return how images are shown.

    Nothing is asked of the terminal, whose answer might come late and be taken for input: it has to
    name itself. Inside tmux and screen only coloured blocks pass.
    """
    if not console.is_terminal:
        return "none"
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if "TMUX" not in environment and not term.startswith(("screen", "tmux")):
        if "KITTY_WINDOW_ID" in environment or term == "xterm-kitty" or program == "ghostty":
            return "kitty"
        if program in ("iTerm.app", "WezTerm"):
            return "iterm2"
    has_colours = console.color_system in ("256", "truecolor")
    return "blocks" if has_colours and "utf" in console.encoding.lower() else "none"


def show_image(console: Console, image: PIL.Image.Image, protocol: Protocol) -> None:
    """Show an image below the cursor, if the terminal can."""
    if protocol == "blocks":
        console.print(as_blocks(image, min(_COLUMNS, console.width)))
    elif protocol != "none":
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        encode = _kitty if protocol == "kitty" else _iterm2
        console.file.write(encode(buffer.getvalue()) + "\n")
        console.file.flush()


def _kitty(png: bytes) -> str:
    """The terminal graphics protocol of kitty: transmit and display, in chunks."""
    content = base64.standard_b64encode(png).decode()
    chunks = [content[i : i + _KITTY_CHUNK] for i in range(0, len(content), _KITTY_CHUNK)]
    parts = []
    for number, chunk in enumerate(chunks, start=1):
        keys = ("f=100,a=T," if number == 1 else "") + f"m={int(number < len(chunks))}"
        parts.append(f"\x1b_G{keys};{chunk}\x1b\\")
    return "".join(parts)


def _iterm2(png: bytes) -> str:
    """The inline images protocol of iTerm2."""
    content = base64.standard_b64encode(png).decode()
    return f"\x1b]1337;File=inline=1;size={len(png)};preserveAspectRatio=1:{content}\x07"


def as_blocks(image: PIL.Image.Image, columns: int) -> Text:
    """Return a preview of coloured half blocks: each character is two pixels, one above another."""
    rows = max(1, round(columns * image.height / image.width / 2))
    small = image.convert("RGB").resize((columns, 2 * rows))
    text = Text(no_wrap=True, end="")
    for y in range(rows):
        for x in range(columns):
            upper, lower = (Color.from_rgb(*small.getpixel((x, 2 * y + half))) for half in (0, 1))
            text.append("\u2580", Style(color=upper, bgcolor=lower))
        text.append("\n")
    return text
