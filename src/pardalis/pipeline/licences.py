"""The licences of a run's documents, as its recipe, its documents and its corpus state them.

    shards/LICENCES.json    the sources with their licences and what was prepared under each, for
                            the report
    shards/<source>/        index.json says of these shards what LICENCES.json says of all
    shards/LICENCES.md      the same for readers, after the packages of a corpus that was built, and
                            before the licences of an index that the run retrieves from
    bundle/LICENCES.md      that text, after the licences of the bundle that the run started from

A source without a licence is "not stated": no file in its folder is taken for one.
"""

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pardalis.bundle import LICENCES, read_licences
from pardalis.data import PrepareReport, SourceConfig
from pardalis.data.licences import NOT_STATED, licence_table
from pardalis.data.prepare import REPORT, restate
from pardalis.files import read_json, read_text, write_text
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
    records: list[dict[str, Any]] = [
        {
            "source": source.name,
            "licence": _stated(source, context) or NOT_STATED,
            "attribution": source.attribution,
            "counts": _counts(source, context),
        }
        for source in _own_sources(context)
    ]
    for source in context.recipe.all_sources:
        restate(shards / source.name, source)
    rows = [(each["source"], each["licence"], each["attribution"]) for each in records]
    table = licence_table(context.recipe.name, rows) if records else ""
    text = "\n".join(filter(None, (corpus, table, _of_other_index(context))))
    listed = json.dumps({"sources": records}, indent=2, ensure_ascii=False) + "\n"
    for name, content in ((LICENCES, text), (_SOURCES, listed)):
        if content != _found(shards / name):
            write_text(shards / name, content)
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
    """Return the licences of a source: its own, or those that its documents state.

    Where there are several, each has the number of documents that were prepared under it.
    """
    counts = _counts(source, context)
    if len(counts) > 1:
        return "; ".join(map(_with_count, counts))
    return source.licence or "; ".join(context.survey(source).licences)


def _counts(source: SourceConfig, context: RunContext) -> list[dict[str, Any]]:
    """Return what was prepared of a source under each licence; [] if that is not known."""
    try:
        report = PrepareReport.from_dict(
            read_json(context.folder / "shards" / source.name / REPORT)
        )
    except (OSError, ValueError):
        return []
    stated = set(report.licences) - {""}
    if not stated <= set(context.survey(source).licences):
        return []  # what documents state has changed since, which is no reason to prepare them
    counts: dict[str, dict[str, int]] = {}
    for licence, licensed in report.licences.items():
        total = counts.setdefault(licence or source.licence or NOT_STATED, {})
        for name, count in asdict(licensed).items():
            total[name] = total.get(name, 0) + count
    return [{"licence": licence, **total} for licence, total in sorted(counts.items())]


def _with_count(counted: dict[str, Any]) -> str:
    n = counted["documents"]
    return f"{counted['licence']} ({n:,} document{'s' if n != 1 else ''})"


def _found(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, ValueError):
        return ""


def _hint(source: SourceConfig) -> Path | None:
    """Return a file at a source whose name is that of a licence."""
    folder = source.path if source.path.is_dir() else source.path.parent
    try:
        found = [path for path in sorted(folder.iterdir()) if path.name.lower().startswith(_HINTS)]
    except OSError:
        return None
    return next((path for path in found if path.is_file()), None)
