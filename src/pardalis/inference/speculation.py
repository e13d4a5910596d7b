"""How many image codes to guess ahead: by what has paid so far.

Guessing never changes what is written, only how many passes it takes, so the choice may rest on the
clock: the window that settled most codes a second is used, and the others are tried now and then.
"""

from collections import defaultdict
from collections.abc import Sequence

WINDOWS = (1, 4, 8, 16, 32)
TRIAL = 32  # every so many choices another window is tried
KEPT = 0.8  # of an older rate, where a new one is observed


class WindowPolicy:
    """Chooses windows for passes of images.

    Args:
        fixed: the window to use always; None leaves the choice to what is observed.
        largest: window that can be of use: the codes of an image.
        most_rows: ids that a pass reads for about the price of one, since it waits for weights.
    """

    def __init__(self, fixed: int | None, most_rows: int, largest: int) -> None:
        self.fixed = None if fixed is None else min(fixed, largest)
        self.most_rows = most_rows
        self._sizes = [window for window in WINDOWS if window <= largest]
        self._rates: dict[int, dict[int, float]] = defaultdict(dict)  # by rows, then by window
        self._choices: dict[int, int] = defaultdict(int)

    @property
    def largest(self) -> int:
        """The largest window that can be chosen."""
        return self.fixed or max(self._windows(1))

    def choose(self, n_rows: int) -> int:
        """Return the window for a pass of so many rows, linked ones included."""
        if self.fixed is not None:
            return self.fixed
        windows, rates = self._windows(n_rows), self._rates[n_rows]
        for window in windows:
            if window not in rates:
                return window
        self._choices[n_rows] += 1
        turn, due = divmod(self._choices[n_rows], TRIAL)
        if due == 0:
            return windows[turn % len(windows)]
        return max(windows, key=lambda window: rates[window])

    def observe(self, n_rows: int, window: int, n_codes: int, seconds: float) -> None:
        """Record that passes with a window settled so many codes in so many seconds."""
        rate = n_codes / max(seconds, 1e-9)
        rates = self._rates[n_rows]
        rates[window] = rate + KEPT * (rates.get(window, rate) - rate)

    def _windows(self, n_rows: int) -> Sequence[int]:
        return [w for w in self._sizes if w == 1 or w * n_rows <= self.most_rows]
