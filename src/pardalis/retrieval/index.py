"""An index: the vectors of documents, and the documents as a model reads them.

    index.json           format version, the embedder, the codec, the sources
    vectors.npy          float32 [documents, width]: a vector of each document
    modalities.npy       bool [documents, 2]: whether it has text, and images
    shards/<source>/     the documents of each source in token ids (:mod:`pardalis.data.shards`)
    LICENCES.md          the licences of its documents

A document is a number: those of the first source come first, in the order of its shards. A folder
is written atomically.
"""

import bisect
import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Integer

from pardalis import config as configs
from pardalis.bundle import LICENCES, read_licences
from pardalis.codec import Codec
from pardalis.config import check_above, fingerprint, shown
from pardalis.data import (
    PrepareConfig,
    Shards,
    SourceConfig,
    Survey,
    check_name,
    prepare_source,
    read_source,
    survey,
)
from pardalis.data.arrays import open_array
from pardalis.data.licences import NOT_STATED, Stated, licence_table
from pardalis.documents import Document
from pardalis.errors import ConfigError, DataError
from pardalis.files import (
    atomic_folder,
    existing_folder,
    found_at,
    read_json,
    recover_folder,
    require_replaceable,
    write_json,
    write_text,
)
from pardalis.progress import bar
from pardalis.retrieval.embedders import EMBEDDERS, Embedder, EmbedderConfig, embed, kinds_of
from pardalis.retrieval.search import Search, SearchKind, search_of
from pardalis.tokens import Encoded, Grammar

FORMAT, VERSION = "pardalis-retrieval", 1
DESCRIPTION = "index.json"
_VECTORS, _MODALITIES, _SHARDS = "vectors.npy", "modalities.npy", "shards"
_ROUNDING = 1e-3
_CHUNK = 64  # documents that are embedded together
_BUILD_AGAIN = "build the index again."


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexConfig:
    """How an index is built."""

    embedder: Any = None  # an EmbedderConfig; None: MiniLM and EfficientNet-lite0
    document_tokens: int = 1024  # longer documents are left out
    # Name of a special id of the vocabulary that stands behind each retrieved document; "": none.
    separator: str = ""

    def __post_init__(self) -> None:
        check_above(self, document_tokens=2)

    @property
    def embedder_config(self) -> EmbedderConfig:
        chosen: EmbedderConfig = self.embedder or next(iter(EMBEDDERS.values()))()
        return chosen


