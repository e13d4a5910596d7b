"""The names of documents that were seen, of which duplicates name the first."""

from array import array


class Names:
    """Numbers documents, and keeps their names as one text: a list takes twice as much."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._ends: array[int] = array("Q")

    def add(self, name: str) -> int:
        """Return the number of a new name."""
        self._bytes += name.encode(errors="surrogatepass")
        self._ends.append(len(self._bytes))
        return len(self._ends) - 1

    def __getitem__(self, number: int) -> str:
        start = self._ends[number - 1] if number else 0
        return self._bytes[start : self._ends[number]].decode(errors="surrogatepass")
