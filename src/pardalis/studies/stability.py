"""Training stability of variants of a model over learning rates.

RUN/
├─ shards/, ...                          stages before training, run once
├─ stability/VARIANT/lr-1e-02/seed-0/    metrics, alarms, result.json, log.txt
├─ stability.json, stability.html        results
└─ stability.png                         figure

A loss that is not finite is a result, not a failure. Checkpoints of finished runs are deleted.
"""

import dataclasses
import logging
import math
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import connection, forkserver, resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from pardalis.codec import Codec
from pardalis.devices import n_processors
from pardalis.errors import ConfigError, PardalisError, TrainingError
from pardalis.evaluate.metrics_file import Metrics
from pardalis.files import exclusive, read_json, write_json
from pardalis.parallel import Layout
from pardalis.pipeline.builders import load_codec, model_task
from pardalis.pipeline.recipe import Recipe, load_recipe
from pardalis.pipeline.runner import read_records, run
from pardalis.pipeline.stages import RunContext, stages_of
from pardalis.pipeline.stages.train import STAGE as TRAIN
from pardalis.pipeline.variants import StabilityConfig
from pardalis.progress import bar
from pardalis.studies.stability_page import write_study
from pardalis.studies.stability_results import LOSSES, Study, StudyRun
from pardalis.train import DecoderTask, LoopConfig, read_metrics, train
from pardalis.train.alarms import Alarms
from pardalis.train.divergence import Diverged
from pardalis.train.settings import check_settings
from pardalis.train.stopping import stop_requests

_RESULT, _LOG = "result.json", "log.txt"
_STOP_SIGNALS = (signal.SIGTERM,)
_POLL_S = 0.2  # interval of checks for a request to stop


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One run of a study.

    Attributes:
        recipe: the recipe with the overrides of the variant, the learning rate and the seed.
        settings: plain values that determine the results.
        root: the run folder with the prepared data.
    """

    variant: str
    learning_rate: float
    seed: int
    recipe: Recipe
    settings: dict[str, Any]
    root: Path

    @property
    def name(self) -> str:
        mantissa, exponent = f"{self.learning_rate:.4e}".split("e")
        return f"{self.variant}/lr-{float(mantissa):g}e{exponent}/seed-{self.seed}"

    @property
    def folder(self) -> Path:
        return self.root / "stability" / self.name

    @property
    def steps(self) -> int:
        return self.recipe.model_run.loop.steps

    @property
    def is_finished(self) -> bool:
        return (self.folder / _RESULT).is_file()


def study_stability(
    path: Path,
    folder: Path,
    overrides: Sequence[str] = (),
    device: torch.device | str = "cpu",
    jobs: int | None = None,
) -> Study:
    """Train every variant of a recipe at every learning rate with every seed, and write the study.

    Finished runs are not trained again, and interrupted ones are resumed.

    Args:
        jobs: parallel training processes, each with one thread; default: one per core.

    Raises:
        ConfigError: the recipe has no ``[stability]`` or no new model, or a run was started with
            other settings.
        TrainingError: the study was stopped, or a run failed.
        PardalisError: a stage up to ``prepare`` failed.
    """
    recipe = load_recipe(path, overrides)
    if recipe.stability is None or recipe.model is None or recipe.start_from is not None:
        raise ConfigError(
            f"{path} needs the tables [stability] and [model], and no start_from: a study trains "
            "models from their initial weights."
        )
    jobs = n_processors() if jobs is None else jobs
    if jobs < 1:
        raise ConfigError(f"`jobs` must be at least 1, got {jobs}.")
    stages = [stage.name for stage in stages_of(recipe)]
    run(recipe, folder, stages[: stages.index("train")], device)
    trials = _trials(path, overrides, recipe.stability, folder)
    (folder / "stability").mkdir(exist_ok=True)
    with exclusive(folder / "stability"):
        _train_all(trials, str(device), jobs)
        study = _study(recipe.name, recipe.stability, trials)
        write_study(folder, study)
    return study


def _trials(
    path: Path, overrides: Sequence[str], config: StabilityConfig, root: Path
) -> list[Trial]:
    """Return all runs of a study, those of the first seed first."""
    codec = load_codec(root)
    data = next(record.identity for record in read_records(root) if record.name == "prepare")
    trials = []
    for seed in config.seeds:
        for variant in config.variants:
            for rate in config.learning_rates:
                own = (f"training.schedule.learning_rate={rate!r}", f"training.seed={seed}")
                changed = load_recipe(path, [*overrides, *variant.set, *own])
                trials.append(
                    Trial(
                        variant=variant.name,
                        learning_rate=rate,
                        seed=seed,
                        recipe=changed,
                        settings=_settings(changed, root, codec, data),
                        root=root,
                    )
                )
    return trials


def _settings(recipe: Recipe, root: Path, codec: Codec, data: str) -> dict[str, Any]:
    loop = recipe.model_run.loop
    return {
        **TRAIN.settings(RunContext(recipe, root)),
        "codec": codec.fingerprint,
        "data": data,
        "loop": {
            "steps": loop.steps,  # the schedule depends on it
            "report_every": loop.report_every,
        },
    }


# ── processes ────────────────────────────────────────────────────────────────────────────────────


def _train_all(trials: Sequence[Trial], device: str, jobs: int) -> None:
    """Train the unfinished runs, each in its own process."""
    for trial in trials:
        if trial.is_finished:
            check_settings(trial.folder, trial.steps, trial.settings)
    pending = [trial for trial in trials if not trial.is_finished]
    done = len(trials) - len(pending)
    with bar("Stability study", total=len(trials), unit="runs", done=done) as advance:
        _Workers(pending, device, jobs, advance).run()
    if left := sum(not trial.is_finished for trial in trials):
        raise TrainingError(
            f"Stopped with {len(trials) - left} of {len(trials)} runs finished; run the study "
            "again to continue."
        )


class _Workers:
    """Parallel training processes, started by a fork server that has imported their modules."""

    def __init__(
        self, pending: Sequence[Trial], device: str, jobs: int, advance: Callable[..., None]
    ) -> None:
        self.pending = list(pending)
        self.running: list[tuple[BaseProcess, Trial]] = []
        self.device, self.jobs, self.advance = device, jobs, advance
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload([__name__])
        self.is_stopping = False

    def run(self) -> None:
        """Train all; a request to stop is forwarded once to the processes, which then end."""
        _start_server()
        with stop_requests() as stop:
            try:
                while self.pending or self.running:
                    if stop.made and not self.is_stopping:
                        self._stop()
                    while self.pending and len(self.running) < self.jobs:
                        self._start(self.pending.pop(0))
                    ended = connection.wait([p.sentinel for p, _ in self.running], _POLL_S)
                    for process, trial in [e for e in self.running if e[0].sentinel in ended]:
                        self.running.remove((process, trial))
                        self._end(process, trial)
            except TrainingError:
                self._stop()
                for process, _ in self.running:
                    process.join()
                raise
            finally:
                for process, _ in self.running:
                    process.kill()

    def _start(self, trial: Trial) -> None:
        process = self.context.Process(target=_work, args=(trial, self.device), daemon=True)
        process.start()
        self.running.append((process, trial))

    def _stop(self) -> None:
        self.is_stopping = True
        self.pending.clear()
        for process, _ in self.running:
            process.terminate()

    def _end(self, process: BaseProcess, trial: Trial) -> None:
        process.join()
        if trial.is_finished:
            study_run = _read_result(trial)
            loss = study_run.final("loss", trial.steps)
            note = "" if study_run.diverged is None else ", diverged"
            self.advance(1, last=f"{trial.name} {loss:.3f}{note}")
        elif not self.is_stopping:
            raise TrainingError(
                f"The run {trial.name} failed ({_last_line(trial.folder / _LOG)}); see "
                f"{trial.folder / _LOG}. Finished runs are kept."
            )


def _start_server() -> None:
    """Start the fork server with SIGTERM blocked, which schedulers send to the whole group.

    Its children inherit the blocked signal and unblock it.
    """
    resource_tracker.ensure_running()  # started by the server, it would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _last_line(log: Path) -> str:
    lines = log.read_text().split("\n") if log.is_file() else []
    return next((line for line in reversed(lines) if line.strip()), "it was killed").rstrip(".")


def _work(trial: Trial, device: str) -> None:
    """Run the process of one run: it logs to a file, and the study forwards Ctrl-C."""
    os.setpgrp()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
    threading.Thread(target=_follow_parent, daemon=True).start()
    trial.folder.mkdir(parents=True, exist_ok=True)
    sys.stderr = open(trial.folder / _LOG, "a", buffering=1)  # noqa: SIM115
    os.dup2(sys.stderr.fileno(), 2)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    try:
        train_trial(trial, device)
    except PardalisError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(error.exit_code) from None


def _follow_parent() -> None:
    """Save and stop when the study's process has ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "the study started this process"
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def train_trial(trial: Trial, device: torch.device | str = "cpu") -> None:
    """Train one run of a study until it ends or diverges, and write its result.

    Raises:
        Interrupted: see :func:`pardalis.train.train`.
        PardalisError: the data or the settings are wrong, or the disk is full.
    """
    loop, codec = _study_loop(trial.recipe.model_run.loop), load_codec(trial.root)
    start = _task(trial, codec, device).step(0)  # its losses precede the update
    losses = {name: float(start[name]) for name in LOSSES}
    diverged = None
    try:
        task = _task(trial, codec, device)
        train(task, trial.folder, loop, trial.name, trial.settings)
    except Diverged as error:
        diverged = error.step
    known = {name: loss for name, loss in losses.items() if not math.isnan(loss)}
    write_json(trial.folder / _RESULT, {"start": known, "diverged": diverged})
    shutil.rmtree(trial.folder / "checkpoints", ignore_errors=True)


