"""``pardalis evaluate --tasks``, ``evaluate compare`` and ``evaluate tasks``."""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pardalis.cli.common import (
    Commands,
    add_command,
    add_dtype,
    add_number,
    add_output,
    chosen_dtype,
    existing_run,
    print_result,
    reader_of,
    set_run,
)
from pardalis.errors import ConfigError

if TYPE_CHECKING:
    from pardalis.evaluate.contamination import TrainingDocuments

_COMPARE = """\
Compare folders of results of 'pardalis evaluate BUNDLE --tasks' on one page, each with the first:
differences over the items that all have, with intervals of the paired bootstrap, and the items on
which models differ most. With more than two folders each task has a curve, over training steps
where the bundles tell theirs.

  pardalis evaluate compare results.base results.tuned -o compared.html

A task must be the same in all folders, and so must its data; otherwise it says what differs.
"""

_TASKS = """\
List the tasks that come with Pardalis: their kind, the files that each needs, relative to the
folder that --data names, and where these come from. Nothing is downloaded.

  pardalis evaluate BUNDLE --tasks arc_easy --data FOLDER -o results

Any other task is a TOML file; docs/evaluation.md describes it.
"""

_PAIR_NET = """\
Train a small net on documents of one image and a text each, such as a corpus of a run. It says how
well an image and a text fit; `net` of a task of the kind text_to_image names its folder.

  pardalis evaluate pair-net RUN/corpus/pairs.train.jsonl -o pair_net

Frozen EfficientNet-lite0 and all-MiniLM-L6-v2 give features, so it takes minutes. Its scores
compare models on documents like those that it learnt from, with the same net; they are no
CLIPScore.
"""

OF_TASKS = {
    "limit": None, "shots": None, "seeds": None, "data": None, "dtype": "stored", "adapter": None,
    "contamination": None,
}  # fmt: skip