class Index:
    """An index that is open; use :meth:`open`.

    Attributes:
        folder: where it is.
        vectors: of its documents.
        modalities: whether each has text, and images.
        identity: hash of everything that it was made from.
        separator: name of the special id behind each retrieved document; "": none.
    """

    def __init__(
        self, folder: Path, description: dict[str, Any], shards: dict[str, Shards]
    ) -> None:
        self.folder, self._description, self._shards = folder, description, shards
        n = sum(each.n_documents for each in shards.values())
        self.vectors = _array(folder / _VECTORS, (n, description["width"]), np.dtype(np.float32))
        self.modalities = _array(folder / _MODALITIES, (n, 2), np.dtype(np.bool_))
        self.identity: str = description["identity"]
        self.separator: str = description["separator"]
        self._starts = list(accumulate((s.n_documents for s in shards.values()), initial=0))
        self._names = list(shards)

    @classmethod
    def open(
        cls, folder: Path, codec: Codec | None = None, vocab_size: int | None = None
    ) -> "Index":
        """Open an index.

        Args:
            codec: that of the model which reads its documents; None accepts any.
            vocab_size: token ids must lie below it; by default the codec's.

        Raises:
            DataError: there is none, it is damaged, newer than this version, or of another codec.
        """
        folder = existing_folder(folder)
        description = _description(folder)
        shards = {
            name: Shards.open(folder / _SHARDS / name, description["codec"], vocab_size)
            for name in description["sources"]
        }
        index = cls(folder, description, shards)
        return index if codec is None else index.read_by(codec)

    def read_by(self, codec: Codec) -> "Index":
        """Return the same open files, as a model with a codec reads them.

        Raises:
            DataError: the documents are of another codec; or, when one is read, it has a token id
                that the codec lacks.
        """
        made = self._description["codec"]
        if made != codec.fingerprint:
            raise DataError(
                f"The index {self.folder} holds documents in the token ids of codec {made}, but "
                f"the model has codec {codec.fingerprint}; build an index with the tokenizers of "
                "this model."
            )
        if self.separator:
            separator_id(codec.grammar, self.separator)
        index, size = copy.copy(self), codec.vocabulary.size
        index._shards = {name: shards.below(size) for name, shards in self._shards.items()}
        return index

    def __len__(self) -> int:
        return len(self.vectors)

    @cached_property
    def is_mixed(self) -> Bool[np.ndarray, " N"]:
        """Whether each document has both text and images."""
        return self.modalities[:, 0] & self.modalities[:, 1]

    @cached_property
    def lengths(self) -> Integer[np.ndarray, " N"]:
        """The tokens of each document."""
        return np.concatenate([shards.lengths for shards in self._shards.values()])

    def embedder(self, config: EmbedderConfig | None = None) -> Embedder:
        """Load the nets that made its vectors.

        Args:
            config: where their weights are; None: those of packages. An index names no files.

        Raises:
            DataError: the weights are not those that made the vectors.
            BundleError: weights cannot be read.
            ConfigError: a package that holds weights is missing, or no package does.
        """
        made = self._description["embedder"]
        if config is None:
            if made.get("kind") == "clip":
                raise ConfigError(
                    f"The index {self.folder} was made by a CLIP, of which it keeps no copy; name "
                    "its folder by `clip`, or in a recipe by retrieval.embedder."
                )
            config = configs.from_dict(EMBEDDERS["separate"], made, "embedder.")
        embedder = config.build()
        if embedder.fingerprint != self._description["nets"]:
            raise DataError(
                f"The index {self.folder} was made by nets of the fingerprint "
                f"{self._description['nets']} ({_shown_nets(made)}), but those in use have "
                f"{embedder.fingerprint}; use the nets that made it, or {_BUILD_AGAIN}"
            )
        return embedder

    def search(self, kind: SearchKind = "auto") -> Search:
        """Return a search among its vectors.

        Raises:
            ConfigError: faiss is needed and missing.
            DataError: a vector is longer than 1, or holds no numbers.
        """
        if not np.abs(self.vectors).max(initial=0) <= 1 + _ROUNDING:
            raise DataError(
                f"{self.folder / _VECTORS} holds a vector that is longer than 1, or no numbers; "
                f"{_BUILD_AGAIN}"
            )
        return search_of(self.vectors, kind)

    def document(self, number: int) -> Encoded:
        """Return a document in token ids; raises DataError if they are damaged."""
        name, own = self._place(number)
        return self._shards[name].document(own)

    @property
    def licences(self) -> str:
        """The licences of its documents in Markdown; empty in an index of an earlier version."""
        return read_licences(self.folder)

    def read_names(self) -> None:
        """Read all names, so that nothing is opened later; raises DataError if they are damaged."""
        for shards in self._shards.values():
            _ = shards.names

    def source_and_name(self, number: int) -> tuple[str, str]:
        """Return the source of a document, and its name there."""
        name, own = self._place(number)
        return name, self._shards[name].names[own]

    def numbers_of(self, source: str) -> dict[str, int]:
        """Return the numbers of the documents of a source by name; {}: it holds none of it."""
        if source not in self._shards:
            return {}
        start = self._starts[self._names.index(source)]
        return {name: start + own for own, name in enumerate(self._shards[source].names)}

    def _place(self, number: int) -> tuple[str, int]:
        place = bisect.bisect_right(self._starts, number) - 1
        return self._names[place], number - self._starts[place]


