"""The licences of a run's documents, as its recipe, its documents and its corpus state them.

    shards/LICENCES.json    the sources with their licences, for the report
    shards/LICENCES.md      the same for readers, after the packages of a corpus that was built, and
                            before the licences of an index that the run retrieves from
    bundle/LICENCES.md      that text, after the licences of the bundle that the run started from

A source without a licence is "not stated": no file in its folder is taken for one.
"""

import logging
from pathlib import Path

from pardalis.bundle import LICENCES, read_licences
from pardalis.data import SourceConfig
from pardalis.data.licences import NOT_STATED, licence_table
from pardalis.files import write_json, write_text
from pardalis.pipeline.retrieval import builds_index, used_index
from pardalis.pipeline.stages.stage import RunContext, is_built

logger = logging.getLogger(__name__)

_SOURCES = "LICENCES.json"
_HINTS = ("licence", "license", "copying")  # how names of files begin that may hold a licence


def write_licences(context: RunContext) -> None:
    """Write the licences beside the shards; name the sources that state none."""
    _write(context)
    silent = [source for source in _own_sources(context) if not _stated(source, context)]
    if silent:
        logger.info(
            "No licence is stated for %s, as the bundle and the report will say; state it by "
            'licence = "CC BY 4.0", say, and attribution = "..." of each source in the recipe.%s',
            ", ".join(repr(source.name) for source in silent),
            "".join(f" {path} may hold it." for path in map(_hint, silent) if path),
        )


def refresh_licences(context: RunContext) -> None:
    """Bring the files up to date with the recipe; other text in the bundle's stays."""
    before = read_licences(context.folder / "shards")
    new = _write(context)
    bundle = context.folder / "bundle"
    if new == before or not bundle.is_dir():
        return
    text = read_licences(bundle)
    if before and before in text:
        text = text.replace(before, new)
    elif new not in text:
        text = "\n".join(filter(None, (text, new)))
    write_text(bundle / LICENCES, text)


def _write(context: RunContext) -> str:
    """Write the files beside the shards if they differ; return the text."""
    shards, corpus = context.folder / "shards", read_licences(context.folder / "corpus")
    records = [
        {
            "source": source.name,
            "licence": _stated(source, context) or NOT_STATED,
            "attribution": source.attribution,
        }
        for source in _own_sources(context)
    ]
    rows = [(each["source"], each["licence"], each["attribution"]) for each in records]
    table = licence_table(context.recipe.name, rows) if records else ""
    text = "\n".join(filter(None, (corpus, table, _of_other_index(context))))
    if text != read_licences(shards):
        write_text(shards / LICENCES, text)
        write_json(shards / _SOURCES, {"sources": records})
    return text


def _of_other_index(context: RunContext) -> str:
    """Return the licences of an index from elsewhere whose documents the run retrieves."""
    sources = context.recipe.all_sources
    if not context.recipe.retrieves or builds_index(sources):
        return ""
    return read_licences(used_index(sources, context.folder))


def _own_sources(context: RunContext) -> list[SourceConfig]:
    """Return the sources whose licences the corpus of the run does not list."""
    has_corpus = (context.folder / "corpus" / LICENCES).is_file()
    return [
        source
        for source in context.recipe.all_sources
        if source.licence or not (has_corpus and is_built(source))
    ]


def _stated(source: SourceConfig, context: RunContext) -> str:
    """Return the licence of a source: its own, or those that its documents state."""
    return source.licence or "; ".join(context.survey(source).licences)


def _hint(source: SourceConfig) -> Path | None:
    """Return a file at a source whose name is that of a licence."""
    folder = source.path if source.path.is_dir() else source.path.parent
    try:
        found = [path for path in sorted(folder.iterdir()) if path.name.lower().startswith(_HINTS)]
    except OSError:
        return None
    return next((path for path in found if path.is_file()), None)
