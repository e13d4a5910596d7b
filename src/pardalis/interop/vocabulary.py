"""Conversion between vocabularies by token name and the id ranges of :mod:`pardalis.tokens`.

Chameleon names its tokens: ``<s>`` begins a document, ``IMGIMGBHZ`` is image code 17. Names are
read here at import and written here at export; nothing else in the library knows them.

An imported vocabulary keeps its ids if its image ids are contiguous in the order of their codes and
its text ids are contiguous. Otherwise the ids are permuted: first those that are neither image nor
text, then the image ids by code, then the text ids. ``Vocabulary.foreign_ids`` records the original
id of each.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from pardalis.config import shown
from pardalis.errors import BundleError
from pardalis.files import parse_json
from pardalis.tokens import TextTokenizer, Vocabulary

# Chameleon's names of the special ids that every vocabulary has.
SINGLE_NAMES = {
    "bos": "<s>",
    "pad": "<pad>",
    "eos": "</s>",
    "unk": "<unk>",
    "end_image": "<eoss>",
    "begin_image": "<racm3:break>",
    "end_turn": "<reserved08706>",
}
# Placeholder for the codes of an image in a prompt. Meta has no such token; Hugging Face renamed a
# reserved one.
PLACEHOLDER = "<image>"
PLACEHOLDER_AT_META = "<reserved08707>"

_RESERVED = re.compile(r"<reserved\d+>")
_IMAGE = re.compile(r"IMGIMG([A-J]{1,4000})Z")
_LETTERS = "ABCDEFGHIJ"  # for the digits 0 to 9


def image_name(code: int) -> str:
    """Return Chameleon's name of an image code: its decimal digits as letters, ``IMGIMGBHZ``."""
    return "IMGIMG" + "".join(_LETTERS[int(digit)] for digit in str(code)) + "Z"


def image_code(name: str) -> int | None:
    """Return the image code that a token names; None if it names none."""
    found = _IMAGE.fullmatch(name)
    return int("".join(str(_LETTERS.index(c)) for c in found[1])) if found else None


def read_vocabulary(tokenizer_json: str, size: int, where: str) -> Vocabulary:
    """Return the vocabulary that a tokenizer file with Chameleon's names describes.

    ``size`` is that of the model's vocabulary; ids without a name are unused. Raises BundleError if
    names are missing or have ids that the model does not have; ``where`` names the file.
    """
    names = token_ids(tokenizer_json, where)
    codes = {code: i for name, i in names.items() if (code := image_code(name)) is not None}
    special = {*SINGLE_NAMES.values(), PLACEHOLDER} | special_tokens(tokenizer_json)
    special |= {name for name in names if _RESERVED.fullmatch(name)}
    text = sorted(
        i for name, i in names.items() if name not in special and image_code(name) is None
    )
    wrong = [f"no {name}" for name in SINGLE_NAMES.values() if name not in names]
    if not text:
        wrong.append("no text token")
    if not codes:
        wrong.append("no image token (IMGIMG...Z)")
    elif sorted(codes) != list(range(len(codes))):
        gap = min(set(range(len(codes))) - set(codes))
        wrong.append(f"no {image_name(gap)} among its {len(codes)} image tokens")
    if outside := [name for name, i in names.items() if i not in range(size)]:
        wrong.append(f"{outside[0]} with id {names[outside[0]]}, but the model has {size} ids")
    if wrong:
        raise BundleError(
            f"{where} is not a Chameleon vocabulary: {'; '.join(wrong)}. Use the tokenizer that "
            "belongs to the model."
        )
    return arrange(
        size,
        {single: names[name] for single, name in SINGLE_NAMES.items()},
        [codes[code] for code in range(len(codes))],
        text,
    )


def check_codes(vocabulary: Vocabulary, n_codes: int, where: Path) -> None:
    """Raise BundleError if a vocabulary has not as many image tokens as the codebook has codes."""
    if vocabulary.n_codes != n_codes:
        raise BundleError(
            f"{where} names {vocabulary.n_codes} image codes, but the image tokenizer has "
            f"{n_codes}. Do not mix files of different models."
        )


def token_ids(tokenizer_json: str, where: str) -> dict[str, int]:
    """Return the id of every token of a tokenizer file, including added tokens."""
    try:
        content = parse_json(tokenizer_json)
        names: dict[str, int] = {**content["model"]["vocab"]}
        names |= {token["content"]: token["id"] for token in content["added_tokens"]}
        if wrong := [
            name for name, i in names.items() if type(i) is not int or not -(2**31) <= i < 2**31
        ]:
            raise ValueError(
                f"the id of {shown(wrong[0])} is {shown(names[wrong[0]])}, which is no id"
            )
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(
            f"{where} is not a tokenizer that can be read ({error!r}): needed is the BPE file of "
            "the tokenizers library."
        ) from error
    first: dict[int, str] = {}
    for name, i in names.items():
        if first.setdefault(i, name) != name:
            raise BundleError(
                f"{where} gives the id {i} to two tokens, {shown(first[i])} and {shown(name)}; "
                "copy it again."
            )
    return names


