"""Comparison with peers: the fixture ``compare`` and a table of the largest differences.

A test takes the fixture ``compare``::

    def test_logits(compare):
        compare("decoder, reordered norms", "logits", ours, theirs, atol=1e-5)
        compare("text tokenizer, Chameleon's", "ids", our_ids, their_ids)  # no bound: equal

``pytest tests/parity`` ends with a table of the largest difference of each (comparison, what);
``--parity-table PATH`` writes it as Markdown too. Calls with the same two names share one line.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

_COLUMNS = ("comparison", "what", "largest difference", "of values up to", "bound")


@dataclass
class Line:
    """The result of one (comparison, what)."""

    difference: float = 0.0  # largest absolute difference
    size: float | None = None  # largest absolute value of the peer; None: not numeric
    bound: float = 0.0  # largest difference allowed; 0: equal

    def cells(self) -> tuple[str, str, str]:
        size = "" if self.size is None else f"{self.size:.3g}"
        if self.bound == 0:
            return "equal" if self.difference == 0 else "NOT EQUAL", size, "equal"
        return f"{self.difference:.1e}", size, f"{self.bound:.1e}"


_ROWS = pytest.StashKey[dict[tuple[str, str], Line]]()


@pytest.fixture(scope="session")
def compare(pytestconfig) -> Callable[..., None]:
    """Assert that ours is close to a peer's, and record the difference.

    ``compare(name, what, ours, theirs, *, atol=0.0, rtol=0.0)``: ``name`` is the peer and
    the case, ``what`` the result. Tensors and arrays may differ by ``atol + rtol * |theirs|``, by
    default by nothing; shapes and dtypes are always equal. Anything else (ids in lists, text) is
    compared by ``==``. A difference is recorded before it fails the test.
    """
    rows = pytestconfig.stash.setdefault(_ROWS, {})

    def compare(
        name: str, what: str, ours: Any, theirs: Any, *, atol: float = 0.0, rtol: float = 0.0
    ) -> None:
        row = rows.setdefault((name, what), Line())
        if not isinstance(ours, torch.Tensor | np.ndarray):
            row.difference = max(row.difference, float(ours != theirs))
            assert ours == theirs, f"{name}: {what}"
            return
        ours, theirs = (torch.as_tensor(values).detach() for values in (ours, theirs))
        if ours.shape == theirs.shape and ours.numel():
            size = theirs.double().abs().max().item()
            difference = (ours.double() - theirs.double()).abs().max().item()
            row.size = max(row.size or 0.0, size)
            row.bound = max(row.bound, atol + rtol * size)
            # a NaN must not be lost in max()
            row.difference = (
                difference if difference != difference else max(row.difference, difference)
            )
        torch.testing.assert_close(
            ours, theirs, atol=atol, rtol=rtol, msg=lambda text: f"{name}: {what}: {text}"
        )

    return compare


def pytest_addoption(parser):
    parser.addoption(
        "--parity-table",
        type=Path,
        metavar="PATH",
        help="write the largest difference of each comparison with a peer as a Markdown table",
    )


def pytest_sessionfinish(session):
    """Send the rows of a worker process to the process that prints them."""
    if hasattr(session.config, "workeroutput"):
        rows = session.config.stash.get(_ROWS, {})
        session.config.workeroutput["parity"] = [[*key, asdict(rows[key])] for key in rows]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    rows = node.config.stash.setdefault(_ROWS, {})
    for name, what, row in getattr(node, "workeroutput", {}).get("parity", []):
        rows[name, what] = Line(**row)


def pytest_terminal_summary(terminalreporter, config):
    rows = config.stash.get(_ROWS, {})
    if not rows:
        return
    lines = [_COLUMNS, *((*key, *rows[key].cells()) for key in sorted(rows))]
    widths = [max(len(line[i]) for line in lines) for i in range(len(_COLUMNS))]
    terminalreporter.section("largest difference per comparison")
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        terminalreporter.write_line("  ".join(cells).rstrip())
    # The option is unknown in a run that starts above this folder.
    path = config.getoption("parity_table", default=None)
    if path is not None:
        lines.insert(1, ("---", "---", "---:", "---:", "---:"))
        path.write_text("".join(f"| {' | '.join(line)} |\n" for line in lines))
