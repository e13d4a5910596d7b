"""Preparing a source: documents become shards, with a report of what was rejected.

Images are encoded here, once; training reads token ids only. The grammar checks every document
before it is written. Shards are kept if the content of the source, the options and the codec have
not changed; otherwise they are replaced when the new ones are complete.

Documents are encoded in blocks (:mod:`pardalis.data.blocks`), which any number of workers make
(:mod:`pardalis.data.workers`) and one process joins. An interrupted preparation continues.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
import torch

from pardalis.codec import Codec
from pardalis.config import check_at_least, check_at_most, fingerprint, not_deciding
from pardalis.data.blocks import WHOLE_SHARE, Block, Blocks, DamagedBlockError, Share
from pardalis.data.packing import split_long
from pardalis.data.portable import PortableCodec
from pardalis.data.report import PrepareReport, Turns
from pardalis.data.shards import INDEX, Shards, ShardWriter, ids_dtype, read_index
from pardalis.data.source import SourceConfig, Survey, read_source, survey
from pardalis.data.transforms import Transforms, rooms, shard_inputs
from pardalis.data.workers import ONE_WORKER, Workers, do_all
from pardalis.documents import (
    Document,
    Image,
    Omission,
    Rejection,
    Segment,
    learning_only,
    why_damaged,
)
from pardalis.errors import ConfigError, DataError, GrammarError, TemplateError, TextError
from pardalis.files import (
    atomic_folder,
    read_json,
    recover_folder,
    remove,
    why_unwritten,
    working_name,
    write_json,
)
from pardalis.progress import bar
from pardalis.tokens import Encoded

logger = logging.getLogger(__name__)

REPORT = "report.json"
_ENCODING = 2  # version of the layout of documents in tokens; 2: turns of the system are marked
_PAGES = "damaged images are left out"  # of pages, which were rejected whole before
_SHOWN_PARTS = 5  # that a message names
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
    block_documents: int = not_deciding(256)  # documents that one worker encodes at a time

    def __post_init__(self) -> None:
        check_at_least(self, row_tokens=3, batch_documents=1, shard_tokens=1, block_documents=1)
        check_at_most(self, row_tokens=2**24)


def prepare_source(
    source: SourceConfig,
    codec: Codec,
    folder: Path,
    config: PrepareConfig,
    content: Survey | None = None,
    learnt_roles: tuple[str, ...] = (),
    workers: Workers = ONE_WORKER,
) -> PrepareReport:
    """Write the shards of a source to a folder, unless they are there and still valid.

    Args:
        folder: gets ``index.json``, the shards and ``report.json``; replaced as a whole. What is
            encoded waits beside it until the shards are complete, so that an interrupted call goes
            on where it was.
        learnt_roles: only the turns of these roles are learnt, whatever the weights of others, and
            a document without such a turn is rejected; (): all of a document, as of any source with
            ``learn = "all"``.
        workers: what encodes. The shards are the same whatever it is. Several processes import the
            module that is run, so a script calls this under ``if __name__ == "__main__"``.

    Raises:
        DataError: the source does not exist or has no usable document, or writing failed; earlier
            shards in the folder are intact.
        BusyError: another process prepares the same source in the same folder.
    """
    if content is None:
        logger.info("Reading through source %r.", source.name)
        content = survey(source)
    return Preparation(source, codec, folder, config, content, learnt_roles).run(workers)


@dataclass(frozen=True, slots=True)
class _Work:
    """Some documents in succession, which one worker encodes."""

    number: int
    groups: list[Group | Rejection]
    omissions: tuple[Omission, ...]  # what is left out of them, or of what precedes them
    made_from: str  # fingerprint of everything that decides its block
    named: str  # which documents they are, for messages


@dataclass(frozen=True, slots=True)
class _Made:
    """The file of a block, and what to show of it."""

    number: int
    content: bytes
    groups: int
    images: int
    rejected: int


class Preparation:
    """The preparation of one source, which can be divided among processes; see ``prepare_source``.

    Attributes:
        n_blocks: how many blocks the source has.
    """

    def __init__(
        self,
        source: SourceConfig,
        codec: Codec,
        folder: Path,
        config: PrepareConfig,
        content: Survey,
        learnt_roles: tuple[str, ...] = (),
    ) -> None:
        learnt_roles = source.learnt_roles(learnt_roles)
        self._source, self._codec, self._folder, self._config = source, codec, folder, config
        self._encoder = _Encoder(source, codec, config, learnt_roles)
        transforms = shard_inputs(source.transforms, config.row_tokens)
        self._prepared = fingerprint(
            _LAYOUT, _ENCODING, transforms, config.row_tokens,
            config.long_documents, config.shard_tokens, codec.fingerprint, content.digest,
            *([learnt_roles] if learnt_roles else []),
            *([_PAGES] if source.has_pages else []),
        )  # fmt: skip
        self._n_groups = content.n_groups(_together(source))
        self.n_blocks = -(-self._n_groups // config.block_documents)
        settings = {
            "encoding": _ENCODING,
            "transforms": fingerprint(transforms),
            "row_tokens": config.row_tokens,
            "long_documents": config.long_documents,
            "codec": codec.fingerprint,
            "documents": content.digest,
            "learnt_roles": learnt_roles,
            "block_documents": config.block_documents,
            "batch_documents": config.batch_documents,
            "device": codec.image_tokenizer.device.type,
        }
        self._blocks = Blocks(blocks_folder(folder), settings)

    def finished(self) -> PrepareReport | None:
        """Return the report of an earlier preparation if its shards are complete and valid."""
        recover_folder(self._folder)
        return _finished(self._folder, self._prepared)

    def run(self, workers: Workers) -> PrepareReport:
        """Make the blocks that are missing, and join all; raises as :func:`prepare_source`."""
        if (report := self.finished()) is not None:
            return report
        if workers.joins_only and not self._blocks.folder.is_dir():
            raise DataError(
                f"Nothing of source {self._source.name!r}, as it is now, is prepared in "
                f"{self._folder.parent}, so there is nothing to join; make its parts first."
            )
        with self._telling(), self._blocks.held():
            self._blocks.settle(replace=not workers.joins_only)
            if workers.joins_only:
                self._require_all()
            try:
                report = self._made_and_joined(workers)
            except DamagedBlockError as damaged:
                if workers.joins_only:
                    raise
                logger.warning("%s It is made anew.", str(damaged).split("; delete")[0] + ".")
                remove(damaged.path)
                report = self._made_and_joined(workers)
            self._blocks.remove()
        if report.rejected:
            kinds = ", ".join(
                f"{each.count:,} {kind}" for kind, each in sorted(report.rejected.items())
            )
            where = self._folder / REPORT
            logger.warning("%s: left out are %s; %s says why.", report.source, kinds, where)
        return report

    def make_share(self, share: Share, numbers: range, workers: Workers) -> bool:
        """Make those of some blocks that are missing.

        Args:
            share: names the folder in which they are made.

        Returns:
            whether all blocks of the source exist now.

        Raises:
            BusyError: another process makes the same part.
            ConfigError: the other parts are of another recipe, or of other documents.
            DataError: writing failed, or workers died.
        """
        with self._telling(), self._blocks.held(share):
            self._blocks.settle(replace=False)
            self._make(share, numbers, workers)
            return self.is_complete

    @property
    def is_complete(self) -> bool:
        """Whether all blocks of the source exist."""
        return not set(range(self.n_blocks)).difference(self._blocks.found())

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(
                f"Preparing source {self._source.name!r} into {self._folder} stopped: "
                f"{why_unwritten(error) or f'{error}; correct that'}, and prepare again. Earlier "
                "shards there are intact."
            ) from error

    def _made_and_joined(self, workers: Workers) -> PrepareReport:
        try:
            self._make(WHOLE_SHARE, range(self.n_blocks), workers)
            with atomic_folder(self._folder) as partial:
                return self._join(partial)
        except BaseException:
            self._blocks.remove_if_empty()
            raise

    # ── blocks ─────────────────────────────────────────────────────────────────────────────────

    def _make(self, share: Share, numbers: range, workers: Workers) -> None:
        found = self._blocks.found()
        missing = [number for number in numbers if number not in found]
        if not missing:
            return
        name, of_block = self._source.name, self._config.block_documents
        total = min(numbers.stop * of_block, self._n_groups) - numbers.start * of_block
        n_done = len(numbers) - len(missing)
        if n_done:
            logger.info("%s: %d of %d blocks exist.", name, n_done, len(numbers))
        title = f"Preparing {name}" if share == WHOLE_SHARE else f"Preparing {name}, part {share}"
        unit = "pairs" if self._source.has_pairs else "documents"
        images = rejected = 0
        made_in = do_all(self._encoder, self._work(missing), len(missing), workers)
        with bar(title, total, unit, n_done * of_block) as advance, closing(made_in) as all_made:
            for made in all_made:
                self._blocks.write(share, made.number, made.content)
                images, rejected = images + made.images, rejected + made.rejected
                advance(made.groups, images=images, rejected=rejected)

    def _work(self, numbers: Sequence[int]) -> Iterator[_Work]:
        """Read the source up to the last of some blocks, and yield these."""
        wanted, of_block = set(numbers), self._config.block_documents
        omissions: list[Omission] = []  # since the last block
        items = _whole(read_source(self._source), omissions)
        groups = _groups(items, _together(self._source))
        for number in range(numbers[-1] + 1):
            if number in wanted:
                some = list(islice(groups, of_block))
                n_read = len(some)
            else:
                some, n_read = [], sum(1 for _ in islice(groups, of_block))
            first = number * of_block
            if n_read != min(of_block, self._n_groups - first):
                raise self._changed()
            if number + 1 == self.n_blocks and next(groups, None) is not None:
                raise self._changed()
            if some:
                named = f"documents {first + 1} to {first + n_read} of source {self._source.name!r}"
                yield _Work(number, some, tuple(omissions), self._blocks.made_from, named)
            omissions.clear()

    def _changed(self) -> DataError:
        return DataError(
            f"Source {self._source.name!r} at {self._source.path} has changed while it was "
            "prepared; prepare it again."
        )

    def _require_all(self) -> None:
        """Raise DataError if a block is missing."""
        found = self._blocks.found()
        missing = [number for number in range(self.n_blocks) if number not in found]
        if not missing:
            return
        shares = [Share(number + 1, n) for n in [self._blocks.n_parts()] for number in range(n)]
        parts = [each for each in shares if set(missing).intersection(each.among(self.n_blocks))]
        named = " and ".join(f"part {each}" for each in parts[:_SHOWN_PARTS])
        others = f" and {len(parts) - _SHOWN_PARTS} more" if len(parts) > _SHOWN_PARTS else ""
        raise DataError(
            f"{len(missing)} of {self.n_blocks} blocks of source {self._source.name!r} are missing "
            f"in {self._blocks.folder}: those of {named}{others}. Make these parts before all are "
            "joined."
        )

    # ── shards ─────────────────────────────────────────────────────────────────────────────────

    def _join(self, folder: Path) -> PrepareReport:
        """Write the shards of all blocks, in order."""
        source, codec, config = self._source, self._codec, self._config
        report = PrepareReport(source.name, config.row_tokens)
        report.turns = Turns() if self._encoder.learnt_roles else None
        size = codec.vocabulary.size
        writer, found = ShardWriter(folder, size, config.shard_tokens), self._blocks.found()
        with bar(f"Joining {source.name}", self.n_blocks, "blocks") as advance:
            for number in range(self.n_blocks):
                made_from = self._blocks.made_from
                block = Block.read(found[number], ids_dtype(size), made_from, number)
                report.add_report(block.report)
                for name, document in zip(block.names, block.documents, strict=True):
                    writer.add(name, document)
                advance()
        if report.written == 0:
            self._blocks.remove()  # they would say the same again
            raise DataError(
                f"Source {source.name!r} at {source.path} has no usable document: "
                f"{report.read} read, {report.n_rejected} rejected.\n{report.rejection_summary()}"
            )
        licences = [
            {"licence": licence, **asdict(counts)}
            for licence, counts in sorted(report.licences.items())
        ]
        packing = writer.finish(
            config.row_tokens, codec.fingerprint, self._prepared,
            rooms=self._encoder.rooms, pairs=source.has_pairs,
            about={"source": _stated(source), "licences": licences},
        )  # fmt: skip
        report.add_rows(2 * packing.n_rows if source.has_pairs else packing.n_rows)
        write_json(folder / REPORT, report.to_dict())
        return report


def blocks_folder(shards: Path) -> Path:
    """Return where the blocks of shards are while these are made."""
    return working_name(shards, "blocks")


def restate(folder: Path, source: SourceConfig) -> None:
    """Bring what the index of shards says of their source up to date; it decides nothing."""
    try:
        index = read_index(folder)
    except DataError:
        return
    if (now := _stated(source)) != index.get("source", now):
        write_json(folder / INDEX, index | {"source": now})


def _stated(source: SourceConfig) -> dict[str, str]:
    return {
        "name": source.name,
        "licence": source.licence,
        "attribution": source.attribution,
    }


def _together(source: SourceConfig) -> int:
    return 2 if source.has_pairs else 1


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
    licence: str


class _Encoder:
    """Encodes the documents of one source; can be sent to another process.

    Attributes:
        rooms: the tokens that a document of each length takes in its row.
    """

    did = "encoded"
    advice = (
        "What is encoded is kept. If memory is short, use fewer jobs or a smaller "
        "prepare.block_documents, and prepare again."
    )

    def __init__(
        self,
        source: SourceConfig,
        codec: Codec,
        config: PrepareConfig,
        learnt_roles: tuple[str, ...],
    ) -> None:
        self._source, self._codec, self._config = source, codec, config
        self.learnt_roles = learnt_roles
        self._transforms = Transforms(source.transforms, codec.grammar, source.name)
        self.rooms = rooms(source.transforms, config.row_tokens)
        self._longest = longest_document(source, config.row_tokens)

    @property
    def device(self) -> torch.device:
        return self._codec.image_tokenizer.device

    def to(self, device: torch.device | str) -> "_Encoder":
        self._codec.image_tokenizer.to(device)
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _Encoder, (self._source, PortableCodec(self._codec), self._config, self.learnt_roles)

    def do(self, work: _Work) -> _Made:
        """Encode the documents of a block, images of ``batch_documents`` together."""
        codec, config = self._codec, self._config
        report = PrepareReport(self._source.name, config.row_tokens)
        report.turns = Turns() if self.learnt_roles else None
        block = Block(report)
        for omission in work.omissions:
            report.add_rejection(omission)
        for chunk in _chunks(work.groups, config.batch_documents):
            for result in self._encode(chunk):
                if isinstance(result, Rejection):
                    report.add_rejection(result)
                    continue
                report.split += result.is_split
                if result.entries:
                    report.add_licensed(result.licence)
                for name, encoded in result.entries:
                    block.names.append(name)
                    block.documents.append(encoded)
                    report.add_written(encoded, codec.grammar, result.licence)
            report.read += sum(1 if isinstance(each, Rejection) else len(each) for each in chunk)
        dtype = ids_dtype(codec.vocabulary.size)
        return _Made(
            number=work.number,
            content=block.to_bytes(dtype, work.made_from, work.number),
            groups=len(work.groups),
            images=report.images,
            rejected=report.n_rejected,
        )

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
                is_split = any(result.is_split for result in written)
                yield _Written(entries, is_split, group[0].licence)
                continue
            for raw, result in zip(group, results, strict=True):
                if isinstance(result, Rejection):
                    yield result
                else:
                    reason = "The other document of its pair is rejected."
                    yield Rejection(raw.name, "half-pair", reason)

    def _encode_many(self, documents: Sequence[Document]) -> list[Encoded | DataError]:
        if roles := self.learnt_roles:
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
            errors = {id(image): why_damaged(image.source) for image in page.images}
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
        if not (roles := self.learnt_roles):
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
        is_whole = self._source.has_pairs or bool(self.learnt_roles)
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
        return _Written(entries, is_long, raw.licence)


def _filled(document: Document) -> list[Segment]:
    """Return the segments that have content."""
    return [each for each in document.segments if isinstance(each, Image) or each.text]


def _whole(
    items: Iterable[Document | Rejection], omissions: list[Omission]
) -> Iterator[Document | Rejection]:
    """Yield items, and put what is left out of them in a list."""
    for item in items:
        if isinstance(item, Omission):
            omissions.append(item)
        else:
            yield item


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
