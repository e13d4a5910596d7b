"""The kinds of task, of which a file names one by ``kind``."""

from pardalis.config import Kinds
from pardalis.evaluate.tasks.captioning import CaptioningTask
from pardalis.evaluate.tasks.choice import ChoiceTask
from pardalis.evaluate.tasks.composition import CompositionTask
from pardalis.evaluate.tasks.context_choice import ContextChoiceTask
from pardalis.evaluate.tasks.generate import GenerateTask
from pardalis.evaluate.tasks.interleaving import InterleavingTask
from pardalis.evaluate.tasks.perplexity import PerplexityTask
from pardalis.evaluate.tasks.text_to_image import TextToImageTask
from pardalis.evaluate.tasks.vqa import VqaTask

TASKS = Kinds(
    ChoiceTask,
    ContextChoiceTask,
    GenerateTask,
    PerplexityTask,
    CaptioningTask,
    VqaTask,
    TextToImageTask,
    CompositionTask,
    InterleavingTask,
)
