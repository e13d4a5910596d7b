"""Stage ``text_tokenizer``: train the byte-level BPE on the text of the sources."""

from pardalis.pipeline.builders import documents_of
from pardalis.pipeline.recipe import TextTokenizerConfig
from pardalis.pipeline.stages.stage import Inputs, RunContext, Stage
from pardalis.tokens import train_text_tokenizer


def inputs(context: RunContext) -> Inputs:
    recipe = context.recipe
    return {
        "text_tokenizer": recipe.trained_text_tokenizer,
        "sources": context.contents(recipe.sources),
    }


def run(context: RunContext) -> None:
    config = context.recipe.trained_text_tokenizer or TextTokenizerConfig()
    texts = (document.text for document in documents_of(context.recipe.sources, context.folder))
    tokenizer = train_text_tokenizer(texts, config.vocab_size)
    tokenizer.save(context.folder / "text_tokenizer" / "tokenizer.json")


STAGE = Stage(
    name="text_tokenizer",
    run=run,
    inputs=inputs,
    outputs=("text_tokenizer",),
    applies=lambda recipe: recipe.trained_text_tokenizer is not None,
    needs=("corpus",),
)
