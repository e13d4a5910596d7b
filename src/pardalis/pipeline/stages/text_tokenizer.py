"""Stage ``text_tokenizer``: train the byte-level BPE on the text of the sources."""

import logging
from collections.abc import Iterator

from pardalis.pipeline.builders import documents_of
from pardalis.pipeline.recipe import Recipe, TextTokenizerConfig
from pardalis.pipeline.stages.stage import Inputs, RunContext, Stage
from pardalis.progress import bar
from pardalis.tokens import train_text_tokenizer

logger = logging.getLogger(__name__)


def inputs(context: RunContext) -> Inputs:
    return {"text_tokenizer": context.recipe.trained_text_tokenizer}


def run(context: RunContext) -> None:
    config = context.recipe.trained_text_tokenizer or TextTokenizerConfig()
    tokenizer = train_text_tokenizer(_texts(context), config.vocab_size)
    tokenizer.save(context.folder / "text_tokenizer" / "tokenizer.json")


def _texts(context: RunContext) -> Iterator[str]:
    sources = context.recipe.sources
    surveys = context.surveys(sources)
    total = sum(each.n_items - each.n_rejections for each in surveys)
    with bar("Reading texts", total, "documents") as advance:
        for document in documents_of(sources, context.folder):
            yield document.text
            advance(1)
    logger.info("Training the text tokenizer on the texts of %d documents.", total)


def _is_frozen(recipe: Recipe) -> bool:
    config = recipe.trained_text_tokenizer
    return config is not None and config.freeze


STAGE = Stage(
    name="text_tokenizer",
    run=run,
    inputs=inputs,
    outputs=("text_tokenizer/tokenizer.json",),
    applies=lambda recipe: recipe.trained_text_tokenizer is not None,
    needs=("corpus",),
    sources=lambda recipe: recipe.sources,
    is_frozen=_is_frozen,
)
