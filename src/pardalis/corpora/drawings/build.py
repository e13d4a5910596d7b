"""Building the folder of drawings.

images/<key>.<style>.png    RGB on white
images/<key>.<style>.<n>.png  the same drawing smaller and elsewhere, if variants is set
pairs.<split>.jsonl           caption, image: of the concepts of the split
pairs.others.jsonl            of training concepts beyond train_concepts, if that is set
cells.jsonl                   caption, image: concepts of training, in the style it does not see
captions.<split>.jsonl        image, caption; the image is not learnt. Of training also variants
redraws.<split>.jsonl         caption, image, caption, image: a concept in one style, then another,
                              which alone is learnt
redraws.cells.jsonl           the same; the second is a concept of training in the style it lacks
concepts.json                 key, name, split, styles and cell (the style held out) of each concept
LICENCES.json, LICENCES.md    what was taken from which package, under which licence
"""

import hashlib
import importlib.util
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import PIL.Image

from pardalis import progress, seeds
from pardalis.config import check_at_least, not_deciding
from pardalis.corpora.captions import caption
from pardalis.corpora.drawings.concepts import SPLITS, Concept, all_concepts
from pardalis.corpora.drawings.packages import EMOJIBASE, PACKAGES
from pardalis.corpora.drawings.styles import STYLES, Style, draw
from pardalis.corpora.emojis import write_licences
from pardalis.corpora.packages import Package, checked
from pardalis.documents.document import Document, Image, Segment, Text
from pardalis.documents.writers import to_record, write_records
from pardalis.errors import ConfigError
from pardalis.files import atomic_folder, write_json