def special_tokens(tokenizer_json: str) -> set[str]:
    """Return the names of the tokens that a tokenizer file marks as special."""
    added = parse_json(tokenizer_json)["added_tokens"]
    return {token["content"] for token in added if token.get("special")}


def arrange(
    size: int, singles: Mapping[str, int], image_ids: Sequence[int], text_ids: Sequence[int]
) -> Vocabulary:
    """Return a vocabulary of ranges for foreign ids, permuted if necessary (see the module).

    ``singles`` has the special ids by name; ``text_ids`` are ascending.
    """
    if _is_run(image_ids) and _is_run(text_ids):
        foreign: Sequence[int] = range(size)
    else:
        placed = {*image_ids, *text_ids}
        foreign = (*(i for i in range(size) if i not in placed), *image_ids, *text_ids)
    ours = {theirs: i for i, theirs in enumerate(foreign)}
    return Vocabulary(
        modalities={
            "image": range(ours[image_ids[0]], ours[image_ids[0]] + len(image_ids)),
            "text": range(ours[text_ids[0]], ours[text_ids[0]] + len(text_ids)),
        },
        special={name: ours[theirs] for name, theirs in singles.items()},
        foreign_ids=foreign,
    )


def _is_run(ids: Sequence[int]) -> bool:
    return list(ids) == list(range(ids[0], ids[0] + len(ids)))


# ── export ───────────────────────────────────────────────────────────────────────────────────────


def to_foreign(vocabulary: Vocabulary) -> Sequence[int]:
    """Return the foreign id of each id; the same id if the vocabulary was not imported."""
    return range(vocabulary.size) if vocabulary.foreign_ids is None else vocabulary.foreign_ids


def from_foreign(vocabulary: Vocabulary) -> Sequence[int]:
    """Return the id of each foreign id: the inverse of :func:`to_foreign`."""
    foreign = to_foreign(vocabulary)
    if isinstance(foreign, range):
        return foreign
    return sorted(range(len(foreign)), key=foreign.__getitem__)


def chameleon_tokenizer(
    vocabulary: Vocabulary, text_tokenizer: TextTokenizer, *, placeholder: str, adds_bos: bool
) -> str:
    """Return a ``tokenizer.json`` with Chameleon's names for all ids of a vocabulary.

    The file of an imported model is returned unchanged except for the two arguments. In that of a
    model trained here, text tokens get their ids, and special and image tokens their names.

    Args:
        placeholder: name of the placeholder for image codes in the target layout.
        adds_bos: whether the tokenizer prepends ``<s>``, as Hugging Face's do.

    Raises:
        BundleError: a text token has the name of a special token, or no id is free for the
            placeholder.
    """
    content: dict[str, Any] = parse_json(text_tokenizer.to_json())
    if vocabulary.foreign_ids is None:
        _name_all(content, vocabulary)
    _name_placeholder(content, placeholder, vocabulary)
    content["post_processor"] = _adding_bos(vocabulary) if adds_bos else None
    return json.dumps(content, ensure_ascii=False, indent=2)


def named_tokenizer(vocabulary: Vocabulary, text_tokenizer: TextTokenizer) -> str:
    """Return a ``tokenizer.json`` with a name for every id of a vocabulary.

    The tokens of an imported tokenizer keep their names. New image tokens have those of Chameleon.
    New special tokens do not, since texts may contain names such as ``</s>``, which other libraries
    take for the token; theirs are ``<|eos|>`` and so on, or those of Chameleon if that is taken.
    Ids without a role become reserved tokens.

    Raises:
        BundleError: a text token of a tokenizer trained here has the name of a special token; or
            the tokenizers library does not give a new token its id.
    """
    content: dict[str, Any] = parse_json(text_tokenizer.to_json())
    if vocabulary.foreign_ids is None:
        _name_all(content, vocabulary)
        content["post_processor"] = _adding_bos(vocabulary)
        return json.dumps(content, ensure_ascii=False, indent=2)
    names = token_ids(json.dumps(content), "The text tokenizer")
    foreign = to_foreign(vocabulary)
    new = {foreign[i]: image_name(code) for code, i in enumerate(vocabulary.image)}
    for role, i in vocabulary.special.items():
        name = f"<|{role}|>"
        new[foreign[i]] = SINGLE_NAMES.get(role, f"<{role}>") if name in names else name
    named = set(names.values())
    added = {i: new.get(i, f"<reserved{i}>") for i in range(vocabulary.size) if i not in named}
    content["added_tokens"] += [_added(name, i) for i, name in added.items()]
    written = json.dumps(content, ensure_ascii=False, indent=2)
    found = Tokenizer.from_str(written)
    if wrong := [name for i, name in added.items() if found.token_to_id(name) != i]:
        raise BundleError(
            f"The text tokenizer has unused ids among its own, so {wrong[0]!r} would get the id "
            f"{found.token_to_id(wrong[0])}; Hugging Face's layout cannot hold this vocabulary."
        )
    return written


