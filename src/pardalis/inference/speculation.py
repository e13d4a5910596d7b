"""Choice of the speculation window from measured throughput.

Speculation changes the number of passes and never the tokens, so the choice may depend on the
clock. The window with the highest throughput in codes per second is used, and the others are tried
at intervals.
"""

from collections import defaultdict
from collections.abc import Sequence

WINDOWS = (1, 4, 8, 16, 32)
TRIAL_INTERVAL = 32  # choices between two trials of another window
DECAY = 0.8  # weight of the earlier rate in the moving average


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

    def observe(self, n_sequences: int, window: int, n_codes: int, seconds: float) -> None:
        """Record that passes with a window generated n codes in so many seconds."""
        rate = n_codes / max(seconds, 1e-9)
        rates = self._rates[n_sequences]
        rates[window] = rate + DECAY * (rates.get(window, rate) - rate)

    def _windows(self, n_sequences: int) -> Sequence[int]:
        return [w for w in self._sizes if w == 1 or w * n_sequences <= self.max_tokens]
