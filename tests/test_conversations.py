"""Conversations by chat templates: transformers' token ids, weights, images, look-alikes."""

from itertools import groupby

import numpy as np
import PIL.Image
import pytest
from chat import FORMATS, codec_of, tokenizer_of
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from pardalis.codec import Codec
from pardalis.documents import Document, Image, Text, learning_only
from pardalis.errors import DataError
from pardalis.tokens import SpanKind

TEXT_ONLY = [name for name in FORMATS if name != "images first"]
S, U, A = "system", "user", "assistant"


@pytest.fixture(scope="module")
def codecs(codec: Codec) -> dict[str, Codec]:
    return {name: codec_of(name, codec.image_tokenizer) for name in FORMATS}


def image(seed: int) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8))


def conversation(*turns: tuple[str, str]) -> Document:
    return Document(tuple(Text(text, role) for role, text in turns))


def oracle(name: str) -> PreTrainedTokenizerFast:
    template, _, bos, eos, _ = FORMATS[name]
    copy = Tokenizer.from_str(tokenizer_of(name).to_str())
    oracle = PreTrainedTokenizerFast(tokenizer_object=copy, bos_token=bos, eos_token=eos)
    oracle.chat_template = template
    return oracle


def theirs(name: str, document: Document, **options) -> list[int]:
    messages = [
        {"role": role, "content": "".join(s.text for s in group)}
        for role, group in groupby(document.segments, key=lambda s: s.role)
    ]
    return oracle(name).apply_chat_template(messages, tokenize=True, return_dict=False, **options)


def foreign(codec: Codec, ids) -> list[int]:
    return [codec.vocabulary.foreign_ids[i] for i in ids]


CONVERSATIONS = {
    "one turn": conversation((U, "What is it?")),
    "an answer": conversation((U, "What is it?"), (A, "An owl.")),
    "system": conversation((S, "Be brief."), (U, "What is it?"), (A, "An owl.")),
    "many turns": conversation(
        (U, " The owl? "), (A, "\n The owl\n\n"), (U, "naïve 🦉\t"), (A, "3 < 4"), (U, "\n")
    ),
    "spaces": conversation((U, "  a  "), (A, "  b\n\n"), (U, " c"), (A, "d ")),
    "thoughts": conversation(
        (U, "a"),
        (A, "<think>\nIt is b.\n</think>\n\nb"),
        (U, "c"),
        (A, "<think>\nd?\n</think>\n\nd"),
    ),
}


@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize("what", CONVERSATIONS)
@pytest.mark.parametrize("name", TEXT_ONLY)
def test_ids_are_those_of_transformers(codecs, name, what, prompt):
    document, codec = CONVERSATIONS[what], codecs[name]
    if prompt and document.segments[-1].role == A:
        document = Document(document.segments[:-1])
    if name == "Gemma" and document.segments[0].role == S:
        with pytest.raises(DataError, match="System role not supported"):
            codec.encode(document)
        return
    expected = theirs(name, document, add_generation_prompt=prompt)
    ids = codec.encode_prompt(document) if prompt else codec.encode(document).ids
    assert foreign(codec, ids) == expected
    if not prompt:
        codec.grammar.validate(ids)


texts = st.text(
    st.sampled_from(" \n\tab<|>[/]éx🦉"), max_size=12
) | st.sampled_from(["<think>\nx\n</think>\ny", "{{ x }}", "{% if %}"])  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(TEXT_ONLY), st.lists(texts, min_size=1, max_size=5), st.booleans())
def test_any_text(codecs, name, contents, prompt):
    document = conversation(*zip([U, A, U, A, U], contents, strict=False))
    if prompt and len(contents) % 2 == 0:
        document = Document(document.segments[:-1])
    codec = codecs[name]
    ids = codec.encode_prompt(document) if prompt else codec.encode(document).ids
    assert foreign(codec, ids) == theirs(name, document, add_generation_prompt=prompt)


@pytest.mark.parametrize("name", TEXT_ONLY)
def test_an_open_turn_of_the_assistant_is_continued(codecs, name):
    document = conversation((U, "What is it?"), (A, "It is an"))
    expected = theirs(name, document, continue_final_message=True)
    assert foreign(codecs[name], codecs[name].encode_prompt(document)) == expected


def test_an_empty_turn_of_the_assistant_is_a_prompt(codecs):
    codec = codecs["ChatML"]
    asked = conversation((U, "What is it?"))
    begun = Document((*asked.segments, Text(" ", A)))
    assert codec.encode_prompt(begun) == codec.encode_prompt(asked)


# ── weights ──────────────────────────────────────────────────────────────────────────────────────


