"""``pardalis import`` and ``pardalis export``: checkpoints of other libraries."""

import argparse
import logging
from pathlib import Path

from pardalis.cli.common import (
    Commands,
    add_command,
    add_dtype,
    add_number,
    add_output,
    chosen_dtype,
    existing_run,
    print_result,
    set_run,
)
from pardalis.errors import ConfigError

logger = logging.getLogger(__name__)

_IMPORT = """\
Convert a checkpoint to a bundle, which the other commands read. The layout is detected from the
files:

  Hugging Face's Chameleon        config.json, model*.safetensors, tokenizer.json
  Chameleon's original release    models/7b/params.json, consolidated*.pth, tokenizer/
  a text-only Llama, Mistral,     config.json, model*.safetensors, tokenizer.json
  Qwen2 or Qwen3
  one of these as a GGUF file      MODEL.gguf, quantised or not

  pardalis import chameleon-7b -o bundles/chameleon-7b
  pardalis import chameleon-7b -o bundles/chameleon-7b --image-tokenizer tokenizer/vqgan.ckpt
  pardalis import llama -o bundles/llama --image-tokenizer runs/quickstart/bundle
  pardalis import llama.gguf -o bundles/llama --image-tokenizer runs/quickstart/bundle

Hugging Face's folders lack the image tokenizer's decoder: the model reads images and writes text.
The second command takes the image tokenizer of the original release instead, with which the model
also generates images. A text-only model gets an image tokenizer and new tokens for its codes; train
it further before use. Its tokens keep their ids. A head that is tied to the embedding stays tied.
Matrices of a GGUF file that are quantised become 32-bit numbers.

Weights are read and written one tensor at a time. If anything does not fit, nothing is written.
"""

_EXPORT = """\
Convert a bundle to another format, or a checkpoint of a run to a bundle.

  pardalis export BUNDLE -o FOLDER --to hf      for ChameleonForConditionalGeneration; or, without
                                                the image tokenizer, for LlamaForCausalLM,
                                                Qwen2ForCausalLM or Qwen3ForCausalLM
  pardalis export BUNDLE -o FOLDER --to meta    the layout of the original release
  pardalis export BUNDLE -o FILE --to gguf      the decoder and its text alone, for llama.cpp
  pardalis export BUNDLE -o FILE --to gguf --quantize q8_0
  pardalis export RUN -o BUNDLE --to bundle     the newest checkpoint of a run, finished or not
  pardalis export RUN -o BUNDLE --to bundle --step 2000

A decoder that the format cannot hold is refused; the message lists the options that do not fit. An
image tokenizer that it cannot hold, such as the quickstart's, is refused by meta; hf gets the
decoder without it, which takes images as token ids. docs/bring-your-checkpoint.md has a table.

A checkpoint may have been written by any number of processes; reading it takes one process, and
memory for the model alone.
"""


