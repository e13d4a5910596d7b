"""Checks of ``samples/samples.json``, which may come from elsewhere.

Names of generated images are relative to ``samples/``. Those of originals are relative to the run
folder; an original outside it must be an image of the recipe's own sources.
"""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pardalis.config import shown
from pardalis.errors import DataError
from pardalis.files import is_bare_name, read_json

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "heldout")

SourceImages: TypeAlias = Callable[[], Collection[Path]]
"""Returns the resolved paths of the images of a recipe's sources."""

# The texts of the entries of each list, and those of them that name images.
_TEXTS = {
    "gallery": ("name", "image"),
    "images": ("prompt", "generated", "original"),
    "captions": ("image", "caption", "expected"),
    "pages": ("prompt",),
}
_GENERATED, _ORIGINAL = ("generated",), ("image", "original")
_TABLES = ("captioned", "left_out")


def generated_images(path: Path) -> list[str]:
    """Return the names of all generated images of a ``samples.json``, which are relative to it.

    Raises:
        DataError: the file cannot be read, or has another form.
    """
    try:
        samples = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); run the stage 'sample' again.") from None
    if not isinstance(samples, dict):
        raise _wrong(path, f"{shown(samples)} in the place of a table")
    check_samples(path, samples, source_images=None)
    of_pages = (segment for page in samples["pages"] for segment in page["segments"])
    names = [entry["generated"] for entry in samples["images"]]
    return names + [segment["image"] for segment in of_pages if "image" in segment]


def check_samples(path: Path, samples: dict[str, Any], source_images: SourceImages | None) -> None:
    """Raise DataError unless samples have the form that the stage 'sample' writes.

    Args:
        path: the file, for messages; its folder's parent is the run folder.
        source_images: asked only if an original lies outside the run folder. None: originals may
            lie anywhere, since none is read.
    """
    needed = (*_TEXTS, *_TABLES, "image_tokens_per_second")
    if missing := [key for key in needed if key not in samples]:
        raise DataError(f"{path} lacks {', '.join(missing)}; run the stage 'sample' again.")
    for key in _TABLES:
        if not isinstance(samples[key], dict):
            raise _wrong(path, f"{key} = {shown(samples[key])}, which is no table")
    counts = [*samples["captioned"].values(), samples["image_tokens_per_second"]]
    counts += [n for name, n in samples["left_out"].items() if name != "too_long_of"]
    if wrong := [n for n in counts if type(n) not in (int, float) or not abs(n) < 2**53]:
        raise _wrong(path, f"{shown(wrong[0])} in the place of a number")
    names = _Names(path, source_images)
    for key in _TEXTS:
        if not isinstance(samples[key], list):
            raise _wrong(path, f"{key} = {shown(samples[key])}, which is no list")
        for entry in samples[key]:
            _check_entry(path, key, entry, names)


def _check_entry(path: Path, key: str, entry: Any, names: "_Names") -> None:
    if not isinstance(entry, dict):
        raise _wrong(path, f"{shown(entry)} as an entry of '{key}'")
    if entry.get("split") not in SPLITS:
        raise DataError(
            f"{path} has an entry of '{key}' with the split {shown(entry.get('split'))}; it must "
            f"be one of {', '.join(SPLITS)}. Run the stage 'sample' again."
        )
    texts = list(_TEXTS[key])
    texts += [text for text in ("caption",) if key == "gallery" and text in entry]
    for name in texts:
        if not isinstance(entry.get(name), str):
            raise _wrong(path, f"an entry of '{key}' whose {name} is {shown(entry.get(name))}")
    for name in texts:
        if name in _GENERATED:
            names.check_generated(entry[name])
        elif name in _ORIGINAL:
            names.check_original(entry[name])
    if key == "pages":
        _check_segments(path, entry.get("segments"), names)


def _check_segments(path: Path, segments: Any, names: "_Names") -> None:
    for segment in segments if isinstance(segments, list) else [segments]:
        match segment:
            case {"text": str()}:
                pass
            case {"image": str(name)}:
                names.check_generated(name)
            case _:
                raise _wrong(path, f"a page with the segment {shown(segment)}")


class _Names:
    """Decides which images a report may read."""

    def __init__(self, path: Path, source_images: SourceImages | None) -> None:
        self.path, self.source_images = path, source_images
        self.run = path.parent.parent
        self.allowed: Collection[Path] | None = None

    def check_generated(self, name: str) -> None:
        bare = all(map(is_bare_name, name.split("/")))
        if not bare or not self._is_in(self.path.parent / name, self.path.parent):
            raise _wrong(self.path, f"the generated image {shown(name)}, which is not beside it")

    def check_original(self, name: str) -> None:
        if self.source_images is None:
            return
        if self._is_in(self.run / name, self.run):
            return
        if self.allowed is None:
            self.allowed = self.source_images()
        if _resolved(self.run / name) not in self.allowed:
            raise _wrong(
                self.path,
                f"the original {shown(name)}, which is neither in the run nor an image of the "
                "sources",
            )

    def _is_in(self, path: Path, folder: Path) -> bool:
        found, place = _resolved(path), _resolved(folder)
        return found is not None and place is not None and found.is_relative_to(place)


def _resolved(path: Path) -> Path | None:
    """Return a path without links; None if it cannot be one, or its links form a loop."""
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):
        return None


def _wrong(path: Path, found: str) -> DataError:
    return DataError(f"{path} has {found}; run the stage 'sample' again.")
