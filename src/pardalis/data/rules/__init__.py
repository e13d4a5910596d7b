"""Rules that remove documents or images of a source, as the source lists them in a recipe.

    rules = [{kind = "image_size", min_side = 64}, {kind = "duplicate_images"}]

There are two kinds. A :class:`DocumentRule` looks at each document by itself, wherever the document
is read. A :class:`SourceRule` compares documents, so it is asked when the source is surveyed, once
for each document in the order of the source, and its answers are kept for every later reading.
Either is a config with a field ``kind``. ``RULES.add`` makes one known to recipes::

    @RULES.add
    @dataclass(frozen=True, kw_only=True)
    class WithoutImages:
        kind: Literal["without_images"] = "without_images"

        def removal(self, document: Document) -> Removal | None:
            return None if document.images else Removal("The document has no image.")
"""

from pardalis.config import Kinds
from pardalis.data.rules.c4 import C4
from pardalis.data.rules.classifier import Classifier, allow_classifier, allowed_classifiers
from pardalis.data.rules.duplicate_images import DuplicateImages
from pardalis.data.rules.duplicate_texts import DuplicateTexts
from pardalis.data.rules.gopher_quality import GopherQuality
from pardalis.data.rules.gopher_repetition import GopherRepetition
from pardalis.data.rules.image_size import ImageSize
from pardalis.data.rules.language import Language
from pardalis.data.rules.rule import DocumentRule, Judge, Others, Removal, SourceRule
from pardalis.data.rules.text_length import TextLength

Rule = DocumentRule | SourceRule
RULES = Kinds(
    ImageSize, TextLength, Language, GopherQuality, GopherRepetition, C4, DuplicateTexts,
    DuplicateImages, Classifier,
)  # fmt: skip
