"""``pardalis data``: build a demo corpus or tasks, look at documents, write shards, show rows."""

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pardalis.cli.common import (
    Commands,
    add_command,
    add_number,
    add_output,
    add_stage_command,
    add_workers,
    chosen_run,
    chosen_workers,
    existing_run,
    print_result,
    printable,
    run_stages,
    set_run,
    shown,
)
from pardalis.errors import ConfigError

if TYPE_CHECKING:
    from pardalis.codec import Codec
    from pardalis.data import SourceConfig
    from pardalis.tokens import Encoded

_FETCH = """\
Download the packages of a corpus, or of the tasks, in pinned versions and verify them. Files that
exist are kept.

  pardalis data fetch drawings -o FOLDER      emoji in five styles, 33 MB; needs npm, which is part
                                              of Node.js
  pardalis data fetch prose -o FOLDER         recipes and a dictionary, 12 MB; needs npm too
  pardalis data fetch tasks -o FOLDER         emoji, a dictionary, countries, 49 MB; needs npm too
  pardalis data fetch stamps -o FOLDER        stamps with captions for the tasks, 161 MB; needs
                                              apt-get, which is part of Debian
"""

_TASKS = """\
Make tasks with exact answers from the data of packages: names, groups and styles of drawings, flags
of countries, drawn scenes, definitions of words, leads of articles, captions of stamps. Each has
questions to test, others for few-shot examples, and the licences of what it was made from. Nothing
is downloaded.

  pardalis data fetch tasks -o packages
  pardalis data tasks -o tasks --packages packages
  pardalis evaluate BUNDLE --tasks emoji_group,flag_country --data tasks -o results

The same packages give the same files. tasks.json says what each asks, and how often a model that
does not look is right. Stamps are a package of their own, and left out where it was not fetched.
"""

_CORPUS = """\
Build the recipe's demo corpus from installed packages in RUN/corpus: images, documents split by
concept, and all licences. Nothing is downloaded.
"""

_PREPARE = """\
Encode the recipe's documents as shards of token ids, validate them with the grammar, and report
rejected documents with the reasons. Needs the run's tokenizers. Unchanged sources are skipped, and
an interrupted preparation goes on where it was.

  pardalis data prepare my-recipe.toml --jobs 2
  pardalis data prepare my-recipe.toml --part 3/64     under any scheduler, on machines that share
                                                       the folder of the run
  pardalis data prepare my-recipe.toml --join          if all parts are made and none joined them
  pardalis data prepare my-recipe.toml --engine ray    on a Ray cluster

The shards are the same whichever way they are made (docs/prepare-at-scale.md).
"""

_SHOW = """\
Show a training row as text, by its number in a source or by its position in the training order.
The transforms of the source are applied as in the epoch. In a document with weights in the loss,
each run of tokens of equal weight is a line.

With --loss-mask, what the model learns is in colour, and the rest is dim. Where there are no
colours, it stands in «brackets».

  pardalis data show RUN --source pairs --row 12
  pardalis data show RUN --source pairs --row 12 --epoch 3
  pardalis data show RUN --position 12345
  pardalis data show RUN --position 12345 --loss-mask
"""


_LOOK = """\
Look at what a reader makes of documents before anything is trained: a page of the first documents
as text and images in order, with counts, and what was rejected or removed by rules, and why, with
the first examples of each kind as they look. The page needs no network and no script.

  pardalis data look photos -o look.html
  pardalis data look pages.jsonl --reader chat
  pardalis data look my-recipe.toml --source photos

A recipe's source is read with its rules. For a path, the reader is recognised by its files.
"""


