"""Encoding images without end: threads open them ahead while a network encodes."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import UInt8

from pardalis.documents.document import ImageSource
from pardalis.errors import DataError
from pardalis.vq.preprocessing import Fit, open_square, to_pixels
from pardalis.vq.tokenizer import ImageTokenizer

_MOST_THREADS = 16

_Opened = UInt8[np.ndarray, "Y X 3"] | DataError


def encode_stream(
    tokenizer: ImageTokenizer,
    images: Iterable[ImageSource],
    fit: Fit = "crop",
    batch: int | None = None,
) -> Iterator[list[int] | DataError]:
    """Yield the codes of each image, or why it cannot be opened, in the order of the images.

    Memory is bounded however many there are. All batches have the same size, the last one too, so
    what an image becomes does not depend on those that follow it.

    Args:
        batch: images encoded together; None: as many as the device takes at once.
    """
    batch = batch or tokenizer.images_per_pass
    waiting: list[_Opened] = []
    n_squares = 0
    for opened in _opened_ahead(tokenizer, images, fit, 2 * batch):
        waiting.append(opened)
        n_squares += not isinstance(opened, DataError)
        if n_squares == batch:
            yield from _encoded(tokenizer, waiting, batch)
            waiting, n_squares = [], 0
    yield from _encoded(tokenizer, waiting, batch)


def _opened_ahead(
    tokenizer: ImageTokenizer, images: Iterable[ImageSource], fit: Fit, ahead: int
) -> Iterator[_Opened]:
    side, preprocessing = tokenizer.config.resolution, tokenizer.config.preprocessing

    def opened(image: ImageSource) -> _Opened:
        try:
            return open_square(image, side, preprocessing, fit)
        except DataError as error:
            return error

    threads = min(_MOST_THREADS, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(threads, "images")
    begun: deque[Future[_Opened]] = deque()
    try:
        for image in images:
            begun.append(pool.submit(opened, image))
            if len(begun) > ahead + threads:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _encoded(
    tokenizer: ImageTokenizer, waiting: list[_Opened], batch: int
) -> Iterator[list[int] | DataError]:
    squares = [each for each in waiting if not isinstance(each, DataError)]
    codes: Iterator[list[int]] = iter(())
    if squares:
        filled = np.stack([*squares, *squares[-1:] * (batch - len(squares))])
        bytes_ = torch.from_numpy(filled).permute(0, 3, 1, 2).to(tokenizer.device)
        codes = iter(tokenizer.encode(to_pixels(bytes_, tokenizer.config.preprocessing)).tolist())
    for each in waiting:
        yield each if isinstance(each, DataError) else next(codes)
