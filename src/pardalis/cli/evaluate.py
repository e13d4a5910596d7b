"""``pardalis evaluate``: scores of a model on tasks, or of a run by source."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pardalis.cli.common import (
    Commands,
    add_command,
    add_number,
    add_output,
    existing_run,
    print_result,
    set_run,
)
from pardalis.cli.evaluate_tasks import (
    OF_TASKS,
    add_others,
    add_task_options,
    refuse,
    run_tasks,
)
from pardalis.cli.retrieval import add_retriever, chosen_retriever
from pardalis.errors import ConfigError

_DESCRIPTION = """\
Evaluate a model on tasks: multiple choice, free answers, perplexity and others.

  pardalis evaluate BUNDLE --tasks arc_easy,my_task.toml -o results
  pardalis evaluate BUNDLE --tasks my_task.toml --limit 100 --shots 5 -o results

FOLDER gets every prompt, answer and score, results.json with the numbers and their intervals, and
index.html to look at. It can be interrupted; the same command continues. 'pardalis evaluate tasks'
lists the tasks that come along, and 'pardalis evaluate compare' compares folders of results.

Without --tasks, score what the model of a finished run generates, for each of its training and
held-out sources: how often an image is nearer to its original than to 99 others, and how often a
caption or an answer is right.

  pardalis evaluate RUN -o scores
  pardalis evaluate RUN -o scores --label-before " of "

A document that ends with an image after a text is a task: all before that image is the prompt. Of a
conversation the last turn of the assistant is expected, text and images in its order. With
--label-before the captions (in conversations, the alternative texts of images) begin with a label,
such as "a flat drawing of a deer": the label of generated images is tested by a linear probe,
scores are split by it, and grid.png shows concepts with all labels. sources.json holds every
number.

  pardalis evaluate RUN -o gaps --infill 100

scores instead how well the model fills a removed word of a caption and the removed upper half of an
image, each in 100 pairs of a text and an image of each source: by infilling, if it has learnt that,
and by continuing what stands before the gap. infilling.json holds the numbers.
  pardalis evaluate RUN -o scores.2 --retrieve RUN/retrieval/index --documents 2

puts documents of an index before each prompt. What training has seen is in the index of its run, so
only the scores of held-out sources tell anything then.
"""


def add(commands: Commands) -> None:
    parser = add_command(
        commands, "evaluate", "score a model on tasks, or a run by source", _DESCRIPTION
    )
    parser.add_argument(
        "folder",
        metavar="RUN",
        type=Path,
        help="folder of a finished run; with --tasks also of a bundle",
    )
    add_output(parser, "FOLDER", "folder")
    add_task_options(parser)
    group = parser.add_argument_group("sources of a run")
    add_number(group, "--images", "images to generate of each source (default: 100)")
    add_number(group, "--captions", "captions to generate of each source (default: 50)")
    add_number(group, "--answers", "answers to generate of each source (default: 100)")
    add_number(group, "--infill", "score infilling instead, with N tasks of each kind and source")
    group.add_argument(
        "--bundle", metavar="BUNDLE", type=Path, help="another model, on the documents of the run"
    )
    group.add_argument(
        "--label-before", metavar="TEXT", help="the text before which the label of a caption ends"
    )
    group.add_argument(
        "--guidance", type=float, metavar="SCALE", help="of images (default: as in the recipe)"
    )
    group.add_argument(
        "--temperature", type=float, metavar="T", help="of images (default: as in the recipe)"
    )
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of prompts and samples")
    add_retriever(group)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default: cpu)")
    set_run(parser, _run)
    add_others(commands)


_OF_SOURCES = {
    "images": None, "captions": None, "answers": None, "infill": None, "bundle": None,
    "label_before": None, "guidance": None, "temperature": None, "seed": 0, "retrieve": None,
}  # fmt: skip


def _run(options: argparse.Namespace) -> None:
    if options.tasks is not None:
        refuse(options, _OF_SOURCES, "does not apply to --tasks; leave one of them out.")
        chosen_retriever(options)  # refuses what belongs to --retrieve
        run_tasks(options)
        return
    refuse(options, OF_TASKS, "belongs to --tasks; give that too, or leave it out.")
    _run_sources(options)


def _run_sources(options: argparse.Namespace) -> None:
    from pardalis.bundle import bundle_folder
    from pardalis.studies.sources import SourcesConfig, study_sources

    existing_run(options.folder)
    if options.infill is not None:
        _run_infilling(options)
        return
    given = {
        name: value
        for name in (
            "images",
            "captions",
            "answers",
            "label_before",
            "guidance",
            "temperature",
            "seed",
        )
        if (value := getattr(options, name)) is not None
    }
    result = study_sources(
        options.folder,
        options.output,
        SourcesConfig(**given),
        options.device,
        bundle_folder(options.bundle) if options.bundle else None,
        chosen_retriever(options),
    )
    print_result(options, result, *_lines(result), str(options.output))


def _run_infilling(options: argparse.Namespace) -> None:
    from pardalis.bundle import bundle_folder
    from pardalis.studies.infilling import InfillingConfig, study_infilling

    names = ("images", "captions", "answers", "label_before", "guidance", "temperature", "retrieve")
    if given := [name for name in names if getattr(options, name) is not None]:
        raise ConfigError(
            f"--{given[0].replace('_', '-')} does not apply to --infill, which scores gaps; leave "
            "one of them out."
        )
    chosen_retriever(options)  # refuses what belongs to --retrieve
    result = study_infilling(
        options.folder,
        options.output,
        InfillingConfig(tasks=options.infill, seed=options.seed),
        options.device,
        bundle_folder(options.bundle) if options.bundle else None,
    )
    lines = _table(result["sources"], _INFILLING_COLUMNS)
    print_result(options, result, *lines, str(options.output))


_INFILLING_COLUMNS = {
    "words": "words",
    "word_infilled": "infilled",
    "word_from_left": "from left",
    "images": "images",
    "codes_infilled": "infilled",
    "codes_from_left": "from left",
}
_COLUMNS = {
    "images": "images",
    "retrieval": "retrieval",
    "retrieval_in_label": "in label",
    "label": "label",
    "captions": "captions",
    "caption_exact": "exact",
    "caption_f1": "F1",
    "answers": "answers",
    "modalities": "modality",
    "answer_exact": "exact",
    "answer_f1": "F1",
}


def _lines(result: dict[str, Any]) -> Iterator[str]:
    yield from _table(result["sources"], _COLUMNS)
    if result["chance"] is not None:
        yield f"Chance of retrieval: {_shown(result['chance'])}."


def _table(sources: dict[str, dict[str, Any]], names: dict[str, str]) -> Iterator[str]:
    """Yield a line of headings and one for each source, with the columns that any source has."""
    columns = [key for key in names if any(key in scores for scores in sources.values())]
    width = max(len("source"), *map(len, sources))
    yield f"{'source':<{width}}  " + "  ".join(f"{names[key]:>9}" for key in columns)
    for name, scores in sources.items():
        yield f"{name:<{width}}  " + "  ".join(f"{_shown(scores.get(key)):>9}" for key in columns)


def _shown(value: float | int | None) -> str:
    return "-" if value is None else f"{value:.0%}" if isinstance(value, float) else str(value)