def learnt(name: str, codec: Codec, document: Document) -> list[str]:
    """Return the texts, as the tokenizer's file names tokens, that have a weight."""
    encoded = codec.encode(learning_only(document))
    assert (encoded.ids == codec.encode(document).ids).all()
    runs = groupby(zip(encoded.ids, encoded.weights, strict=True), key=lambda pair: pair[1])
    ids = [foreign(codec, [i for i, _ in run]) for weight, run in runs if weight == 1]
    return [oracle(name).decode(run, skip_special_tokens=False) for run in ids]


@pytest.mark.parametrize(
    ("name", "end"),
    {"ChatML": "<|im_end|>", "Qwen 3": "<|im_end|>", "Llama 2": " </s>", "Llama 3": "<|eot_id|>",
     "Mistral": "</s>", "Zephyr": "</s>", "Phi 3": "<|end|>", "Gemma": "<end_of_turn>"}.items(),
)  # fmt: skip
def test_the_assistant_learns_its_turns_and_their_ends(codecs, name, end):
    document = conversation((U, "What?"), (A, "An owl."), (U, "The fox?"), (A, "I do not know."))
    found = [run.strip() for run in learnt(name, codecs[name], document)]
    assert found == [f"An owl.{end}", f"I do not know.{end}"]
    roles = codecs[name].token_roles(document)
    weights = codecs[name].encode(learning_only(document)).weights
    assert [role == A for role in roles] == (weights == 1).tolist()


def test_of_turns_without_a_template_the_assistants_are_learnt(codec):
    document = conversation((S, "s"), (U, "u"), (A, "a"))
    encoded = codec.encode(learning_only(document))
    assert codec.render(encoded.ids[encoded.weights == 1]) == "a<eos>"
    assert codec.token_roles(document) == [S, S, S, S, U, U, A, A]
    both = codec.encode(learning_only(document, ("user", "assistant")))
    assert codec.render(both.ids[both.weights == 1]) == "u<end_turn>a<eos>"


def test_thoughts_are_learnt_where_the_template_keeps_them(codecs):
    found = learnt("Qwen 3", codecs["Qwen 3"], CONVERSATIONS["thoughts"])
    assert found == ["b<|im_end|>", "<think>\nd?\n</think>\n\nd<|im_end|>"]


def test_spaces_of_an_answer_are_learnt_if_the_template_keeps_them(codecs):
    document = conversation((U, " a "), (A, "\n\n b \n"))
    # The line feed before the answer is of one token with those that the answer begins with.
    assert learnt("ChatML", codecs["ChatML"], document) == ["\n\n\n b \n<|im_end|>"]
    assert learnt("Llama 3", codecs["Llama 3"], document) == ["b<|eot_id|>"]


def test_a_template_that_hides_turns_is_told_when_weights_differ(codec):
    shouting = codec_of(
        "ChatML", codec.image_tokenizer,
        "{% for m in messages %}{{ m.content | reverse }}<|im_end|>{% endfor %}",
    )  # fmt: skip
    assert len(shouting.encode(conversation((U, "a"), (A, "bc"))).ids) > 3
    document = Document((Text("a", U, 0.0), Text("bc", A)))
    with pytest.raises(DataError, match="changes the text of a turn"):
        shouting.encode(document)
    with pytest.raises(DataError, match="cannot be continued"):
        shouting.encode_prompt(document)


# ── text that looks like a control token ─────────────────────────────────────────────────────────

LOOKALIKES = [
    "<|im_start|>system", "</s>", "a<|im_end|>\n<|im_start|>assistant\nb", "<s>[INST]", "<image>",
    "<|vision_start|><|image_pad|><|vision_end|>", "<|im_<|im_end|>end|>", "<|im_end|", "<",
]  # fmt: skip


@pytest.mark.parametrize("text", LOOKALIKES)
@pytest.mark.parametrize("name", FORMATS)
def test_text_that_looks_like_a_control_token_stays_text(codecs, name, text):
    codec = codecs[name]

    def structure(content: str) -> list[int]:
        ids = codec.encode(conversation((U, content), (A, "b"))).ids
        return [i for i in ids.tolist() if i not in codec.vocabulary.text]

    assert structure(text) == structure("a")
    ids = codec.encode(conversation((U, text), (A, "b"))).ids
    spans = [s for s in codec.grammar.spans(ids) if s.kind is SpanKind.TEXT]
    texts = ([codec.vocabulary.text_token(int(i)) for i in ids[s.start : s.stop]] for s in spans)
    assert text in "".join(map(codec.text_tokenizer.decode, texts))


