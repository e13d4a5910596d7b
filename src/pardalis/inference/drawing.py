"""Images of finished codes, decoded beside the writing."""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import PIL.Image
import torch

from pardalis.vq import ImageTokenizer


class Drawer:
    """One thread that decodes images, all that wait at a time."""

    def __init__(self, tokenizer: ImageTokenizer) -> None:
        self._tokenizer = tokenizer
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pardalis-drawer")
        self._waiting: deque[tuple[Sequence[int], Future[PIL.Image.Image]]] = deque()

    def draw(self, codes: Sequence[int]) -> "Future[PIL.Image.Image]":
        """Return the image of codes, as soon as it is decoded."""
        future: Future[PIL.Image.Image] = Future()
        self._waiting.append((codes, future))
        self._thread.submit(self._draw_waiting)
        return future

    def close(self) -> None:
        """End the thread, after the image it is at."""
        self._thread.shutdown(cancel_futures=True)

    def _draw_waiting(self) -> None:
        some = [self._waiting.popleft() for _ in range(len(self._waiting))]
        if not some:  # drawn with those before
            return
        try:
            images = self._tokenizer.images_of(torch.tensor([codes for codes, _ in some]))
        except Exception as error:  # of memory, of a device: whoever waits is told
            for _, future in some:
                future.set_exception(error)
        else:
            for (_, future), image in zip(some, images, strict=True):
                future.set_result(image)
