"""The kinds of task, of which a file names one by ``kind``."""

from pardalis.config import Kinds
from pardalis.evaluate.tasks.choice import ChoiceTask
from pardalis.evaluate.tasks.generate import GenerateTask
from pardalis.evaluate.tasks.perplexity import PerplexityTask

TASKS = Kinds(ChoiceTask, GenerateTask, PerplexityTask)
