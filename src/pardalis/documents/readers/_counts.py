"""What the rules leave out of a page, counted by rule, so that nothing is dropped in silence."""

from dataclasses import dataclass, field

from pardalis.documents.document import Omission, Rejection

_SAYS = {
    "navigation": "Navigation, and the header and footer of the page, are left out",
    "hidden": "What the page or its style sheets hide is left out",
    "unread-style": "Style sheets that are elsewhere, damaged or too large are not read",
    "decoration": "What is marked as no content (aria-hidden) is left out",
    "control": "Controls of forms are left out",
    "permalink": "Links of a heading to itself, and of a note to its place, are left out",
    "line-numbers": "Line numbers beside code are left out",
    "embedded": "Embedded frames, sound, film and programs are not read",
    "small-image": "Images that are declared or are too small, or show nothing, are left out",
    "background": "Images that a style lays behind an element are not read",
    "left-out": "What the selector leave_out matches is left out",
    "outside-content": "What no element of the selector content holds is left out",
    "repeated": "What stands on most pages of the source is left out",
    "bad-bytes": "Bytes that are not of the page's encoding are replaced by U+FFFD",
}


@dataclass(slots=True)
class Counts:
    """What the rules left out of one page."""

    page: str
    rejections: list[Rejection] = field(default_factory=list)
    _counts: dict[str, int] = field(default_factory=dict)
    _firsts: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, example: str, count: int = 1) -> None:
        self._counts[kind] = self._counts.get(kind, 0) + count
        self._firsts.setdefault(kind, " ".join(example.split())[:80])

    def reject(self, source: str, kind: str, reason: str) -> None:
        self.rejections.append(Rejection(f"{self.page}: {source}", kind, reason))

    def omissions(self) -> list[Omission]:
        """Return one item for each rule."""
        return [
            Omission(
                self.page,
                kind,
                f"{_SAYS[kind]}: {count} on the page"
                + (f", the first {first!r}." if (first := self._firsts[kind]) else "."),
                count,
            )
            for kind, count in self._counts.items()
        ]