def add(commands: Commands) -> None:
    summary = "build a corpus or tasks, look at documents, turn them into shards, show rows"
    group = add_command(commands, "data", summary, f"{summary.capitalize()}.")
    verbs = group.add_subparsers(title="commands", metavar="COMMAND", required=True)

    fetch = add_command(verbs, "fetch", "download the packages of a corpus", _FETCH)
    fetch.does = "fetch_packages"
    fetch.add_argument("corpus", choices=("drawings", "prose", "tasks", "stamps"), help="what for")
    fetch.add_argument(
        "-o", "--output", type=Path, metavar="FOLDER", required=True, help="folder of the files"
    )
    set_run(fetch, _fetch)
    tasks = add_command(verbs, "tasks", "make tasks with exact answers", _TASKS)
    add_output(tasks, "FOLDER", "folder")
    tasks.add_argument(
        "--packages",
        type=Path,
        metavar="FOLDER",
        default=Path("packages"),
        help="folder of the packages, as 'pardalis data fetch tasks' fills it (default: packages)",
    )
    tasks.add_argument("--tasks", metavar="NAMES", help="with commas between them (default: all)")
    add_number(tasks, "--items", "the most questions of a task to test (default: 200)")
    add_number(tasks, "--examples", "the most questions for few-shot examples (default: 50)")
    add_number(tasks, "--image-side", "side of images in pixels (default: 128)")
    set_run(tasks, _tasks)
    add_stage_command(verbs, "corpus", "corpus", "build the demo corpus", _CORPUS)
    prepare = add_stage_command(
        verbs, "prepare", "prepare", "turn documents into shards", _PREPARE, _prepare
    )
    add_workers(prepare)
    among = prepare.add_mutually_exclusive_group()
    among.add_argument(
        "--part",
        metavar="I/N",
        help="make the I-th of N parts; the part that is finished last joins all",
    )
    among.add_argument(
        "--join", action="store_true", help="encode nothing; join the parts, which must be complete"
    )
    look = add_command(verbs, "look", "look at documents before training", _LOOK)
    look.add_argument(
        "where", metavar="SOURCE", help="file or folder of documents, or a recipe or a run"
    )
    look.add_argument("--source", metavar="NAME", help="a source of the recipe")
    look.add_argument("--reader", metavar="NAME", help="format of the documents at a path")
    add_number(look, "--limit", "the most documents that are read (default: 200)")
    look.add_argument(
        "-o", "--output", type=Path, metavar="PAGE", help="page to write (default: look.html)"
    )
    set_run(look, _look)
    show = add_command(verbs, "show", "show a training row", _SHOW)
    show.add_argument("folder", metavar="RUN", type=Path, help="folder of a run")
    show.add_argument("--source", metavar="NAME", help="a source of the recipe")
    add_number(show, "--row", "number of a row of the source, from 0")
    add_number(show, "--epoch", "epoch of the source, from 0 (default: 0)")
    add_number(show, "--position", "position in the training order, from 0")
    show.add_argument(
        "--loss-mask", action="store_true", help="mark what the model learns of the row"
    )
    set_run(show, _show)


def _fetch(options: argparse.Namespace) -> None:
    from pardalis.corpora import fetch_packages

    files = [str(path) for path in fetch_packages(options.output, options.corpus)]
    print_result(options, {"files": files}, *files)


def _prepare(options: argparse.Namespace) -> None:
    if options.part is None:
        run_stages(options, "prepare")
        return
    from dataclasses import asdict

    from pardalis.data import Share
    from pardalis.pipeline import StageMissingError, prepare_part

    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", options.part)
    if found is None:
        raise ConfigError(f"part must be I/N, such as 3/64, got {options.part!r}.")
    for flag in ("dry_run", "with_parents"):
        if getattr(options, flag):
            raise ConfigError(f"`{flag}` cannot stand beside `part`; leave one of the two out.")
    share = Share(int(found[1]), int(found[2]))
    recipe, folder = chosen_run(options)
    try:
        made = prepare_part(recipe, folder, share, options.device, chosen_workers(options))
    except StageMissingError as error:
        raise ConfigError(f"{error} That is `{error.stage}`, or 'pardalis run'.") from error
    rest = "all are joined" if made.is_joined else "other parts are not finished"
    line = f"part {made.part}: {made.blocks} blocks are made; {rest}"
    print_result(options, {"run": str(folder), **asdict(made)}, line)


def _tasks(options: argparse.Namespace) -> None:
    from pardalis.corpora import BENCHMARKS, BenchmarksConfig, build_benchmarks

    names = ("items", "examples", "image_side")
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    chosen = [name.strip() for name in (options.tasks or "").split(",") if name.strip()]
    config = BenchmarksConfig(packages=options.packages, tasks=tuple(chosen), **given)
    counts = build_benchmarks(config, options.output)
    lines = [
        f"  {name:<18} {each['test']:>4} questions, {each['train']:>3} examples"
        for name, each in counts.items()
    ]
    if not chosen:
        lines += [
            f"  {name} is left out, because {each.optional.file} is not in {options.packages}; "
            "'pardalis data fetch stamps' downloads it."
            for name, each in BENCHMARKS.items()
            if name not in counts and each.optional is not None
        ]
    print_result(options, counts, str(options.output), *lines)


def _look(options: argparse.Namespace) -> None:
    from pardalis.evaluate.look import look_at, look_page
    from pardalis.files import write_text

    limit = 200 if options.limit is None else options.limit
    if limit < 1:
        raise ConfigError(f"--limit must be at least 1, got {limit}.")
    look = look_at(_source_at(options), limit)
    read_with = [look.source.reader, *(f"{k} = {v}" for k, v in look.source.options.items())]
    lines = [
        f"{look.source.name}, reader {', '.join(read_with)}: "
        f"{'all' if look.is_whole else 'the first'} {look.read:,} items",
        f"  kept      {look.kept:,} documents, {look.images:,} images, {look.characters:,} "
        "characters of text",
    ]
    lost = {"rejected": look.rejected, "left out": look.left_out, "removed": look.removed}
    for what, kinds in lost.items():
        lines += [
            f"  {what:<9} {each.count:,} {kind}, such as {each.examples[0]['where']}: "
            f"{each.examples[0]['reason']}"
            for kind, each in kinds.items()
        ]
    page = options.output or (None if options.json else Path("look.html"))
    if page is not None:
        write_text(page, look_page(look))
        lines.append(str(page))
    print_result(options, look.to_dict() | ({"page": str(page)} if page else {}), *lines)


