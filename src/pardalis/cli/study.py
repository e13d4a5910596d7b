"""``pardalis study``: people compare the answers of two models, blind."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pardalis.cli.common import (
    Commands,
    add_command,
    add_hosts,
    add_output,
    print_result,
    set_run,
)

_NEW = """\
Make a study of the answers of two models to the same prompts. A and B are bundles, which complete
the prompts now, or folders that 'pardalis generate --prompts PROMPTS --out FOLDER' has written.

  pardalis study new prompts.jsonl runs/mine runs/other -o study

A line of the prompts may have a "category", by which the report groups its results. The two answers
to a prompt stand in random order, and nothing that raters see tells the model. The same command
continues an interrupted one.
"""
_SERVE = """\
Serve the page of a study until Ctrl-C or SIGTERM. Raters give a name, judge whether each of two
answers fulfils its task, and which one is better. Who comes back under the same name continues.

  pardalis study serve study                     then open http://127.0.0.1:8000
  pardalis study serve study --host 0.0.0.0 --api-key-file keys.txt    for raters at other machines

With keys, a rater enters one, or opens a link that ends with /#key=KEY. Judgements are appended to
judgements.jsonl in the folder of the study.
"""
_REPORT = """\
Print the results of a study: how often each model fulfils its task by the majority of raters, wins,
ties and losses, the win rate with ties as half, by category, with 95 % bootstrap intervals over
items, and the agreement of raters as Krippendorff's alpha (1 perfect, 0 chance).

  pardalis study report study
"""


def add(commands: Commands) -> None:
    description = "Let people compare the answers of two models to the same prompts, blind."
    group = add_command(commands, "study", "let people compare two models", description)
    verbs = group.add_subparsers(title="commands", metavar="COMMAND", required=True)
    parser = add_command(verbs, "new", "make a study of two models' answers", _NEW)
    parser.add_argument("prompts", metavar="PROMPTS", type=Path, help=".jsonl or .txt file")
    for name in "AB":
        parser.add_argument(
            name, metavar=name, type=Path, help="folder of a bundle, a run or completions"
        )
    add_output(parser, "STUDY", "folder of the study")
    parser.add_argument(
        "--seed", type=int, metavar="N",
        help="of the order of the two answers (default: a random one, which study.json keeps)",
    )  # fmt: skip
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default: cpu)")
    set_run(parser, _new)
    parser = add_command(verbs, "serve", "serve the page of a study to raters", _SERVE)
    _add_study(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: all "
                        "(default: 127.0.0.1, this machine alone)")  # fmt: skip
    parser.add_argument("--port", type=int, default=8000, help="0: a free one (default: 8000)")
    parser.add_argument(
        "--api-key-file", type=Path, metavar="FILE",
        help="keys that open the study, one a line (default: it is open)",
    )  # fmt: skip
    add_hosts(parser)
    set_run(parser, _serve)
    parser = add_command(verbs, "report", "print the results of a study", _REPORT)
    _add_study(parser)
    set_run(parser, _report)


def _add_study(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", metavar="STUDY", type=Path, help="folder of a study")


def _new(options: argparse.Namespace) -> None:
    from pardalis.studies.pairwise import make_study

    models = (options.A, options.B)
    study = make_study(
        options.prompts, models, options.output, seed=options.seed, device=options.device
    )
    result = {"study": str(options.output), "items": len(study.items)}
    print_result(options, result, f"{options.output}: {len(study.items):,} items to judge")


def _serve(options: argparse.Namespace) -> None:
    from pardalis.cli.serve import log_to_stderr, require_libraries

    require_libraries()
    from pardalis.files import exclusive
    from pardalis.serve import ServeConfig, listen
    from pardalis.serve.keys import read_keys
    from pardalis.serve.study import serve_study
    from pardalis.studies.pairwise import Study

    keys = read_keys(options.api_key_file) if options.api_key_file else ()
    hosts = ServeConfig.local_hosts(options.host, keys, tuple(options.allowed_hosts))
    config = ServeConfig(
        host=options.host, port=options.port, api_keys=keys, hosts=hosts, max_body_mib=1
    )
    study = Study(options.study)

    def on_ready(url: str) -> None:
        address = f"{url}/#key=KEY, with a key of {options.api_key_file} as KEY" if keys else url
        line = f"{options.study}, {len(study.items):,} items, at {address}"
        said = {"url": url, "items": len(study.items)}
        options.stdout.write((json.dumps(said) if options.json else line) + "\n")
        options.stdout.flush()

    log_to_stderr()
    with exclusive(options.study), listen(config) as listener:
        serve_study(study, config, listener, on_ready)


def _report(options: argparse.Namespace) -> None:
    from pardalis.studies.pairwise import Study
    from pardalis.studies.pairwise_report import report_study

    found = report_study(Study(options.study))
    print_result(options, found, *_lines(found))


def _lines(found: dict[str, Any]) -> Iterator[str]:
    n_raters = len(found["raters"])
    for side, name in found["models"].items():
        yield f"{side}: {name}"
    yield f"{found['judged']:,} of {found['items']:,} items judged, raters: {n_raters:,}"
    for n, items in found["items_by_raters"].items():
        yield f"  items with {n} of them: {items:,}"
    if found["judged"]:
        groups = {"all": found["all"], **found["categories"]}
        width = max(len("category"), *map(len, groups))
        columns = "".join(f"{name:>20}" for name in ("fulfils", "partially", "does not"))
        yield ""
        yield f"{'category':<{width}}     items{columns}   win tie loss{'win rate':>20}"
        for name, group in groups.items():
            for side in found["models"]:
                yield f"{name:<{width}}  {side}  {group['items']:>5}{_row(group[side])}"
        yield ""
        for name, alpha in found["alpha"].items():
            yield f"Krippendorff's alpha, {name}: {'-' if alpha is None else f'{alpha:.3f}'}"
    yield from found["hints"]


def _row(model: dict[str, Any]) -> str:
    shares = "".join(_share(model[name]) for name in ("fulfils", "partially", "does not"))
    counts = f"{model['wins']:>6}{model['ties']:>4}{model['losses']:>5}"
    return shares + counts + _share(model["win rate"])


def _share(found: dict[str, Any]) -> str:
    low, high = found["interval"]
    return f"{100 * found['value']:.1f} % ({100 * low:.1f}-{100 * high:.1f})".rjust(20)
