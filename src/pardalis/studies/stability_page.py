"""The results of a stability study, as JSON, a page and a figure."""

from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from jaxtyping import Float

from pardalis import files
from pardalis.evaluate.curves import Band, Panel, moving_mean, panel_chart, panels_png
from pardalis.evaluate.extras import can_write_pages
from pardalis.evaluate.templates import markup, render
from pardalis.studies.stability_results import LOSSES, Outcome, Study, plain

FILE, PAGE, FIGURE = "stability.json", "stability.html", "stability.png"

# The first variant, the baseline, is plotted in black.
_COLOURS = (
    "#211f1b", "#cf5239", "#2f5d8c", "#15806a", "#b97f10", "#7d6aa6", "#b98a9a", "#6f9bc4",
    "#8a9a3b", "#9a9487",
)  # fmt: skip
_LOSS_TITLES = {
    "loss": "All targets",
    "loss_text": "Text",
    "loss_image": "Images",
}
# Statistics that grow before instability: title, unit, logarithmic axis.
_STATISTICS = {
    "attention_logit_text": ("Largest attention logit, text", "attention logit", True),
    "attention_logit_image": ("Largest attention logit, images", "attention logit", True),
    "output_rms_text": ("Output of the last layer, text", "rms", True),
    "output_rms_image": ("Output of the last layer, images", "rms", True),
    "lse_text": ("Log-sum-exp of the logits, text", "mean log Z", False),
    "lse_image": ("Log-sum-exp of the logits, images", "mean log Z", False),
    "grad_norm": ("Norm of the gradient", "norm", True),
    "loss": ("Training loss", "nats per target", False),
}
_IN_FIGURE = ("attention_logit_image", "output_rms_image", "loss")  # below the final losses
_MIN_SMOOTHED = 60  # points of a curve that is plotted as a moving mean

Growth = tuple[list[int], Float[np.ndarray, "P 3"]]


def write_study(folder: Path, study: Study) -> None:
    """Write ``stability.json``, ``stability.html`` and ``stability.png``, each atomically.

    Without jinja2 and matplotlib only the first one is written, with a warning.
    """
    files.write_json(folder / FILE, plain(study))
    if not can_write_pages(f"The page of the study ({PAGE}, with {FIGURE}) is"):
        return
    sweeps = [_sweep(study, name) for name in LOSSES if _is_known(study, name)]
    high = _growth(study, f"at {rate_name(study.high)}", lambda variant: study.high)
    best = _growth(study, "at its best learning rate", study.best)
    page = render(
        Path(__file__).with_name("stability_page.html.jinja"),
        {
            "study": study,
            "summaries": study.summaries(),
            "colours": colours(study),
            "sweeps": _charts(sweeps),
            "growth": {"high": _charts(high.values()), "best": _charts(best.values())},
            "warnings": warnings(study),
            "counts": counts(study.outcomes()),
            "seconds": sum(run.seconds for run in study.runs.values()),
            "rate_name": rate_name,
        },
    )
    files.write_text(folder / PAGE, page)
    figure = [*sweeps, *(high[name] for name in _IN_FIGURE if name in high)]
    files.write_bytes(folder / FIGURE, panels_png(figure, columns=3))


def rate_name(rate: float) -> str:
    """Format a learning rate.

    >>> rate_name(0.003), rate_name(0.1)
    ('3e-3', '1e-1')
    """
    mantissa, exponent = f"{rate:.3e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def colours(study: Study) -> dict[str, str]:
    """Return the colour of each variant."""
    return {v: _COLOURS[i % len(_COLOURS)] for i, v in enumerate(study.variants)}


def warnings(study: Study) -> list[dict[str, Any]]:
    """Return an entry for each variant and learning rate with instability or an alarm."""
    entries, order = [], list(study.variants)
    for (variant, rate), group in groupby(
        sorted(study.outcomes(), key=lambda e: (order.index(e.variant), e.learning_rate)),
        key=lambda each: (each.variant, each.learning_rate),
    ):
        runs = list(group)
        entries.append(
            {
                "variant": variant,
                "learning_rate": rate,
                "names": sorted({run.alarm_name for run in runs if run.alarm_name}),
                **{
                    what: [value for run in runs if (value := getattr(run, what)) is not None]
                    for what in ("alarm", "unstable_from", "lead")
                },
                "diverged": sum(run.diverged is not None for run in runs),
            }
        )
    return entries


def counts(outcomes: Iterable[Outcome]) -> dict[str, Any]:
    """Return the number of unstable runs, of those with an alarm before, and the median lead."""
    outcomes = list(outcomes)
    unstable = [each for each in outcomes if each.unstable_from is not None]
    leads = [each.lead for each in unstable if each.lead is not None and each.lead > 0]
    return {
        "unstable": len(unstable),
        "warned": len(leads),
        "lead": median(leads) if leads else None,
        "false_alarms": len(outcomes) - len(unstable),
    }


def _charts(panels: Iterable[Panel]) -> list[dict[str, Any]]:
    return [{"title": panel.title, "svg": markup(panel_chart(panel))} for panel in panels]


def _is_known(study: Study, name: str) -> bool:
    """Return whether the data have the modality of a loss."""
    return not any(np.isnan(study.final(variant, name)).any() for variant in study.variants)


def _sweep(study: Study, name: str) -> Panel:
    """Plot the final loss over the learning rate; a cross marks points with diverged runs."""
    bands = []
    for variant, colour in colours(study).items():
        losses = study.final(variant, name)
        bands.append(
            Band(
                label=variant,
                x=study.learning_rates,
                middle=losses.mean(1).tolist(),
                low=losses.min(1).tolist(),
                high=losses.max(1).tolist(),
                colour=colour,
                crossed=[study.diverged(variant, rate) > 0 for rate in study.learning_rates],
            )
        )
    return Panel(
        title=f"{_LOSS_TITLES[name]}: final loss",
        x_label="learning rate",
        y_label="nats per target",
        bands=bands,
        ticks={rate: rate_name(rate) for rate in study.learning_rates},
    )


def _growth(study: Study, where: str, rate_of: Callable[[str], float]) -> dict[str, Panel]:
    """Plot the statistics over steps, each variant at the learning rate ``rate_of(variant)``."""
    panels = {}
    for name, (title, unit, is_logarithmic) in _STATISTICS.items():
        grown = {
            variant: study.growth(variant, rate_of(variant), name) for variant in study.variants
        }
        bands = [
            _over_steps(variant, grown[variant], colour)
            for variant, colour in colours(study).items()
            if grown[variant][0]
        ]
        if bands:
            panels[name] = Panel(
                title=f"{title}, {where}",
                x_label="step",
                y_label=unit,
                bands=bands,
                is_logarithmic=is_logarithmic,
            )
    return panels


def _over_steps(label: str, growth: Growth, colour: str) -> Band:
    steps, spread = growth
    half_width = len(steps) // 30 if len(steps) >= _MIN_SMOOTHED else 0
    middle, low, high = (moving_mean(column, half_width).tolist() for column in spread.T)
    return Band(label=label, x=steps, middle=middle, low=low, high=high, colour=colour)
