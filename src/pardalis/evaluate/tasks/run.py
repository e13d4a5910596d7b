"""Evaluating a bundle on tasks: from items to a folder of results, in a way that can be resumed."""

import importlib.metadata
import math
import platform
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from pardalis import config as configs
from pardalis.adapters import Adapter
from pardalis.bundle import Bundle, bundle_folder, load
from pardalis.digests import file_digest
from pardalis.documents import Document, Image
from pardalis.errors import ConfigError, DataError, PardalisError, RequestError
from pardalis.evaluate.contamination import Contamination, TrainingDocuments, find_overlaps
from pardalis.evaluate.tasks.find import LoadedTask, load_tasks
from pardalis.evaluate.tasks.identity import bundle_digest
from pardalis.evaluate.tasks.items import Item, load_items, require_images
from pardalis.evaluate.tasks.page import ImagesOf, write_page
from pardalis.evaluate.tasks.results import (
    FORMAT,
    Results,
    TaskResults,
    image_name,
    numbers,
)
from pardalis.evaluate.tasks.task import (
    AnyRequest,
    Generation,
    Likelihood,
    Record,
    TaskConfig,
    TokenLikelihood,
    Trial,
    check_trial,
    trials,
)
from pardalis.files import exclusive, output_folder
from pardalis.inference import (
    Completion,
    KeptEngine,
    Request,
    Score,
    ScoreRequest,
    to_request,
    to_score_requests,
)
from pardalis.inference.adapters import open_adapters
from pardalis.inference.events import Finished
from pardalis.progress import bar

