"""The results of a comparison of image tokenizers, as JSON and as a page."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image

from pardalis import files
from pardalis.evaluate.extras import can_write_pages
from pardalis.evaluate.reconstruction_page import meaning_of
from pardalis.evaluate.templates import image_uri, render

FILE, PAGE = "comparison.json", "comparison.html"

# Prefixes of the scores in tables; comparison.json has all scores.
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
class VariantResult:
    """One variant and its scores."""

    name: str
    changes: tuple[str, ...]  # overrides of the recipe
    n_codes: int
    codes_per_image: int
    steps: int
    seconds: float  # training time
    scores: dict[str, dict[str, Any]]  # by held-out source
    reconstructions: list[PIL.Image.Image]


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """The variants in the order of the recipe, evaluated on the same images."""

    recipe: str
    originals: list[PIL.Image.Image]
    variants: list[VariantResult]

    @property
    def sources(self) -> list[str]:
        return list(self.variants[0].scores)

    def columns(self, source: str) -> list[str]:
        """Return the names of a source's scores that tables show."""
        names = self.variants[0].scores[source]
        return [
            name
            for column in _COLUMNS
            for name in names
            if name.startswith(column) and not name.endswith("_interval")
        ]


def write_comparison(folder: Path, comparison: Comparison) -> None:
    """Write ``comparison.json`` and ``comparison.html``, each atomically.

    Without jinja2 and matplotlib only the first one is written, with a warning.
    """
    files.write_json(folder / FILE, plain(comparison))
    if not can_write_pages(f"The page of the comparison ({PAGE}) is"):
        return
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
                variant.name: [image_uri(image) for image in variant.reconstructions]
                for variant in comparison.variants
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
                "name": variant.name,
                "set": list(variant.changes),
                "n_codes": variant.n_codes,
                "codes_per_image": variant.codes_per_image,
                "steps": variant.steps,
                "seconds": variant.seconds,
                "scores": variant.scores,
            }
            for variant in comparison.variants
        ],
    }
