"""Preparing a source: documents become shards, with a report of what was rejected.

Images are encoded here, once; training reads token ids only. The grammar checks every document
before it is written. Shards are kept if the content of the source, the options and the codec have
not changed; otherwise they are replaced when the new ones are complete.
"""

import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Integer

from pardalis.codec import Codec
from pardalis.config import check_at_least, fingerprint, not_deciding
from pardalis.data.packing import split_long
from pardalis.data.report import PrepareReport
from pardalis.data.shards import VERSION, Shards, ShardWriter, read_index
from pardalis.data.source import SourceConfig, Survey, read_source, survey
from pardalis.documents import Document, Image, Rejection, Text
from pardalis.errors import DataError, GrammarError
from pardalis.files import atomic_folder, recover_folder, write_json
from pardalis.progress import bar
from pardalis.seeds import derive
from pardalis.tokens import Grammar, SpanKind

logger = logging.getLogger(__name__)

REPORT = "report.json"
_ENCODING = 2  # version of the layout of documents in tokens; 2: turns of the system are marked

Ids = Integer[np.ndarray, " _"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareConfig:
    """How documents become rows."""

    row_tokens: int  # tokens of a row: the context of the model
    batch_documents: int = not_deciding(64)  # documents whose images are encoded together
    long_documents: Literal["split", "reject"] = "split"  # documents longer than a row
    shard_tokens: int = 2**26  # tokens of a shard file (128 MiB at two bytes each)

    def __post_init__(self) -> None:
        check_at_least(self, row_tokens=3, batch_documents=1, shard_tokens=1)


def prepare_source(
    source: SourceConfig,
    codec: Codec,
    folder: Path,
    config: PrepareConfig,
    content: Survey | None = None,
) -> PrepareReport:
    """Write the shards of a source to a folder, unless they are there and still valid.

    Args:
        folder: gets ``index.json``, the shards and ``report.json``; replaced as a whole.

    Raises:
        DataError: the source does not exist or has no usable document, or writing failed; earlier
            shards in the folder are intact.
    """
    if content is None:
        logger.info("Reading through source %r.", source.name)
        content = survey(source)
    prepared = fingerprint(
        VERSION, _ENCODING, source.pair_order, config.row_tokens, config.long_documents,
        config.shard_tokens, codec.fingerprint, content.digest,
    )  # fmt: skip
    recover_folder(folder)
    if (report := _finished(folder, prepared)) is not None:
        return report
    try:
        with atomic_folder(folder) as partial:
            return _prepare(source, codec, partial, config, content.n_items, prepared)
    except OSError as error:
        raise DataError(
            f"Preparing source {source.name!r} into {folder} stopped: {error}. Earlier shards "
            "there are intact; correct the cause (free disk space, say) and prepare again."
        ) from error


def _finished(folder: Path, prepared: str) -> PrepareReport | None:
    """Return the report of an earlier run if its shards are complete and of the same inputs."""
    try:
        Shards.open(folder)
        if read_index(folder)["prepared"] != prepared:
            return None
        report = PrepareReport.from_dict(json.loads((folder / REPORT).read_text()))
    except (DataError, OSError, ValueError):
        return None
    report.unchanged = True
    return report


def _prepare(
    source: SourceConfig, codec: Codec, folder: Path, config: PrepareConfig,
    n_items: int, prepared: str,
) -> PrepareReport:  # fmt: skip
    report = PrepareReport(source.name, config.row_tokens)
    writer = ShardWriter(folder, codec.vocabulary.size, config.shard_tokens)
    with bar(f"Preparing {source.name}", total=n_items, unit="documents") as advance:
        for chunk in _chunks(read_source(source), config.batch_documents):
            report.read += len(chunk)
            for result in _encode(chunk, source, codec, config):
                if isinstance(result, Rejection):
                    report.add_rejection(result)
                    continue
                report.split += result.is_split
                for name, ids in result.entries:
                    writer.add(name, ids)
                    report.add_written(ids, codec.grammar)
            advance(len(chunk), images=report.images, rejected=report.n_rejected)
    if report.written == 0:
        raise DataError(
            f"Source {source.name!r} at {source.path} has no usable document: "
            f"{report.read} read, {report.n_rejected} rejected.\n{report.rejection_summary()}"
        )
    packing = writer.finish(config.row_tokens, codec.fingerprint, prepared)
    report.add_rows(packing.n_rows)
    write_json(folder / REPORT, report.to_dict())
    return report


def _chunks(
    items: Iterable[Document | Rejection], size: int
) -> Iterator[list[Document | Rejection]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


@dataclass(frozen=True, slots=True)
class _Encoded:
    """The entries of one document in the shards."""

    entries: list[tuple[str, Ids]]  # names and ids
    is_split: bool


def _encode(
    chunk: list[Document | Rejection], source: SourceConfig, codec: Codec, config: PrepareConfig
) -> Iterator[_Encoded | Rejection]:
    documents = []
    for item in chunk:
        if isinstance(item, Rejection):
            yield item
        elif item.is_empty:
            yield Rejection(item.name, "empty", "The document has neither text nor an image.")
        else:
            documents.append(item)
    for document, ids in zip(documents, codec.encode_many(documents), strict=True):
        if isinstance(ids, DataError):
            yield Rejection(document.name, "unreadable-image", str(ids))
        else:
            yield _encoded(document, ids, source, codec, config)


def _encoded(
    document: Document, ids: list[int], source: SourceConfig, codec: Codec, config: PrepareConfig
) -> _Encoded | Rejection:
    try:
        codec.grammar.validate(ids)
    except GrammarError as error:
        return Rejection(document.name, "grammar", str(error))
    is_long = len(ids) > config.row_tokens
    if is_long and config.long_documents == "reject":
        reason = f"The document has {len(ids)} tokens, a row has {config.row_tokens}."
        return Rejection(document.name, "too-long", reason)
    entries = []
    for name, ordered in _orders(document, np.array(ids), source, codec.grammar):
        try:
            parts = split_long(ordered, config.row_tokens, codec.grammar)
        except DataError as error:
            return Rejection(document.name, "too-long-image", str(error))
        for number, part in enumerate(parts, start=1):
            entries.append((name if len(parts) == 1 else f"{name}#{number}", part))
    return _Encoded(entries, is_long)


def _orders(
    document: Document, ids: Ids, source: SourceConfig, grammar: Grammar
) -> list[tuple[str, Ids]]:
    """Return the orders in which a document is written: one, or both of a pair."""
    as_written = (document.name, ids)
    if source.pair_order == "as_written" or not _is_pair(document):
        return [as_written]
    swapped = (f"{document.name}#swapped", _swap(ids, grammar))
    if source.pair_order == "both":
        return [as_written, swapped]
    return [swapped if derive(0, "pair order", ascii(document.name)) % 2 else as_written]


def _is_pair(document: Document) -> bool:
    """Return whether a document is one text and one image, in either order, without roles."""
    kinds = [type(segment) for segment in document.segments if segment.role is None]
    return len(document.segments) == 2 and (kinds in ([Text, Image], [Image, Text]))


def _swap(ids: Ids, grammar: Grammar) -> Ids:
    """Exchange the text and the image of a pair: cheaper than encoding the image twice."""
    [image] = [span for span in grammar.spans(ids) if span.kind is SpanKind.IMAGE]
    bos, before, pixels, after, eos = np.split(ids, [1, image.start, image.stop, len(ids) - 1])
    return np.concatenate([bos, after, pixels, before, eos])