def _source_at(options: argparse.Namespace) -> "SourceConfig":
    """Return the source of a recipe, or what is at a path as a source."""
    from pardalis.config import from_dict
    from pardalis.data import SourceConfig
    from pardalis.pipeline import load_recipe
    from pardalis.pipeline.builders import located
    from pardalis.pipeline.first_recipe import as_name, reader_at
    from pardalis.pipeline.shipped import find_recipe

    path = Path(options.where)
    is_recipe = path.suffix == ".toml" or (path / "recipe.toml").is_file()
    if path.exists() and not is_recipe:
        if options.source is not None:
            raise ConfigError(f"--source belongs to a recipe, and {path} is none; leave it out.")
        reader, its = (options.reader, {}) if options.reader else reader_at(path)
        called = as_name(path.resolve().name)
        about = {"name": called, "reader": reader, "path": path, "options": its}
        return from_dict(SourceConfig, about)
    if options.reader is not None:
        raise ConfigError("--reader belongs to a path; a source of a recipe has its own reader.")
    found = find_recipe(options.where)
    recipe = load_recipe(found)
    sources = {source.name: source for source in recipe.all_sources}
    name: str | None = options.source or (next(iter(sources)) if len(sources) == 1 else None)
    if name is None or name not in sources:
        what = "is missing" if name is None else f"names {name!r}"
        raise ConfigError(
            f"--source {what}; the sources of {options.where} are {', '.join(sources)}."
        )
    run = found if found.is_dir() else Path("runs") / recipe.name
    return located(sources[name], run)


def _show(options: argparse.Namespace) -> None:
    from pardalis.data import Shards, Transforms, documents_of
    from pardalis.pipeline import load_codec, load_recipe, training_loader

    run = options.folder
    recipe = load_recipe(existing_run(run))
    codec = load_codec(run)
    if options.position is not None:
        if options.position < 0:
            raise ConfigError(f"--position must be 0 or more, got {options.position}.")
        location = training_loader(recipe, run, codec).locate(options.position)
        source, epoch, row = location.source, location.epoch, location.row
    elif options.source is not None and options.row is not None:
        source, epoch, row = options.source, options.epoch or 0, options.row
    else:
        raise ConfigError("Choose a row: --source NAME --row N, or --position N.")
    shards = Shards.open(run / "shards" / source)
    if not 0 <= row < shards.n_rows:
        raise ConfigError(f"Source {source!r} has rows 0 to {shards.n_rows - 1}, got --row {row}.")
    listed = {each.name: each.transforms for each in recipe.all_sources}
    transforms = Transforms(listed.get(source, ()), codec.grammar, source, run)
    loaded = documents_of(shards, row, transforms, recipe.model_run.training.data_seed, epoch)
    documents = [
        {
            "name": shards.names[number],
            "ids": len(document),
            "written_ids": len(shards.document(number)),
            "text": codec.render_weighted(document),
            **(_mask(document, codec) if options.loss_mask else {}),
        }
        for number, document in zip(shards.row(row), loaded, strict=True)
    ]
    n_ids = sum(map(len, loaded))
    print_result(
        options,
        {"source": source, "epoch": epoch, "row": row, "documents": documents},
        f"{source}, pair {row}" if shards.has_pairs
        else f"{source}, row {row}: {n_ids} of {shards.row_tokens} ids",
        *(f"\n{shown(each['name'])} ({_sizes(each)})\n{_shown(each)}" for each in documents),
        styled=True,
    )  # fmt: skip


def _mask(document: "Encoded", codec: "Codec") -> dict[str, Any]:
    """Return what of a document is a target: the number of ids, and runs of equal weight."""
    from pardalis.tokens import Encoded

    weights = document.weights.copy()
    weights[:1] = 0  # nothing predicts the first token
    runs = codec.render_runs(Encoded(document.ids, weights))
    return {
        "learnt_ids": int((weights > 0).sum()),
        "runs": [{"weight": weight, "text": text} for weight, text in runs],
    }


def _shown(document: dict[str, Any]) -> str:
    """Return the text of a document, in which what is learnt is marked if it is known."""
    if "runs" not in document:
        return shown(document["text"])
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    text = Text()
    for run in document["runs"]:
        content, is_learnt = printable(run["text"]), run["weight"] > 0
        weight = "" if run["weight"] in (0, 1) else f"[weight {run['weight']:g}]"
        if console.color_system is None:
            text.append(f"«{weight}{content}»" if is_learnt else content)
        else:
            text.append(weight + content, style="bold green" if is_learnt else "dim")
    with console.capture() as capture:
        console.print(text)
    return capture.get().removesuffix("\n")


def _sizes(document: dict[str, Any]) -> str:
    ids, written = document["ids"], document["written_ids"]
    sizes = [f"{ids} ids"]
    if ids != written:
        sizes.append(f"{written} in the shards")
    if "learnt_ids" in document:
        sizes.append(f"{document['learnt_ids']} learnt")
    return ", ".join(sizes)
