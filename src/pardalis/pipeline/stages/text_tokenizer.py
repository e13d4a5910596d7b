"""Stage ``text_tokenizer``: train the byte-level BPE on the text of the sources."""

from pardalis.pipeline.builders import documents_of
from pardalis.pipeline.stages.stage import Inputs, RunContext, Stage
from pardalis.tokens import train_text_tokenizer


def inputs(context: RunContext) -> Inputs:
    recipe = context.recipe
    return {"text_tokenizer": recipe.text_tokenizer, "sources": context.contents(recipe.sources)}


def run(context: RunContext) -> None:
    recipe = context.recipe
    assert recipe.text_tokenizer is not None, "the stage applies"
    texts = (document.text for document in documents_of(recipe.sources, context.folder))
    tokenizer = train_text_tokenizer(texts, recipe.text_tokenizer.vocab_size)
    tokenizer.save(context.folder / "text_tokenizer" / "tokenizer.json")


STAGE = Stage(
    name="text_tokenizer",
    run=run,
    inputs=inputs,
    outputs=("text_tokenizer",),
    applies=lambda recipe: recipe.text_tokenizer is not None,
    needs=("corpus",),
)