def add_task_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``--tasks``."""
    group = parser.add_argument_group("tasks")
    group.add_argument(
        "--tasks", metavar="NAMES", help="names of tasks and TOML files, with commas between them"
    )
    add_number(group, "--limit", "the first N items of each task only (default: as in the task)")
    add_number(group, "--shots", "few-shot examples before each item (default: as in the task)")
    add_number(group, "--seeds", "repeat what samples or draws examples with N seeds (default: 1)")
    group.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="where paths of data begin (default: the folder of a TOML file, or the current one)",
    )
    add_dtype(group)
    group.add_argument("--adapter", type=Path, metavar="FOLDER", help="an adapter of the model")
    group.add_argument(
        "--contamination",
        type=Path,
        metavar="RUN",
        help="look for the items in the training documents of a run, and score those apart",
    )


def run_tasks(options: argparse.Namespace) -> None:
    from pardalis.evaluate.tasks import evaluate_tasks
    from pardalis.evaluate.tasks.results import PAGE

    names = [name.strip() for name in options.tasks.split(",") if name.strip()]
    result = evaluate_tasks(
        options.folder,
        names,
        options.output,
        data=options.data,
        limit=options.limit,
        shots=options.shots,
        seeds=1 if options.seeds is None else options.seeds,
        adapter=options.adapter,
        device=options.device,
        dtype=chosen_dtype(options),
        training=None if options.contamination is None else _training(options.contamination),
    )
    print_result(options, result, *_lines(result), str(options.output / PAGE))


def _training(run: Path) -> "TrainingDocuments":
    """Return the training documents of a run; raises ConfigError and DataError."""
    from pardalis.data.shards import read_index
    from pardalis.evaluate.contamination import TrainingDocuments
    from pardalis.pipeline.builders import documents_of
    from pardalis.pipeline.recipe import load_recipe

    existing_run(run)
    sources = load_recipe(run).sources
    total = sum(read_index(run / "shards" / source.name)["documents"] for source in sources)
    return TrainingDocuments(str(run), documents_of(sources, run), total)


def add_others(commands: Commands) -> None:
    """Add ``evaluate compare``, ``evaluate tasks`` and ``evaluate pair-net``."""
    parser = add_command(commands, "evaluate compare", "compare results of tasks", _COMPARE)
    parser.add_argument(
        "folders", metavar="FOLDER", type=Path, nargs="+", help="folders of results"
    )
    parser.add_argument(
        "-o", "--output", dest="page", type=Path, metavar="PAGE", help=".html file to write"
    )
    set_run(parser, _compare)
    parser = add_command(commands, "evaluate tasks", "list the tasks that come along", _TASKS)
    set_run(parser, _list)
    parser = add_command(
        commands, "evaluate pair-net", "train a small net that scores images and texts", _PAIR_NET
    )
    parser.add_argument("data", metavar="DATA", type=Path, help="file or folder of documents")
    parser.add_argument(
        "--reader",
        metavar="NAME",
        help="format of DATA (default: as it looks; a folder holds images), see docs/readers.md",
    )
    add_output(parser, "NET", "folder")
    add_number(parser, "--steps", "steps of training (default: 400)")
    add_number(parser, "--seed", "of the first weights and the order of pairs (default: 0)")
    set_run(parser, _pair_net)


def _compare(options: argparse.Namespace) -> None:
    from pardalis.evaluate.tasks import compare_results

    result = compare_results(options.folders, options.page)
    lines = []
    for name, compared in result["tasks"].items():
        first = next(iter(compared["numbers"][0]))
        base = compared["numbers"][0][first]["value"]
        lines.append(f"{name}: {first} {base:.4g} over {compared['items']:,} items")
        for place, difference in enumerate(compared["differences"], 1):
            folder = result["folders"][place]["folder"]
            lines.append(f"  {folder}: {_signed(difference[first])}")
    print_result(options, result, *lines, *([str(options.page)] if options.page else []))


def _pair_net(options: argparse.Namespace) -> None:
    from dataclasses import asdict

    from pardalis.evaluate.metrics.pair_net import PairNetConfig, train_pair_net

    given = {name: v for name in ("steps", "seed") if (v := getattr(options, name)) is not None}
    config = PairNetConfig(**given)
    report = train_pair_net(options.data, reader_of(options), options.output, config)
    shown = f"learnt {report.pairs:,} pairs"
    if report.heldout_top1 is not None:
        shown += (
            f"; the text of an image is nearest in {report.heldout_top1:.1%} of "
            f"{report.heldout_pairs:,} others (chance {report.chance:.1%})"
        )
    print_result(options, asdict(report), shown, str(options.output))


def _signed(number: Mapping[str, Any]) -> str:
    text = f"{number['value']:+.4g}"
    return f"{text} ({number['low']:+.4g} to {number['high']:+.4g})" if "low" in number else text


def _list(options: argparse.Namespace) -> None:
    from pardalis.evaluate.tasks import load_task, shipped_tasks

    found = {}
    for name, path in shipped_tasks().items():
        task = load_task(path)
        layouts = [each for each in (task.data, task.examples) if each is not None]
        found[name] = {
            "kind": getattr(task, "kind", ""),
            "about": task.about,
            "files": list(dict.fromkeys(str(file) for each in layouts for file in each.files)),
            "source": task.source,
        }
    print_result(options, found, *_listed(found))


def _listed(tasks: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    width = max(map(len, tasks), default=0)
    for name, task in tasks.items():
        yield f"{name:<{width}}  {task['kind']}: {task['about']}"
        for file in task["files"]:
            yield f"{'':<{width}}    {file}"
        yield f"{'':<{width}}    from {task['source']}"


def _lines(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each number, and what failed."""
    tasks = result["tasks"]
    names = [name for entry in tasks.values() for name in entry["numbers"]]
    width, of_name = max(map(len, tasks)), max(map(len, names), default=0)
    for task, entry in tasks.items():
        for place, (name, number) in enumerate(entry["numbers"].items()):
            interval = f"   {number['low']:.4g} to {number['high']:.4g}" if "low" in number else ""
            head = f"{'' if place else task:<{width}}  {name:<{of_name}}"
            yield f"{head} {number['value']:>9.4g}{interval}"
        if found := entry.get("contamination"):
            yield f"{'':<{width}}  {_contaminated(found)}"
        if entry["failed"]:
            reason = next(iter(entry["failures"]))
            yield f"{'':<{width}}  {entry['failed']:,} items failed, such as: {reason}"


def _contaminated(found: Mapping[str, Any]) -> str:
    groups = [(name, found[name]) for name in ("clean", "contaminated") if found[name]["items"]]
    shown = []
    for name, group in groups:
        label, number = next(iter(group["numbers"].items()))
        shown.append(f"{label} {number['value']:.4g} of {group['items']:,} {name} items")
    return f"Training documents of {found['training']}: {', '.join(shown) or 'no item judged'}."


def refuse(options: argparse.Namespace, defaults: Mapping[str, Any], why: str) -> None:
    """Raise ConfigError, whose message ends as given, if an option has not its default."""
    for name, default in defaults.items():
        if getattr(options, name) != default:
            raise ConfigError(f"--{name.replace('_', '-')} {why}")
