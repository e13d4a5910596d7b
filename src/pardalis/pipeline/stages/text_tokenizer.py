"""Stage ``text_tokenizer``: train the byte-level BPE on the text of the sources."""

from pardalis.pipeline.builders import documents_of
from pardalis.pipeline.recipe import Recipe, TextTokenizerConfig
from pardalis.pipeline.stages.stage import Inputs, RunContext, Stage
from pardalis.tokens import train_text_tokenizer


def inputs(context: RunContext) -> Inputs:
    return {"text_tokenizer": context.recipe.trained_text_tokenizer}


def run(context: RunContext) -> None:
    config = context.recipe.trained_text_tokenizer or TextTokenizerConfig()
    texts = (document.text for document in documents_of(context.recipe.sources, context.folder))
    tokenizer = train_text_tokenizer(texts, config.vocab_size)
    tokenizer.save(context.folder / "text_tokenizer" / "tokenizer.json")


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
