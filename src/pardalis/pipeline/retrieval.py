"""The table ``[retrieval]`` of a recipe, and what stages and checks ask of it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pardalis.data import SourceConfig
from pardalis.errors import ConfigError
from pardalis.retrieval import (
    EMBEDDERS,
    EmbedderConfig,
    Retrieval,
    RuleConfig,
    SeparateNetsConfig,
)
from pardalis.retrieval.transform import OWN_INDEX, index_folder, retrieval_of


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrievalConfig:
    """The index that a run builds, and what may be retrieved from it or from another one."""

    sources: tuple[str, ...] = ()  # training sources of the index's documents; (): all
    # The nets that vectors come from: two nets apart, or a CLIP. Default: two nets, or those that
    # made the index which transforms name.
    embedder: Annotated[EmbedderConfig, EMBEDDERS] | None = None
    # Name of a special id that stands behind each retrieved document; "": none. A new vocabulary
    # gets it.
    separator: str = ""
    rules: RuleConfig = field(default_factory=RuleConfig)

    def known_embedder(self, sources: tuple[SourceConfig, ...]) -> EmbedderConfig | None:
        """Return the nets; None: those that made another index, which are not named."""
        if self.embedder is None and builds_index(sources):
            return SeparateNetsConfig()
        return self.embedder

    def indexed(self, sources: tuple[SourceConfig, ...]) -> list[SourceConfig]:
        """Return the training sources that the index holds.

        Raises:
            ConfigError: a name is of none, or a source has pairs.
        """
        known = {source.name: source for source in sources}
        if unknown := sorted(set(self.sources) - set(known)):
            raise ConfigError(
                f"retrieval.sources names {unknown[0]!r}, which is no training source; they are "
                f"{', '.join(known)}."
            )
        chosen = [known[name] for name in self.sources or known]
        if pairs := [source.name for source in chosen if source.has_pairs]:
            raise ConfigError(
                f"retrieval.sources has {pairs[0]!r}, whose pairs of completions are no documents "
                "to retrieve; name the others."
            )
        return chosen


def transforms_of(sources: tuple[SourceConfig, ...]) -> dict[str, Retrieval]:
    """Return the transform ``retrieval`` of each source that has one.

    Raises:
        ConfigError: a source has it twice, or sources have other indices.
    """
    found = {s.name: each for s in sources if (each := retrieval_of(s.transforms)) is not None}
    if len({each.index for each in found.values()}) > 1:
        raise ConfigError(
            "The sources retrieve from several indices; name one `index` in all transforms."
        )
    return found


def builds_index(sources: tuple[SourceConfig, ...]) -> bool:
    """Whether a run builds the index that its sources retrieve from; also if none does."""
    return all(each.index == OWN_INDEX for each in transforms_of(sources).values())


def used_index(sources: tuple[SourceConfig, ...], run: Path) -> Path:
    """Return the folder of the index that sources retrieve from, or that the run builds."""
    named = [each.index for each in transforms_of(sources).values()]
    return index_folder(next(iter(named), OWN_INDEX), run)