def add(commands: Commands) -> None:
    parser = add_command(commands, "import", "convert another library's checkpoint to a bundle",
                         _IMPORT)  # fmt: skip
    parser.does = "import_model"
    parser.add_argument(
        "source", metavar="PATH", type=Path, help="folder or file of the checkpoint"
    )
    add_output(parser, "BUNDLE", "folder of the bundle")
    parser.add_argument(
        "--image-tokenizer",
        type=Path,
        metavar="PATH",
        help="image tokenizer for a text-only model, or to replace that of Hugging Face's folder: "
        "a bundle, a folder of an image tokenizer, or vqgan.ckpt with vqgan.yaml beside it",
    )
    parser.add_argument(
        "--chat-template",
        type=Path,
        metavar="FILE",
        help="Jinja template of conversations (default: that of the checkpoint)",
    )
    parser.add_argument(
        "--new-rows",
        choices=("mean", "normal"),
        help="initial embedding and head rows of a text-only model's new tokens: near the mean of "
        "the old rows (default), or normal as in a new model",
    )
    parser.add_argument("--seed", type=int, help="seed of --new-rows (default: 0)")
    add_dtype(parser, "dtype of the weights in the bundle: as in the source (default), or another")
    set_run(parser, _import)

    parser = add_command(
        commands, "export", "convert a bundle, or a run's checkpoint, to another format", _EXPORT
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder of a bundle or a run")
    add_output(parser, "PATH", "folder of the result; for gguf, the file")
    parser.add_argument(
        "--to", choices=("hf", "meta", "gguf", "bundle"), required=True, help="the format"
    )
    add_number(parser, "--step", "for bundle: the checkpoint (default: the newest)")
    parser.add_argument(
        "--ranks",
        dest="n_ranks",
        type=int,
        metavar="N",
        help="for meta: number of files of the decoder (default: the groups of QK-norm)",
    )
    parser.add_argument(
        "--quantize",
        dest="quantization",
        choices=("f16", "q8_0"),
        help="for gguf: round the matrices to 16 bits, or to 8 bits with a scale for each 32",
    )
    parser.add_argument(
        "--results",
        type=Path,
        metavar="FOLDER",
        help="results of 'pardalis evaluate --tasks' for the model card, README.md (default: those "
        "of the run, if they are of this very model)",
    )
    add_dtype(parser, "dtype of the weights: as in the source (default), or another")
    set_run(parser, _export)


def _import(options: argparse.Namespace) -> None:
    from pardalis.interop import NewRows, import_model

    given = {"init": options.new_rows, "seed": options.seed}
    new_rows = {name: value for name, value in given.items() if value is not None}
    model = import_model(
        options.source,
        options.output,
        dtype=chosen_dtype(options),
        image_tokenizer=options.image_tokenizer,
        new_rows=NewRows(**new_rows) if new_rows else None,
        chat_template=options.chat_template,
    )
    vq = model.image_tokenizer
    facts = {
        "imported_from": model.origin,
        "parameters": sum(tensor.n_elements for tensor in model.decoder.values()),
        "image_codes": vq.n_codes,
        "ids_moved": not isinstance(model.vocabulary.foreign_ids, range | None),
        "generates_images": vq.has_decoder,
        "preprocessing": vq.preprocessing,
    }
    moved = "permuted, so that text and image tokens are contiguous"
    lines = {
        "imported from": facts["imported_from"],
        "parameters": f"{facts['parameters']:,}",
        "ids": moved if facts["ids_moved"] else "unchanged",
        "images": f"{facts['image_codes']:,} codes, preprocessing of {facts['preprocessing']}",
    }
    if not facts["generates_images"]:
        lines[""] = "read only: the source has no image decoder (--image-tokenizer adds one)"
    shown = [f"  {name:<14} {value}" for name, value in lines.items()]
    output = str(options.output)
    print_result(options, {"bundle": output, **facts}, output, *shown)


def _export(options: argparse.Namespace) -> None:
    if options.to == "bundle":
        _export_checkpoint(options)
    else:
        _export_bundle(options)
    output = str(options.output)
    place = "file" if options.to == "gguf" else "folder"
    print_result(options, {place: output, "layout": options.to}, output)


def _export_bundle(options: argparse.Namespace) -> None:
    from pardalis.interop import export_model

    if options.step is not None:
        raise ConfigError("--step does not apply: only a run has steps; use --to bundle.")
    export_model(
        options.bundle,
        options.output,
        options.to,
        dtype=chosen_dtype(options),
        n_ranks=options.n_ranks,
        quantization=options.quantization,
        card=_card(options, options.bundle, chosen_dtype(options) is None and options.to != "gguf"),
    )


def _card(options: argparse.Namespace, bundle: Path, is_exact: bool) -> str:
    """Return the card of a bundle, or of a run; empty without results of this very model.

    Args:
        is_exact: whether the result has the weights of the bundle, and a place for a card.
    """
    from pardalis.evaluate.tasks.card import card_of

    folder = options.results or options.bundle / "evaluation"
    if not is_exact and options.results is not None:
        raise ConfigError(
            "--results does not apply: a model card is of the stored weights, and GGUF has none; "
            "leave out --dtype, or --results."
        )
    if not is_exact or (options.results is None and not (folder / "results.json").is_file()):
        return ""
    try:
        return card_of(bundle, folder)
    except ConfigError as error:
        if options.results is not None:
            raise
        logger.warning("The model card is left out: %s", error)
        return ""


def _export_checkpoint(options: argparse.Namespace) -> None:
    from pardalis.bundle import CARD, require_new
    from pardalis.files import write_text
    from pardalis.pipeline import load_codec, load_recipe
    from pardalis.pipeline.export import checkpoint_bundle

    if options.n_ranks is not None:
        raise ConfigError("--ranks does not apply: a bundle is for any number of processes.")
    if options.quantization is not None:
        raise ConfigError("--quantize does not apply: only GGUF files have it.")
    require_new(options.output)
    run = options.bundle
    recipe = load_recipe(existing_run(run))
    bundle = checkpoint_bundle(recipe, run, load_codec(run), options.step)
    bundle.model.to(chosen_dtype(options))
    bundle.save(options.output)
    # Of a checkpoint of an earlier step, or in another dtype, the run has no results.
    if card := _card(options, options.output, True):
        write_text(options.output / CARD, card)
