import io
import logging
import sys

import pytest

from pardalis import progress


def test_plain_lines_off_a_terminal(caplog, monkeypatch):
    monkeypatch.setattr(progress, "_LINE_EVERY_S", 0.0)
    with (
        caplog.at_level(logging.INFO),
        progress.bar("Encoding", total=3, unit="images", done=1) as advance,
    ):
        advance(1, loss=0.12345)
        advance()
    assert caplog.messages[0].startswith("Encoding: 2/3 images")
    assert "loss 0.123" in caplog.messages[0]
    assert caplog.messages[-1].startswith("Encoding: 3/3 images")


def test_a_live_bar_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress.bar("Encoding", total=2, unit="images") as advance:
        advance(1, loss=0.5)
        advance(1)
    assert "Encoding" in terminal.getvalue()
    assert "2/2" in terminal.getvalue()
    assert "loss 0.5" in terminal.getvalue()


@pytest.mark.parametrize("columns", [80, 100, 140])
def test_numbers_are_whole_on_a_narrow_terminal(columns, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", str(columns))
    with progress.bar("Image tokenizer", total=130_000, done=25_000) as advance:
        advance(1, loss=1.25, rate=1.321)
    shown = terminal.getvalue()
    assert "25001/130000" in shown
    assert "rate 1.32" in shown
    assert "…" not in shown
