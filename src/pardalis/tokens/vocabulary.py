"""The vocabulary: one space of token ids in which every modality is a range.

    0 .. 7                     special ids (bos, pad, eos, ...), one of them unused
    8 .. 8 + n_codes           image ids, one for each entry of the image codebook
    8 + n_codes .. size        text ids, one for each token of the text tokenizer

Special ids and modalities have names, so that one more of either is an entry of a table. It takes
ids that are unused or stand behind all others: no id moves (:meth:`Vocabulary.extended`).

No token is recognised by its text. Image ids are contiguous, so the part of the output head that
generates images is a slice. An imported vocabulary may have its special ids in other places, and
stores the number that each id has in its own files.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from operator import index
from typing import Any

from pardalis.config import shown
from pardalis.errors import BundleError, ConfigError

N_SPECIAL = 8  # ids before the first range of our own vocabularies

# The special ids that every vocabulary has. The order of the first four follows Chameleon
# (arXiv 2405.09818): ``<s>``, ``<pad>``, ``</s>``, ``<unk>``.
SPECIAL = {
    "bos": 0,  # begins a document
    "pad": 1,  # fills a row
    "eos": 2,  # ends a document
    "unk": 3,  # the unknown token of an imported text tokenizer; read, never written
    "end_image": 4,  # closes an image
    "begin_image": 5,  # opens an image
    "end_turn": 6,  # closes a turn of a conversation
}
_MODALITIES = ("image", "text")  # those that every vocabulary has
_MASK = "mask_{}"  # sentinel number i of infilling
END_MASK = "end_mask"  # ends the content of a mask, where the form of infilling has own ends
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_MOST_IDS = 2**31 - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """Special ids and id ranges of one model, by name.

    Raises:
        ConfigError: one of the names above is missing, a name is malformed or names two things, or
            two entries share an id.
    """

    # Code c of the codebook is id image.start + c; token t of the text tokenizer is text.start + t.
    modalities: Mapping[str, range]
    special: Mapping[str, int] = field(default_factory=lambda: dict(SPECIAL))
    # The special ids beyond those above that a model may generate, wherever it may generate text.
    # The others are only read.
    writable: tuple[str, ...] = ()
    # In an imported vocabulary: the number that each id has in the files it came from, such as the
    # text tokenizer's. A range means that all are unchanged.
    foreign_ids: Sequence[int] | None = None

    def __post_init__(self) -> None:
        names = [*self.special, *self.modalities]
        if missing := [name for name in (*SPECIAL, *_MODALITIES) if name not in names]:
            raise ConfigError(f"A vocabulary needs {', '.join(missing)}, found {sorted(names)}.")
        if twice := sorted(set(self.special) & set(self.modalities)):
            raise ConfigError(f"{twice[0]!r} names a special id and a modality; rename one.")
        if wrong := [name for name in names if not _NAME.fullmatch(name)]:
            raise ConfigError(
                "A name of a vocabulary must consist of small letters, digits and '_' and begin "
                f"with a letter, got {wrong[0]!r}."
            )
        if unknown := [name for name in self.writable if name not in self.extra_special]:
            raise ConfigError(
                f"writable names {unknown[0]!r}, which is no special id that was added; those are "
                f"{sorted(self.extra_special)}."
            )
        ends = [*self.special.values()]
        ends += [end for ids in self.modalities.values() for end in (ids.start, ids.stop)]
        if outside := [end for end in ends if not 0 <= end <= _MOST_IDS]:
            raise ConfigError(
                f"The ids of a vocabulary must lie between 0 and {_MOST_IDS}, got "
                f"{shown(outside[0])}."
            )
        if empty := [name for name, ids in self.modalities.items() if ids.step != 1]:
            raise ConfigError(f"The ids of {empty[0]} in a vocabulary must be consecutive.")
        ranges = {name: range(i, i + 1) for name, i in self.special.items()} | dict(self.modalities)
        ascending = sorted(ranges.items(), key=lambda item: (item[1].start, item[1].stop))
        for (first, ids), (second, others) in pairwise(ascending):
            if others.start < ids.stop:
                raise ConfigError(f"{first} and {second} share the id {others.start}.")

    @classmethod
    def build(
        cls,
        n_codes: int,
        n_text: int,
        special: Iterable[str] = (),
        modalities: Mapping[str, int] | None = None,
    ) -> "Vocabulary":
        """Lay out a vocabulary for ``n_codes`` codes and ``n_text`` text tokens.

        The other arguments are those of :meth:`extended`.
        """
        image = range(N_SPECIAL, N_SPECIAL + n_codes)
        text = range(image.stop, image.stop + n_text)
        return cls(modalities={"image": image, "text": text}).extended(special, modalities)

    def extended(
        self,
        special: Iterable[str] = (),
        modalities: Mapping[str, int] | None = None,
        writable: Iterable[str] = (),
    ) -> "Vocabulary":
        """Return the vocabulary with more names; every id keeps its meaning.

        A modality gets the ids behind all others, and a special id the first unused one, or that
        behind all others. A model needs a new vector for each id from the old :attr:`size` on.
        Unused ids of an imported vocabulary may have names in its own files; give such an id to
        ``special`` by :func:`dataclasses.replace`.

        Args:
            special: names of new special ids.
            modalities: number of ids of new modalities, by name.
            writable: those of the new special ids that a model may generate.

        Raises:
            ConfigError: a name is taken, or as the class says.
        """
        special = tuple(special)
        names = [*self.special, *self.modalities, *special, *(modalities or ())]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"The vocabulary has two entries {twice[0]!r}; choose another name.")
        ranges, size = dict(self.modalities), self.size
        for name, n_ids in (modalities or {}).items():
            ranges[name] = range(size, size + n_ids)
            size += n_ids
        unused = iter(self.unused)
        singles = dict(self.special)
        for name in special:
            if (free := next(unused, None)) is None:
                free, size = size, size + 1
            singles[name] = free
        foreign = self.foreign_ids
        if isinstance(foreign, range):
            foreign = range(size)
        elif foreign is not None:
            foreign = (*foreign, *range(self.size, size))
        return replace(
            self,
            modalities=ranges,
            special=singles,
            writable=(*self.writable, *writable),
            foreign_ids=foreign,
        )

    # ── the names that every vocabulary has ────────────────────────────────────────────────────

    @property
    def image(self) -> range:
        return self.modalities["image"]

    @property
    def text(self) -> range:
        return self.modalities["text"]

    @property
    def bos_id(self) -> int:
        return self.special["bos"]

    @property
    def pad_id(self) -> int:
        return self.special["pad"]

    @property
    def eos_id(self) -> int:
        return self.special["eos"]

    @property
    def unk_id(self) -> int:
        return self.special["unk"]

    @property
    def end_image_id(self) -> int:
        return self.special["end_image"]

    @property
    def begin_image_id(self) -> int:
        return self.special["begin_image"]

    @property
    def end_turn_id(self) -> int:
        return self.special["end_turn"]

    # ── what follows from the tables ───────────────────────────────────────────────────────────

    @property
    def size(self) -> int:
        """Number of ids, special and unused ones included."""
        return self._stop if self.foreign_ids is None else len(self.foreign_ids)

    @property
    def _stop(self) -> int:
        stops = (ids.stop for ids in self.modalities.values())
        return max(*stops, max(self.special.values()) + 1)

    @property
    def extra_special(self) -> dict[str, int]:
        """The special ids that not every vocabulary has, by name."""
        return {name: i for name, i in self.special.items() if name not in SPECIAL}

    @property
    def masks(self) -> list[int]:
        """The sentinels of infilling, ``mask_0``, ``mask_1``, ...; none in most vocabularies."""
        ids: list[int] = []
        while (mask := self.special.get(_MASK.format(len(ids)))) is not None:
            ids.append(mask)
        return ids

    @property
    def end_mask_id(self) -> int | None:
        """The id that ends the content of a mask; None: the next mask, or eos, ends it."""
        return self.special.get(END_MASK)

    @property
    def unused(self) -> list[int]:
        """The ids without a name, ascending."""
        named = {*self.special.values()}.union(*self.modalities.values())
        return [i for i in range(self.size) if i not in named]

    @property
    def readable_unk_id(self) -> int | None:
        """The id of the unknown token; None in our own vocabularies, which cover every byte."""
        return None if self.foreign_ids is None else self.unk_id

    @property
    def n_codes(self) -> int:
        return len(self.image)

    def text_id(self, text_token: int) -> int:
        """Return the id of a token of the text tokenizer; the unknown token has the last number."""
        return self.text[text_token] if text_token < len(self.text) else self.unk_id

    def text_token(self, text_id: int) -> int:
        """Return the text tokenizer's token of an id: the inverse of :meth:`text_id`."""
        return text_id - self.text.start if text_id in self.text else len(self.text)

    def name_of(self, token_id: int) -> str:
        """Return the name of an id for messages: ``<bos>``, ``<image 17>`` or ``<text 803>``."""
        for name, special_id in self.special.items():
            if token_id == special_id:
                return f"<{name}>"
        for name, ids in self.modalities.items():
            if token_id in ids:
                return f"<{name} {token_id - ids.start}>"
        return f"<unused {token_id}>" if 0 <= token_id < self.size else f"<outside {token_id}>"

    # ── files ──────────────────────────────────────────────────────────────────────────────────

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a JSON file."""
        return {
            "special": dict(self.special),
            "modalities": {name: [i.start, i.stop] for name, i in self.modalities.items()},
            **({"writable": list(self.writable)} if self.writable else {}),
            **({} if self.foreign_ids is None else {"foreign_ids": _plain(self.foreign_ids)}),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Vocabulary":
        """Rebuild a vocabulary; raises BundleError for wrong keys, names, ids or foreign ids."""
        values = by_name(values)
        if unknown := set(values) - {"special", "modalities", "writable", "foreign_ids"}:
            raise BundleError(f"A vocabulary has no key {min(unknown)!r}; copy the whole bundle.")
        try:
            vocabulary = cls(
                modalities={name: range(*ids) for name, ids in values["modalities"].items()},
                special={name: index(i) for name, i in values["special"].items()},
                writable=tuple(values.get("writable", ())),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BundleError(
                "A vocabulary needs an id for each name in special, and a start and a stop for "
                f"each in modalities ({error!r}); copy the whole bundle again."
            ) from error
        except ConfigError as error:
            raise BundleError(str(error)) from error
        foreign_ids = _foreign_ids(values.get("foreign_ids"), vocabulary.size)
        return replace(vocabulary, foreign_ids=foreign_ids)

    def to_hash(self) -> str:
        """Return a text that is the same for equal vocabularies, for fingerprints.

        It has the form of the files of earlier versions, so that fingerprints of their shards
        remain valid.
        """
        values = self.to_dict()
        flat = {f"{name}_id": i for name, i in values.pop("special").items()}
        return repr(sorted((flat | values.pop("modalities") | values).items()))


def mask_names(n: int) -> tuple[str, ...]:
    """Return the names of the first n sentinels of infilling."""
    return tuple(map(_MASK.format, range(n)))


def by_name(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plain values of a vocabulary in today's form.

    Before version 6 of bundles each special id was a key such as ``bos_id``, and so were ``image``
    and ``text``.
    """
    if "bos_id" not in values:
        return dict(values)
    special = {f"{name}_id": name for name in SPECIAL}
    return {
        "special": {name: values[key] for key, name in special.items() if key in values},
        "modalities": {name: values[name] for name in _MODALITIES if name in values},
        **{k: v for k, v in values.items() if k not in special and k not in _MODALITIES},
    }


def _plain(foreign_ids: Sequence[int]) -> int | list[int]:
    """Return foreign ids for a JSON file: how many there are, when all are unchanged."""
    return len(foreign_ids) if isinstance(foreign_ids, range) else list(foreign_ids)


def _foreign_ids(plain: Any, least: int) -> Sequence[int] | None:
    """Undo :func:`_plain`; raises BundleError unless they are a permutation of enough ids."""
    if plain is None:
        return None
    if type(plain) is int and least <= plain <= _MOST_IDS:
        return range(plain)
    ids = tuple(plain) if isinstance(plain, list) else ()
    if (
        len(ids) < least
        or not all(type(i) is int for i in ids)
        or sorted(ids) != [*range(len(ids))]
    ):
        raise BundleError(
            f"A vocabulary's foreign_ids must be a permutation of its ids, {least} or more; copy "
            "the whole bundle again."
        )
    return ids
