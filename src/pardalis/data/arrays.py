"""Arrays in ``.npy`` files: those that grow, and those that others may have written."""

import io
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


class ArrayFile:
    """A one-dimensional array that grows on disk; closed, the file is that of ``np.save``.

    No file stays open between two calls. :meth:`close` writes the header, for which NumPy leaves
    the same room whatever the length.
    """

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self.path, self._dtype, self._length = path, dtype, 0

    def append(self, values: np.ndarray) -> None:
        """Append values of the array's type; raises OSError if the disk is full."""
        if not self._length:
            self.path.write_bytes(self._header())
        with self.path.open("ab") as file:
            file.write(np.ascontiguousarray(values, self._dtype).data)
        self._length += len(values)

    def close(self) -> None:
        """Write the header with the final length."""
        if not self._length:
            self.path.write_bytes(b"")
        with self.path.open("r+b") as file:
            file.write(self._header())

    def _header(self) -> bytes:
        header = io.BytesIO()
        descr = np.lib.format.dtype_to_descr(self._dtype)
        shape = {"descr": descr, "fortran_order": False, "shape": (self._length,)}
        np.lib.format.write_array_header_1_0(header, shape)
        return header.getvalue()
