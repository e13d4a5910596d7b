"""One vocabulary of two: text of the text parent, images of the image parent.

The layout is that of the text parent. Its image tokens give way to those of the image parent, and
names that it lacks get ids behind all others.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pardalis.errors import BundleError
from pardalis.fusion.parents import Parent, made_of, same_images, same_text, specs_for
from pardalis.interop.tensors import LazyTensor
from pardalis.tokens import Vocabulary

_ABSENT = -1
_OF_IMAGES = ("begin_image", "end_image")


@dataclass(frozen=True)
class Union:
    """A vocabulary of two parents, and where each of its ids was in theirs.

    Attributes:
        places: for both parents, the id there of each id, or -1.
        from_image: whether the row of each id is the image parent's.
    """

    vocabulary: Vocabulary
    places: tuple[list[int], list[int]]
    from_image: list[bool]


def union_of(text: Parent, image: Parent) -> Union:
    """Unite the vocabularies of two parents.

    Raises:
        BundleError: the text parent's ids are those of an imported vocabulary, which leaves no
            place for as many image tokens; or both have a modality of one name and two sizes.
    """
    theirs = image.model.vocabulary
    united, moved = _with_codes(text, theirs.n_codes)
    special = [name for name in theirs.special if name not in united.special]
    modalities = {n: len(i) for n, i in theirs.modalities.items() if n not in united.modalities}
    for name, ids in theirs.modalities.items():
        if name not in ("text", "image") and len(ids) != len(united.modalities.get(name, ids)):
            raise BundleError(
                f"Both {text.folder} and {image.folder} have the modality {name!r}, with "
                f"{len(united.modalities[name])} and {len(ids)} tokens, so their vocabularies "
                "cannot be united. Nothing was written."
            )
    writable = [name for name in special if name in theirs.writable]
    united = united.extended(special, modalities, writable)

    text_places, image_places = ([_ABSENT] * united.size for _ in range(2))
    for old, new in moved.items():
        text_places[new] = old
    for name in special:  # which may have got an id that was unused
        text_places[united.special[name]] = _ABSENT
    if not same_images(text.model, image.model):
        for new in united.image:
            text_places[new] = _ABSENT
    for name, old in theirs.special.items():
        image_places[united.special[name]] = old
    for name, ids in theirs.modalities.items():
        if name != "text" or same_text(text.model, image.model):
            for old, new in zip(ids, united.modalities[name], strict=True):
                image_places[new] = old
    own = {*united.image, *(united.special[name] for name in _OF_IMAGES)}
    from_image = [new in own or text_places[new] == _ABSENT for new in range(united.size)]
    return Union(united, (text_places, image_places), from_image)


def united(text: Parent, image: Parent, others: Sequence[Parent] = ()) -> list[Parent]:
    """Return parents with one vocabulary, and with one row for each token.

    Args:
        others: further models, such as a common ancestor; they get the same rows.
    """
    union = union_of(text, image)
    tables = {
        name: _picked(text.tensors[name], image.tensors[name], union, union.from_image)
        for name in _tables(text)
    }
    return [_renewed(parent, union, tables) for parent in (text, image, *others)]


def united_apart(text: Parent, image: Parent) -> list[Parent]:
    """Return parents with one vocabulary; each has the other's rows of tokens that it lacks.

    Of tokens that mean the same to both, each keeps its row.
    """
    union = union_of(text, image)
    parents = []
    for parent, places, is_image in zip((text, image), union.places, (False, True), strict=True):
        lacks = [place == _ABSENT for place in places]
        from_image = [not lack if is_image else lack for lack in lacks]
        tables = {
            name: _picked(text.tensors[name], image.tensors[name], union, from_image)
            for name in _tables(parent)
        }
        parents.append(_renewed(parent, union, tables))
    return parents


def by_modality(text: Parent, image: Parent) -> dict[str, LazyTensor]:
    """Return the tables of tokens of two parents that have one vocabulary: a row from each.

    Rows of image tokens, and of those that begin and end an image, are the image parent's.
    """
    vocabulary = text.model.vocabulary
    ids = [*range(vocabulary.size)]
    own = {*vocabulary.image, *(vocabulary.special[name] for name in _OF_IMAGES)}
    union = Union(vocabulary, (ids, ids), [i in own for i in ids])
    return {
        name: _picked(text.tensors[name], image.tensors[name], union, union.from_image)
        for name in _tables(text)
    }


def _with_codes(text: Parent, n_codes: int) -> tuple[Vocabulary, dict[int, int]]:
    """Return a parent's vocabulary with another number of codes, and where its ids went."""
    ours = text.model.vocabulary
    more, image = n_codes - ours.n_codes, ours.image
    is_imported = ours.foreign_ids is not None
    if more and is_imported and not _is_behind_text(ours):
        raise BundleError(
            f"{text.folder} has the ids of an imported vocabulary, with {ours.n_codes} image "
            f"tokens, and the image parent has {n_codes}; import it again with the image tokenizer "
            "of the image parent. Nothing was written."
        )

    def move(i: int) -> int:
        return i if i < image.stop else i + more

    kept = [i for i in range(ours.size) if i not in image or i - image.start < n_codes]
    modalities = {n: range(move(i.start), move(i.stop)) for n, i in ours.modalities.items()}
    modalities["image"] = range(image.start, image.start + n_codes)
    vocabulary = dataclasses.replace(
        ours,
        modalities=modalities,
        special={name: move(i) for name, i in ours.special.items()},
        foreign_ids=range(ours.size + more) if more and is_imported else ours.foreign_ids,
    )
    return vocabulary, {i: move(i) for i in kept}


def _is_behind_text(vocabulary: Vocabulary) -> bool:
    """Whether image ids can grow without moving an id that an imported tokenizer numbers."""
    return (
        isinstance(vocabulary.foreign_ids, range) and vocabulary.image.start >= vocabulary.text.stop
    )


def _tables(parent: Parent) -> list[str]:
    """Return the names of the tensors with a vector for each token."""
    specs = specs_for(parent.config)
    return [name for name in parent.tensors if specs[name].split == "vocabulary"]


def _picked(
    text: LazyTensor, image: LazyTensor, union: Union, from_image: Sequence[bool]
) -> LazyTensor:
    """Return a table with the row of one parent or the other for each id of a union."""
    is_image = torch.tensor(from_image)
    text_rows, image_rows = (torch.tensor(places) for places in union.places)

    def pick(t: Tensor, i: Tensor) -> Tensor:
        table = t.new_empty(len(is_image), t.shape[1])
        table[~is_image] = t[text_rows[~is_image]]
        table[is_image] = i[image_rows[is_image].clamp(min=0)]  # nothing reads unused ids
        return table

    return made_of([text, image], (len(is_image), text.shape[1]), pick)


def _renewed(parent: Parent, union: Union, tables: dict[str, LazyTensor]) -> Parent:
    config = dataclasses.replace(parent.config, vocab_size=union.vocabulary.size)
    renewed = parent.with_tensors(config, {**parent.tensors, **tables})
    model = dataclasses.replace(renewed.model, vocabulary=union.vocabulary)
    return dataclasses.replace(renewed, model=model)
