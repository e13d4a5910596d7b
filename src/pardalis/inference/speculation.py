"""Choice of the speculation window, and of the passes between two host synchronisations.

Both change the number of passes and never the tokens, so they may depend on the clock. The window
with the highest throughput in codes per second is used, and the others are tried at intervals.
"""

from collections import defaultdict
from collections.abc import Sequence

WINDOWS = (1, 4, 8, 16, 32)
TRIAL_INTERVAL = 32  # choices between two trials of another window
DECAY = 0.8  # weight of what was measured earlier in the moving averages
SYNC_SECONDS = 0.01  # that passes between two host synchronisations may take


class WindowPolicy:
    """Chooses speculation windows for passes inside images.

    Args:
        fixed: the window to use always; None chooses by measurement.
        max_tokens: tokens that a pass reads for about the price of one, since it is bound by
            reading the weights.
        largest: upper bound of the window: the codes of an image.
    """

    def __init__(self, fixed: int | None, max_tokens: int, largest: int) -> None:
        self.fixed = None if fixed is None else min(fixed, largest)
        self.max_tokens = max_tokens
        self._sizes = [window for window in WINDOWS if window <= largest]
        self._rates: dict[int, dict[int, float]] = defaultdict(dict)  # by sequences and window
        self._seconds: dict[int, dict[int, float]] = defaultdict(dict)  # of a pass, likewise
        self._choices: dict[int, int] = defaultdict(int)

    @property
    def largest(self) -> int:
        """The largest window that can be chosen."""
        return self.fixed or max(self._windows(1))

    def choose(self, n_sequences: int) -> int:
        """Return the window for a pass of n sequences, guidance sequences included."""
        if self.fixed is not None:
            return self.fixed
        windows, rates = self._windows(n_sequences), self._rates[n_sequences]
        for window in windows:
            if window not in rates:
                return window
        self._choices[n_sequences] += 1
        trial, due = divmod(self._choices[n_sequences], TRIAL_INTERVAL)
        if due == 0:
            return windows[trial % len(windows)]
        return max(windows, key=lambda window: rates[window])

    def passes(self, n_sequences: int, window: int) -> int:
        """Return how many passes take about SYNC_SECONDS; 1 before any was observed."""
        seconds = self._seconds[n_sequences].get(window, SYNC_SECONDS)
        return max(int(SYNC_SECONDS / seconds), 1)

    def observe(
        self, n_sequences: int, window: int, n_passes: int, n_codes: int, seconds: float
    ) -> None:
        """Record that passes with a window generated n codes in so many seconds."""
        seconds = max(seconds, 1e-9)
        for measured, averages in (
            (n_codes / seconds, self._rates[n_sequences]),
            (seconds / n_passes, self._seconds[n_sequences]),
        ):
            averages[window] = measured + DECAY * (averages.get(window, measured) - measured)

    def _windows(self, n_sequences: int) -> Sequence[int]:
        return [w for w in self._sizes if w == 1 or w * n_sequences <= self.max_tokens]
