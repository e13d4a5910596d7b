"""Text that reads like a token of a vocabulary is text, whatever the vocabulary came from."""

import json

import pytest
from text_models import TOKENIZERS, ids_of
from tokenizers import AddedToken, Tokenizer, models

from pardalis.errors import BundleError
from pardalis.interop.vocabulary import extend_text_vocabulary, image_name, read_vocabulary
from pardalis.tokens import TextTokenizer, Vocabulary, train_text_tokenizer, unmarked_turn_marks

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def read(content: str, singles: dict[str, int], control=()) -> tuple[Vocabulary, TextTokenizer]:
    names = json.loads(Tokenizer.from_str(content).to_str())
    size = 1 + max([*names["model"]["vocab"].values(), *(t["id"] for t in names["added_tokens"])])
    vocabulary = extend_text_vocabulary(content, size, singles, 4, "here", control)
    return vocabulary, TextTokenizer.from_json(content, vocabulary)


def imported(kind: str) -> tuple[Vocabulary, TextTokenizer]:
    tokenizer = TOKENIZERS[kind]()
    ids = ids_of(kind, tokenizer)
    eos = ids["eos_token_id"]
    ends = eos if isinstance(eos, list) else [eos]
    singles = {"bos": ids["bos_token_id"]}
    singles |= {"end_turn": ends[0]} if ends[0] not in singles.values() else {}
    return read(tokenizer.to_str(), singles)


def check_all_names_are_text(
    vocabulary: Vocabulary, tokenizer: TextTokenizer, knows_all: bool = True
) -> None:
    """No name of any token makes another id of a text than those of text, or loses the text."""
    content = json.loads(tokenizer.to_json())
    added = [token["content"] for token in content["added_tokens"]]
    others = [name for name, i in content["model"]["vocab"].items()
              if i not in set(tokenizer.text_tokens)]  # fmt: skip
    names = list(dict.fromkeys([*added[:40], *others[:40], *added[-40:], "<s>", "</s>", "<unk>"]))
    for name in names:
        for text in (name, f"owl {name} owl", f"{name}{name}", f"x{name}"):
            ids = [vocabulary.text_id(token) for token in tokenizer.encode(text)]
            if knows_all:
                assert all(i in vocabulary.text for i in ids), text
                decoded = tokenizer.decode([vocabulary.text_token(i) for i in ids])
                assert decoded.strip() == text.strip()
            else:
                assert all(i in vocabulary.text or i == vocabulary.unk_id for i in ids), text


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_names_of_an_imported_vocabulary(kind):
    check_all_names_are_text(*imported(kind))


@pytest.mark.parametrize("scattered", [False, True])
@pytest.mark.parametrize("text", ["bytes", "sentencepiece", "letters"])
def test_names_of_chameleon(chameleon_file, text, scattered):
    content = chameleon_file(scattered, text)
    vocabulary = read_vocabulary(content, Tokenizer.from_str(content).get_vocab_size(), "here")
    tokenizer = TextTokenizer.from_json(content, vocabulary)
    check_all_names_are_text(vocabulary, tokenizer, knows_all=text != "letters")


def test_names_of_ours():
    tokenizer = train_text_tokenizer(["<bos><s> <end_turn> <eos>" * 9], 300)
    vocabulary = Vocabulary.build(4, tokenizer.size)
    for name in (*vocabulary.special, image_name(3), "<|im_end|>"):
        text = f"a <{name}> {name}"
        ids = [vocabulary.text_id(token) for token in tokenizer.encode(text)]
        assert all(i in vocabulary.text for i in ids)
        assert tokenizer.decode([vocabulary.text_token(i) for i in ids]) == text


# ── added tokens that are not marked as special ──────────────────────────────────────────────────


def with_added(*added: tuple[str, bool]) -> Tokenizer:
    tokenizer = Tokenizer.from_str(train_text_tokenizer(["the owl is here"] * 3, 270).to_json())
    for name, is_special in added:
        add = tokenizer.add_special_tokens if is_special else tokenizer.add_tokens
        add([AddedToken(name, normalized=False)])
    return tokenizer


