"""The kinds of task, of which a file names one by ``kind``."""

from pardalis.config import Kinds
from pardalis.evaluate.tasks.choice import ChoiceTask

TASKS = Kinds(ChoiceTask)
