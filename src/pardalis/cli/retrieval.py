"""``pardalis retrieval``: build an index of documents, and search it."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pardalis.cli.common import (
    Commands,
    add_command,
    add_number,
    add_output,
    existing_run,
    print_result,
    reader_of,
    set_run,
)
from pardalis.errors import ConfigError, RequestError

if TYPE_CHECKING:
    from pardalis.codec import Codec
    from pardalis.data import SourceConfig
    from pardalis.retrieval import EmbedderConfig, Retriever

_BUILD = """\
Build an index of documents: a vector of each, and its token ids. DATA is the folder of a run, whose
training sources and tokenizers are taken, or documents, for which --codec names the tokenizers.

  pardalis retrieval build RUN -o my-index
  pardalis retrieval build RUN --source drawings -o my-index
  pardalis retrieval build photos --codec BUNDLE -o my-index
  pardalis retrieval build RUN --clip clip-vit-base-patch32 -o my-index

Vectors come from a net of texts and a net of images, or from a CLIP that you have. An index that
exists is kept if nothing has changed.
"""

_SEARCH = """\
Show which documents of an index stand nearest to a text, an image, or both, with their scores. The
rules of what may be retrieved apply: --max-score, nothing twice, mixed-modal documents first.

  pardalis retrieval search INDEX "a flat drawing of a deer"
  pardalis retrieval search INDEX --image rocket.png --documents 3
  pardalis retrieval search INDEX rocket --bundle BUNDLE --out found.html

