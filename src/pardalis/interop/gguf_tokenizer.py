"""The vocabularies of GGUF files as files of the ``tokenizers`` library, and back.

``tokenizer.ggml.model`` names one of two kinds. ``gpt2`` is a byte-level BPE with its merges, and
``tokenizer.ggml.pre`` names how text is split before. ``llama`` is a BPE of SentencePiece's kind,
whose merges follow from the scores of its tokens. What each of them means is defined by
llama.cpp's ``llama-vocab.cpp``; a name whose meaning is not in the table below is refused.
"""

import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pardalis.config import shown
from pardalis.errors import BundleError
from pardalis.files import parse_json
from pardalis.interop.gguf_file import GGUFFile
from pardalis.interop.vocabulary import SINGLE_NAMES, image_code, image_name, to_foreign
from pardalis.tokens import TextTokenizer, Vocabulary

logger = logging.getLogger(__name__)

# Types of tokens, in tokenizer.ggml.token_type.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

SPACE = "▁"  # what a space is in SentencePiece's tokens
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_LONGEST = 256  # characters of a token that is made by merges

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+|"


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """How text is split before the merges: by each pattern in turn, matches and gaps apart."""

    patterns: tuple[str, ...]
    names: tuple[str, ...]  # in tokenizer.ggml.pre; the first is written
    ignore_merges: bool = False  # a piece that is a token stays whole
    adds_bos: bool = False  # unless tokenizer.ggml.add_bos_token says otherwise


