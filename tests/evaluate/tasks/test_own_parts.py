"""A kind and a layout of one's own: the example of the docstring, as it stands."""

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from tiny_tasks import write_lines

from pardalis.errors import ConfigError
from pardalis.evaluate import tasks
from pardalis.evaluate.tasks import (
    LAYOUTS,
    TASKS,
    Item,
    Number,
    evaluate_tasks,
    read_items,
    task,
    task_of,
)


@pytest.fixture
def tables() -> Iterator[None]:
    """Leave the tables as they were."""
    before = dict(TASKS), dict(LAYOUTS)
    yield
    for table, kept in zip((TASKS, LAYOUTS), before, strict=True):
        table.clear()
        table.update(kept)


@pytest.mark.usefixtures("tables")
def test_the_kind_of_the_docstring(bundle, tmp_path):
    assert task.__doc__ is not None
    [text] = re.findall(r"::\n\n((?:    .*\n|\n)+)", task.__doc__)
    names = vars(task) | vars(tasks) | {"Literal": Literal, "__name__": "own"}
    exec(textwrap.dedent(text), names)
    write_lines(tmp_path / "words.jsonl", [{"word": "owl"}, {"word": "fox"}])
    own = task_of({"kind": "reverse", "name": "backwards", "data": {"path": "words.jsonl"}})
    entry = evaluate_tasks(bundle, [own], tmp_path / "out", data=tmp_path)["tasks"]["backwards"]
    assert entry["numbers"]["accuracy"]["value"] == 0
    assert read_items(tmp_path / "out", "backwards")[0]["prompt"] == [{"text": "Reverse: owl\n"}]


@dataclass(frozen=True, kw_only=True)
class LinesConfig:
    kind: Literal["lines"] = "lines"
    path: Path

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def items(self, folder: Path) -> Iterator[Item]:
        for n, line in enumerate((folder / self.path).read_text().splitlines()):
            yield Item(str(n), {"text": line})


@pytest.mark.usefixtures("tables")
def test_a_layout_and_a_number_of_the_whole(bundle, tmp_path):
    LAYOUTS.add(LinesConfig)

    class Counted(tasks.PerplexityTask):
        def summarise(self, records, folder):
            return {"texts": Number(float(len(records)))} | super().summarise(records, folder)

    (tmp_path / "texts.txt").write_text("An owl\nThe fox\n")
    values = {"kind": "perplexity", "name": "t", "document": "{text}"}
    config = task_of(values | {"data": {"kind": "lines", "path": "texts.txt"}})
    own = Counted(name="t", document="{text}", data=config.data)
    numbers = evaluate_tasks(bundle, [own], tmp_path / "out", data=tmp_path)["tasks"]["t"][
        "numbers"
    ]
    assert numbers["texts"] == {"value": 2}
    assert list(numbers)[1] == "bits_per_byte"


@pytest.mark.usefixtures("tables")
def test_shots_of_a_kind_without_examples_are_refused(bundle, tmp_path):
    @TASKS.add
    @dataclass(frozen=True, kw_only=True)
    class PlainTask(task.TaskConfig):
        kind: Literal["plain"] = "plain"
        prompt: str = "{word}"

        def requests(self, trial, bundle):
            return [task.Likelihood(self.prompt_of(trial), self.prompt_of(trial))]

        def score(self, trial, requests, results):
            return task.Outcome({"log_prob": results[0].log_prob})

    write_lines(tmp_path / "words.jsonl", [{"word": "owl"}, {"word": "fox"}])
    values = {"kind": "plain", "name": "own", "data": {"path": "words.jsonl"}}
    assert evaluate_tasks(bundle, [task_of(values)], tmp_path / "out", data=tmp_path)["tasks"]
    with pytest.raises(ConfigError, match="shots is 1 in task 'own', whose kind has no few-shot"):
        evaluate_tasks(bundle, [task_of(values | {"shots": 1})], tmp_path / "b", data=tmp_path)
