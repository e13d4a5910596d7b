"""Images with several captions: Karpathy's splits of COCO and Flickr30k, and COCO's own form.

Items have the fields ``image`` and ``captions``, and what else the file says of the image.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pardalis.documents import Image
from pardalis.errors import ConfigError, DataError
from pardalis.evaluate.tasks.items import Item
from pardalis.evaluate.tasks.records import read_json_file
from pardalis.evaluate.tasks.standard.fields import objects, taken


@dataclass(frozen=True, kw_only=True)
class KarpathyConfig:
    """``dataset_coco.json``, ``dataset_flickr30k.json`` (Karpathy and Fei-Fei 2015).

    Raises:
        ConfigError: no split is named.
    """

    kind: Literal["karpathy"] = "karpathy"
    path: Path
    splits: tuple[str, ...] = ("test",)  # of train, restval, val, test
    image_folder: Path = Path()  # where ``filepath``, or else ``filename``, begins

    def __post_init__(self) -> None:
        if not self.splits:
            raise ConfigError("splits must have at least one entry, such as 'test'.")

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def items(self, folder: Path) -> Iterator[Item]:
        path = folder / self.path
        value = read_json_file(path)
        found = value.get("images") if isinstance(value, dict) else value
        for number, entry in enumerate(objects(found, f"{path}, `images`,"), start=1):
            where = f"{path}, image {number},"
            if taken(entry, "split", str, where) not in self.splits:
                continue
            sentences = objects(entry.get("sentences"), f"{where} `sentences`,")
            name = taken(entry, "filename", str, where)
            inside = Path(str(entry.get("filepath", "")), name)
            yield Item(
                str(entry.get("cocoid", entry.get("imgid", name))),
                {
                    "image": Image(folder / self.image_folder / inside),
                    "captions": [taken(each, "raw", str, where).strip() for each in sentences],
                    "filename": name,
                },
            )


@dataclass(frozen=True, kw_only=True)
class CocoConfig:
    """Captions in COCO's form, ``images`` and ``annotations``, which NoCaps has too."""

    kind: Literal["coco"] = "coco"
    path: Path
    image_folder: Path = Path()  # where ``file_name`` begins

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def items(self, folder: Path) -> Iterator[Item]:
        path = folder / self.path
        value = read_json_file(path)
        if not isinstance(value, dict):
            raise DataError(
                f"{path} holds {type(value).__name__}; an object with `images` and `annotations` "
                "was expected."
            )
        captions: dict[int, list[str]] = {}
        for entry in objects(value.get("annotations"), f"{path}, `annotations`,"):
            where = f"{path}, an annotation,"
            text = taken(entry, "caption", str, where).strip()
            captions.setdefault(taken(entry, "image_id", int, where), []).append(text)
        for entry in objects(value.get("images"), f"{path}, `images`,"):
            number = taken(entry, "id", int, f"{path}, an image,")
            name = taken(entry, "file_name", str, f"{path}, image {number},")
            yield Item(
                str(number),
                {
                    "image": Image(folder / self.image_folder / name),
                    "captions": captions.get(number, []),
                    "domain": str(entry.get("domain", "")),  # NoCaps: in-, near-, out-domain
                    "filename": name,
                },
            )