@pytest.mark.parametrize("is_special", [True, False])
def test_the_end_of_a_turn_is_text_in_a_text(is_special):
    tokenizer = with_added(("<|end|>", True), ("<|im_end|>", is_special))
    singles = {"bos": tokenizer.token_to_id("<|end|>"), "eos": tokenizer.token_to_id("<|im_end|>")}
    vocabulary, text = read(tokenizer.to_str(), singles)
    said = "the owl <|im_end|><|end|>is <|im_end|>"
    ids = [vocabulary.text_id(token) for token in text.encode(said)]
    assert {*ids} <= {*vocabulary.text}
    assert text.decode([vocabulary.text_token(i) for i in ids]) == said


def test_an_added_token_that_has_no_role_stays_one_token():
    tokenizer = with_added(("<|end|>", True), ("<tool>", False))
    text = read(tokenizer.to_str(), {"bos": tokenizer.token_to_id("<|end|>")})[1]
    assert len(text.encode("<tool>")) == 1 and text.decode(text.encode("<tool>")) == "<tool>"


def test_what_marks_the_turns_of_a_template_is_no_text():
    tokenizer = with_added(("<|end|>", True), ("<|im_start|>", False), ("<|im_end|>", False),
                           ("<think>", False))  # fmt: skip
    singles = {"bos": tokenizer.token_to_id("<|end|>")}
    vocabulary, text = read(tokenizer.to_str(), singles)
    template = CHATML.replace("<|im_start|>assistant", "<|im_start|>assistant\n<think>")
    marks = unmarked_turn_marks(vocabulary, text, template)
    assert marks == {"<|im_start|>", "<|im_end|>"}
    vocabulary, text = read(tokenizer.to_str(), singles, marks)
    said = "owl<|im_end|>\n<|im_start|>system"
    assert tokenizer.token_to_id("<|im_end|>") not in [
        text.text_tokens[t] for t in text.encode(said)
    ]
    assert text.decode(text.encode(said)) == said


@pytest.mark.parametrize("ignores", [False, True])
def test_what_merges_make_is_text(ignores):
    """A vocabulary may make a special token's name of its parts, or take a whole word for it."""
    letters = ["<", "s", ">", "o", "w", "<s", "<s>", "<unk>"]
    model = models.BPE(
        vocab={name: i for i, name in enumerate(letters)}, merges=[("<", "s"), ("<s", ">")],
        unk_token="<unk>", ignore_merges=ignores,
    )  # fmt: skip
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens(["<s>"])
    text = TextTokenizer(Tokenizer.from_str(tokenizer.to_str()), [0, 1, 2, 3, 4, 5], 7)
    assert text.encode("<s>") == [5, 2]
    assert text.encode("ow<s>w") == [3, 4, 5, 2, 4]
    assert text.to_json() == tokenizer.to_str()


# ── holes ────────────────────────────────────────────────────────────────────────────────────────


def test_a_hole_among_the_added_ids_is_refused():
    tokenizer = with_added(("<|a|>", True), ("<|b|>", True), ("<|c|>", True))
    content, last = json.loads(tokenizer.to_str()), tokenizer.get_vocab_size() - 1
    del content["added_tokens"][1]
    holed, modalities = json.dumps(content), {"image": range(7, 8), "text": range(8, last - 2)}
    for vocabulary in (None, Vocabulary(modalities=modalities, foreign_ids=range(last + 1))):
        with pytest.raises(BundleError) as error:
            TextTokenizer.from_json(holed, vocabulary, "owl.json")
        assert str(error.value) == (
            f"owl.json states the id {last} for its added token '<|c|>', but the tokenizers "
            f"library numbers added tokens in succession and gives it {last - 1}, since ids before "
            "it have no token. Name these ids in the file, as unused special tokens."
        )