def _study_loop(loop: LoopConfig) -> LoopConfig:
    """Return a loop that stops early only if the loss is not finite.

    At a high learning rate losses rise by nats during warm-up, and many recover. A study measures
    which of them do.
    """
    return dataclasses.replace(
        loop,
        evaluate_every=0,
        keep_checkpoints=1,
        tensorboard=False,
        on_divergence="stop",
        alarms=dataclasses.replace(loop.alarms, loss_explosion=math.inf),
    )


def _task(trial: Trial, codec: Codec, device: torch.device | str) -> DecoderTask:
    return model_task(trial.recipe, trial.root, codec, Layout.alone(device))


# ── results ──────────────────────────────────────────────────────────────────────────────────────


def _study(name: str, config: StabilityConfig, trials: Sequence[Trial]) -> Study:
    return Study(
        recipe=name,
        steps=trials[0].steps,
        learning_rates=config.learning_rates,
        seeds=config.seeds,
        high=config.high,
        variants={variant.name: variant.set for variant in config.variants},
        runs={(t.variant, t.learning_rate, t.seed): _read_result(t) for t in trials},
    )


def _read_result(trial: Trial) -> StudyRun:
    """Return a finished run; its alarms follow the recipe's current rules."""
    result = read_json(trial.folder / _RESULT)
    lines = read_metrics(trial.folder / "metrics.jsonl")
    alarms = Alarms(trial.recipe.model_run.loop.alarms)
    return StudyRun(
        start=result["start"],
        metrics=Metrics(lines),
        alarms=[alarm for line in lines for alarm in alarms.read(line)],
        diverged=result["diverged"],
    )
