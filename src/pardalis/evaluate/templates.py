"""Rendering of HTML pages from Jinja templates, and number formatting."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import PIL.Image

from pardalis.documents.images import to_data_uri, to_png
from pardalis.imports import optional_package

T = TypeVar("T")

_MAX_SIDE = 192  # pixels of an image on a page
_WORDS = {
    "heldout": "held-out",
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "frechet": "Fréchet",
    "fid": "FID",
}


def render(template: Path, values: Mapping[str, Any]) -> str:
    """Return a page as one self-contained HTML document.

    Args:
        template: its file; it may include templates beside this module.

    Raises:
        ConfigError: jinja2 is not installed.
    """
    with optional_package("The page", "report"):
        import jinja2
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=_or_dash(percent),
        duration=_or_dash(duration),
        count=_or_dash(lambda value: f"{value:,.0f}"),
        loss=_or_dash(lambda value: f"{value:.3f}"),
        db=_or_dash(lambda value: f"{value:.1f} dB"),
        gib=_or_dash(lambda value: f"{value:.2f} GiB"),
        ordinal=ordinal,
        number=number,
        metric_name=metric_name,
    )
    return environment.get_template(template.name).render(values)


def markup(svg: str) -> Any:
    """Mark an SVG or HTML element as safe, so that it is not escaped.

    Raises:
        ConfigError: markupsafe, which comes with jinja2, is not installed.
    """
    with optional_package("The page", "report"):
        from markupsafe import Markup
    return Markup(svg)


def image_uri(image: PIL.Image.Image, max_side: int = _MAX_SIDE) -> str:
    """Return an image as a data URI, downscaled to at most ``max_side`` pixels per side."""
    if max(image.size) > max_side:
        image = image.copy()
        image.thumbnail((max_side, max_side), PIL.Image.Resampling.LANCZOS)
    return to_data_uri(to_png(image))


def spread(items: Sequence[T], n: int) -> list[T]:
    """Return at most n items, evenly spaced, in order."""
    if len(items) <= n:
        return list(items)
    return [items[k * len(items) // n] for k in range(n)]


def percent(share: float | int) -> str:
    """Format a share as a percentage, with tenths near 0 and 100."""
    value = 100 * share
    needs_tenths = (0 < value < 10 or 99 < value < 100) and value != round(value)
    return f"{value:.1f} %" if needs_tenths else f"{value:.0f} %"


def duration(seconds: float | int) -> str:
    """Format a time in at most two units."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def ordinal(number: int) -> str:
    """Format an ordinal: 1st, 2nd, 3rd."""
    teen = 10 <= number % 100 <= 20
    return f"{number}{'th' if teen else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"


def metric_name(name: str) -> str:
    """Format the name of a metric for display.

    >>> metric_name("heldout_psnr"), metric_name("lpips_vgg16"), metric_name("n_codes")
    ('held-out PSNR (dB)', 'LPIPS vgg16', 'codes')
    """
    return " ".join(_WORDS.get(word, word) for word in name.removeprefix("n_").split("_"))


def number(value: float | int | None) -> str:
    """Format a number of a table: integers in full, others with four digits."""
    if value is None:
        return "—"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _or_dash(format_: Callable[[float], str]) -> Callable[[float | None], str]:
    return lambda value: "—" if value is None else format_(value)
