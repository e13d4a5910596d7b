"""The document transform ``retrieval``: retrieved documents stand before each document."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from pardalis.config import check_at_least, not_deciding
from pardalis.data.transforms import TRANSFORMS
from pardalis.errors import ConfigError
from pardalis.retrieval.index import Index
from pardalis.retrieval.neighbours import Neighbours
from pardalis.retrieval.retriever import laid_out
from pardalis.retrieval.rules import draw
from pardalis.tokens import Encoded, Grammar

OWN_INDEX = Path("{run}", "retrieval", "index")  # which the run builds
NEIGHBOURS = Path("retrieval", "neighbours")  # inside the run: a folder for each source


@TRANSFORMS.add
@dataclass(frozen=True, kw_only=True, slots=True)
class Retrieval:
    """Puts retrieved documents before a document, others in each epoch.

    The candidates of a document are found once, by the stage ``retrieval``. As in CM3Leon (arXiv
    2309.02591) three are drawn, and they are learnt like the document itself.
    """

    kind: Literal["retrieval"] = "retrieval"
    documents: int = 3  # drawn from the candidates of each document and epoch
    varies: bool = False  # draw how many too, from 0 to ``documents``
    document_tokens: int = 128  # longer documents are not retrieved; room for so many is kept
    learn_retrieved: bool = True  # False: retrieved documents have the weight 0
    # An index that was built before; by default the run builds one, as [retrieval] says.
    index: Path = not_deciding(OWN_INDEX)

    def __post_init__(self) -> None:
        check_at_least(self, documents=1, document_tokens=3)

    def open(
        self, run: Path, source: str, grammar: Grammar
    ) -> Callable[[Encoded, str, int], Encoded]:
        """Return a function of a document, its name and a seed; raises DataError."""
        folder = index_folder(self.index, run)
        index = Index.open(folder, vocab_size=grammar.vocabulary.size)
        neighbours = Neighbours.open(run / NEIGHBOURS / source, index)

        def load(document: Encoded, name: str, seed: int) -> Encoded:
            drawn = draw(neighbours.of(name), self.documents, seed, varies=self.varies)
            found = [index.document(number) for number in drawn]
            if not self.learn_retrieved:
                found = [Encoded(each.ids, np.zeros_like(each.weights)) for each in found]
            return laid_out(found, document, grammar, index.separator)

        return load

    def room(self, length: int) -> int:
        return length + self.documents * self.document_tokens


def index_folder(index: Path, run: Path) -> Path:
    """Return the folder of an index, which may be inside a run."""
    first, *rest = index.parts
    return run.joinpath(*rest) if first == OWN_INDEX.parts[0] else index


def retrieval_of(transforms: tuple[object, ...]) -> Retrieval | None:
    """Return the transform ``retrieval`` of a source; raises ConfigError if there are two."""
    found = [each for each in transforms if isinstance(each, Retrieval)]
    if len(found) > 1:
        raise ConfigError("transforms lists 'retrieval' twice; leave one of them out.")
    return found[0] if found else None
