"""Whole runs: the recipe that describes one, its stages, and what resumes and skips them."""

from pardalis.pipeline.builders import load_codec, training_loader
from pardalis.pipeline.find import find_image_tokenizer
from pardalis.pipeline.first_recipe import FirstRecipe, init
from pardalis.pipeline.parts import PartReport, prepare_part
from pardalis.pipeline.recipe import Recipe, SampleConfig, TextTokenizerConfig, load_recipe
from pardalis.pipeline.runner import (
    Decision,
    Record,
    StageMissingError,
    dry_run,
    read_records,
    run,
)
from pardalis.pipeline.stages import STAGES, Stage, stages_of
