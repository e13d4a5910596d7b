"""Arrays in ``.npy`` files that others may have written."""

from pathlib import Path

import numpy as np

_SHOWN = 200  # characters of what was found


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
        # NumPy quotes the whole header, or adds the advice to trust the file.
        found = (str(error).splitlines() or ["its header is damaged"])[0]
        raise ValueError(found[:_SHOWN]) from error