Licences = Literal["all", "permissive"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawingsConfig:
    """What goes into the corpus of drawings."""

    kind: Literal["drawings"] = "drawings"
    packages: Path = not_deciding()  # folder that fetch_packages filled
    image_side: int = 128  # pixels
    licences: Licences = "all"  # permissive: without what binds whoever passes it on (OpenMoji)
    skin_tones: bool = False  # people and hands in each tone too, twice as many images
    one_cell_in: int = 10  # of how many training concepts one is held out in one style
    # How many concepts of training are taken, at random of those drawn in all styles; None: all
    # concepts. The rest is written apart, so that an image tokenizer can learn from it.
    train_concepts: int | None = None
    # Copies of each image of training at a random size and place, to be described: their tokens
    # differ, so a model cannot learn them by heart.
    variants: int = 0

    def __post_init__(self) -> None:
        if not 8 <= self.image_side <= 1024:
            raise ConfigError(f"image_side must be from 8 to 1024, got {self.image_side}.")
        check_at_least(self, one_cell_in=1, train_concepts=1, variants=0)
        if self.licences not in get_args(Licences):
            raise ConfigError(
                f"licences must be one of {', '.join(map(repr, get_args(Licences)))}, got "
                f"{self.licences!r}."
            )

    def build(self, folder: Path) -> None:
        """See :func:`build_drawings`."""
        build_drawings(self, folder)

    def packages_used(self) -> list[str]:
        """Return the hash of each package."""
        return [package.sha256 for package in PACKAGES]


@dataclass(frozen=True, slots=True)
class StyledImage:
    """An image that was written."""

    concept: Concept
    style: Style
    variant: int = 0  # 0: as it was drawn

    @property
    def path(self) -> Path:
        """Its file, relative to the corpus folder."""
        number = f".{self.variant}" if self.variant else ""
        return Path("images", f"{self.concept.key}.{self.style.name}{number}.png")


def build_drawings(config: DrawingsConfig, folder: Path) -> dict[str, Any]:
    """Write the corpus into a folder, replacing it whole, and return how much of each there is.

    The same config gives the same bytes.

    Raises:
        ConfigError: what renders the drawings is not installed.
        DataError: a package is missing or is not the pinned version.
    """
    with atomic_folder(folder) as partial:
        return write_drawings(config, partial).counts


@dataclass(frozen=True, slots=True)
class Drawings:
    """What a folder holds."""

    parts: dict[str, list[StyledImage]]  # the images of pairs.<split>, pairs.others and cells
    redraws: dict[str, list[tuple[StyledImage, StyledImage]]]  # of each file of redraws
    counts: dict[str, Any]


def write_drawings(
    config: DrawingsConfig, folder: Path, also: Iterable[tuple[Package, str, int]] = ()
) -> Drawings:
    """Write the corpus into an empty folder.

    Args:
        also: further packages for the licences, what is taken from them and how much.

    Raises:
        ConfigError, DataError: as :func:`build_drawings`.
    """
    if importlib.util.find_spec("resvg_py") is None:
        raise ConfigError(
            "The drawings are rendered by resvg-py, which is not installed: "
            "run pip install 'pardalis[demo]'."
        )
    packages = config.packages
    styles = [style for style in STYLES if config.licences == "all" or not style.is_share_alike]
    concepts = all_concepts(packages, config.skin_tones, with_extras=config.licences == "all")
    images, n_identical = _draw(concepts, styles, packages, config.image_side, folder)
    cells = _held_out_cells(images, len(styles), config.one_cell_in)
    counts: dict[str, Any] = {"concepts": len(concepts), "dropped_identical": n_identical}
    parts: dict[str, list[StyledImage]] = {f"pairs.{split}": [] for split in SPLITS}
    parts["cells"] = []
    others = _left_out(images, len(styles), config.train_concepts)
    if others:
        parts["pairs.others"] = []
    for image in images:
        is_cell = cells.get(image.concept) == image.style.name
        split = "others" if image.concept in others else image.concept.split
        if is_cell and image.concept in others:
            continue  # seen by nothing
        parts["cells" if is_cell else f"pairs.{split}"].append(image)
    for name, members in parts.items():
        write_records(map(_record, members), folder / f"{name}.jsonl")
        counts[name] = dict(Counter(image.style.name for image in members))
    described = {split: parts[f"pairs.{split}"] for split in SPLITS}
    described["train"] = _with_variants(described["train"], config.variants, folder)
    for split, some in described.items():
        write_records(map(_caption_record, some), folder / f"captions.{split}.jsonl")
    redraws = _redraws(parts)
    for name, pairs in redraws.items():
        write_records(itertools.starmap(_redraw_record, pairs), folder / f"{name}.jsonl")
        counts[name] = dict(Counter(image.style.name for _, image in pairs))
    write_json(folder / "concepts.json", _entries(images, cells))
    n_images = Counter(image.style.name for image in images)
    what = "drawings, rendered as PNG on white"
    taken = [(style.package, what, n_images[style.name]) for style in styles]
    taken.append((EMOJIBASE, "English names", len({image.concept for image in images})))
    taken += also
    write_licences(
        ((p.name, p.version, p.licence, p.attribution, *rest) for p, *rest in taken), folder
    )
    return Drawings(parts, redraws, counts)


def _draw(
    concepts: list[Concept], styles: list[Style], packages: Path, side: int, folder: Path
) -> tuple[list[StyledImage], int]:
    """Write the images; return those kept, in Unicode's order, and how many were left out.

    Of those that look the same the first is kept, and training comes first: the flag of a
    territory is often that of its country, and some styles draw no difference between families.
    """
    drawings = {style: style.read(checked(style.package, packages)) for style in styles}
    wanted = [
        (StyledImage(concept, style), drawings[style][concept.key])
        for concept in concepts
        for style in styles
        if concept.key in drawings[style]
    ]
    (folder / "images").mkdir()
    seen: set[bytes] = set()
    kept: set[StyledImage] = set()
    with progress.bar("Drawing", total=len(wanted), unit="images") as advance:
        for image, drawing in sorted(wanted, key=lambda item: SPLITS.index(item[0].concept.split)):
            rendered = draw(drawing, side)
            digest = hashlib.sha256(rendered.tobytes()).digest()
            if digest not in seen:
                seen.add(digest)
                kept.add(image)
                rendered.save(folder / image.path, format="PNG")
            advance()
    return [image for image, _ in wanted if image in kept], len(wanted) - len(kept)


def _with_variants(images: list[StyledImage], n: int, folder: Path) -> list[StyledImage]:
    """Write n variants of each image; return the images, each with its variants."""
    all_images = [replace(image, variant=v) for image in images for v in range(n + 1)]
    for image in all_images:
        if image.variant:
            generator = seeds.numpy_generator(0, "variant", image.path.name)
            with PIL.Image.open(folder / replace(image, variant=0).path) as drawing:
                _moved(drawing, generator).save(folder / image.path, format="PNG")
    return all_images


def _moved(drawing: PIL.Image.Image, generator: np.random.Generator) -> PIL.Image.Image:
    """Return a drawing at 75 to 100 % of its size, at a random place on white."""
    side = drawing.width
    small = max(1, round(side * generator.uniform(0.75, 1.0)))
    left, top = generator.integers(side - small + 1, size=2).tolist()
    moved = PIL.Image.new("RGB", (side, side), "white")
    moved.paste(drawing.resize((small, small), PIL.Image.Resampling.LANCZOS), (left, top))
    return moved


def _held_out_cells(
    images: Iterable[StyledImage], n_styles: int, one_in: int
) -> dict[Concept, str]:
    """Return the style held out of each concept of training that has all styles, where one is."""
    cells = {
        concept: concept.held_out_style([each.style.name for each in found], one_in)
        for concept, found in _by_concept(images).items()
        if concept.split == "train" and len(found) == n_styles
    }
    return {concept: style for concept, style in cells.items() if style is not None}


def _left_out(images: Iterable[StyledImage], n_styles: int, n_taken: int | None) -> set[Concept]:
    """Return the concepts of training beyond the number that is taken."""
    if n_taken is None:
        return set()
    found = {c: images for c, images in _by_concept(images).items() if c.split == "train"}
    whole = [concept for concept, images in found.items() if len(images) == n_styles]
    whole.sort(key=lambda concept: seeds.derive(0, "taken", concept.key))
    return set(found) - set(whole[:n_taken])


def _redraws(
    parts: dict[str, list[StyledImage]],
) -> dict[str, list[tuple[StyledImage, StyledImage]]]:
    """Return pairs of images of one concept in two styles, by the name of their file.

    The styles of a concept form a ring in random order. Each is followed by the next one, so that
    an image is as often the first as the second. A held-out cell follows one of training.
    """
    rings = {
        split: [_ring(images) for images in _by_concept(parts[f"pairs.{split}"]).values()]
        for split in SPLITS
    }
    redraws = {
        f"redraws.{split}": [pair for ring in rings[split] for pair in _neighbours(ring)]
        for split in SPLITS
    }
    first = {ring[0].concept: ring[0] for ring in rings["train"]}
    redraws["redraws.cells"] = [(first[cell.concept], cell) for cell in parts["cells"]]
    return redraws


def _by_concept(images: Iterable[StyledImage]) -> dict[Concept, list[StyledImage]]:
    found: dict[Concept, list[StyledImage]] = {}
    for image in images:
        found.setdefault(image.concept, []).append(image)
    return found


def _ring(images: list[StyledImage]) -> list[StyledImage]:
    return sorted(
        images, key=lambda each: seeds.derive(0, "redraw", each.concept.key, each.style.name)
    )


def _neighbours(ring: list[StyledImage]) -> list[tuple[StyledImage, StyledImage]]:
    return list(zip(ring, ring[1:] + ring[:1], strict=True)) if len(ring) > 1 else []


def _record(image: StyledImage) -> dict[str, Any]:
    """Return the record of an image after its caption."""
    return record_of("drawing", [image], _segments(image))


def _caption_record(image: StyledImage) -> dict[str, Any]:
    """Return the record of an image that is described."""
    text, drawing = _segments(image)
    return record_of("caption", [image], [replace(drawing, weight=0.0), text])


def _redraw_record(before: StyledImage, after: StyledImage) -> dict[str, Any]:
    """Return the record of a concept in one style, which is given, and then in another."""
    given = [replace(segment, weight=0.0) for segment in _segments(before)]
    return record_of("redraw", [before, after], [*given, *_segments(after)])


def _segments(image: StyledImage) -> list[Segment]:
    text = caption(image.style.phrase, image.concept.name)
    return [Text(text), Image(image.path, alt=image.concept.name)]


def record_of(
    kind: str, images: Sequence[StyledImage], segments: Sequence[Segment]
) -> dict[str, Any]:
    """Return the record of segments about images, of which the first gives the name."""
    styles = [image.style for image in images]
    name = "/".join((kind, images[0].concept.key, *(_style_name(image) for image in images)))
    licence = "; ".join(dict.fromkeys(style.licence for style in styles))
    document = Document(tuple(segments), name, licence)
    return to_record(document, lambda image: Path(str(image.source)).as_posix())


def _style_name(image: StyledImage) -> str:
    return f"{image.style.name}.{image.variant}" if image.variant else image.style.name


def _entries(images: Iterable[StyledImage], cells: dict[Concept, str]) -> list[dict[str, Any]]:
    entries: dict[Concept, dict[str, Any]] = {}
    for image in images:
        concept = image.concept
        entry: dict[str, Any] = {
            "key": concept.key,
            "name": concept.name,
            "split": concept.split,
            "styles": [],
            "cell": cells.get(concept),
        }
        entries.setdefault(concept, entry)["styles"].append(image.style.name)
    return list(entries.values())
