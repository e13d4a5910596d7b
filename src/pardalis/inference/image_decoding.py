"""Image decoding in a thread of its own, beside token generation."""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import PIL.Image
import torch

from pardalis.vq import ImageTokenizer


class ImageDecoder:
    """A thread that decodes images; all images that wait are decoded as one batch."""

    def __init__(self, tokenizer: ImageTokenizer) -> None:
        self._tokenizer = tokenizer
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pardalis-image-decoder")
        self._waiting: deque[tuple[Sequence[int], Future[PIL.Image.Image]]] = deque()

    def submit(self, codes: Sequence[int]) -> "Future[PIL.Image.Image]":
        """Return the future image of an image's codes."""
        future: Future[PIL.Image.Image] = Future()
        self._waiting.append((codes, future))
        self._thread.submit(self._decode_waiting)
        return future

    def close(self) -> None:
        """End the thread after the batch that it decodes."""
        self._thread.shutdown(cancel_futures=True)

    def _decode_waiting(self) -> None:
        batch = [self._waiting.popleft() for _ in range(len(self._waiting))]
        if not batch:  # an earlier call decoded it
            return
        try:
            images = self._tokenizer.images_of(torch.tensor([codes for codes, _ in batch]))
        except Exception as error:  # such as out of memory: the futures carry it to the reader
            for _, future in batch:
                future.set_exception(error)
        else:
            for (_, future), image in zip(batch, images, strict=True):
                future.set_result(image)
