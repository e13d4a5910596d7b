"""What a prompt may be in Python: an answer, or one sentence that says what is wrong."""

import base64
import inspect
import io
from pathlib import Path
from types import MappingProxyType

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pardalis
from pardalis.documents import Document, Image, Text, open_image
from pardalis.errors import DataError, PardalisError, RequestError
from pardalis.inference import (
    EngineConfig,
    Response,
    generate_many,
    score,
    to_document,
    to_score_requests,
)
from pardalis.inference.engine import _with_options

# Without the check of annotations, which users do not have.
generate = inspect.unwrap(pardalis.generate)
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)


def png(image: PIL.Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


IMAGE = PIL.Image.fromarray(PIXELS)
URL = "data:image/png;base64," + base64.b64encode(png(IMAGE)).decode()
FLOATS = PIXELS.astype(np.float64) / 255
CHANNELS_FIRST = torch.from_numpy(np.moveaxis(FLOATS, 2, 0).copy())


@pytest.mark.parametrize(
    "part",
    [
        png(IMAGE),
        bytearray(png(IMAGE)),
        memoryview(png(IMAGE)),
        io.BytesIO(png(IMAGE)),
        IMAGE,
        Image(IMAGE),
        PIXELS,
        PIXELS[::-1][::-1],
        np.moveaxis(PIXELS, 2, 0),
        FLOATS,
        FLOATS.astype(np.float32),
        torch.from_numpy(PIXELS),
        CHANNELS_FIRST,
        CHANNELS_FIRST.float().requires_grad_(),
        {"type": "image_url", "image_url": {"url": URL}},
        {"type": "input_image", "image_url": URL},
        {"type": "image", "image": IMAGE},
    ],
    ids=lambda part: type(part).__name__,
)
def test_all_kinds_of_images_are_the_same_image(part):
    for prompt in (part, ["look", part]):
        if isinstance(part, io.BytesIO):
            part.seek(0)
        document = to_document(prompt)
        assert (np.asarray(open_image(document.images[0].source)) == PIXELS).all()
        assert document.text == ("look" if isinstance(prompt, list) else "")


def test_a_path_and_an_open_file(tmp_path):
    path = tmp_path / "owl.png"
    path.write_bytes(png(IMAGE))
    assert to_document(path) == Document((Image(path),))
    with path.open("rb") as file:
        assert to_document(file) == Document((Image(png(IMAGE)),))


def test_arrays_of_other_channels():
    def opened(array):
        return np.asarray(open_image(to_document(array).images[0].source))

    grey = PIXELS[:, :, 0]
    for array in (grey, grey[:, :, None], grey[None], FLOATS[:, :, 0]):
        assert (opened(array) == PIXELS[:, :, :1]).all()
    clear = np.dstack([PIXELS, np.zeros((6, 5), np.uint8)])
    assert (opened(clear) == 255).all()
    half = torch.full((3, 4, 6), 0.5, dtype=torch.bfloat16)
    assert (opened(half) == 128).all()
    narrow = np.zeros((3, 4, 3), np.uint8)  # both ends could be channels
    assert opened(narrow).shape == (3, 4, 3)


def test_the_image_is_a_copy_of_its_array():
    array = PIXELS.copy()
    document = to_document(array)
    array[:] = 0
    assert (np.asarray(document.images[0].source) == PIXELS).all()


MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {
        "role": "user",
        "content": [
            {"type": "input_text", "text": "What is this?"},
            {"type": "image_url", "image_url": {"url": URL}},
        ],
    },
]


def test_chat_messages():
    expected = Document(
        (
            Text("Be brief.", role="system"),
            Text("What is this?", role="user"),
            Image(png(IMAGE), role="user"),
        )
    )
    assert to_document(MESSAGES) == expected
    assert to_document(MESSAGES, "user") == expected
    assert to_document(MESSAGES[1]) == Document(expected.segments[1:])
    assert to_document(MappingProxyType(MESSAGES[0])) == Document(expected.segments[:1])


def test_roles_are_given_to_parts_that_have_none():
    parts = ["a", Text("b"), Text("c", role="assistant"), Document((Text("d"),))]
    assert [s.role for s in to_document(parts, "user").segments] == [
        "user", "user", "assistant", None,
    ]  # fmt: skip


def test_a_response_is_a_part_of_the_next_prompt(bundle):
    first = pardalis.generate(bundle, "owl", max_new_tokens=4)
    assert to_document(["A ", first, "?"]).segments == (Text("A "), *first.segments, Text("?"))


class Unreadable:
    def read(self):
        raise OSError("the line\nis broken")


