"""Stopping by signal: SIGINT, SIGTERM and SIGHUP set a flag that the loop checks between steps."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequest:
    """Whether a signal was received."""

    made = False


@contextmanager
def stop_requests(logs: bool = True) -> Iterator[StopRequest]:
    """Turn the first SIGINT, SIGTERM or SIGHUP inside the block into a request to stop.

    The previous handlers are restored at the first signal or at the end of the block, so a second
    signal has its usual effect. A second SIGHUP has none, because both the system and the shell may
    send one when a terminal closes; under ``nohup`` none has any. Outside the main thread, where
    Python allows no handlers, nothing is changed.

    Args:
        logs: whether this process logs the request.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    # None is a handler that was not set from Python and cannot be restored; the default is used.
    found = {number: signal.getsignal(number) or signal.SIG_DFL for number in _SIGNALS}
    if found[signal.SIGHUP] == signal.SIG_IGN:
        del found[signal.SIGHUP]

    def restore() -> None:
        for number, handler in found.items():
            signal.signal(number, handler)

    def request_stop(number: int, frame: Any) -> None:
        request.made = True
        restore()
        if signal.SIGHUP in found:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        if logs:
            logger.warning("Stopping after this step; press again to stop at once.")

    for number in found:
        signal.signal(number, request_stop)
    try:
        yield request
    finally:
        restore()
