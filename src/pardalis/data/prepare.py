"""Preparing a source: documents become shards, with a report of what was rejected.

Images are encoded here, once; training reads token ids only. The grammar checks every document
before it is written. Shards are kept if the content of the source, the options and the codec have
not changed; otherwise they are replaced when the new ones are complete.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

import numpy as np

from pardalis.codec import Codec
from pardalis.config import check_at_least, check_at_most, fingerprint, not_deciding
from pardalis.data.packing import split_long
from pardalis.data.report import PrepareReport, Turns
from pardalis.data.shards import Shards, ShardWriter, read_index
from pardalis.data.source import SourceConfig, Survey, read_source, survey
from pardalis.data.transforms import Transforms, rooms, shard_inputs
from pardalis.documents import (
    Document,
    Image,
    Rejection,
    Segment,
    learning_only,
    open_image,
)
from pardalis.errors import ConfigError, DataError, GrammarError, TemplateError, TextError
from pardalis.files import atomic_folder, read_json, recover_folder, why_unwritten, write_json
from pardalis.progress import bar
from pardalis.tokens import Encoded

logger = logging.getLogger(__name__)

REPORT = "report.json"
_ENCODING = 2  # version of the layout of documents in tokens; 2: turns of the system are marked
_PAGES = "damaged images are left out"  # of pages, which were rejected whole before
_LAYOUT = 1  # version of the layout of shards without weights and pairs

# What rejections are counted by, where no image is the reason.
_KINDS: dict[type[DataError], str] = {TemplateError: "chat-template", TextError: "unreadable-text"}

Group: TypeAlias = list[Document]
"""Documents that are kept together: one, or the chosen and the rejected of a pair."""

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareConfig:
    """How documents become rows."""

    row_tokens: int  # tokens of a row: the context of the model
    batch_documents: int = not_deciding(64)  # documents whose images are encoded together
    # Documents longer than a row; those of a pair, and conversations of which only some turns are
    # learnt, are always rejected.
    long_documents: Literal["split", "reject"] = "split"
    shard_tokens: int = 2**26  # tokens of a shard file (128 MiB at two bytes each)

    def __post_init__(self) -> None:
        check_at_least(self, row_tokens=3, batch_documents=1, shard_tokens=1)
        check_at_most(self, row_tokens=2**24)


def prepare_source(
    source: SourceConfig,
    codec: Codec,
    folder: Path,
    config: PrepareConfig,
    content: Survey | None = None,
    learnt_roles: tuple[str, ...] = (),
) -> PrepareReport:
    """Write the shards of a source to a folder, unless they are there and still valid.

    Args:
        folder: gets ``index.json``, the shards and ``report.json``; replaced as a whole.
        learnt_roles: only the turns of these roles are learnt, whatever the weights of others, and
            a document without such a turn is rejected; (): all of a document, as of any source with
            ``learn = "all"``.

    Raises:
        DataError: the source does not exist or has no usable document, or writing failed; earlier
            shards in the folder are intact.
    """
    learnt_roles = source.learnt_roles(learnt_roles)
    if content is None:
        logger.info("Reading through source %r.", source.name)
        content = survey(source)
    prepared = fingerprint(
        _LAYOUT, _ENCODING, shard_inputs(source.transforms, config.row_tokens), config.row_tokens,
        config.long_documents, config.shard_tokens, codec.fingerprint, content.digest,
        *([learnt_roles] if learnt_roles else []),
        *([_PAGES] if source.has_pages else []),
    )  # fmt: skip
    recover_folder(folder)
    if (report := _finished(folder, prepared)) is not None:
        return report
    try:
        with atomic_folder(folder) as partial:
            preparation = _Preparation(source, codec, config, learnt_roles)
            report = preparation.write(partial, content.n_items, prepared)
    except OSError as error:
        raise DataError(
            f"Preparing source {source.name!r} into {folder} stopped: "
            f"{why_unwritten(error) or f'{error}; correct that'}, and prepare again. Earlier "
            "shards there are intact."
        ) from error
    if report.rejected:
        kinds = ", ".join(
            f"{each.count:,} {kind}" for kind, each in sorted(report.rejected.items())
        )
        logger.warning("%s: left out are %s; %s says why.", source.name, kinds, folder / REPORT)
    return report


def longest_document(source: SourceConfig, row_tokens: int) -> int:
    """Return the tokens of the longest document that fits a row after its transforms.

    Raises:
        ConfigError: not even the shortest document fits.
    """
    tokens = rooms(source.transforms, row_tokens)
    longest = int(np.searchsorted(tokens, row_tokens, side="right")) - 1
    if longest < 3:
        raise ConfigError(
            f"The transforms of source {source.name!r} leave no room for a document in a row "
            f"of {row_tokens} tokens; raise row_tokens or leave a transform out."
        )
    return longest


def _finished(folder: Path, prepared: str) -> PrepareReport | None:
    """Return the report of an earlier run if its shards are complete and of the same inputs."""
    try:
        Shards.open(folder)
        if read_index(folder)["prepared"] != prepared:
            return None
        report = PrepareReport.from_dict(read_json(folder / REPORT))
    except (DataError, OSError, ValueError):
        return None
    report.unchanged = True
    return report


@dataclass(frozen=True, slots=True)
class _Written:
    """What the shards hold of one document, or of the two of a pair."""

    entries: list[tuple[str, Encoded]]  # with their names
    is_split: bool


class _Preparation:
    """Writes the shards of one source."""

    def __init__(
        self,
        source: SourceConfig,
        codec: Codec,
        config: PrepareConfig,
        learnt_roles: tuple[str, ...],
    ) -> None:
        self._source, self._codec, self._config = source, codec, config
        self._learnt_roles = learnt_roles
        self._transforms = Transforms(source.transforms, codec.grammar, source.name)
        self._rooms = rooms(source.transforms, config.row_tokens)
        self._longest = longest_document(source, config.row_tokens)

    def write(self, folder: Path, n_items: int, prepared: str) -> PrepareReport:
        source, codec, config = self._source, self._codec, self._config
        report = PrepareReport(source.name, config.row_tokens)
        report.turns = Turns() if self._learnt_roles else None
        writer = ShardWriter(folder, codec.vocabulary.size, config.shard_tokens)
        groups = _groups(read_source(source), 2 if source.has_pairs else 1)
        with bar(f"Preparing {source.name}", total=n_items, unit="documents") as advance:
            for chunk in _chunks(groups, config.batch_documents):
                for result in self._encode(chunk):
                    if isinstance(result, Rejection):
                        report.add_rejection(result)
                        continue
                    report.split += result.is_split
                    for name, encoded in result.entries:
                        writer.add(name, encoded)
                        report.add_written(encoded, codec.grammar)
                n_read = sum(1 if isinstance(group, Rejection) else len(group) for group in chunk)
                report.read += n_read
                advance(n_read, images=report.images, rejected=report.n_rejected)
        if report.written == 0:
            raise DataError(
                f"Source {source.name!r} at {source.path} has no usable document: "
                f"{report.read} read, {report.n_rejected} rejected.\n{report.rejection_summary()}"
            )
        packing = writer.finish(
            config.row_tokens, codec.fingerprint, prepared,
            rooms=self._rooms, pairs=source.has_pairs,
        )  # fmt: skip
        report.add_rows(2 * packing.n_rows if source.has_pairs else packing.n_rows)
        write_json(folder / REPORT, report.to_dict())
        return report

    def _encode(self, chunk: Sequence[Group | Rejection]) -> Iterator[_Written | Rejection]:
        """Yield what is written of each group, or the rejections of its documents."""
        groups = [group for group in chunk if not isinstance(group, Rejection)]
        usable = [raw for group in groups for raw in group if self._unusable(raw) is None]
        encoded = self._encode_many(usable)
        if self._source.has_pages:
            yield from self._leave_images_out(usable, encoded)
        pairs = zip(usable, encoded, strict=True)
        for group in chunk:
            if isinstance(group, Rejection):
                yield group
                continue
            results = [self._unusable(raw) or self._of(*next(pairs)) for raw in group]
            written = [result for result in results if isinstance(result, _Written)]
            if len(written) == len(group):
                entries = [entry for result in written for entry in result.entries]
                yield _Written(entries, any(result.is_split for result in written))
                continue
            for raw, result in zip(group, results, strict=True):
                if isinstance(result, Rejection):
                    yield result
                else:
                    reason = "The other document of its pair is rejected."
                    yield Rejection(raw.name, "half-pair", reason)

    def _encode_many(self, documents: Sequence[Document]) -> list[Encoded | DataError]:
        if roles := self._learnt_roles:
            documents = [learning_only(raw, roles) for raw in documents]
        return self._codec.encode_many(documents)

    def _leave_images_out(
        self, pages: list[Document], encoded: list[Encoded | DataError]
    ) -> Iterator[Rejection]:
        """Replace, in place, the pages with damaged images by pages without these, and name them.

        A page of nothing else stays an error. The header of such an image is whole, or its reader
        would have left it out.
        """
        for number, page in enumerate(pages):
            if not isinstance(encoded[number], DataError):
                continue
            errors = {id(image): _why_damaged(image) for image in page.images}
            kept = tuple(each for each in page.segments if not errors.get(id(each)))
            rest = replace(page, segments=kept)
            if rest.is_empty or len(kept) == len(page.segments):
                continue
            pages[number], [encoded[number]] = rest, self._encode_many([rest])
            yield from (
                Rejection(page.name, "unreadable-image", error)
                for error in errors.values()
                if error
            )

    def _unusable(self, raw: Document) -> Rejection | None:
        """Return why a document need not even be encoded, or None."""
        if raw.is_empty:
            return Rejection(raw.name, "empty", "The document has neither text nor an image.")
        if not (roles := self._learnt_roles):
            return None
        learnt, filled = f"turn of the {' or the '.join(roles)}", _filled(raw)
        if not any(segment.role in roles for segment in filled):
            reason = (
                f"The document has no {learnt}, and nothing else of it would be learnt; with "
                'learn = "all" its source is learnt whole.'
            )
            return Rejection(raw.name, "no-answer", reason)
        if filled[0].role in roles:
            reason = f"The document begins with a {learnt}, which nothing asks for."
            return Rejection(raw.name, "no-prompt", reason)
        return None

    def _of(self, raw: Document, encoded: Encoded | DataError) -> _Written | Rejection:
        """Return what is written of a document."""
        if isinstance(encoded, DataError):
            return Rejection(raw.name, _KINDS.get(type(encoded), "unreadable-image"), str(encoded))
        grammar = self._codec.grammar
        try:
            grammar.validate(encoded.ids)
            written = self._transforms.write(encoded, raw)
            for _, whole in written:
                if whole is not encoded:
                    grammar.validate(whole.ids)
        except GrammarError as error:
            return Rejection(raw.name, "grammar", str(error))
        if not encoded.weights[1:].any():
            reason = "All weights of the document are 0, so nothing of it is learnt."
            return Rejection(raw.name, "no-weight", reason)
        n_tokens = max((len(whole) for _, whole in written), default=0)
        is_long = n_tokens > self._longest
        is_whole = self._source.has_pairs or bool(self._learnt_roles)
        if is_long and (self._config.long_documents == "reject" or is_whole):
            reason = f"The document has {n_tokens} tokens, a row has {self._longest}."
            return Rejection(raw.name, "too-long", reason)
        entries = []
        for name, whole in written:
            try:
                parts = split_long(whole, self._longest, grammar)
            except DataError as error:
                return Rejection(raw.name, "too-long-image", str(error))
            for number, part in enumerate(parts, start=1):
                entries.append((name if len(parts) == 1 else f"{name}#{number}", part))
        return _Written(entries, is_long)


def _why_damaged(image: Image) -> str:
    """Return why an image cannot be decoded; "" if it can."""
    try:
        open_image(image.source)
    except DataError as error:
        return str(error)
    return ""


def _filled(document: Document) -> list[Segment]:
    """Return the segments that have content."""
    return [each for each in document.segments if isinstance(each, Image) or each.text]


def _groups(items: Iterable[Document | Rejection], size: int) -> Iterator[Group | Rejection]:
    """Join each ``size`` documents that follow each other."""
    group: Group = []
    for item in items:
        if isinstance(item, Rejection):
            yield item
            continue
        group.append(item)
        if len(group) == size:
            yield group
            group = []


def _chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