def _adding_bos(vocabulary: Vocabulary) -> dict[str, Any]:
    """Return the post-processor that begins a text with the token that begins a document."""
    bos = SINGLE_NAMES["bos"]
    begin: list[Any] = [{"SpecialToken": {"id": bos, "type_id": 0}}]
    number = to_foreign(vocabulary)[vocabulary.bos_id]
    return {
        "type": "TemplateProcessing",
        "single": [*begin, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [*begin, *({"Sequence": {"id": name, "type_id": 0}} for name in "AB")],
        "special_tokens": {bos: {"id": bos, "ids": [number], "tokens": [bos]}},
    }


def _name_all(content: dict[str, Any], vocabulary: Vocabulary) -> None:
    pieces: dict[str, int] = content["model"]["vocab"]
    special = {SINGLE_NAMES.get(name, f"<{name}>"): i for name, i in vocabulary.special.items()}
    special |= {image_name(code): i for code, i in enumerate(vocabulary.image)}
    # Readers of Chameleon's vocabulary take these names for special or image tokens.
    taken = re.compile(f"{PLACEHOLDER}|IMGIMG.*|{_RESERVED.pattern}", re.DOTALL)
    if clash := sorted(name for name in pieces if name in special or taken.fullmatch(name)):
        raise BundleError(
            f"The text tokenizer has a token {clash[0]!r}, which in Chameleon's vocabulary is the "
            "name of a special token; train a text tokenizer on text without it."
        )
    content["model"]["vocab"] = special | {
        piece: vocabulary.text_id(p) for piece, p in pieces.items()
    }
    content["model"]["unk_token"] = None
    content["added_tokens"] = [_added(name, i) for name, i in special.items()]


def _name_placeholder(content: dict[str, Any], name: str, vocabulary: Vocabulary) -> None:
    vocab: dict[str, int] = content["model"]["vocab"]
    added: list[dict[str, Any]] = content["added_tokens"]
    names = vocab | {token["content"]: token["id"] for token in added}
    present = [old for old in (PLACEHOLDER, PLACEHOLDER_AT_META) if old in names]
    if present:
        number = names[present[0]]
    else:
        free = set(range(vocabulary.size)) - set(names.values())
        if not free:
            raise BundleError(
                f"No id of the vocabulary is free for {name}, which Chameleon's tokenizers need, "
                "so their format cannot hold this model; export it as a bundle."
            )
        number = min(free)
    for old in present:
        vocab.pop(old, None)
    vocab[name] = number
    content["added_tokens"] = sorted(
        [token for token in added if token["id"] != number] + [_added(name, number)],
        key=lambda token: token["id"],
    )


def _added(name: str, number: int) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": number, "content": name, **flags, "special": True}


# ── text-only vocabularies ───────────────────────────────────────────────────────────────────────


def extend_text_vocabulary(
    tokenizer_json: str,
    size: int,
    singles: Mapping[str, int],
    n_codes: int,
    where: str,
    control: Collection[str] = (),
) -> Vocabulary:
    """Return the vocabulary of a text-only model, of the given size, extended by image tokens.

    ``singles`` are the special ids that it has, by name; the others, and ``n_codes`` image ids, are
    added after ``size``. A tokenizer that :func:`named_tokenizer` wrote has image tokens already.
    ``control`` names tokens that are no text, although the file does not mark them as special.

    Raises:
        BundleError: the tokenizer has no text token, or names another number of image codes.
    """
    names, special = token_ids(tokenizer_json, where), special_tokens(tokenizer_json)
    codes = {code: names[name] for name in special if (code := image_code(name)) is not None}
    found = dict(singles)
    if codes:
        if sorted(codes) != list(range(n_codes)):
            raise BundleError(
                f"{where} names {len(codes)} image codes already, and the `image_tokenizer` has "
                f"{n_codes}; name the image tokenizer of the bundle that was exported."
            )
        for role, name in SINGLE_NAMES.items():
            for held in (f"<|{role}|>", name):
                if held in special and names[held] not in found.values():
                    found.setdefault(role, names[held])
    taken = {names[name] for name in special.union(control)} | set(found.values())
    text = sorted(i for i in names.values() if i not in taken and 0 <= i < size)
    if not text:
        raise BundleError(f"{where} has no text token; use the model's own tokenizer.")
    missing = [role for role in SINGLE_NAMES if role not in found]
    found |= {role: size + i for i, role in enumerate(missing)}
    first_code = size + len(missing)
    if codes:
        return arrange(first_code, found, [codes[code] for code in range(n_codes)], text)
    return arrange(first_code + n_codes, found, range(first_code, first_code + n_codes), text)
