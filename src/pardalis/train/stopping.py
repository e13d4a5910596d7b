"""Being asked to stop: SIGINT and SIGTERM become a request that the loop looks at between steps."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether someone asked to stop."""

    made = False


@contextmanager
def stop_requests(speaks: bool = True) -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM inside the block into a request; a second one acts as ever.

    The handlers found are put back at the first signal, or at the end. Outside the main thread
    Python allows no handlers, and nothing is changed.

    Args:
        speaks: whether this process says that it was asked.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    # None is a handler that was not set from Python and cannot be put back; the default is.
    found = {number: signal.getsignal(number) or signal.SIG_DFL for number in _SIGNALS}

    def put_back() -> None:
        for number, handler in found.items():
            signal.signal(number, handler)

    def ask(number: int, frame: Any) -> None:
        request.made = True
        put_back()
        if speaks:
            logger.warning("Stopping after this step; press again to stop at once.")

    for number in _SIGNALS:
        signal.signal(number, ask)
    try:
        yield request
    finally:
        put_back()