With --bundle the documents are shown as a model reads them, and --out writes them as a page.
"""


def add(commands: Commands) -> None:
    summary = "build an index of documents, and search it"
    group = add_command(commands, "retrieval", summary, f"{summary.capitalize()}.")
    verbs = group.add_subparsers(title="commands", metavar="COMMAND", required=True)

    build = add_command(verbs, "build", "build an index of documents", _BUILD)
    build.add_argument("data", metavar="DATA", type=Path, help="a run, or documents")
    add_output(build, "INDEX", "folder of the index")
    build.add_argument(
        "--source", action="append", default=[], metavar="NAME",
        help="a training source of the run (default: all); may be repeated",
    )  # fmt: skip
    build.add_argument(
        "--codec", type=Path, metavar="BUNDLE", help="a bundle or run whose tokenizers encode DATA"
    )
    build.add_argument(
        "--reader", metavar="NAME",
        help="format of DATA (default: as it looks; a folder holds images), see docs/readers.md",
    )  # fmt: skip
    _add_nets(build)
    add_number(build, "--document-tokens", "leave longer documents out (default: 1024)")
    build.add_argument(
        "--separator", default="", metavar="NAME",
        help="special id of the vocabulary behind each retrieved document (default: none)",
    )  # fmt: skip
    build.add_argument("--device", default="cpu", help="of the tokenizers (default: cpu)")
    set_run(build, _build)

    search = add_command(verbs, "search", "search an index", _SEARCH)
    search.add_argument("index", metavar="INDEX", type=Path, help="folder of an index")
    search.add_argument("text", metavar="TEXT", nargs="?", help="a text to search by")
    search.add_argument("--image", type=Path, metavar="FILE", help="an image to search by")
    search.add_argument("--bundle", type=Path, metavar="BUNDLE", help="shows what was found")
    search.add_argument("--out", type=Path, metavar="FILE.html", help="page to write")
    _add_rules(search, documents=5)
    _add_nets(search)
    set_run(search, _search)


# ── arguments of several commands ────────────────────────────────────────────────────────────────


def add_retriever(parser: argparse._ActionsContainer) -> None:
    """Add ``--retrieve`` and what belongs to it, which :func:`chosen_retriever` reads."""
    parser.add_argument(
        "--retrieve", type=Path, metavar="INDEX", help="put documents of an index before the prompt"
    )
    _add_rules(parser, documents=2)
    _add_nets(parser)


def chosen_retriever(options: argparse.Namespace) -> "Retriever | None":
    """Return the retriever that the flags describe; None without ``--retrieve``."""
    if options.retrieve is not None:
        return _retriever(options, options.retrieve)
    for name in ("documents", "max_score", "search", "clip", "text_net", "image_net"):
        if getattr(options, name) is not None:
            raise RequestError(f"{name} applies to retrieved documents; give `retrieve` too.")
    return None


def _add_rules(parser: argparse._ActionsContainer, documents: int) -> None:
    add_number(parser, "--documents", f"documents to retrieve, at most (default: {documents})")
    parser.set_defaults(default_documents=documents)
    parser.add_argument(
        "--max-score", type=float, metavar="X",
        help="leave out what resembles the prompt, or another document, more (default: 0.9)",
    )  # fmt: skip
    parser.add_argument(
        "--search", choices=("auto", "exact", "faiss"),
        help="compare all documents, or those of near clusters with faiss (default: auto, exact up "
        "to 100,000 documents)",
    )  # fmt: skip


def _add_nets(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--text-net", metavar="NET",
        help="net of texts: minilm (default), or the folder of a sentence encoder",
    )  # fmt: skip
    parser.add_argument(
        "--image-net", metavar="NET",
        help="net of images: efficientnet_lite0 (default), squeezenet, or NAME=FILE with weights",
    )  # fmt: skip
    parser.add_argument("--clip", type=Path, metavar="FOLDER", help="a CLIP, in place of both nets")


def _embedder(options: argparse.Namespace) -> "EmbedderConfig | None":
    """Return the nets that the flags name; None if they name none."""
    from pardalis import config as configs
    from pardalis.retrieval import EMBEDDERS

    if options.clip is not None:
        if options.text_net or options.image_net:
            raise ConfigError("clip stands in the place of both nets; leave these out.")
        return configs.from_dict(EMBEDDERS["clip"], {"kind": "clip", "folder": options.clip})
    values: dict[str, Any] = {}
    if options.text_net and options.text_net != "minilm":
        values["text_net"] = {"folder": options.text_net}
    if options.image_net:
        name, _, weights = options.image_net.partition("=")
        values["image_net"] = {"name": name} | ({"weights": weights} if weights else {})
    if not values and not options.text_net:
        return None
    return configs.from_dict(EMBEDDERS["separate"], values)


def _retriever(options: argparse.Namespace, index: Path) -> "Retriever":
    from pardalis import config as configs
    from pardalis.retrieval import RetrieverConfig, RuleConfig

    given = {} if options.max_score is None else {"max_score": options.max_score}
    documents = options.default_documents if options.documents is None else options.documents
    return RetrieverConfig(
        index=index,
        documents=documents,
        embedder=_embedder(options),
        search=options.search or "auto",
        rules=configs.from_dict(RuleConfig, given),
    ).build()


# ── build ────────────────────────────────────────────────────────────────────────────────────────


def _build(options: argparse.Namespace) -> None:
    from pardalis.bundle import read_licences
    from pardalis.retrieval import IndexConfig, build_index
    from pardalis.retrieval.index import require_index_folder

    require_index_folder(options.output)
    sources, codec = _of_run(options) if _is_run(options.data) else _of_documents(options)
    given = {} if options.document_tokens is None else {"document_tokens": options.document_tokens}
    config = IndexConfig(embedder=_embedder(options), separator=options.separator, **given)
    licences = read_licences(options.data / "shards") if _is_run(options.data) else ""
    index = build_index(options.output, sources, codec, config, licences=licences)
    result = {
        "index": str(options.output),
        "documents": len(index),
        "mixed_modal": int(index.is_mixed.sum()),
        "width": index.vectors.shape[1],
        "sources": [source.name for source in sources],
    }
    print_result(
        options,
        result,
        f"{options.output}: {len(index)} documents, {result['mixed_modal']} of them with text and "
        f"images; vectors of {result['width']} numbers",
    )


def _is_run(data: Path) -> bool:
    return (data / "recipe.toml").is_file()


def _of_run(options: argparse.Namespace) -> "tuple[list[SourceConfig], Codec]":
    from pardalis.pipeline import load_recipe
    from pardalis.pipeline.builders import codec_of, located
    from pardalis.pipeline.retrieval import RetrievalConfig

    if options.codec is not None or options.reader is not None:
        raise ConfigError("codec and `reader` are for documents, and DATA is a run; leave it out.")
    run = options.data
    recipe = load_recipe(existing_run(run))
    sources = RetrievalConfig(sources=tuple(options.source)).indexed(recipe.sources)
    return [located(source, run) for source in sources], codec_of(recipe, run, options.device)


def _of_documents(options: argparse.Namespace) -> "tuple[list[SourceConfig], Codec]":
    from pardalis.data import SourceConfig

    if options.source:
        raise ConfigError("source names a source of a run, and DATA is none; leave it out.")
    if options.codec is None:
        raise ConfigError(
            f"codec is missing: {options.data} is no run, so name a bundle whose tokenizers encode "
            "its documents."
        )
    source = SourceConfig(name="documents", reader=reader_of(options), path=options.data.resolve())
    return [source], _codec(options.codec, options.device)


def _codec(folder: Path, device: str = "cpu") -> "Codec":
    from pardalis.bundle import bundle_folder, load_codec

    return load_codec(bundle_folder(folder), device)


# ── search ───────────────────────────────────────────────────────────────────────────────────────


def _search(options: argparse.Namespace) -> None:
    from pardalis.documents import Document, Image, Text, to_html
    from pardalis.files import require_folder, write_text

    if options.text is None and options.image is None:
        raise RequestError("A text or `image` is needed to search by; give one of them, or both.")
    if options.out is not None:
        if options.bundle is None:
            raise RequestError("out shows documents as a model reads them; give `bundle` too.")
        if options.out.suffix.lower() not in (".html", ".htm"):
            raise RequestError(f"out must end with .html, got {options.out}.")
        require_folder(options.out.parent)
    codec = _codec(options.bundle) if options.bundle else None
    retriever = _retriever(options, options.index)
    segments = [Text(options.text)] if options.text is not None else []
    images = [Image(options.image)] if options.image is not None else []
    query = Document((*segments, *images))
    candidates = retriever.find(query)
    found: list[dict[str, Any]] = []
    shown: list[Document] = []
    for each, about in zip(candidates, retriever.retrieved(candidates), strict=True):
        entry = {"source": about.source, "name": about.name, "score": about.score, "by": about.by}
        if codec is not None:
            document = codec.decode(retriever.index.document(each.number).ids)
            shown.append(document)
            entry["text"] = document.text
            entry["images"] = len(document.images)
        found.append(entry)
    if options.out is not None:
        parts = [segment for each in zip(found, shown, strict=True) for segment in _section(*each)]
        write_text(options.out, to_html(Document((*query.segments, *parts))))
    lines = [
        f"{each['score']:6.3f} by {each['by']:<5}  {each['name']} ({each['source']})"
        + (f": {each['text']}" if codec is not None else "")
        for each in found
    ]
    out = str(options.out) if options.out else None
    print_result(options, {"index": str(options.index), "found": found, "out": out}, *lines)


def _section(entry: dict[str, Any], document: Any) -> tuple[Any, ...]:
    from pardalis.documents import Text

    heading = f"\n\n{entry['score']:.3f} by {entry['by']}: {entry['name']} ({entry['source']})\n"
    return Text(heading), *document.segments
