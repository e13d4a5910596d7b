"""``pardalis merge``: two bundles become one."""

import argparse
from pathlib import Path
from typing import Any

from pardalis.cli.common import (
    Commands,
    add_command,
    add_dtype,
    add_number,
    add_output,
    chosen_dtype,
    print_result,
    set_run,
)
from pardalis.errors import ConfigError

_DESCRIPTION = """\
Merge bundles of one architecture into a new bundle, which trains further and generates like any
other. The first is the text parent, the second the image parent.

  pardalis merge TEXT IMAGE -o OUT                        the mean of all weights
  pardalis merge TEXT IMAGE -o OUT --kind width           one decoder of twice the width
  pardalis merge TEXT IMAGE -o OUT --kind cross           both, with cross-attention between them
  pardalis merge TEXT IMAGE -o OUT --kind slerp
  pardalis merge A B C -o OUT --kind task_arithmetic --base ANCESTOR

Parents that do not fit are refused, and the message names the options that differ. If only their
tokens differ, --unite gives them one vocabulary. docs/merge.md says what each kind and option does,
and which of them the paper (JAM, arXiv 2309.15564) leaves open.
"""

_OPTIONS = (
    "weights", "t", "base", "blocks", "factor", "norms", "head_factor", "interval", "feed_forward",
    "text_share", "outputs", "projections",
)  # fmt: skip


def add(commands: Commands) -> None:
    parser = add_command(commands, "merge", "merge two bundles into one", _DESCRIPTION)
    parser.add_argument(
        "parents", metavar="BUNDLE", type=Path, nargs="+", help="text parent, image parent, others"
    )
    add_output(parser, "BUNDLE", "folder of the merged bundle")
    parser.add_argument("--kind", default="uniform", help="kind of merge (default: uniform)")
    parser.add_argument(
        "--unite",
        action="store_true",
        help="allow other tokens: text of the text parent, images of the image parent",
    )
    add_dtype(parser, "dtype of the weights in the bundle: as in the parents (default), or another")
    add_number(parser, "--seed", "seed of new layers (default: 0)")
    _add_averages(parser.add_argument_group("means"))
    _add_width(parser.add_argument_group("width"))
    _add_cross(parser.add_argument_group("cross"))
    set_run(parser, _merge)


def _add_averages(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--weights", type=float, nargs="+", metavar="W", help="weight of each bundle"
    )
    group.add_argument("--t", type=float, help="slerp: from 0, text parent, to 1 (default: 0.5)")
    group.add_argument("--base", type=Path, metavar="BUNDLE", help="task_arithmetic: the ancestor")


def _add_width(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--blocks",
        help="copy (default), average_second_column, average_off_diagonal or block_diagonal",
    )
    group.add_argument("--factor", type=float, metavar="F", help="of the matrices (default: 0.5)")
    group.add_argument("--norms", help="halves (default) or whole")
    group.add_argument("--head-factor", type=float, metavar="F", help="of the head (default: 0.5)")


def _add_cross(group: argparse._ArgumentGroup) -> None:
    add_number(group, "--interval", "layers from one cross-attention to the next (default: 2)")
    group.add_argument(
        "--no-feed-forward",
        dest="feed_forward",
        action="store_const",
        const=False,
        help="attention alone between the trunks",
    )
    group.add_argument(
        "--text-share", type=float, metavar="S", help="of the text trunk's state (default: 0.5)"
    )
    group.add_argument("--outputs", help="last matrices of new layers: zero (default) or drawn")
    group.add_argument("--projections", help="their other matrices: drawn (default) or copied")


def _merge(options: argparse.Namespace) -> None:
    from pardalis.fusion import merge
    from pardalis.model import model_costs

    config = merge(
        options.parents,
        options.output,
        _kind(options),
        unite=options.unite,
        dtype=chosen_dtype(options),
        seed=options.seed or 0,
    )
    parameters = model_costs(config).parameters
    output = str(options.output)
    result = {"bundle": output, "kind": options.kind, "parameters": parameters}
    lines = (f"  {'parameters':<13} {parameters:,}", f"  {'shape':<13} {config.summary}")
    print_result(options, result, output, *lines)


def _kind(options: argparse.Namespace) -> Any:
    """Return the config of the merge that the options describe."""
    from pardalis import config as configs
    from pardalis.fusion import MERGES

    if options.kind not in MERGES:
        raise ConfigError(
            f"kind must be one of {', '.join(map(repr, MERGES))}, got {options.kind!r}."
        )
    member = MERGES[options.kind]
    known = member.__dataclass_fields__
    given = {name: getattr(options, name) for name in _OPTIONS}
    given = {name: value for name, value in given.items() if value is not None}
    for name in given:
        if name not in known:
            raise ConfigError(
                f"{name} does not apply to a merge of the kind {options.kind!r}; leave it out."
            )
    return configs.from_dict(member, given)
