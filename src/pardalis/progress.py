"""Progress on stderr: a live bar on a terminal, a log line every ten seconds elsewhere."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

logger = logging.getLogger(__name__)

_LINE_EVERY_S = 10.0
_WIDE = 100  # columns of a terminal that has room for a bar

Advance = Callable[..., None]


@contextmanager
def bar(
    description: str, total: int, unit: str = "steps", done: int = 0, shown: bool = True
) -> Iterator[Advance]:
    """Yield ``advance(n=1, **fields)``, which adds work done and shows the fields beside the bar.

    Args:
        description: name of the work, shown first.
        total: amount of work, in ``unit``.
        unit: plural name of the unit of work.
        done: amount that was done before (a resumed run).
        shown: False if another process shows the progress.
    """
    if not shown:
        yield lambda n=1, **fields: None
    elif sys.stderr.isatty():
        with _live_bar(description, total, unit, done) as advance:
            yield advance
    else:
        yield _line_writer(description, total, unit, done)


@contextmanager
def _live_bar(description: str, total: int, unit: str, done: int) -> Iterator[Advance]:
    console = Console(stderr=True)
    is_wide = console.width >= _WIDE
    columns = (
        TextColumn("{task.description:<24}" if is_wide else "{task.description}"),
        *((BarColumn(),) if is_wide else ()),  # numbers say more where there is room for one only
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TextColumn(unit),
        TimeElapsedColumn(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[shown]}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(description, total=total, completed=done, shown="")

        def advance(n: int = 1, **fields: object) -> None:
            if fields:
                progress.update(task, advance=n, shown=_fields_text(fields))
            else:
                progress.update(task, advance=n)

        yield advance


def _line_writer(description: str, total: int, unit: str, done: int) -> Advance:
    start = last = time.monotonic()
    shown = ""

    def advance(n: int = 1, **fields: object) -> None:
        nonlocal done, last, shown
        done += n
        if fields:
            shown = _fields_text(fields)
        now = time.monotonic()
        if done >= total or now - last >= _LINE_EVERY_S:
            last = now
            logger.info(
                "%s: %d/%d %s, %.0f s  %s",
                description, done, total, unit, now - start, shown,
            )  # fmt: skip

    return advance


def _fields_text(fields: dict[str, object]) -> str:
    return "  ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in fields.items()
    )
