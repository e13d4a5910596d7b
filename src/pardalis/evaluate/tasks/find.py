"""Finding tasks: shipped ones by name, and TOML files by path."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pardalis import config as configs
from pardalis.errors import ConfigError
from pardalis.evaluate.tasks.kinds import TASKS
from pardalis.evaluate.tasks.task import TaskConfig
from pardalis.files import parse_toml, read_text

_SHIPPED = Path(__file__).parent / "shipped"


@dataclass(frozen=True, slots=True)
class LoadedTask:
    """A task, and the folder where the paths of its data begin."""

    task: TaskConfig
    folder: Path


def load_tasks(tasks: Sequence[TaskConfig | Path | str], data: Path | None) -> list[LoadedTask]:
    """Return tasks by their names, files or configs.

    Args:
        data: where paths of data begin; None: the folder of a file, and the current one for others.

    Raises:
        ConfigError: there are none, two have one name, or one is unknown or wrong.
    """
    if not tasks:
        raise ConfigError("`tasks` names nothing; give the names of tasks or TOML files.")
    found: dict[str, LoadedTask] = {}
    for each in tasks:
        loaded = _load(each, data)
        if loaded.task.name in found:
            raise ConfigError(
                f"`tasks` has the task {loaded.task.name!r} twice; give each a name of its own."
            )
        found[loaded.task.name] = loaded
    return list(found.values())


def shipped_tasks() -> dict[str, Path]:
    """Return the files of the tasks that come with Pardalis, by name."""
    return {path.stem: path for path in sorted(_SHIPPED.glob("*.toml"))}


def load_task(path: Path) -> TaskConfig:
    """Read the file of a task.

    Raises:
        ConfigError: the file is missing or no TOML, its kind is unknown, or a value is wrong.
    """
    try:
        values = parse_toml(read_text(path))
    except FileNotFoundError:
        raise ConfigError(f"No task at {path}; give the path of a TOML file.") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not a TOML file that can be read: {error}.") from error
    try:
        return task_of({"name": path.stem, **values})
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def task_of(values: dict[str, Any]) -> TaskConfig:
    """Return the task that plain values describe; raises ConfigError as :func:`load_task`."""
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in TASKS:
        near = difflib.get_close_matches(str(kind), TASKS, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ConfigError(
            f"kind must be one of {', '.join(map(repr, TASKS))}, got {configs.shown(kind)}{hint}"
        )
    task: TaskConfig = configs.from_dict(TASKS[kind], values)
    return task


def _load(task: TaskConfig | Path | str, data: Path | None) -> LoadedTask:
    if isinstance(task, TaskConfig):
        return LoadedTask(task, data or Path())
    shipped = shipped_tasks()
    if str(task) in shipped:
        return LoadedTask(load_task(shipped[str(task)]), data or Path())
    path = Path(task)
    if path.suffix == ".toml":
        return LoadedTask(load_task(path), data or path.parent)
    near = difflib.get_close_matches(str(task), shipped, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"those are {', '.join(shipped) or 'none'}."
    raise ConfigError(
        f"There is no task {str(task)!r} among those that come with Pardalis, and it is no .toml "
        f"file; {hint}"
    )
