"""The progress page of an image tokenizer's training, rewritten at each evaluation."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from jaxtyping import Integer

from pardalis import files
from pardalis.evaluate.curves import chart, codebook_chart, curve_of
from pardalis.evaluate.metrics_file import Metrics
from pardalis.evaluate.templates import image_uri, markup, metric_name, render
from pardalis.train.metrics import FILE_NAME, Line, read_metrics

PAGE = "progress.html"

_HELD_OUT = "heldout_"
_TRAIN_COLOUR, _HELD_OUT_COLOUR, _CODES_COLOUR = "#2f5d8c", "#cf5239", "#15806a"
# Charts of these metrics come first. Those in _NOT_CHARTED have none.
_FIRST = ("psnr", "loss", "loss_l1", "loss_l2", "loss_perceptual", "codebook_use", "perplexity")
_NOT_CHARTED = re.compile(r"step|time_s|images|\w+_per_second")


def write_training_page(
    folder: Path,
    originals: Sequence[PIL.Image.Image],
    reconstructions: Sequence[PIL.Image.Image],
    code_counts: Integer[np.ndarray, " N"],
    last: Mapping[str, float | int],
    is_finished: bool = False,
) -> None:
    """Write ``progress.html`` into the folder of a training run, from its ``metrics.jsonl``.

    Each metric has a chart with its training and its held-out curve (``heldout_NAME``). The page
    reloads itself every 30 seconds until the run is finished.

    Args:
        originals: preprocessed images to show.
        reconstructions: their reconstructions.
        code_counts: recent count of each code.
        last: metrics of this evaluation; the page shows those of held-out images, or if there are
            none, those of training.

    Raises:
        DataError: the metrics are missing or damaged.
        ConfigError: jinja2 or matplotlib is not installed.
    """
    lines = read_metrics(folder / FILE_NAME)
    now = lines[-1] if lines else {}
    page = render(
        Path(__file__).with_name("training_page.html.jinja"),
        {
            "is_finished": is_finished,
            "step": now.get("step", 0),
            "seconds": now.get("time_s"),
            "last": _summary(last),
            "pairs": [
                (image_uri(original), image_uri(reconstruction))
                for original, reconstruction in zip(originals, reconstructions, strict=True)
            ],
            "n_codes": len(code_counts),
            "n_dead": int((code_counts == 0).sum()),
            "codebook_chart": markup(codebook_chart(code_counts, _CODES_COLOUR)),
            "charts": _charts(lines),
        },
    )
    files.write_text(folder / PAGE, page)


def _summary(last: Mapping[str, float | int]) -> dict[str, float | int]:
    held_out = {name: value for name, value in last.items() if name.startswith(_HELD_OUT)}
    return held_out or {n: value for n, value in last.items() if not _NOT_CHARTED.fullmatch(n)}


def _charts(lines: Sequence[Line]) -> list[tuple[str, Any]]:
    metrics = Metrics(lines)
    known = dict.fromkeys(name.removeprefix(_HELD_OUT) for line in lines for name in line)
    names = [name for name in _FIRST if name in known]
    names += [name for name in known if name not in _FIRST and not _NOT_CHARTED.fullmatch(name)]
    return [(metric_name(name), markup(_chart(metrics, name))) for name in names]


def _chart(metrics: Metrics, name: str) -> str:
    curves = [
        curve_of(metrics, name, "train", _TRAIN_COLOUR),
        curve_of(metrics, _HELD_OUT + name, "held-out", _HELD_OUT_COLOUR),
    ]
    return chart(curves, metric_name(name))
