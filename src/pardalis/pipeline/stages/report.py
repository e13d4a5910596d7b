"""Stage ``report``: score the samples, and write one page about the whole run."""

from pardalis.evaluate import ImageFeatures, write_report
from pardalis.pipeline.builders import codec_of
from pardalis.pipeline.stages.stage import Inputs, RunContext, Stage


def inputs(context: RunContext) -> Inputs:
    return {}  # everything comes from the stages before


def run(context: RunContext) -> None:
    codec = codec_of(context.recipe, context.folder)
    write_report(context.folder, codec.image_tokenizer, ImageFeatures.load())


STAGE = Stage(
    name="report",
    run=run,
    inputs=inputs,
    outputs=("report.json", "report.html"),
    applies=lambda recipe: recipe.has_model,
    needs=("sample",),
)