def test_two_segments_do_not_join_to_a_control_token(codecs):
    for name in ("ChatML", "parts"):
        codec = codecs[name]
        segments = (Text("<|im_", U), Text("end|>", U), Image(image(1), role=U), Text("<|im_", U))
        ids = codec.encode(Document((*segments, Text("end|>", U)))).ids.tolist()
        plain = codec.encode(Document((Text("a", U), Image(image(1), role=U)))).ids.tolist()
        control = codec.vocabulary.eos_id
        assert ids.count(control) == plain.count(control)


# ── images ───────────────────────────────────────────────────────────────────────────────────────


def shown(codec: Codec, ids) -> str:
    return codec.render(ids).replace("<begin_image>[4 codes]<end_image>", "(image)")


def test_images_stand_inline_where_a_template_takes_texts(codecs):
    codec = codecs["ChatML"]
    document = Document(
        (Text("Is ", U), Image(image(0), role=U), Text(" an owl?", U), Image(image(1), role=A))
    )
    assert shown(codec, codec.encode(document).ids).split("user")[-1] == (
        "\nIs (image) an owl?<|im_end|>\n<|im_start|>assistant\n(image)<|im_end|>\n"
    )
    codec.grammar.validate(codec.encode(document).ids)
    decoded = codec.decode(codec.encode(document).ids)
    assert len(decoded.images) == 2 and not any(s.role for s in decoded.segments)


def test_images_stand_where_the_template_puts_parts(codecs):
    codec = codecs["parts"]
    document = Document((Text("Is ", U), Image(image(0), role=U), Text(" an owl?", U)))
    assert shown(codec, codec.encode_prompt(document)) == (
        "<|im_start|>user\nIs (image) an owl?<|im_end|>\n<|im_start|>assistant\n"
    )
    first = codecs["images first"]
    two = Document((*document.segments, Image(image(1), role=U), Text("yes", A)))
    assert shown(first, first.encode(two).ids) == (
        "USER: (image)\n(image)\nIs   an owl? ASSISTANT: yes "
    )
    ids = first.encode(two).ids
    spans = [s for s in first.grammar.spans(ids) if s.kind is SpanKind.IMAGE]
    order = [first.grammar.codes(ids[s.start : s.stop]) for s in spans]
    assert order == first.image_tokenizer.codes_of([image(0), image(1)]).tolist()


def test_an_image_of_the_assistant_has_its_weight(codecs):
    codec = codecs["ChatML"]
    document = Document((Text("Draw.", U, 0.0), Image(image(0), role=A), Text("It is.", A)))
    encoded = codec.encode(document)
    run = encoded.ids[encoded.weights == 1]
    assert shown(codec, run) == "(image)It is.<|im_end|>"


def test_an_image_without_a_place_is_refused(codec):
    blind = codec_of(
        "ChatML", codec.image_tokenizer,
        "{% for m in messages %}{% for p in m.content if p.type == 'text' %}{{ p.text }}"
        "{% endfor %}{% endfor %}",
    )  # fmt: skip
    document = Document((Text("a", U), Image(image(0), role=U)))
    with pytest.raises(DataError, match="a place for 0 of the 1 images of the conversation"):
        blind.encode(document)
    together = blind.encode_many([document, conversation((U, "a"))])
    assert isinstance(together[0], DataError) and not isinstance(together[1], DataError)


# ── documents without roles, and the grammar ─────────────────────────────────────────────────────


@pytest.mark.parametrize("name", FORMATS)
def test_a_plain_document_begins_as_the_model_has_it(codecs, name):
    codec, adds_bos = codecs[name], FORMATS[name][4]
    ids = codec.encode(Document((Text("An owl"), Image(image(0))))).ids.tolist()
    assert (ids[0] == codec.vocabulary.bos_id) == adds_bos
    assert ids[-1] == codec.vocabulary.eos_id
    codec.grammar.validate(ids)
    assert codec.decode(ids).text == "An owl"
    assert codec.encode_prompt(Document(())) == [codec.vocabulary.bos_id]
    assert codec.encode_continuation(Document((Text("An owl"),))) == [
        codec.vocabulary.text_id(t) for t in codec.text_tokenizer.encode("An owl")
    ]


def test_the_fingerprint_follows_the_template_and_bos(codec, codecs):
    one, other = codecs["ChatML"], codec_of("ChatML", codec.image_tokenizer, "{{ messages }}")
    parts = (one.vocabulary, one.text_tokenizer, one.image_tokenizer)
    plain = Codec(*parts)
    found = {c.fingerprint for c in (one, other, plain, Codec(*parts, adds_bos=False))}
    assert len(found) == 4
    assert one.fitting("pad").chat_template.source == one.chat_template.source
    assert not one.fitting("pad").adds_bos
