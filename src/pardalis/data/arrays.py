"""Arrays in ``.npy`` files that others may have written."""

from pathlib import Path

import numpy as np


def open_array(path: Path) -> np.ndarray:
    """Memory-map an array, as a plain array: slicing a np.memmap is slow.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is not an array of numbers, or shorter than its header says.
    """
    if not path.exists():
        raise FileNotFoundError(str(path))
    if not path.is_file():  # opening a pipe would wait for a writer
        raise ValueError("it is not a regular file")
    try:
        # Unlike np.load it opens no archives, and never unpickles.
        return np.asarray(np.lib.format.open_memmap(path, mode="r"))
    except MemoryError:
        raise
    except Exception as error:  # a damaged header may raise anything
        # NumPy's further lines advise to trust the file.
        raise ValueError((str(error).splitlines() or ["its header is damaged"])[0]) from error
