"""The lines of metrics.jsonl as curves."""

from collections.abc import Sequence

from pardalis.train.metrics import Line


class Metrics:
    """The metrics of one training run as curves over steps."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self._lines = lines

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """Return the steps and values of a metric; empty if it was never reported."""
        lines = [line for line in self._lines if name in line]
        return [int(line["step"]) for line in lines], [float(line[name]) for line in lines]

    def names(self, prefix: str) -> list[str]:
        """Return the metrics whose names begin so, in the order of their first reports."""
        names = dict.fromkeys(name for line in self._lines for name in line)
        return [name for name in names if name.startswith(prefix)]

    def last(self, name: str, n: int = 1) -> float | None:
        """Return the mean of the last ``n`` values of a metric, None if it was never reported."""
        values = self.curve(name)[1][-n:]
        return sum(values) / len(values) if values else None