# The patterns are those of the models' own tokenizers, of which llama.cpp's are variants.
PRE_TOKENIZERS = (
    PreTokenizer(
        (GPT2,),
        ("gpt-2", "phi-2", "mpt", "olmo", "jais", "exaone4", "gigachat", "a.x-4.0", "mellum",
         "trillion", "granite-docling"),
    ),
    PreTokenizer(
        (r"\p{N}", GPT2),
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
    ),
    PreTokenizer(
        (_CONTRACTIONS + _WORD + r"\p{N}{1,3}" + _REST,),
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
        ignore_merges=True,
        adds_bos=True,
    ),
    PreTokenizer(
        (_CONTRACTIONS + _WORD + r"\p{N}{1,3}" + _REST,),
        ("smaug-bpe", "dbrx", "chatglm-bpe", "glm4"),
    ),
    PreTokenizer(
        (_CONTRACTIONS + _WORD + r"\p{N}" + _REST,),
        ("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan"),
    ),
    PreTokenizer(
        (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
        ("default",),
    ),
    PreTokenizer(
        ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"),
        ("deepseek-coder",),
    ),
)  # fmt: skip
_BY_NAME = {name: each for each in PRE_TOKENIZERS for name in each.names}


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundTokenizer:
    """The tokenizer of a GGUF file, in the terms of a Hugging Face folder."""

    json: str  # tokenizer.json
    ids: dict[str, Any]  # bos_token_id, eos_token_id, pad_token_id


def read_tokenizer(file: GGUFFile, size: int) -> FoundTokenizer:
    """Return the tokenizer of a file whose model has ``size`` token ids.

    Raises:
        BundleError: the vocabulary is of an unknown kind, or its values are missing or contradict
            each other.
    """
    kind = file.text("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise BundleError(
            f"{file.path} has a vocabulary of the kind {shown(kind)} (tokenizer.ggml.model); gpt2 "
            "(byte-level BPE) and llama (SentencePiece) can be read."
        )
    tokens = file.items("tokenizer.ggml.tokens", str)
    if not 0 < len(tokens) <= size:
        raise BundleError(
            f"{file.path} has {len(tokens)} tokens, but its embedding has {size} rows; convert the "
            "model again."
        )
    types = [NORMAL] * len(tokens)
    if "tokenizer.ggml.token_type" in file.values:
        types = file.items("tokenizer.ggml.token_type", int, len(tokens))
    vocab: dict[str, int] = {}
    for i, (token, each) in enumerate(zip(tokens, types, strict=True)):
        if each == UNUSED and image_code(token) is None:  # an export names image tokens
            continue
        if token and vocab.setdefault(token, i) != i:
            raise BundleError(
                f"{file.path} has the token {shown(token)} twice, as {vocab[token]} and {i}; "
                "convert the model again."
            )
    named = _named_ids(file, len(tokens), sentencepiece=kind == "llama")
    unknown = named.get("unknown", next((i for i, t in enumerate(types) if t == UNKNOWN), None))
    special = {i for i, each in enumerate(types) if each in (CONTROL, UNKNOWN, UNUSED)}
    special |= {*named.values()}
    added = [
        _added(token, i, special=i in special)
        for token, i in vocab.items()
        if i in special or types[i] == USER_DEFINED
    ]
    if kind == "gpt2":
        content, adds_bos = _byte_level(file, vocab)
    else:
        name = tokens[unknown] if unknown is not None and tokens[unknown] in vocab else None
        content, adds_bos = _sentencepiece(file, tokens, vocab, special, name), True
    bos = tokens[named["bos"]]
    content["added_tokens"] = sorted(added, key=lambda token: token["id"])
    if file.flag("tokenizer.ggml.add_bos_token", adds_bos) and bos in vocab:
        content["post_processor"] = _beginning(bos, named["bos"])
    ends = [named[name] for name in ("eos", "eot") if name in named]
    ids = {
        "bos_token_id": named["bos"],
        "eos_token_id": list(dict.fromkeys(ends)),
        "pad_token_id": named.get("padding"),
    }
    return FoundTokenizer(json=json.dumps(content, ensure_ascii=False), ids=ids)


def _named_ids(file: GGUFFile, n_tokens: int, sentencepiece: bool) -> dict[str, int]:
    """Return the ids that the file names, by what they are.

    Where a byte-level vocabulary has no token for the beginning, that of the end begins documents.
    """
    found = {"bos": 1, "eos": 2} if sentencepiece else {}
    for name in ("bos", "eos", "eot", "eom", "unknown", "padding"):
        key = f"tokenizer.ggml.{name}_token_id"
        if key in file.values:
            found[name] = file.integer(key)
    if "eos" not in found:
        file.integer("tokenizer.ggml.eos_token_id")  # says that it is missing
    found.setdefault("bos", found["eos"])
    for name, i in found.items():
        if i >= n_tokens:
            raise BundleError(
                f"{file.path} has the id {shown(i)} as its {name} token, but {n_tokens} tokens; "
                "convert the model again."
            )
    return found


def _byte_level(file: GGUFFile, vocab: dict[str, int]) -> tuple[dict[str, Any], bool]:
    """Return the content of ``tokenizer.json``, and whether texts begin with BOS."""
    name = file.text("tokenizer.ggml.pre", "default")
    if name not in _BY_NAME:
        raise BundleError(
            f"{file.path} has the pre-tokenizer {shown(name)} (tokenizer.ggml.pre), which Pardalis "
            f"does not know; it knows {', '.join(_BY_NAME)}."
        )
    pre = _BY_NAME[name]
    merges = _pairs(file.items("tokenizer.ggml.merges", str))
    if wrong := next((pair for pair in merges if not all(pair)), None):
        raise BundleError(
            f"{file.path} has a merge of {shown(wrong)}, not of two tokens; convert the model "
            "again."
        )
    content = _content(vocab, merges, ignore_merges=pre.ignore_merges)
    content["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [*map(_split, pre.patterns), _BYTE_LEVEL | {"use_regex": False}],
    }
    content["decoder"] = _BYTE_LEVEL | {"use_regex": True}
    return content, pre.adds_bos


def _pairs(merges: list[str]) -> list[tuple[str, str]]:
    """Return the two tokens of each merge, of which the first may begin with a space."""
    cuts = [merge.find(" ", 1) for merge in merges]
    return [
        (merge[:cut], merge[cut + 1 :]) if cut > 0 else (merge, "")
        for merge, cut in zip(merges, cuts, strict=True)
    ]


def _sentencepiece(
    file: GGUFFile, tokens: list[str], vocab: dict[str, int], special: set[int], unknown: str | None
) -> dict[str, Any]:
    scores = file.items("tokenizer.ggml.scores", float, len(tokens))
    if not all(abs(score) < float("inf") for score in scores):
        raise BundleError(f"{file.path} has a score that is not finite; convert the model again.")
    made = {token: i for token, i in vocab.items() if i not in special and token not in _BYTE_NAMES}
    if long := next((token for token in made if len(token) > _LONGEST), None):
        raise BundleError(
            f"{file.path} has a token of {len(long)} characters; SentencePiece's have {_LONGEST} "
            "at most. Convert the model again."
        )
    ordered = sorted(made, key=lambda token: (-scores[made[token]], made[token]))
    content = _content(vocab, merges_of(ordered, vocab), unk_token=unknown)
    content["model"] |= {"fuse_unk": True, "byte_fallback": vocab.keys() >= _BYTE_NAMES}
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
    ]
    last: list[dict[str, Any]] = []
    if file.flag("tokenizer.ggml.add_space_prefix", True):
        steps.insert(0, {"type": "Prepend", "prepend": SPACE})
        last = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    content["normalizer"] = {"type": "Sequence", "normalizers": steps}
    content["decoder"] = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            *last,
        ],
    }
    return content


