"""The filter ``nsfw[:THRESHOLD]``: images that Yahoo's Open-NSFW net judges not safe for work."""

import math
from collections.abc import Callable

import PIL.Image

from pardalis.errors import ConfigError
from pardalis.feature_nets.nsfw import load_nsfw_score

_THRESHOLD = 0.8  # its authors call images below 0.2 safe and those above 0.8 unsafe
_REASON = "An image is judged not safe for work."


def nsfw(argument: str) -> Callable[[object], str | None]:
    """Return the filter that refuses images of a score of at least a threshold; texts pass.

    Args:
        argument: the threshold, above 0 and at most 1; empty: 0.8.

    Raises:
        ConfigError: it is no such number, or the package or onnxruntime is missing.
    """
    threshold = _threshold(argument)
    score = load_nsfw_score()

    def judge(part: object) -> str | None:
        if not isinstance(part, PIL.Image.Image):
            return None
        return None if score(part) < threshold else _REASON  # nor does NaN pass

    return judge


def _threshold(argument: str) -> float:
    try:
        found = float(argument) if argument else _THRESHOLD
    except ValueError:
        found = math.nan
    if not 0 < found <= 1:
        raise ConfigError(
            f"nsfw:{argument} has no threshold above 0 and at most 1, such as {_THRESHOLD}."
        )
    return found
