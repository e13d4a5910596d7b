"""The model card of a bundle: README.md, with the results of that very model.

A card shows results only if they are of the weights and tokenizers beside it, by the hash that
:func:`pardalis.evaluate.tasks.identity.bundle_digest` gives.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pardalis
from pardalis.bundle import LICENCES, Bundle, bundle_folder, load
from pardalis.errors import ConfigError
from pardalis.evaluate.tasks.identity import bundle_digest
from pardalis.evaluate.tasks.results import Row, read_results, rows_of

_COLUMNS = (
    "task", "number", "value", "95 % interval", "items", "examples", "hash of the task",
    "hash of the data",
)  # fmt: skip


def card_of(bundle: Path | str, results: Path) -> str:
    """Return the model card of a bundle, or of a run, with a folder of results.

    Raises:
        ConfigError: the folder holds no results, or those of another model: other weights, another
            dtype, an adapter.
        BundleError: there is no bundle at the path.
    """
    folder = bundle_folder(bundle)
    found = read_results(results)
    model = load(folder)
    if (digest := bundle_digest(model)) != found["bundle"]["digest"]:
        raise ConfigError(
            f"{results} holds results of the model {str(found['bundle']['digest'])[:60]}, but "
            f"{folder} is {digest}; evaluate this bundle, in the dtype that it is stored in and "
            "without an adapter."
        )
    return card(model, digest, found, folder.parent.name)


def card(bundle: Bundle, digest: str, results: Mapping[str, Any], name: str) -> str:
    """Return a model card as Markdown; raises ConfigError if the results have another form."""
    facts = {**bundle.facts(), "recipe": bundle.made_by.get("recipe", ""), "hash": f"`{digest}`"}
    version = results.get("versions", {}).get("pardalis", pardalis.__version__)
    lines = [
        f"# {_cell(str(bundle.made_by.get('recipe') or name))}",
        "",
        "A model of texts and images, made with Pardalis.",
        "",
        _line(("", "")),
        _line(("---", "---")),
        *(_line((label, str(value))) for label, value in facts.items() if value),
        "",
        "## Evaluation",
        "",
        f"Of these very weights, by `pardalis evaluate` {_cell(str(version))}. Intervals hold 95 % "
        "of the bootstrap over items. Equal hashes are equal prompts, items and ways of scoring.",
        "",
        _line(_COLUMNS),
        _line(("---",) * len(_COLUMNS)),
        *(_line(_cells(row)) for row in rows_of(results)),
        "",
    ]
    if bundle.licences:
        lines += ["## Licences", "", f"See {LICENCES}.", ""]
    return "\n".join(lines)


def _cells(row: Row) -> tuple[str, ...]:
    known = row.low is not None and row.high is not None
    interval = f"{row.low:.4g} to {row.high:.4g}" if known else "—"
    return (
        row.task, row.number, f"{row.value:.4g}", interval, f"{row.items:,}", str(row.shots),
        f"`{row.task_hash}`", f"`{row.data_hash}`",
    )  # fmt: skip


def _line(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(text: str) -> str:
    """Return a text that ends no cell of a table."""
    return " ".join(text.replace("|", "\\|").split())