_WINDOW = 256  # requests that are encoded before they run
_SHOWN_REASONS = 3
_ADAPTER = "adapter"  # its name in the engine


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A task with its items."""

    task: TaskConfig
    folder: Path  # where paths of data begin
    files: Mapping[str, str]  # hashes of the files of data
    items: Sequence[Item]
    pool: Sequence[Item]  # what few-shot examples are drawn from
    inputs: Mapping[str, str]  # hashes of the items by id

    def images(self) -> ImagesOf:
        """Return how to find the images of an item by the names that its record has for them."""
        items = {item.id: item for item in (*self.pool, *self.items)}

        def find(record: Record, name: str) -> Image | None:
            """Look among the images of the item; few-shot examples have theirs in files."""
            item = items.get(record["id"])
            images = item.images if item is not None else []
            return next((i for i in images if image_name(i, self.folder) == name), None)

        return find

    def trials(self, seed: int) -> Sequence[Trial]:
        return trials(self.task, self.items, self.pool, seed)


def evaluate_tasks(
    bundle: Bundle | Path | str,
    tasks: Sequence[TaskConfig | Path | str],
    folder: Path | str,
    *,
    data: Path | str | None = None,
    limit: int | None = None,
    shots: int | None = None,
    seeds: int = 1,
    adapter: Adapter | Path | str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    training: TrainingDocuments | None = None,
) -> dict[str, Any]:
    """Evaluate a bundle on tasks; return what results.json holds.

        from pardalis.evaluate.tasks import evaluate_tasks
        results = evaluate_tasks("runs/owl/bundle", ["arc_easy", "my_task.toml"], "results")
        results["tasks"]["arc_easy"]["numbers"]["accuracy"]["value"]

    All items of all tasks are checked before the model is loaded. Finished items are kept as they
    come, so the same call continues where an interrupted one ended. An item that fails (its prompt
    is longer than the context, say) is kept with the reason, counted, and tried again by the next
    call. Tasks that the folder already has of the same bundle stay.

    Args:
        bundle: what :func:`pardalis.load` returns, or the path of a bundle or of a run.
        tasks: names of shipped tasks, paths of TOML files, or configs.
        folder: of the results; see :mod:`pardalis.evaluate.tasks.results`.
        data: where paths of data begin; default: the folder of a TOML file, and the current one for
            shipped tasks and configs.
        limit: the first items of each task only, in the place of the task's own.
        shots: few-shot examples, in the place of the task's own.
        seeds: how many seeds a task is repeated with, from 0, if it samples or draws examples.
        adapter: an adapter of the bundle's model, or its folder; default: none.
        device, dtype: as :func:`pardalis.load` takes them, for a bundle that is a path.
        training: documents in which the items are looked for; the results say which of them stand
            there, with the numbers of those that do and of those that do not
            (:mod:`pardalis.evaluate.contamination`). Default: nothing is said of that.

    Raises:
        ConfigError: a task is unknown or wrong, or the folder holds something else, or results of
            another bundle, task or data.
        DataError: a file or an image of a task is missing, an item does not fit its task, or no
            item of a task could be evaluated.
        RequestError: the bundle cannot do what a task asks, such as generate images.
        BundleError: there is no bundle at the path.
    """
    return TaskSet(tasks, data=data, limit=limit, shots=shots, seeds=seeds).evaluate(
        bundle, folder, adapter=adapter, device=device, dtype=dtype, training=training
    )


class TaskSet:
    """Tasks with their items, which are read and checked once, for any number of bundles.

    Args:
        tasks, data, limit, shots, seeds: as :func:`evaluate_tasks` takes them.

    Raises:
        ConfigError: a task is unknown or wrong.
        DataError: a file or an image of a task is missing, or an item does not fit its task.
    """

    def __init__(
        self,
        tasks: Sequence[TaskConfig | Path | str],
        *,
        data: Path | str | None = None,
        limit: int | None = None,
        shots: int | None = None,
        seeds: int = 1,
    ) -> None:
        if seeds < 1:
            raise ConfigError(f"seeds must be at least 1, got {seeds}.")
        given = {"limit": limit, "shots": shots}
        changes: dict[str, Any] = {
            name: value for name, value in given.items() if value is not None
        }
        self.seeds = seeds
        self._loaded = [
            _load(replace(each, task=replace(each.task, **changes)))
            for each in load_tasks(tasks, None if data is None else Path(data))
        ]

    def check_bundle(self, bundle: Bundle) -> None:
        """Raise RequestError if a task asks what a bundle cannot do, such as generate images."""
        for each in self._loaded:
            each.task.check_bundle(bundle)

    def evaluate(
        self,
        bundle: Bundle | Path | str,
        folder: Path | str,
        *,
        adapter: Adapter | Path | str | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        training: TrainingDocuments | None = None,
    ) -> dict[str, Any]:
        """Evaluate a bundle; arguments, result and errors as :func:`evaluate_tasks`."""
        folder, loaded = Path(folder), self._loaded
        path = None if isinstance(bundle, Bundle) else str(bundle_folder(bundle))
        model = bundle if isinstance(bundle, Bundle) else load(bundle, device, dtype)
        self.check_bundle(model)
        contaminations = {} if training is None else _contaminations(loaded, training)
        with _Evaluation(model, adapter) as evaluation, exclusive(output_folder(folder)):
            facts = {"path": path, "digest": evaluation.digest, "made_by": model.made_by}
            results = Results(folder, facts)
            written = results.write(_versions())
            for each in loaded:
                with_seeds = range(self.seeds if each.task.uses_seed else 1)
                entry = evaluation.run(each, folder, with_seeds, contaminations.get(each.task.name))
                results.tasks[each.task.name] = entry
                written = results.write(_versions())
            write_page(folder, written, {each.task.name: each.images() for each in loaded})
        for name in (each.task.name for each in loaded):
            if not (entry := written["tasks"][name])["items"]:
                [reason] = list(entry["failures"])[:1]
                raise DataError(f"No item of the task {name!r} could be evaluated: {reason}")
        return written


def _load(found: LoadedTask) -> _Loaded:
    """Read and check the items of a task; raises DataError and ConfigError."""
    task, folder = found.task, found.folder
    try:
        everything = load_items(task.data, folder)
        items = everything[: task.limit]
        pool = everything if task.examples is None else load_items(task.examples, folder)
        require_images(items)
        layouts = [each for each in (task.data, task.examples) if each is not None]
        files = {str(path): file_digest(folder / path) for each in layouts for path in each.files}
        loaded = _Loaded(
            task, folder, files, items, pool, {item.id: item.digest() for item in items}
        )
    except DataError as error:
        raise DataError(f"Task {task.name!r}: {error}") from error
    except OSError as error:
        raise DataError(f"Task {task.name!r}: {error.filename}: {error.strerror}.") from error
    for trial in loaded.trials(0):
        check_trial(task, trial)
        require_images(trial.shots)
    return loaded


def _contaminations(
    loaded: Sequence[_Loaded], training: TrainingDocuments
) -> dict[str, Contamination]:
    """Look for the items of all tasks at once; return what was found by the names of tasks."""
    items = [(each.task.name, item) for each in loaded for item in each.items]
    overlaps = find_overlaps([item for _, item in items], training)
    found = {each.task.name: Contamination(training.name, training.total, {}) for each in loaded}
    for (name, item), overlap in zip(items, overlaps, strict=True):
        found[name].overlaps[item.id] = overlap
    return found


class _Evaluation:
    """A model that is evaluated, with an adapter or without."""

    def __init__(self, bundle: Bundle, adapter: Adapter | Path | str | None) -> None:
        self.bundle = bundle
        self.adapters = open_adapters(bundle, {} if adapter is None else {_ADAPTER: adapter})
        self.engine = KeptEngine(bundle, self.adapters)
        self.digest = bundle_digest(bundle)
        if self.adapters:
            self.digest = configs.fingerprint(self.digest, self.adapters[_ADAPTER].digest)

    def __enter__(self) -> "_Evaluation":
        return self

    def __exit__(self, *error: object) -> None:
        self.engine.close()

    def run(
        self,
        loaded: _Loaded,
        folder: Path,
        seeds: Sequence[int],
        contamination: Contamination | None = None,
    ) -> dict[str, Any]:
        """Evaluate what is not finished yet of a task; return its entry of results.json."""
        task, start = loaded.task, time.monotonic()
        made_from = {"format": FORMAT, "bundle": self.digest, "task": task, "data": loaded.files}
        results = TaskResults(folder / task.name, made_from, loaded.folder)
        asked = [Asked(seed, trial) for seed in seeds for trial in loaded.trials(seed)]
        kept = results.kept({each.key: loaded.inputs[each.trial.item.id] for each in asked})
        found, failed = dict(kept), 0
        with bar(task.name, len(asked), "items", done=len(kept)) as advance:
            for record in self._records(
                results, loaded, [each for each in asked if each.key not in kept]
            ):
                results.append(record)
                found[record["seed"], record["id"]] = record
                failed += "error" in record
                advance(**({"failed": failed} if failed else {}))
        finished = [record for record in found.values() if "error" not in record]
        for record in task.judged(finished, results.folder):
            found[record["seed"], record["id"]] = record
        results.finish(found, [each.key for each in asked])
        records = [found[each.key] for each in asked]
        entry = task_entry(task, records, results.folder)
        if contamination is not None:
            entry["contamination"] = contamination_entry(
                task, records, results.folder, contamination
            )
            results.write_contamination(contamination)
        return {
            "task": configs.to_dict(task),
            "hash": configs.fingerprint(configs.deciding(task)),
            "data": {
                "folder": str(loaded.folder),
                "files": dict(loaded.files),
                "items": configs.fingerprint(loaded.inputs),
            },
            "seeds": list(seeds),
            **entry,
            "seconds": round(time.monotonic() - start, 3),
        }

    def _records(
        self, results: TaskResults, loaded: _Loaded, asked: Sequence["Asked"]
    ) -> Iterator[Record]:
        """Yield the records of items as they finish."""
        task = loaded.task
        for each, requests, answers in self._answered(task, asked):
            item = each.trial.item
            head = {"id": item.id, "seed": each.seed, "input": loaded.inputs[item.id]}
            if not isinstance(answers, PardalisError):
                try:
                    outcome = task.score(each.trial, requests, answers)
                    yield head | results.record(prompts_of(requests), outcome)
                    continue
                except PardalisError as error:
                    answers = error
            yield head | {"error": str(answers)}

    def _answered(
        self, task: TaskConfig, asked: Sequence["Asked"]
    ) -> Iterator[tuple["Asked", Sequence[AnyRequest], list[Any] | PardalisError]]:
        """Yield items with the results of their requests, or with the error of one."""
        window: list[_Open] = []
        for each in asked:
            try:
                requests = task.requests(each.trial, self.bundle)
                encoded = list(self._encoded(requests))
            except PardalisError as error:
                yield each, (), error
                continue
            window.append(_Open(each, requests, encoded))
            if sum(len(open_.encoded) for open_ in window) >= _WINDOW:
                yield from self._finished(window)
                window = []
        yield from self._finished(window)

    def _encoded(self, requests: Sequence[AnyRequest]) -> Iterator[Request | ScoreRequest]:
        adapter = _ADAPTER if self.adapters else None
        for kind, group in groupby(requests, type):
            if kind is Generation:
                for each in group:
                    assert isinstance(each, Generation)
                    config = replace(each.config, adapter=adapter)
                    yield to_request(self.bundle, each.prompt, config)
            else:
                pairs = (
                    (each.prompt, each.continuation)
                    if isinstance(each, Likelihood)
                    else _score_request(each)
                    for each in group
                )
                for encoded in to_score_requests(self.bundle, pairs):
                    yield replace(encoded, adapter=adapter)

    def _finished(
        self, window: Sequence["_Open"]
    ) -> Iterator[tuple["Asked", Sequence[AnyRequest], list[Any] | PardalisError]]:
        """Run the requests of several items together; yield the items as they finish."""
        encoded = [request for open_ in window for request in open_.encoded]
        if not encoded:
            return
        of_key: dict[int, _Open] = {}
        engine = self.engine.engine_for(encoded)
        most_open = 2 * engine.config.max_slots  # enough that no slot is ever idle

        def step(most: int) -> Iterator[_Open]:
            while len(of_key) > most:
                for event in engine.step():
                    if isinstance(event, Finished):
                        open_ = of_key.pop(event.key)
                        open_.n_finished += 1
                        if open_.n_finished == len(open_.encoded):
                            yield open_

        for open_ in window:
            for request in open_.encoded:
                for done in step(most_open - 1):
                    yield done.asked, done.requests, done.results()
                completion = engine.submit_request(request)
                open_.completions.append(completion)
                of_key[completion.key] = open_
        for done in step(0):
            yield done.asked, done.requests, done.results()


@dataclass(frozen=True, slots=True)
class Asked:
    """An item that is asked with one seed of the evaluation."""

    seed: int
    trial: Trial

    @property
    def key(self) -> tuple[int, str]:
        return self.seed, self.trial.item.id


@dataclass(slots=True)
class _Open:
    """An item whose requests are in the engine, or wait for it."""

    asked: Asked
    requests: Sequence[AnyRequest]
    encoded: Sequence[Request | ScoreRequest]
    completions: list[Completion] = field(default_factory=list)
    n_finished: int = 0

    def results(self) -> list[Any] | PardalisError:
        found: list[Any] = []
        for request, completion in zip(self.encoded, self.completions, strict=True):
            if isinstance(request, ScoreRequest):
                score = Score.of(completion.log_probs)
                if not math.isfinite(score.log_prob):
                    return RequestError(
                        f"The model gives the log-probability {score.log_prob}, which is not a "
                        "finite number; its weights or its computation are broken."
                    )
                found.append(score)
            elif completion.document is None:
                assert completion.finished is not None
                return RequestError(completion.finished.error)
            else:
                found.append(completion.document)
        return found


def _score_request(request: AnyRequest) -> ScoreRequest:
    assert isinstance(request, TokenLikelihood)
    return ScoreRequest(prompt_ids=request.prompt_ids, continuation_ids=request.continuation_ids)


def task_entry(task: TaskConfig, records: Sequence[Record], folder: Path) -> dict[str, Any]:
    """Return the counts and numbers of a task as plain values.

    Args:
        records: of all items that were asked, those that failed included.
        folder: of the task's results.
    """
    finished = [record for record in records if "error" not in record]
    reasons = Counter(record["error"] for record in records if "error" in record)
    return {
        "items": len(finished),
        "failed": len(records) - len(finished),
        "failures": dict(reasons.most_common(_SHOWN_REASONS)),
        "higher_is_better": task.higher_is_better,
        "numbers": numbers(task.summarise(finished, folder)) if finished else {},
    }


def contamination_entry(
    task: TaskConfig, records: Sequence[Record], folder: Path, found: Contamination
) -> dict[str, Any]:
    """Return the numbers of a task's contaminated items, of the clean ones, and of the others.

    Args:
        records: as :func:`task_entry` takes them.
        folder: likewise.
    """

    def of(chosen: Sequence[Record]) -> dict[str, Any]:
        return {
            "items": len({record["id"] for record in chosen}),
            "numbers": numbers(task.summarise(chosen, folder)) if chosen else {},
        }

    groups: dict[str, list[Record]] = {"clean": [], "contaminated": [], "not_judged": []}
    for record in records:
        if "error" not in record:
            groups[found.overlaps[record["id"]].group].append(record)
    entry = {name: of(chosen) for name, chosen in groups.items()}
    n_judged = entry["clean"]["items"] + entry["contaminated"]["items"]
    share = entry["contaminated"]["items"] / n_judged if n_judged else None
    return {"training": found.training, "documents": found.documents, "share": share, **entry}


def prompts_of(requests: Sequence[AnyRequest]) -> Document:
    """Return the first prompt of an item, as a person reads it."""
    first = requests[0] if requests else None
    return Document(()) if first is None or isinstance(first, TokenLikelihood) else first.prompt


def _versions() -> dict[str, str]:
    packages = ("pardalis", "torch", "tokenizers", "numpy", "pillow")
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"python": platform.python_version(), **found}