ACCEPTED = r"it must be a text, an image \(a Path, bytes, a binary file, a PIL image, an array or a"
WRONG = [
    (None, f"The prompt is of type NoneType; {ACCEPTED}"),
    (5, "The prompt is of type int"),
    (["a", ["b"]], r"prompt\[1\] is of type list"),
    ({"a", "b"}, "The prompt is of type set"),
    (io.BytesIO, "The prompt is of type type"),
    (io.StringIO("a"), "is a file that gives str; open images in mode 'rb'"),
    (Unreadable(), "is a file that cannot be read: the line."),
    (torch.zeros(3, 4, 5, device="meta"), "is a tensor without an array"),
    ("half \ud800", "broken Unicode: half of a surrogate pair"),
    ([Text("half \udc00")], "broken Unicode: half of a surrogate pair"),
    ({}, 'The prompt must be {"type": "text"'),
    ([{"type": "audio"}], r'prompt\[0\] must be {"type": "text"'),
    ({"type": "image_url", "image_url": {"url": "https://e.org/a.png"}}, "not fetched from a netw"),
    ({"role": "tool", "content": "a"}, "has the role 'tool'; it must be one of system, user, as"),
    ([MESSAGES[0], "and?"], r"messages\[1\] must be an object with"),
    (np.zeros(4), "has the shape 4; an image has height x width"),
    (np.zeros((1, 3, 4, 4)), "has the shape 1 x 3 x 4 x 4; an image has"),
    (np.zeros((5, 5, 2)), "has the shape 5 x 5 x 2; an image has"),
    (np.zeros(()), "has the shape no dimension"),
    (np.zeros((0, 4)), "has the shape 0 x 4, which is no image"),
    (np.zeros((4, 4), np.int64), "has the dtype int64; an image has uint8"),
    (np.zeros((4, 4), bool), "has the dtype bool"),
    (np.zeros((4, 4), object), "has the dtype object"),
    (np.full((4, 4), 1.5), r"has numbers from 1.5 to 1.5; floats must lie in \[0, 1\]"),
    (np.full((4, 4), np.nan), "has numbers from nan to nan"),
    (np.broadcast_to(np.uint8(0), (9000, 9000)), "more than 80 million pixels"),
]


@pytest.mark.parametrize(("prompt", "message"), WRONG)
def test_what_is_no_prompt(prompt, message):
    with pytest.raises(PardalisError, match=message) as caught:
        to_document(prompt)
    assert "\n" not in str(caught.value)


def test_a_string_that_names_an_image_is_not_taken_for_its_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert to_document("owl.png").text == "owl.png"
    (tmp_path / "owl.png").write_bytes(png(IMAGE))
    for prompt in ("owl.png", ["Look:", "owl.png"]):
        with pytest.raises(RequestError, match=r"names the image file 'owl\.png'; give Path\('owl"):
            to_document(prompt)
    assert to_document(Text("owl.png")).text == "owl.png"


def test_closed_images(bundle, tmp_path):
    IMAGE.save(tmp_path / "owl.png")
    in_memory = IMAGE.copy()
    in_memory.close()
    with PIL.Image.open(tmp_path / "owl.png") as of_a_file:
        pass
    for image in (in_memory, of_a_file):
        with pytest.raises(DataError, match="the image in memory is closed; open it again"):
            generate(bundle, image)


def test_images_that_are_no_images(bundle):
    for prompt in (Path("a\0b"), Path(), Path("none.png"), b"", b"GIF89a", io.BytesIO(b"")):
        with pytest.raises(DataError) as caught:
            generate(bundle, prompt)
        assert "\n" not in str(caught.value)
    bomb = PIL.Image.new("1", (30_000, 30_000))
    for prompt in (bomb, png(bomb)):
        with pytest.raises(DataError, match="more than 80 million pixels"):
            generate(bundle, prompt)


def test_segments_that_are_not_what_they_claim():
    """Without the check of annotations, which users do not have."""
    text, image = Text("a"), Image(b"a")
    object.__setattr__(text, "text", 5)
    with pytest.raises(RequestError, match="Segment 0 of the prompt has a text of type int"):
        to_document(Document((text,)))
    object.__setattr__(text, "role", "tool")
    with pytest.raises(RequestError, match="Segment 1 of the prompt has the role 'tool'"):
        to_document(Document((image, text)))
    document = Document(())
    object.__setattr__(document, "segments", ("owl",))
    with pytest.raises(RequestError, match="Segment 0 of the prompt is of type str"):
        to_document(document)
    with pytest.raises(DataError, match="source of an image is of type str; it must be a Path"):
        inspect.unwrap(open_image)("owl.png")


