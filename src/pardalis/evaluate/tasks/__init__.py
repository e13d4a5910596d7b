"""Tasks that measure a model, and the runner that keeps every item.

A task is a TOML file, or a config in Python. Its ``kind`` is a class of the table :data:`TASKS`
(:mod:`pardalis.evaluate.tasks.task` shows how to write one), and its ``data.kind`` one of the table
:data:`LAYOUTS`, which reads items from files (:mod:`pardalis.evaluate.tasks.items`)::

    TASKS.add       a kind: requests(trial, bundle), score(trial, requests, results), summarise
    LAYOUTS.add     a layout: files, items(folder)
    shipped/*.toml  a task that comes with Pardalis, found by its name

    evaluate_tasks(bundle, ["arc_easy", "my_task.toml"], "results", data="data")
    compare_results(["results", "other_results"], "page.html")
"""

from pardalis.evaluate.tasks.captioning import CaptioningTask
from pardalis.evaluate.tasks.choice import ChoiceTask
from pardalis.evaluate.tasks.comparison import compare_results
from pardalis.evaluate.tasks.composition import CompositionTask
from pardalis.evaluate.tasks.context_choice import ContextChoiceTask
from pardalis.evaluate.tasks.conversations import ConversationsConfig
from pardalis.evaluate.tasks.documents import DocumentsConfig
from pardalis.evaluate.tasks.find import load_task, load_tasks, shipped_tasks, task_of
from pardalis.evaluate.tasks.generate import METRICS, AnswerMetric, GenerateTask
from pardalis.evaluate.tasks.identity import bundle_digest
from pardalis.evaluate.tasks.interleaving import InterleavingTask
from pardalis.evaluate.tasks.items import Item, Layout, image_digest, load_items
from pardalis.evaluate.tasks.kinds import TASKS
from pardalis.evaluate.tasks.layouts import LAYOUTS
from pardalis.evaluate.tasks.perplexity import PerplexityTask
from pardalis.evaluate.tasks.records import RecordsConfig, read_json_file, read_records, to_image
from pardalis.evaluate.tasks.results import read_items, read_results
from pardalis.evaluate.tasks.run import TaskSet, evaluate_tasks
from pardalis.evaluate.tasks.task import (
    AnyRequest,
    Generation,
    Likelihood,
    Number,
    Outcome,
    TaskConfig,
    TokenLikelihood,
    Trial,
    mean,
    paired_mean,
    paired_ratio,
    ratio,
)
from pardalis.evaluate.tasks.template import FILTERS, Template
from pardalis.evaluate.tasks.text_to_image import TextToImageTask
from pardalis.evaluate.tasks.vqa import VqaTask
