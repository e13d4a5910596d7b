"""Streaming encoding of images: threads open them ahead of the network."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import UInt8

from pardalis.documents.document import ImageSource
from pardalis.errors import DataError
from pardalis.vq.preprocessing import ImageFit, open_square, to_pixels
from pardalis.vq.tokenizer import ImageTokenizer

_MAX_THREADS = 16

_Opened = UInt8[np.ndarray, "Y X 3"] | DataError


def encode_stream(
    tokenizer: ImageTokenizer,
    images: Iterable[ImageSource],
    image_fit: ImageFit = "crop",
    batch: int | None = None,
) -> Iterator[list[int] | DataError]:
    """Yield the codes of each image in order, or the error if it cannot be opened.

    Memory does not grow with the number of images. The last batch is padded to the size of the
    others, so the codes of an image do not depend on those that follow it.

    Args:
        batch: images encoded together; None: ``tokenizer.images_per_pass``.
    """
    batch = batch or tokenizer.images_per_pass
    waiting: list[_Opened] = []
    n_squares = 0
    for opened in _opened_ahead(tokenizer, images, image_fit, 2 * batch):
        waiting.append(opened)
        n_squares += not isinstance(opened, DataError)
        if n_squares == batch:
            yield from _encode(tokenizer, waiting, batch)
            waiting, n_squares = [], 0
    yield from _encode(tokenizer, waiting, batch)


def _opened_ahead(
    tokenizer: ImageTokenizer, images: Iterable[ImageSource], image_fit: ImageFit, ahead: int
) -> Iterator[_Opened]:
    side, preprocessing = tokenizer.config.resolution, tokenizer.config.preprocessing

    def open_or_error(image: ImageSource) -> _Opened:
        try:
            return open_square(image, side, preprocessing, image_fit)
        except DataError as error:
            return error

    threads = min(_MAX_THREADS, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(threads, "images")
    pending: deque[Future[_Opened]] = deque()
    try:
        for image in images:
            pending.append(pool.submit(open_or_error, image))
            if len(pending) > ahead + threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _encode(
    tokenizer: ImageTokenizer, waiting: list[_Opened], batch: int
) -> Iterator[list[int] | DataError]:
    squares = [each for each in waiting if not isinstance(each, DataError)]
    codes: Iterator[list[int]] = iter(())
    if squares:
        padded = np.stack([*squares, *squares[-1:] * (batch - len(squares))])
        bytes_ = torch.from_numpy(padded).permute(0, 3, 1, 2).to(tokenizer.device)
        codes = iter(tokenizer.encode(to_pixels(bytes_, tokenizer.config.preprocessing)).tolist())
    for each in waiting:
        yield each if isinstance(each, DataError) else next(codes)
