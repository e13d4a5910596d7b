"""Stage ``report``: score the samples, and write one page about the whole run."""

from pathlib import Path

from pardalis.evaluate import ImageFeatures, write_report
from pardalis.evaluate.extras import FEATURES, PAGES, missing, why_missing
from pardalis.pipeline.builders import codec_of, documents_of
from pardalis.pipeline.stages.stage import Inputs, Lack, RunContext, Stage


def inputs(context: RunContext) -> Inputs:
    """Return what the page shows besides the results of the stages before."""
    stated = {
        source.name: [source.licence, source.attribution]
        for source in context.recipe.all_sources
        if source.licence or source.attribution
    }
    found: Inputs = {"licences": stated} if stated else {}
    return found | ({"without": list(FEATURES)} if missing(FEATURES) else {})


def lacks() -> Lack | None:
    if absent := missing(PAGES):
        return Lack(f"the page report.html is left out, because {why_missing(absent)}", is_all=True)
    if absent := missing(FEATURES):
        return Lack(
            f"the page has no retrieval scores, because {why_missing(absent)}", is_all=False
        )
    return None


def run(context: RunContext) -> None:
    recipe, folder = context.recipe, context.folder

    def source_images() -> set[Path]:
        documents = documents_of(recipe.all_sources, folder)
        images = (image.source for document in documents for image in document.images)
        return {path.resolve() for path in images if isinstance(path, Path)}

    features = None if missing(FEATURES) else ImageFeatures.load()
    write_report(folder, codec_of(recipe, folder).image_tokenizer, features, source_images)


STAGE = Stage(
    name="report",
    run=run,
    inputs=inputs,
    outputs=("report.json", "report.html"),
    applies=lambda recipe: recipe.has_model,
    needs=("sample", "evaluate"),
    lacks=lacks,
)
