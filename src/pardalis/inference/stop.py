"""Stop strings: where a completion ends, and what of its text may not be shown yet."""

from collections.abc import Sequence


def stop_start(text: str, stop: Sequence[str]) -> int | None:
    """Return where the stop string begins that is complete first; None if none is complete.

    This does not depend on the parts in which a text comes. Of stop strings that are complete at
    the same character, the longest counts.
    """
    found = [(start + len(s), start) for s in stop if (start := text.find(s)) >= 0]
    return min(found)[1] if found else None


def held_length(text: str, stop: Sequence[str]) -> int:
    """Return the length of the longest end of a text with which a stop string begins."""
    longest = min(len(text), max(map(len, stop), default=1) - 1)
    for length in range(longest, 0, -1):
        end = text[-length:]
        if any(s.startswith(end) for s in stop):
            return length
    return 0
