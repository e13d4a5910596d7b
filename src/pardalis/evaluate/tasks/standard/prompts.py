"""Prompts for images: DPG-Bench. (GenEval's file is a table of records.)"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pardalis.evaluate.tasks.items import Item
from pardalis.evaluate.tasks.records import read_records
from pardalis.evaluate.tasks.standard.fields import taken


@dataclass(frozen=True, kw_only=True)
class DpgConfig:
    """``dpg_bench.csv`` of ELLA (Hu et al. 2024, arXiv 2403.05135): a row for each question.

    Items are its prompts, each once, with the fields ``prompt`` and ``questions``, those about
    what the image has to show.
    """

    kind: Literal["dpg"] = "dpg"
    path: Path

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def items(self, folder: Path) -> Iterator[Item]:
        prompts: dict[str, str] = {}
        questions: dict[str, list[str]] = {}
        for number, record in enumerate(read_records(folder / self.path), start=2):
            where = f"{folder / self.path}:{number}"
            name = taken(record, "item_id", str, where)
            prompts.setdefault(name, taken(record, "text", str, where).strip())
            questions.setdefault(name, []).append(str(record.get("question_natural_language", "")))
        for name, prompt in prompts.items():
            yield Item(name, {"prompt": prompt, "questions": questions[name]})
