"""Numbered documents, written for each of the readers."""

import json
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from email.message import EmailMessage
from pathlib import Path

import PIL.Image
from pdf_files import pdf_file

Write = Callable[[Path, Iterable[int]], Path]


def words(number: int) -> str:
    """Return the caption, which no other number has a part of."""
    return f"animal <{number}>"


def colour(number: int) -> tuple[int, int, int]:
    return (number * 37) % 256, (number * 91) % 256, number % 256


def write_documents(reader: str, folder: Path, numbers: Iterable[int]) -> Path:
    """Write an image and a caption of each number for a reader; return the path of the source."""
    folder.mkdir()
    return WRITERS[reader](folder, numbers)


def _image(folder: Path, number: int) -> str:
    PIL.Image.new("RGB", (32, 32), colour(number)).save(folder / f"{number}.png")
    return f"{number}.png"


def _folder(folder: Path, numbers: Iterable[int]) -> Path:
    for number in numbers:
        (folder / _image(folder, number)).with_suffix(".txt").write_text(words(number))
    return folder


def _html(folder: Path, numbers: Iterable[int]) -> Path:
    for number in numbers:
        name = words(number).replace("<", "&lt;").replace(">", "&gt;")
        page = f"<body><h1>{name}</h1><img src='{_image(folder, number)}'></body>"
        (folder / f"page-{number}.html").write_text(page)
    return folder


def _mhtml(folder: Path, numbers: Iterable[int]) -> Path:
    for number in numbers:
        name = words(number).replace("<", "&lt;")
        message = EmailMessage()
        message.set_content(f"<h1>{name}</h1><img src='cid:a@owls'>", subtype="html")
        image = folder / _image(folder, number)
        message.add_related(image.read_bytes(), "image", "png", cid="<a@owls>")
        image.unlink()
        (folder / f"{number}.mhtml").write_bytes(message.as_bytes())
    return folder


def _epub(folder: Path, numbers: Iterable[int]) -> Path:
    path = folder / "book.epub"
    kept = list(numbers)
    items = "".join(
        f'<item id="c{n}" href="{n}.xhtml" media-type="application/xhtml+xml"/>' for n in kept
    )
    spine = "".join(f'<itemref idref="c{n}"/>' for n in kept)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "META-INF/container.xml",
            '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
            '<rootfile full-path="a.opf"/></rootfiles></container>',
        )
        archive.writestr(
            "a.opf",
            '<package xmlns="http://www.idpf.org/2007/opf">'
            f"<manifest>{items}</manifest><spine>{spine}</spine></package>",
        )
        for number in kept:
            name = words(number).replace("<", "&lt;")
            image = folder / _image(folder, number)
            archive.write(image, image.name)
            image.unlink()
            archive.writestr(
                f"{number}.xhtml",
                '<html xmlns="http://www.w3.org/1999/xhtml"><head><title/></head><body>'
                f'<h1>{name}</h1><img src="{image.name}"/></body></html>',
            )
    return path


def _jsonl(folder: Path, numbers: Iterable[int]) -> Path:
    lines = [
        {"segments": [{"text": words(number)}, {"image": _image(folder, number)}]}
        for number in numbers
    ]
    return _lines(folder / "documents.jsonl", lines)


def _pairs(folder: Path, numbers: Iterable[int]) -> Path:
    lines = [
        {
            "prompt": words(number),
            "chosen": [{"image": _image(folder, number)}],
            "rejected": "no",
        }
        for number in numbers
    ]
    return _lines(folder / "pairs.jsonl", lines)


def _chat(folder: Path, numbers: Iterable[int]) -> Path:
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"Draw {words(number)}"},
                {"role": "assistant", "content": [{"type": "image", "image": image}]},
            ]
        }
        for number in numbers
        for image in [_image(folder, number)]
    ]
    return _lines(folder / "chat.jsonl", lines)


def _sharegpt(folder: Path, numbers: Iterable[int]) -> Path:
    lines = [
        {
            "image": _image(folder, number),
            "conversations": [
                {"from": "human", "value": "<image>\nWhat is it?"},
                {"from": "gpt", "value": words(number)},
            ],
        }
        for number in numbers
    ]
    return _lines(folder / "talks.jsonl", lines)


def _cauldron(folder: Path, numbers: Iterable[int]) -> Path:
    lines = [
        {
            "images": [_image(folder, number)],
            "texts": [{"user": "What is it?", "assistant": words(number)}],
        }
        for number in numbers
    ]
    return _lines(folder / "cauldron.jsonl", lines)


def _obelics(folder: Path, numbers: Iterable[int]) -> Path:
    lines = [
        {"texts": [words(number), None], "images": [None, _image(folder, number)]}
        for number in numbers
    ]
    return _lines(folder / "obelics.jsonl", lines)


def _mmc4(folder: Path, numbers: Iterable[int]) -> Path:
    lines = [
        {
            "text_list": [words(number)],
            "image_info": [{"image_name": _image(folder, number), "matched_text_index": 0}],
        }
        for number in numbers
    ]
    return _lines(folder / "mmc4.jsonl", lines)


def _csv(folder: Path, numbers: Iterable[int]) -> Path:
    path = folder / "table.csv"
    rows = [f'{_image(folder, number)},"{words(number)}"\n' for number in numbers]
    path.write_text("".join(("image,caption\n", *rows)))
    return path


def _parquet(folder: Path, numbers: Iterable[int]) -> Path:
    """Write rows as Hugging Face's datasets have them."""
    import pyarrow
    from pyarrow import parquet

    rows = []
    for number in numbers:
        image = folder / _image(folder, number)
        rows.append({"text": words(number), "image": {"bytes": image.read_bytes(), "path": None}})
        image.unlink()
    path = folder / "train-00000-of-00001.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def _webdataset(folder: Path, numbers: Iterable[int]) -> Path:
    path = folder / "00000.tar"
    with tarfile.open(path, "w") as archive:
        for number in numbers:
            image = folder / _image(folder, number)
            image.with_suffix(".txt").write_text(words(number))
            for file in (image, image.with_suffix(".txt")):
                archive.add(file, file.name)
                file.unlink()
    return path


def _text(folder: Path, numbers: Iterable[int]) -> Path:
    for number in numbers:
        (folder / f"{number}.txt").write_text(words(number))
    return folder


def _markdown(folder: Path, numbers: Iterable[int]) -> Path:
    for number in numbers:
        name = words(number).replace("<", "\\<")
        (folder / f"{number}.md").write_text(f"# {name}\n\n![]({_image(folder, number)})\n")
    return folder


def _pdf(folder: Path, numbers: Iterable[int]) -> Path:
    path = folder / "pages.pdf"
    path.write_bytes(pdf_file([[words(number)] for number in numbers]))
    return path


def _lines(path: Path, lines: Iterable[object]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


WRITERS: dict[str, Write] = {
    "folder": _folder,
    "html": _html,
    "mhtml": _mhtml,
    "epub": _epub,
    "jsonl": _jsonl,
    "pairs": _pairs,
    "chat": _chat,
    "sharegpt": _sharegpt,
    "cauldron": _cauldron,
    "obelics": _obelics,
    "mmc4": _mmc4,
    "webdataset": _webdataset,
    "parquet": _parquet,
    "csv": _csv,
    "text": _text,
    "markdown": _markdown,
    "pdf": _pdf,
}
