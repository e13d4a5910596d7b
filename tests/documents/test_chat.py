"""Messages to a document and back, exactly."""

import base64
import io

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pardalis.documents import (
    Document,
    Image,
    Text,
    document_to_messages,
    from_data_uri,
    messages_to_document,
    open_image,
)
from pardalis.errors import DataError, RequestError


def data_uri(kind):
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (3, 2), "red").save(buffer, format=kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


texts = st.text(st.characters(exclude_categories=["Cs"]))
text_parts = st.builds(lambda text: {"type": "text", "text": text}, texts)
image_parts = st.sampled_from(["PNG", "JPEG", "GIF", "WEBP"]).map(
    lambda kind: {"type": "image_url", "image_url": {"url": data_uri(kind)}}
)
# A list with one text alone is the same message as the text, and comes back as that.
part_lists = st.lists(text_parts | image_parts, min_size=1).filter(
    lambda parts: len(parts) > 1 or parts[0]["type"] != "text"
)
contents = texts | part_lists


@st.composite
def conversations(draw):
    messages = []
    for content in draw(st.lists(contents, min_size=1, max_size=6)):
        others = [
            r for r in ("system", "user", "assistant") if not messages or r != messages[-1]["role"]
        ]
        messages.append({"role": draw(st.sampled_from(others)), "content": content})
    return messages


@given(conversations())
def test_messages_round_trip_exactly(messages):
    assert document_to_messages(messages_to_document(messages)) == messages


def test_parts_become_segments_with_the_role_of_their_message():
    uri = data_uri("PNG")
    document = messages_to_document(
        [
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is"},
                    {"type": "image_url", "image_url": {"url": uri, "detail": "low"}},
                ],
            },
            {"role": "assistant", "content": "An owl.", "refusal": None, "annotations": []},
        ],
        name="c",
    )
    assert document == Document(
        (
            Text("Be brief.", "system"),
            Text("What is", "user"),
            Image(from_data_uri(uri), role="user"),
            Text("An owl.", "assistant"),
        ),
        "c",
    )


def test_consecutive_content_of_one_role_is_one_message():
    document = messages_to_document(
        [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    )
    parts = [{"type": "text", "text": text} for text in "ab"]
    assert document_to_messages(document) == [{"role": "user", "content": parts}]


def test_images_of_every_source_become_data_uris(red_file, red_png, encode):
    red = PIL.Image.new("RGB", (4, 3), "red")
    for source, kind in [
        (red_file, "png"),
        (red_png, "png"),
        (red, "png"),
        (encode(red, "BMP"), "png"),
        (encode(red, "WEBP", lossless=True), "webp"),
    ]:
        (message,) = document_to_messages(Document((Image(source),)))
        assert message["role"] == "user"
        uri = message["content"][0]["image_url"]["url"]
        assert uri.startswith(f"data:image/{kind};base64,")
        assert (np.asarray(open_image(from_data_uri(uri))) == [255, 0, 0]).all()


def test_an_image_that_cannot_be_read_is_an_error(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        document_to_messages(Document((Image(tmp_path / "no.png"),)))


def part(**fields):
    return [{"role": "user", "content": [fields]}]


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([], "There are no messages; at least one is needed"),
        (["hello"], r'messages\[0\] must be an object with "role" and "content"'),
        ([{"content": "a"}], r"messages\[0\] has the role None; it must be one of system, user"),
        ([{"role": "tool", "content": "a"}], "has the role 'tool'"),
        ([{"role": "user"}], 'needs "content": a text, or a list of parts'),
        ([{"role": "user", "content": []}], 'needs "content": a text, or a list of parts'),
        ([{"role": "user", "content": "\ud800"}], "broken Unicode: half of a surrogate pair"),
        (
            [{"role": "assistant", "content": "a", "tool_calls": [1]}],
            "has tool_calls, which this model does not know; drop it",
        ),
        (
            part(type="audio"),
            r'messages\[0\]\.content\[0\] must be {"type": "text", "text": ...} or',
        ),
        (part(type="text", text=3), r'content\[0\] must be {"type": "text"'),
        (part(type="image_url", image_url="data:"), r'content\[0\] must be {"type": "text"'),
        (part(type=["text"], text="a"), r'content\[0\] must be {"type": "text"'),
        (part(type="image", image="owl.png"), r'content\[0\] must be {"type": "text"'),
        ([{"role": ["user"], "content": "a"}], "has a role of type list; it must be a text"),
        ([{"role": "user", "content": "a", 5: 1}], "has 5, which this model does not know"),
        (
            part(type="image_url", image_url={"url": "https://example.org/owl.png"}),
            "by the URL 'https://example.org/owl.png', and images are not fetched",
        ),
        (
            part(type="image_url", image_url={"url": "data:image/png;base64,b3d"}),
            r"messages\[0\]\.content\[0\]: The image's base64 text is broken",
        ),
    ],
)
def test_what_is_refused_says_where_and_why(messages, error):
    with pytest.raises(RequestError, match=error):
        messages_to_document(messages)


def test_parts_of_other_libraries():
    content = [
        {"type": "input_text", "text": "a"},
        {"type": "output_text", "text": "b"},
        {"type": "input_image", "image_url": "data:image/png;base64,YWJj"},
        {"type": "image", "image": b"def"},
    ]
    document = messages_to_document([{"role": "user", "content": content}])
    assert document.segments == (
        Text("a", "user"),
        Text("b", "user"),
        Image(b"abc", role="user"),
        Image(b"def", role="user"),
    )
