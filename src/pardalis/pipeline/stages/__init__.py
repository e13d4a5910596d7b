"""The stages of a run, in order: each reads what earlier ones left in the run folder.

RUN/
├─ recipe.toml            the resolved recipe
├─ stages.json            time and memory of each stage, and what it was made from
├─ corpus/                a corpus built from packages, if the recipe asks for one
├─ text_tokenizer/        tokenizer.json
├─ image_tokenizer/       metrics, checkpoints, progress.html; final/ is the trained tokenizer
├─ shards/<source>/       token ids, rows, report of rejections
├─ retrieval/             an index of documents, and the candidates of each source
├─ training/              metrics and checkpoints of the decoder
├─ bundle/                the portable model
├─ adapter/               what was trained beside the model of start_from, if it was an adapter
├─ samples/               what the model generated for prompts of the sources
├─ evaluation/            what the model scores on tasks, with every item
└─ report.html, report.json

A run that starts from a bundle uses the tokenizers of that bundle and has no folders for them.
"""

from pardalis.pipeline.recipe import Recipe
from pardalis.pipeline.stages import (
    corpus,
    evaluate,
    image_tokenizer,
    prepare,
    report,
    retrieval,
    sample,
    text_tokenizer,
    train,
)
from pardalis.pipeline.stages.stage import Inputs, RunContext, Stage

STAGES: list[Stage] = [
    corpus.STAGE,
    text_tokenizer.STAGE,
    image_tokenizer.STAGE,
    prepare.STAGE,
    retrieval.STAGE,
    train.STAGE,
    sample.STAGE,
    evaluate.STAGE,
    report.STAGE,
]


def stages_of(recipe: Recipe) -> list[Stage]:
    """Return the stages that a recipe has, in order."""
    return [stage for stage in STAGES if stage.applies(recipe)]
