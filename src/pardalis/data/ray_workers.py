"""Workers on a Ray cluster: actors, each with a CPU or a GPU of its own.

Documents travel with the paths of their images, which must be the same on every node. Pardalis must
be installed there in the same version. Ray Data is not used: it decides itself where its blocks end
and repeats them in silence, while here a block is the unit that is stored and counted, and that a
death costs (docs/decisions/0021-blocks.md).
"""

import re
from collections.abc import Sequence
from typing import Any

from pardalis.data.workers import Pool, Task, Work, Worker, WorkerDiedError, one_thread
from pardalis.errors import ConfigError

_LONGEST = 200  # characters of what Ray says of a death


class Actors(Pool):
    """A pool of Ray actors.

    Raises:
        ConfigError: Ray is not installed, or the cluster has nothing to compute on.
    """

    def __init__(self, task: Task[Any, Any]) -> None:
        try:
            import ray
        except ImportError as error:
            raise ConfigError(
                "engine = 'ray' needs Ray, which is not installed: run pip install "
                "'pardalis[cluster]'."
            ) from error
        self._ray = ray
        self._had_ray = ray.is_initialized()
        if not self._had_ray:
            ray.init(include_dashboard=False, log_to_driver=False)
        self._kind = "CPU" if task.device.type == "cpu" else "GPU"
        self._task = ray.put(task)
        self._workers: list[_Actor] = []

    def jobs(self, wanted: int | None, n: int) -> int:
        if wanted is None:
            wanted = int(self._ray.cluster_resources().get(self._kind, 0))
            if not wanted:
                raise ConfigError(
                    f"The Ray cluster has no {self._kind} for the workers; choose another `device`."
                )
        return max(1, min(wanted, n))

    def start(self, number: int) -> "_Actor":
        gpus = int(self._kind == "GPU")
        actor = self._ray.remote(_Working).options(num_cpus=1, num_gpus=gpus)
        worker = _Actor(self._ray, number, actor.remote(self._task, "cuda" if gpus else "cpu"))
        self._workers.append(worker)
        return worker

    def wait(self, workers: Sequence["_Actor"]) -> Sequence["_Actor"]:
        ready, _ = self._ray.wait([worker.answer for worker in workers], num_returns=1)
        return [worker for worker in workers if worker.answer in ready]

    def close(self) -> None:
        for worker in self._workers:
            self._ray.kill(worker.actor)
        if not self._had_ray:
            self._ray.shutdown()


class _Actor(Worker):
    """The handle of an actor."""

    def __init__(self, ray: Any, number: int, actor: Any) -> None:
        self._ray, self.actor = ray, actor
        self.name = f"Ray worker {number}"
        self.answer: Any = None

    def send(self, work: Work) -> None:
        self.answer = self.actor.do.remote(work)

    def result(self) -> Any:
        try:
            return self._ray.get(self.answer)
        except self._ray.exceptions.RayActorError as error:
            raise WorkerDiedError(f"died ({_where(str(error))})") from error


def _where(message: str) -> str:
    """Return the process and the node that Ray's long message names, or its beginning."""
    found = dict(re.findall(r"\b(pid|ip): (\S+)", message))
    if {"pid", "ip"} <= found.keys():
        return f"process {found['pid']} on {found['ip']}"
    return " ".join(message.split())[:_LONGEST]


class _Working:
    """The actor's class."""

    def __init__(self, task: Task[Any, Any], device: str) -> None:
        self._task = task.to(device)

    def do(self, work: Work) -> Any:
        with one_thread(self._task.device):
            return self._task.do(work)
