"""Building the folder of drawings.

pictures/<key>.<style>.png    RGB on white
pairs.<split>.jsonl           caption, picture: of the concepts of the split
cells.jsonl                   caption, picture: concepts of training, in the style it does not see
concepts.json                 key, name, split, styles and cell (the style held out) of each concept
LICENCES.json, LICENCES.md    what was taken from which package, under which licence
"""

import hashlib
import importlib.util
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pardalis import progress
from pardalis.documents.document import Document, Picture, Text
from pardalis.documents.drawings.captions import caption
from pardalis.documents.drawings.concepts import SPLITS, Concept, all_concepts
from pardalis.documents.drawings.packages import EMOJIBASE, checked
from pardalis.documents.drawings.styles import STYLES, Style, draw
from pardalis.documents.emojis import write_licences
from pardalis.documents.writers import to_record, write_records
from pardalis.errors import ConfigError
from pardalis.files import atomic_folder, write_json

Licences = Literal["all", "permissive"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawingsConfig:
    """What goes into the corpus of drawings."""

    packages: str  # folder that `pardalis data fetch drawings` filled
    picture_side: int = 128  # pixels
    licences: Licences = "all"  # permissive: without what binds whoever passes it on (OpenMoji)
    skin_tones: bool = False  # people and hands in each tone too, twice as many pictures

    def __post_init__(self) -> None:
        if not 8 <= self.picture_side <= 1024:
            raise ConfigError(f"picture_side must be from 8 to 1024, got {self.picture_side}.")
        if self.licences not in get_args(Licences):
            raise ConfigError(
                f"licences must be one of {', '.join(map(repr, get_args(Licences)))}, got "
                f"{self.licences!r}."
            )


@dataclass(frozen=True, slots=True)
class _Picture:
    """A picture that was written."""

    concept: Concept
    style: Style

    @property
    def path(self) -> Path:
        """Its file, relative to the corpus folder."""
        return Path("pictures", f"{self.concept.key}.{self.style.name}.png")


def build_drawings(
    config: DrawingsConfig, folder: Path, base_folder: Path = Path()
) -> dict[str, Any]:
    """Write the corpus into a folder, replacing it whole, and return how much of each there is.

    Args:
        base_folder: where a relative ``config.packages`` begins.

    The same config gives the same bytes.

    Raises:
        ConfigError: what renders the drawings is not installed.
        DataError: a package is missing or is not the pinned version.
    """
    if importlib.util.find_spec("resvg_py") is None:
        raise ConfigError(
            "The drawings are rendered by resvg-py, which is not installed: "
            "run pip install 'pardalis[demo]'."
        )
    packages = base_folder / config.packages
    styles = [style for style in STYLES if config.licences == "all" or not style.is_share_alike]
    concepts = all_concepts(packages, config.skin_tones, with_extras=config.licences == "all")
    with atomic_folder(folder) as partial:
        pictures, n_identical = _draw(concepts, styles, packages, config.picture_side, partial)
        cells = _held_out_cells(pictures, len(styles))
        counts: dict[str, Any] = {"concepts": len(concepts), "dropped_identical": n_identical}
        parts: dict[str, list[_Picture]] = {f"pairs.{split}": [] for split in SPLITS}
        parts["cells"] = []
        for picture in pictures:
            is_cell = cells.get(picture.concept) == picture.style.name
            parts["cells" if is_cell else f"pairs.{picture.concept.split}"].append(picture)
        for name, members in parts.items():
            write_records(map(_record, members), partial / f"{name}.jsonl")
            counts[name] = dict(Counter(picture.style.name for picture in members))
        write_json(partial / "concepts.json", _entries(pictures, cells))
        write_licences(_licences(pictures, styles), partial)
    return counts


def _draw(
    concepts: list[Concept], styles: list[Style], packages: Path, side: int, folder: Path
) -> tuple[list[_Picture], int]:
    """Write the pictures; return those kept, in Unicode's order, and how many were left out.

    Of those that look the same the first is kept, and training comes first: the flag of a
    territory is often that of its country, and some styles draw no difference between families.
    """
    drawings = {style: style.read(checked(style.package, packages)) for style in styles}
    wanted = [
        (_Picture(concept, style), drawings[style][concept.key])
        for concept in concepts
        for style in styles
        if concept.key in drawings[style]
    ]
    (folder / "pictures").mkdir()
    seen: set[bytes] = set()
    kept: set[_Picture] = set()
    with progress.bar("Drawing", total=len(wanted), unit="pictures") as advance:
        for picture, drawing in sorted(
            wanted, key=lambda item: SPLITS.index(item[0].concept.split)
        ):
            image = draw(drawing, side)
            digest = hashlib.sha256(image.tobytes()).digest()
            if digest not in seen:
                seen.add(digest)
                kept.add(picture)
                image.save(folder / picture.path, format="PNG")
            advance()
    return [picture for picture, _ in wanted if picture in kept], len(wanted) - len(kept)


def _held_out_cells(pictures: Iterable[_Picture], n_styles: int) -> dict[Concept, str]:
    """Return the style held out of each concept of training that has all styles, where one is."""
    styles_of: dict[Concept, list[str]] = {}
    for picture in pictures:
        if picture.concept.split == "train":
            styles_of.setdefault(picture.concept, []).append(picture.style.name)
    cells = {
        concept: concept.held_out_style(styles)
        for concept, styles in styles_of.items()
        if len(styles) == n_styles
    }
    return {concept: style for concept, style in cells.items() if style is not None}


def _record(picture: _Picture) -> dict[str, Any]:
    concept, style = picture.concept, picture.style
    segments = (
        Text(caption(style.phrase, concept.name)),
        Picture(picture.path, alt=concept.name),
    )
    document = Document(segments, f"drawing/{concept.key}/{style.name}", style.licence)
    return to_record(document, lambda _: picture.path.as_posix())


def _entries(pictures: Iterable[_Picture], cells: dict[Concept, str]) -> list[dict[str, Any]]:
    entries: dict[Concept, dict[str, Any]] = {}
    for picture in pictures:
        concept = picture.concept
        entry: dict[str, Any] = {
            "key": concept.key,
            "name": concept.name,
            "split": concept.split,
            "styles": [],
            "cell": cells.get(concept),
        }
        entries.setdefault(concept, entry)["styles"].append(picture.style.name)
    return list(entries.values())


def _licences(pictures: list[_Picture], styles: list[Style]) -> list[dict[str, Any]]:
    counts = Counter(picture.style.name for picture in pictures)
    taken = [
        (style.package, "drawings, rendered as PNG on white", counts[style.name])
        for style in styles
    ]
    taken.append((EMOJIBASE, "English names", len({picture.concept for picture in pictures})))
    return [
        {
            "package": package.name,
            "version": package.version,
            "licence": package.licence,
            "attribution": package.attribution,
            "taken": what,
            "count": count,
        }
        for package, what, count in taken
    ]