def build_index(
    folder: Path,
    sources: Sequence[SourceConfig],
    codec: Codec,
    config: IndexConfig,
    contents: Sequence[Survey] | None = None,
    licences: str = "",
) -> Index:
    """Build an index of documents in a folder, unless it is there and its sources are unchanged.

    Args:
        folder: replaced as a whole when the new index is complete.
        sources: of its documents; their transforms are not applied.
        contents: of the sources, if they have been read for it.
        licences: of the sources in Markdown; by default a table of what each states.

    Raises:
        ConfigError: no source is named, one has pairs, the folder holds something else, or a
            package is missing.
        DataError: a source does not exist or has no usable document.
        BundleError: the weights of a net cannot be read.
    """
    require_index_folder(folder)
    _check_sources(sources, codec, config)
    embedder = config.embedder_config.build()
    contents = contents or [survey(source) for source in sources]
    made_from = {
        "embedder": configs.deciding(config.embedder_config),
        "nets": embedder.fingerprint,
        "codec": codec.fingerprint,
        "separator": config.separator,
        "sources": [source.name for source in sources],
        "document_tokens": config.document_tokens,
        "content": [content.digest for content in contents],
    }
    identity = fingerprint(FORMAT, VERSION, made_from)
    recover_folder(folder)
    licences = licences or licence_table(folder.name, list(map(_stated, sources, contents)))
    if (index := _finished(folder, identity, codec)) is not None:
        if index.licences != licences:
            write_text(folder / LICENCES, licences)
        return index
    prepare = PrepareConfig(row_tokens=config.document_tokens, long_documents="reject")
    with atomic_folder(folder) as partial:
        shards = {}
        for source, content in zip(sources, contents, strict=True):
            plain, path = replace(source, transforms=()), partial / _SHARDS / source.name
            prepare_source(plain, codec, path, prepare, content)
            shards[source.name] = Shards.open(path)
        parts = [_embedded(embedder, source, shards[source.name]) for source in sources]
        np.save(partial / _VECTORS, np.concatenate([vectors for vectors, _ in parts]))
        np.save(partial / _MODALITIES, np.concatenate([kinds for _, kinds in parts]))
        description = {"format": FORMAT, "version": VERSION, "identity": identity}
        description |= {"width": embedder.width, **made_from}
        write_json(partial / DESCRIPTION, description)
        write_text(partial / LICENCES, licences)
    return Index.open(folder, codec)


def _stated(source: SourceConfig, content: Survey) -> Stated:
    licence = source.licence or "; ".join(content.licences) or NOT_STATED
    return source.name, licence, source.attribution


def require_index_folder(folder: Path) -> None:
    """Raise ConfigError if an index in a folder would replace what is none."""
    require_replaceable(folder, DESCRIPTION, (_VECTORS, _MODALITIES, _SHARDS, LICENCES))
    if folder.is_dir() and [entry.name for entry in folder.iterdir()] == [DESCRIPTION]:
        raise ConfigError(  # many programs write a file of this name
            f"{folder} exists and holds {DESCRIPTION} alone, which is no index, so it is not "
            "replaced; name another folder."
        )


def separator_id(grammar: Grammar, name: str) -> int:
    """Return the id that stands behind a retrieved document; raises DataError if there is none."""
    found = grammar.vocabulary.extra_special.get(name)
    if found is None:
        known = ", ".join(grammar.vocabulary.extra_special) or "none"
        raise DataError(
            f"The separator {name!r} of retrieved documents is no special id that the vocabulary "
            f"adds ({known}); choose one of these, or none. A run that makes a new vocabulary adds "
            "retrieval.separator of its recipe."
        )
    return found


