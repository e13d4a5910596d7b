"""Web documents in the layout of MMC4: sentences, and images that belong to them.

    {"text_list": ["An owl sits here.", "It is white."], "image_info": [
        {"image_name": "1.png", "matched_text_index": 1}]}

An image stands before its sentence, as OpenFlamingo's data have it; several of one sentence stand
in their order. An image is the file ``image_name`` beside the records or in their folder
``images``; where it was not downloaded it is counted, and the text stays. Sentences are joined by
spaces. The shards of the release, ``*.jsonl.zip``, are read as they are.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pardalis.documents.document import Document, Image, Rejection, Segment, Text
from pardalis.documents.readers._columns import Place, find_image
from pardalis.documents.readers._conversation import list_of, name_of, text_of
from pardalis.documents.readers._lines import BadRecordError
from pardalis.documents.readers._records import read_records
from pardalis.documents.readers._walk import find_below

_IMAGE_FOLDERS = ("", "images/")


def read_mmc4(path: Path) -> Iterator[Document | Rejection]:
    """Yield the documents of a file, or of the files below a folder.

    Raises:
        DataError: there is nothing at the path.
    """
    return read_records(path, _document, "mmc4", "a file of MMC4, or a folder of such files,")


def _document(record: dict[str, Any], place: Place) -> Iterator[Document | Rejection]:
    sentences = [
        text_of(text, f"text_list[{number}]")
        for number, text in enumerate(list_of(record, "text_list"))
    ]
    if not sentences:
        raise BadRecordError("bad-record", 'The record needs a list under "text_list".')
    before: dict[int, list[Segment]] = {}
    for number, info in enumerate(list_of(record, "image_info")):
        where = f"image_info[{number}]"
        index = info.get("matched_text_index") if isinstance(info, dict) else None
        if not isinstance(index, int) or not 0 <= index < len(sentences):
            raise BadRecordError(
                "bad-record",
                f'{where} must be an object with a "matched_text_index" from 0 to '
                f"{len(sentences) - 1}.",
            )
        try:
            image = Image(_image(info, place, where))
            before.setdefault(index, []).append(image)
        except BadRecordError as error:
            yield Rejection(place.where, error.kind, str(error))
    segments: list[Segment] = []
    words: list[str] = []
    for number, sentence in enumerate(sentences):
        if number in before:
            segments += [Text(" ".join(words)), *before[number]]
            words = []
        words.append(sentence)
    segments.append(Text(" ".join(words)))
    kept = tuple(each for each in segments if isinstance(each, Image) or each.text.strip())
    if not kept:
        raise BadRecordError("empty-document", "The document has neither text nor images.")
    yield Document(kept, name_of(record, place))


def _image(info: dict[str, Any], place: Place, where: str) -> Path | bytes:
    name = info.get("image_name")
    if not isinstance(name, str) or not name:
        return find_image(info.get("raw_url"), place, where)
    for folder in _IMAGE_FOLDERS:
        if "\0" not in name and find_below(place.folder, folder + name):
            return find_image(folder + name, place, where)
    url = info.get("raw_url")
    if isinstance(url, str) and url:
        reason = (
            f"{where} was not downloaded: there is no {name[:100]!r} beside it ({url[:100]!r})."
        )
        raise BadRecordError("remote-image", reason)
    return find_image(name, place, where)
