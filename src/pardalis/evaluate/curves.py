"""Charts as inline SVG: curves over training steps, sweeps, codebook use.

Each is plotted on its own matplotlib figure, without global state. Text stays text, so the page's
fonts apply and the page can be searched.
"""

import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import numpy as np
from jaxtyping import Integer

from pardalis.evaluate.metrics_file import Metrics
from pardalis.imports import optional_package

_INK = "#5d594f"
_GRID = "#e6e1d6"
# Curves with at least this many points are plotted as a moving mean over a faint raw line.
_MIN_SMOOTHED = 60
_MAX_RANKS = 512  # points of a codebook chart: 16,384 would be a megabyte of SVG


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """One line of a chart."""

    label: str
    steps: Sequence[int]
    values: Sequence[float | int]
    colour: str
    is_held_out: bool = False  # plotted as points joined by dashes


def curve_of(metrics: Metrics, name: str, label: str, colour: str) -> Curve:
    """Return a metric as a curve; names of held-out metrics begin with ``heldout_``."""
    steps, values = metrics.curve(name)
    is_held_out = name.startswith("heldout_")
    return Curve(label=label, steps=steps, values=values, colour=colour, is_held_out=is_held_out)


@dataclass(frozen=True, kw_only=True, slots=True)
class Band:
    """One line of a panel with its range."""

    label: str
    x: Sequence[float | int]
    middle: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    colour: str
    is_dashed: bool = False
    crossed: Sequence[bool] = ()  # points marked by a cross; empty: none


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """A chart of bands."""

    title: str
    x_label: str
    y_label: str
    bands: Sequence[Band]
    ticks: Mapping[float, str] | None = None  # ticks of a logarithmic x axis; None: linear
    is_logarithmic: bool = False  # y axis