def _check_sources(sources: Sequence[SourceConfig], codec: Codec, config: IndexConfig) -> None:
    if not sources:
        raise ConfigError("sources is empty; an index needs documents of one source at least.")
    for source in sources:
        if source.has_pairs:
            raise ConfigError(
                f"Source {source.name!r} has pairs of completions, which are no documents to "
                "retrieve; leave it out of the index."
            )
    if config.separator:
        separator_id(codec.grammar, config.separator)


def _finished(folder: Path, identity: str, codec: Codec) -> Index | None:
    try:
        index = Index.open(folder, codec)
    except DataError:
        return None
    return index if index.identity == identity else None


def _embedded(
    embedder: Embedder, source: SourceConfig, shards: Shards
) -> tuple[Float[np.ndarray, "N D"], Bool[np.ndarray, "N 2"]]:
    """Return the vectors of the documents in shards, and which modalities each has."""
    numbers = {name: number for number, name in enumerate(shards.names)}
    vectors = np.zeros((shards.n_documents, embedder.width), dtype=np.float32)
    kinds = np.zeros((shards.n_documents, 2), dtype=np.bool_)
    kept = (
        item for item in read_source(source) if isinstance(item, Document) and item.name in numbers
    )
    with bar(f"Embedding {source.name}", total=len(numbers), unit="documents") as advance:
        for chunk in chunked(kept, _CHUNK):
            places = [numbers[document.name] for document in chunk]
            found = embed(embedder, chunk)
            vectors[places], kinds[places] = found.whole, kinds_of(found)
            advance(len(chunk))
    return vectors, kinds


def chunked(documents: Iterable[Document], size: int) -> Iterator[list[Document]]:
    """Yield lists of ``size`` documents, the last maybe shorter."""
    iterator = iter(documents)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _description(folder: Path) -> dict[str, Any]:
    """Return the checked content of ``index.json``; raises DataError."""
    path = folder / DESCRIPTION
    try:
        values = read_json(path)
    except FileNotFoundError:
        raise DataError(
            f"{folder} {_lack(folder)}; build an index there, or name another."
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); {_BUILD_AGAIN}") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise DataError(f"{path} does not describe an index of documents; {_BUILD_AGAIN}")
    if type(version := values.get("version")) is not int or version > VERSION:
        raise DataError(
            f"{path} has format version {shown(version)}, this version of pardalis reads up to "
            f"{VERSION}; update pardalis or {_BUILD_AGAIN}"
        )
    sources, width = values.get("sources"), values.get("width")
    texts = [values.get(name) for name in ("identity", "nets", "codec", "separator")]
    if (
        not isinstance(sources, list)
        or not sources
        or not all(is_source_name(name) for name in sources)
        or len(set(sources)) < len(sources)
        or not all(isinstance(text, str) for text in texts)
        or not isinstance(values.get("embedder"), dict)
        or type(width) is not int
        or not 0 < width < 2**20
    ):
        raise DataError(f"{path} lacks a value, or has one of another type; {_BUILD_AGAIN}")
    return values


def _lack(folder: Path) -> str:
    return f"has no {DESCRIPTION}" if folder.is_dir() else found_at(folder)


def is_source_name(name: object) -> bool:
    """Whether a value from a file names a source, and so a folder inside another one."""
    try:
        check_name(name if isinstance(name, str) else "")
    except ConfigError:
        return False
    return True


def _shown_nets(made: dict[str, Any]) -> str:
    names = [made.get(net) for net in ("text_net", "image_net")]
    found = [shown(each.get("name")) for each in names if isinstance(each, dict)]
    return " and ".join(found) or shown(made.get("kind"))


def _array(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Memory-map a file of a known shape; raises DataError."""
    try:
        values = open_array(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is missing or damaged ({error}); {_BUILD_AGAIN}") from error
    if values.shape != shape or values.dtype != dtype:
        raise DataError(
            f"{path} holds {values.dtype}{list(values.shape)} where {DESCRIPTION} and the shards "
            f"say {dtype}{list(shape)}; {_BUILD_AGAIN}"
        )
    return values
