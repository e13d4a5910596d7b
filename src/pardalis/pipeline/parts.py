"""Preparing a recipe's sources in parts: one process for each, on any machines that share a folder.

The blocks of all sources follow each other, and part i of n makes the i-th n-th of them. So a part
reads only the sources that its blocks are of, up to its last one. The part that completes a source
joins it, and the last one finishes the stage ``prepare`` of the run.
"""

import logging
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pardalis.data import ONE_WORKER, Preparation, Share, Workers
from pardalis.devices import find_device
from pardalis.errors import BusyError, PardalisError
from pardalis.files import exclusive, output_folder, remove
from pardalis.parallel import World
from pardalis.pipeline.chain import with_bundle
from pardalis.pipeline.recipe import Recipe
from pardalis.pipeline.runner import StageMissingError, decide, run
from pardalis.pipeline.stages import RunContext
from pardalis.pipeline.stages.prepare import STAGE, preparations
from pardalis.pipeline.stages.stage import CONTENTS

logger = logging.getLogger(__name__)

_ATTEMPTS, _WAIT_S = 5, 1.0  # to join while another part ends at the same moment


@dataclass(frozen=True, slots=True)
class PartReport:
    """What came of making a part."""

    part: str
    blocks: int  # of the part, in all sources
    is_joined: bool  # whether the shards of the run are complete


def prepare_part(
    recipe: Recipe,
    folder: Path,
    part: Share,
    device: torch.device | str = "cpu",
    workers: Workers = ONE_WORKER,
) -> PartReport:
    """Make one part of what the stage ``prepare`` encodes; the last one joins all.

    The tokenizers of the run must be finished. Parts that begin at the same time divide the reading
    through of the sources, and later ones take what they have found; a change of the documents is
    noticed when all are joined.

    Raises:
        StageMissingError: a tokenizer or a corpus is missing.
        BusyError: another process makes the same part.
        ConfigError: the other parts are of another recipe or of other documents.
        DataError: a source is missing or changes meanwhile, or writing failed.
    """
    recipe = with_bundle(recipe, folder)
    world = World(device=find_device(device))
    context = RunContext(recipe, folder, world, workers=workers, part=part)
    try:
        [decision] = decide(context, [STAGE.name])
    except PardalisError as error:
        if isinstance(error, StageMissingError) or context.has_read:
            _forget(folder)  # else the next attempt would refuse it too, whatever is there by then
        raise
    if not decision.is_run:
        _forget(folder)
        logger.info("%s: %s, nothing is left to do.", STAGE.name, decision.reason)
        return PartReport(str(part), 0, True)
    with exclusive(output_folder(folder), shared=True):  # a run waits until no part is made
        context.digests.save()
        n_blocks, is_complete = _make(context, part)
    return PartReport(str(part), n_blocks, is_complete and _join(recipe, folder, device, workers))


def _make(context: RunContext, part: Share) -> tuple[int, bool]:
    """Make the blocks of a part; return their number, and whether those of all parts exist."""
    every = list(preparations(context).values())
    mine = part.among(sum(each.n_blocks for each in every))
    start = n_mine = 0
    is_complete = True
    for each in every:
        numbers = range(max(0, mine.start - start), min(each.n_blocks, mine.stop - start))
        start += each.n_blocks
        if each.finished() is not None:
            continue
        if numbers:
            n_mine += len(numbers)
            each.make_share(part, numbers, context.workers)
        if each.is_complete:
            _join_source(each)
        else:
            is_complete = False
    return n_mine, is_complete


def _forget(folder: Path) -> None:
    """Delete what was found in the sources, which another part may be doing, too."""
    with suppress(OSError):
        remove(folder / CONTENTS)


def _join_source(each: Preparation) -> None:
    """Join the blocks of a source, unless a part of it is still made; sources join in parallel."""
    with suppress(BusyError):
        each.run(Workers(joins_only=True))


def _join(recipe: Recipe, folder: Path, device: torch.device | str, workers: Workers) -> bool:
    """Join the parts; returns False if another process does it."""
    joining = replace(workers, joins_only=True)
    for _ in range(_ATTEMPTS):
        try:
            run(recipe, folder, [STAGE.name], device, workers=joining)
            return True
        except BusyError:
            time.sleep(_WAIT_S)
        except PardalisError:
            _forget(folder)  # documents have changed, maybe
            raise
    logger.info("All parts are made; another process works in %s and joins them.", folder)
    return False