def panel_chart(panel: Panel) -> str:
    """Return an inline ``<svg>`` element without a legend.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    return _svg(lambda axes: _draw_panel(axes, panel), panel.x_label, panel.y_label, panel.title)


def panels_png(panels: Sequence[Panel], columns: int) -> bytes:
    """Return panels side by side as a PNG, with their titles and one legend below.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    with optional_package("The figure", "report"):
        from matplotlib import rc_context
        from matplotlib.figure import Figure

    rows = -(-len(panels) // columns)
    with rc_context({"font.family": "sans-serif", "font.size": 10}):
        figure = Figure(figsize=(4.2 * columns, 3.3 * rows + 0.5), dpi=160, layout="constrained")
        known: dict[str, Any] = {}
        for place, panel in enumerate(panels):
            axes = figure.add_subplot(rows, columns, place + 1)
            _style(axes, panel.x_label, panel.y_label)
            _draw_panel(axes, panel)
            axes.set_title(panel.title, color=_INK, fontsize=11)
            handles, labels = axes.get_legend_handles_labels()
            known |= dict(zip(labels, handles, strict=True))
        figure.legend(
            known.values(), known, loc="outside lower center", ncols=6, frameon=False,
            labelcolor=_INK,
        )  # fmt: skip
        image = io.BytesIO()
        figure.savefig(image, format="png", facecolor="white", metadata={"Software": None})
    return image.getvalue()


def chart(curves: Sequence[Curve], y_label: str, *, from_zero: bool = False) -> str:
    """Return an inline ``<svg>`` element with curves over steps; empty curves are left out.

    Raises:
        ConfigError: matplotlib is not installed.
    """

    def draw(axes: Any) -> None:
        for curve in curves:
            if curve.steps:
                _draw_curve(axes, curve)
        axes.margins(x=0.01)
        if from_zero:
            axes.set_ylim(bottom=0)
        if sum(bool(curve.steps) for curve in curves) > 1:
            axes.legend(frameon=False, labelcolor=_INK, handlelength=1.8)

    return _svg(draw, "step", y_label, f"{y_label} over steps")


def codebook_chart(counts: Integer[np.ndarray, " N"], colour: str) -> str:
    """Return an inline ``<svg>`` element with the counts of codes, the most frequent first.

    Counts are relative to uniform use, on a logarithmic scale. Unused codes are a grey area.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    used = np.sort(counts[counts > 0])[::-1]
    ranks = np.unique(np.linspace(0, len(used) - 1, min(_MAX_RANKS, len(used))).astype(int))

    def draw(axes: Any) -> None:
        axes.set_xlim(0, len(counts))
        if len(used):
            relative = used[ranks] * (len(counts) / used.sum())
            bottom = min(relative[-1], 1.0) / 2
            axes.set_yscale("log")
            axes.fill_between(ranks + 1, bottom, relative, color=colour, alpha=0.25, linewidth=0)
            axes.plot(ranks + 1, relative, color=colour, linewidth=1.8)
            axes.set_ylim(bottom=bottom)
        axes.axhline(1, color=_INK, linewidth=0.8, linestyle=(0, (3, 2)))
        axes.axvspan(len(used), len(counts), color=_GRID, linewidth=0)

    return _svg(draw, "codes, most frequent first", "count ÷ uniform count", "use of each code")


def _svg(draw: Callable[[Any], None], x_label: str, y_label: str, title: str) -> str:
    with optional_package("The report", "report"):
        from matplotlib import rc_context
        from matplotlib.figure import Figure

    with rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 11}):
        figure = Figure(figsize=(4.9, 3.1), layout="constrained")
        axes = figure.add_subplot()
        _style(axes, x_label, y_label)
        draw(axes)
        text = io.StringIO()
        # No metadata: it would carry a date and addresses.
        empty = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=empty)
    return _inline(text.getvalue(), title)


def _style(axes: Any, x_label: str, y_label: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(x_label, color=_INK)
    axes.set_ylabel(y_label, color=_INK)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, length=0, which="both")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.spines[:].set_visible(False)


def _draw_panel(axes: Any, panel: Panel) -> None:
    if panel.ticks:
        axes.set_xscale("log")
        axes.set_xticks(list(panel.ticks), labels=list(panel.ticks.values()))
        axes.minorticks_off()
    if panel.is_logarithmic:
        axes.set_yscale("log")
    for band in panel.bands:
        axes.fill_between(band.x, band.low, band.high, color=band.colour, alpha=0.16, linewidth=0)
        axes.plot(
            band.x, band.middle, color=band.colour, label=band.label, linewidth=1.8,
            linestyle=(0, (3, 2)) if band.is_dashed else "-",
            marker="o" if panel.ticks else None, markersize=4,
        )  # fmt: skip
        crossed = list(compress(zip(band.x, band.middle, strict=True), band.crossed))
        if crossed:
            axes.plot(*zip(*crossed, strict=True), "x", color=band.colour, markersize=9)
    axes.margins(x=0.02)


def _draw_curve(axes: Any, curve: Curve) -> None:
    steps, values = np.asarray(curve.steps), np.asarray(curve.values, dtype=float)
    if curve.is_held_out:
        axes.plot(
            steps, values, color=curve.colour, label=curve.label,
            linestyle=(0, (3, 2)), linewidth=1.2, marker="o", markersize=4,
        )  # fmt: skip
        return
    if len(steps) >= _MIN_SMOOTHED:
        axes.plot(steps, values, color=curve.colour, alpha=0.25, linewidth=0.8)
        steps, values = steps, moving_mean(values, len(values) // 30)
    axes.plot(steps, values, color=curve.colour, label=curve.label, linewidth=1.8)


def moving_mean(values: np.ndarray, half_width: int) -> np.ndarray:
    """Return a centred moving mean, with a smaller window near the ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    # The window is symmetric, so that a straight line stays straight at its ends.
    half = np.minimum(half_width, np.minimum(index, index[::-1]))
    means: np.ndarray = (sums[index + half + 1] - sums[index - half]) / (2 * half + 1)
    return means


def _inline(document: str, title: str) -> str:
    """Convert an SVG document to an element that takes its size and font from the page."""
    element = document[document.index("<svg") :]
    element = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", element, count=1)
    element = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", element, count=1)
    element = re.sub(r"font-family: [^;]*; ", "", element)
    # A style element would apply to the whole page; the root's style is inherited instead.
    element = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", element, count=1, flags=re.DOTALL)
    # Group ids are the same in every chart. Only ids that are referred to are kept; those are
    # random.
    used = set(re.findall(r"#([\w.]+)", element))
    element = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", element)
    label = f'role="img" aria-label="{html.escape(title)}" style="stroke-linejoin: round"'
    return element.replace("<svg", f"<svg {label}", 1)
