"""``pardalis adapter``: adapters apart from their models."""

import argparse
from pathlib import Path

from pardalis.cli.common import Commands, add_command, add_output, print_result, set_run

_MERGE = """\
Write an adapter into the weights of the bundle that its training started from, as a new bundle. The
weights keep their dtype.

  pardalis adapter merge bundles/base runs/mine/adapter -o bundles/mine

The folder of an adapter is in the format of Hugging Face's PEFT, and may have been written by it.
"""


def add(commands: Commands) -> None:
    summary = "merge an adapter into a bundle"
    description = "Merge an adapter into the bundle of the model that it was trained on."
    group = add_command(commands, "adapter", summary, description)
    verbs = group.add_subparsers(title="commands", metavar="COMMAND", required=True)
    parser = add_command(verbs, "merge", summary, _MERGE)
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder of a bundle")
    parser.add_argument(
        "adapter", metavar="ADAPTER", type=Path, help="folder of an adapter, or of its run"
    )
    add_output(parser, "BUNDLE", "folder of the merged bundle")
    set_run(parser, _merge)


def _merge(options: argparse.Namespace) -> None:
    from pardalis.adapters import load_adapter, merge
    from pardalis.bundle import Bundle, load, require_new

    require_new(options.output)
    bundle = load(options.bundle)
    adapter = load_adapter(options.adapter, bundle.codec.vocabulary)
    merge(bundle.model, adapter)
    made_by = {**bundle.made_by, "adapter": adapter.config.kind}
    Bundle(bundle.model, bundle.codec, made_by, bundle.licences).save(options.output)
    result = {"bundle": str(options.output), "parameters": adapter.n_parameters}
    print_result(options, result, str(options.output))