def test_prompts_of_scores(bundle):
    for wrong in ("owl", ("a", "b", "c"), 5):
        with pytest.raises(RequestError, match="it must be a pair of a prompt and its continuatio"):
            list(inspect.unwrap(to_score_requests)(bundle, [wrong]))
    with pytest.raises(RequestError, match="requests must be a list of pairs, got int"):
        inspect.unwrap(score)(bundle, 5)
    array = [PIXELS, "is"]
    first, second = score(bundle, [(array, "owl"), ([PIXELS, "is"], "owl")])
    assert first == second


# ── any input at all ─────────────────────────────────────────────────────────────────────────

numbers = st.one_of(
    st.integers(), st.floats(), st.booleans(), st.sampled_from([10**400, -(10**400), 2**63, 1j])
)
texts = st.text(st.characters(codec=None), max_size=12) | st.sampled_from(["", "\0", "\ud800", "a"])
arrays = st.builds(
    lambda shape, dtype: np.zeros(shape, dtype),
    st.lists(st.integers(0, 5), max_size=4),
    st.sampled_from(["uint8", "float16", "float64", "int32", "bool", "U3", "object", "complex64"]),
)
plain = st.one_of(
    st.none(), numbers, texts, st.binary(max_size=20), arrays, arrays.map(str),
    st.sampled_from([Path("none"), Path("/"), object(), int, io.BytesIO(b"x"), IMAGE, URL]),
)  # fmt: skip
keys = st.sampled_from(["role", "content", "type", "text", "image_url", "url", "image", "x", 5])
words = st.sampled_from(["user", "assistant", "system", "text", "image_url", "input_image", URL])
anything = st.recursive(
    plain | words,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(keys, inner, max_size=3)
        | st.lists(inner, max_size=2).map(tuple)
    ),
    max_leaves=8,
)
examples = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def answer(function, *arguments, **options):
    """Return a result, or None for an error of one sentence."""
    try:
        return function(*arguments, **options)
    except PardalisError as error:
        assert str(error).endswith((".", "?"))
        assert "\n" not in str(error)
        return None


@given(prompt=anything)
@examples
def test_any_prompt_gets_an_answer_or_a_sentence(bundle, prompt):
    result = answer(generate, bundle, prompt, max_new_tokens=1)
    assert result is None or isinstance(result, Response)


@given(
    options=st.dictionaries(
        st.sampled_from([*pardalis.GenerationConfig.__dataclass_fields__, "x"]), anything,
        min_size=1, max_size=2,
    )
)  # fmt: skip
@examples
def test_any_option_gets_an_answer_or_a_sentence(bundle, options):
    limits = {"mode": "text", "max_new_tokens": 1} | options
    result = answer(generate, bundle, "owl", **limits)
    assert result is None or isinstance(result, Response)


@given(bundle=plain.filter(lambda bundle: "\n" not in str(bundle)), config=plain)
@examples
def test_any_bundle_and_config(bundle, config):
    assert answer(generate, bundle, "owl", config) is None


@given(prompts=anything, errors=st.sampled_from(["raise", "return"]))
@examples
def test_any_list_of_prompts(bundle, prompts, errors):
    function = inspect.unwrap(generate_many)
    results = answer(function, bundle, prompts, errors=errors, max_new_tokens=1)
    for result in results or ():
        assert isinstance(result, Response | PardalisError)


@given(
    options=st.dictionaries(
        st.sampled_from([*EngineConfig.__dataclass_fields__, "x"]), plain, min_size=1, max_size=3
    )
)
@examples
def test_any_option_of_an_engine(options):
    result = answer(_with_options, None, options)
    assert result is None or isinstance(result, EngineConfig)


def test_texts_that_cannot_fit_are_refused_before_they_are_encoded(bundle, monkeypatch):
    fits = "x" * 30
    assert pardalis.score(bundle, [(fits, "x")])
    text = "x" * (bundle.codec.text_tokenizer.most_bytes * bundle.model.context + 1)
    monkeypatch.setattr(type(bundle.codec.text_tokenizer), "encode", None)
    message = f"has {len(text):,} bytes of text, so at least 41 tokens, which fills the model's"
    for refused in (
        lambda: generate(bundle, text),
        lambda: generate(bundle, [text[:20], IMAGE, text[20:]]),
        lambda: list(to_score_requests(bundle, [(text[20:], text[:20])])),
    ):
        with pytest.raises(RequestError, match="bytes of text, so at least") as error:
            refused()
    assert message in str(error.value)


def test_images_that_cannot_fit_are_refused_before_they_are_opened(bundle, monkeypatch):
    n = bundle.model.context // bundle.codec.grammar.tokens_per_image + 1
    monkeypatch.setattr(type(bundle.codec), "_open_images", None)
    with pytest.raises(RequestError, match=rf"has {n} images and 2 bytes of text, so at least"):
        generate(bundle, [IMAGE, "an", *[IMAGE] * (n - 1)])
