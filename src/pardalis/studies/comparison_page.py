"""Several image tokenizers side by side: a table for a terminal, for programs, and as a page.

``comparison_page.html.jinja`` holds the words and the design.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image

from pardalis import files
from pardalis.evaluate.reconstruction_page import meaning_of
from pardalis.evaluate.templates import image_uri, render

FILE, PAGE = "comparison.json", "comparison.html"

# What tells variants apart; the rest of an evaluation stands in the file.
_COLUMNS = (
    "psnr",
    "ssim",
    "perceptual_",
    "lpips_",
    "frechet_",
    "fid",
    "codebook_use",
    "perplexity",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One way to train, and what it came to."""

    name: str
    changes: tuple[str, ...]  # in the recipe
    n_codes: int
    codes_per_image: int
    steps: int
    seconds: float  # of training
    scores: dict[str, dict[str, Any]]  # by held-out source
    reconstructions: list[PIL.Image.Image]


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Rows in the order of the recipe; all were scored on the same images."""

    recipe: str
    originals: list[PIL.Image.Image]
    rows: list[Row]

    @property
    def sources(self) -> list[str]:
        return list(self.rows[0].scores)

    def columns(self, source: str) -> list[str]:
        """Return the names of the scores of a source that are shown."""
        names = self.rows[0].scores[source]
        return [
            name
            for column in _COLUMNS
            for name in names
            if name.startswith(column) and not name.endswith("_interval")
        ]


def write_comparison(folder: Path, comparison: Comparison) -> None:
    """Write ``comparison.json`` and ``comparison.html``, each atomically.

    Raises:
        ConfigError: jinja2 is not installed.
    """
    files.write_json(folder / FILE, plain(comparison))
    page = render(
        Path(__file__).with_name("comparison_page.html.jinja"),
        {
            "comparison": comparison,
            "meanings": {
                name: meaning_of(name)
                for source in comparison.sources
                for name in comparison.columns(source)
            },
            "originals": [image_uri(image) for image in comparison.originals],
            "reconstructions": {
                row.name: [image_uri(image) for image in row.reconstructions]
                for row in comparison.rows
            },
        },
    )
    files.write_text(folder / PAGE, page)


def plain(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison as plain values, without its images."""
    return {
        "recipe": comparison.recipe,
        "variants": [
            {
                "name": row.name,
                "set": list(row.changes),
                "n_codes": row.n_codes,
                "codes_per_image": row.codes_per_image,
                "steps": row.steps,
                "seconds": row.seconds,
                "scores": row.scores,
            }
            for row in comparison.rows
        ],
    }
