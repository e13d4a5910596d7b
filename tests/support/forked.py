"""Ranks as forked children of one process, which imports torch once for all of them."""

import atexit
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch.distributed.checkpoint
import torch.distributed.fsdp
import torch.distributed.tensor.parallel  # noqa: F401
from torch.distributed import TCPStore

from pardalis.errors import PardalisError

Part = Callable[[], None]


def begin(part: Part, rank: int, size: int, port: int, stderr: Path) -> int:
    """Fork a rank that runs a part like a command; return its process id.

    Args:
        port: port of the store; see :func:`begin_stores`.
        stderr: file for the rank's stderr.
    """
    child = os.fork()
    if child:
        return child
    os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    sys.stderr = os.fdopen(2, "w")
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # like torchrun: another process holds the store
    }
    code = run(part)
    atexit._run_exitfuncs()
    sys.stderr.flush()
    os._exit(code)


def run(part: Part) -> int:
    """Run a part like a command; return the exit code."""
    try:
        part()
    except PardalisError as error:
        sys.stderr.write(f"pardalis: {error}\n")
        return error.exit_code
    except SystemExit as error:
        return int(error.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def end(child: int) -> int:
    """Wait for a rank and return its exit code, negative if it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def begin_stores(n: int) -> tuple[int, list[int]]:
    """Fork a child that holds n stores; return its process id and their ports."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        held = [
            TCPStore("localhost", 0, None, is_master=True, wait_for_workers=False) for _ in range(n)
        ]
        os.write(write, json.dumps([store.port for store in held]).encode())
        signal.pause()
    return child, json.loads(os.read(read, 4096))


def stop(child: int) -> None:
    """Kill a child."""
    os.kill(child, signal.SIGKILL)
    end(child)


def together(part: Part, size: int, stderr: Path) -> list[int]:
    """Run a part on ``size`` ranks; return their exit codes. ``stderr`` gets a file for each."""
    server, (port,) = begin_stores(1)
    stderr.mkdir(parents=True, exist_ok=True)
    ranks = [begin(part, rank, size, port, stderr / f"{rank}.txt") for rank in range(size)]
    codes = [end(child) for child in ranks]
    stop(server)
    return codes