_BYTE_NAMES = frozenset(BYTES)


def merges_of(ordered: Iterable[str], vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Return the merges of a SentencePiece BPE whose tokens are given, the best first.

    Two neighbours are merged if their text is a token, that with the best token first. So each
    division of a token into two tokens is a merge, of the rank of that token.
    """
    return [
        (token[:i], token[i:])
        for token in ordered
        for i in range(1, len(token))
        if token[:i] in vocab and token[i:] in vocab
    ]


# ── tokenizer.json ───────────────────────────────────────────────────────────────────────────────

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def _content(
    vocab: dict[str, int],
    merges: list[tuple[str, str]],
    unk_token: str | None = None,
    ignore_merges: bool = False,
) -> dict[str, Any]:
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": unk_token,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": ignore_merges,
        "vocab": vocab,
        "merges": merges,
    }
    empty = dict.fromkeys(
        ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
    )
    return {"version": "1.0", "added_tokens": [], **empty, "model": model}


def _split(pattern: str) -> dict[str, Any]:
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


def _added(name: str, number: int, special: bool) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": number, "content": name, **flags, "special": special}


def _beginning(bos: str, number: int) -> dict[str, Any]:
    begin: list[Any] = [{"SpecialToken": {"id": bos, "type_id": 0}}]
    return {
        "type": "TemplateProcessing",
        "single": [*begin, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [*begin, *({"Sequence": {"id": name, "type_id": 0}} for name in "AB")],
        "special_tokens": {bos: {"id": bos, "ids": [number], "tokens": [bos]}},
    }


# ── writing ──────────────────────────────────────────────────────────────────────────────────────

_NFC = {"type": "NFC"}


def vocabulary_values(vocabulary: Vocabulary, text_tokenizer: TextTokenizer) -> dict[str, Any]:
    """Return the values of ``tokenizer.ggml.*`` for all ids of a bundle, in the order of its files.

    Text tokens keep their names. New special and image tokens get those of Chameleon, by which an
    import finds them, or another one if that is taken. Special ids are control tokens, and those
    of images and of nothing are unused.

    Raises:
        BundleError: the tokenizer splits or joins text in a way that GGUF files cannot name.
    """
    content: dict[str, Any] = parse_json(text_tokenizer.to_json())
    foreign = to_foreign(vocabulary)
    number = (lambda i: i) if vocabulary.foreign_ids is not None else vocabulary.text_id
    names: dict[int, tuple[str, int]] = {
        number(i): (name, NORMAL) for name, i in content["model"]["vocab"].items()
    }
    for token in content["added_tokens"]:
        kind = CONTROL if token["special"] else USER_DEFINED
        names[number(token["id"])] = (token["content"], kind)
    taken = {name for name, _ in names.values()}

    def name_id(i: int, name: str, kind: int) -> None:
        if foreign[i] not in names:
            while name in taken:
                name = f"<{name}>"
            taken.add(name)
            names[foreign[i]] = (name, kind)

    for role, i in vocabulary.special.items():
        name = SINGLE_NAMES.get(role, f"<{role}>")
        name_id(i, name if name not in taken else f"<|{role}|>", CONTROL)
    for code, i in enumerate(vocabulary.image):
        name_id(i, image_name(code), UNUSED)
        names[foreign[i]] = (names[foreign[i]][0], UNUSED)  # those of an earlier export too
    for i in range(vocabulary.size):
        name_id(i, f"[PAD{i}]", UNUSED)
    tokens = [names[i][0] for i in range(vocabulary.size)]
    types = [names[i][1] for i in range(vocabulary.size)]
    if _is_byte_level(content):
        values = _byte_level_values(content)
    else:
        values = _sentencepiece_values(content, tokens, types)
    ids = {
        "bos": vocabulary.bos_id,
        "eos": vocabulary.eos_id,
        "eot": vocabulary.end_turn_id,
        "unknown": vocabulary.unk_id,
        "padding": vocabulary.pad_id,
    }
    return {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        **values,
        **{f"tokenizer.ggml.{name}_token_id": foreign[i] for name, i in ids.items()},
        # Every document that a model was trained on here begins with BOS.
        "tokenizer.ggml.add_bos_token": vocabulary.foreign_ids is None
        or content["post_processor"] is not None,
    }


def _is_byte_level(content: dict[str, Any]) -> bool:
    return (content["decoder"] or {}).get("type") == "ByteLevel"


def _unheld(what: str) -> BundleError:
    return BundleError(
        f"The text tokenizer {what}, which a GGUF file cannot say; export to another format."
    )


def _byte_level_values(content: dict[str, Any]) -> dict[str, Any]:
    model = content["model"]
    patterns = tuple(_patterns(content["pre_tokenizer"]))
    found = [
        each
        for each in PRE_TOKENIZERS
        if each.patterns == patterns and each.ignore_merges == bool(model.get("ignore_merges"))
    ]
    if not found:
        raise _unheld("splits text by a rule that llama.cpp has no name for")
    if model["type"] != "BPE" or not model["merges"]:
        raise _unheld("has no merges")
    if content["normalizer"] == _NFC:
        logger.warning(
            "The text tokenizer normalises text (NFC) and llama.cpp does not: text that is not "
            "normalised gets other ids there."
        )
    elif content["normalizer"] is not None:
        raise _unheld("normalises text")
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": found[0].names[0],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in model["merges"]],
        "tokenizer.ggml.add_space_prefix": False,
    }


def _patterns(step: dict[str, Any] | None) -> Iterator[str]:
    """Yield the patterns of a pre-tokenizer; one that is no pattern for what is none of ours."""
    match step:
        case {"type": "Sequence", "pretokenizers": list(steps)}:
            for each in steps:
                yield from _patterns(each)
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated",
              "invert": False}:  # fmt: skip
            yield pattern
        case {"type": "Digits", "individual_digits": True}:
            yield r"\p{N}"
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": bool(splits)}:
            if splits:
                yield GPT2
        case _:
            yield "no pattern"


def _sentencepiece_values(
    content: dict[str, Any], tokens: list[str], types: list[int]
) -> dict[str, Any]:
    """Return the values of SentencePiece's kind; sets the types of unknown and byte tokens."""
    model = content["model"]
    prefix = _prefixes(content)
    if prefix is None or model["type"] != "BPE" or model.get("ignore_merges"):
        raise _unheld("is neither a byte-level BPE nor one of SentencePiece's kind")
    merges = [tuple(pair) for pair in model["merges"]]
    ordered = list(dict.fromkeys(left + right for left, right in merges))
    special = {token["content"] for token in content["added_tokens"] if token["special"]}
    made = [name for name in model["vocab"] if name not in special | _BYTE_NAMES]
    rank = {name: i for i, name in enumerate(ordered)}
    made.sort(key=lambda name: rank.get(name, len(rank)))
    implied = merges_of(made, model["vocab"])
    in_turn = [left + right for left, right in merges]
    if {*implied} != {*merges} or [rank[name] for name in in_turn] != sorted(
        rank[name] for name in in_turn
    ):
        raise _unheld("has merges that do not follow from scores")
    scores = [0.0] * len(tokens)
    for i, name in enumerate(tokens):
        if types[i] == NORMAL and name in _BYTE_NAMES and model.get("byte_fallback"):
            types[i] = BYTE
        elif types[i] in (NORMAL, USER_DEFINED):
            scores[i] = -float(rank.get(name, len(rank)))
        elif name == model["unk_token"]:
            types[i] = UNKNOWN
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.add_space_prefix": prefix,
    }


def _prefixes(content: dict[str, Any]) -> bool | None:
    """Return whether a tokenizer writes spaces as ▁ and one more before a text; None: neither."""
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    steps = content["normalizer"] or {}
    steps = steps.get("normalizers", [steps] if steps else [])
    before = content["pre_tokenizer"]
    if steps == [replace] and before is None:
        return False
    if steps == [{"type": "Prepend", "prepend": SPACE}, replace] and before is None:
        return True
    match before if not steps else None:
        case {"type": "Metaspace", "replacement": "▁", "split": False, "prepend_scheme": scheme}:
            if scheme != "never":
                logger.warning(
                    "The text tokenizer puts no second space before a text that begins with one "
                    "and llama.cpp does: such a text gets other ids there."
                )
            return bool(scheme != "never")
    return None
