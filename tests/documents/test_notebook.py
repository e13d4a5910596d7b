"""What a notebook shows of documents and images: short, and without a way to inject anything."""

import base64
import io
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import PIL.Image
from hypothesis import given
from hypothesis import strategies as st

from pardalis.documents import Document, Image, Text

HOSTILE = "<script>alert(1)</script><img src=x onerror='a()'>\" & \ud800 \0"


class Tags(HTMLParser):
    """The tags with their attributes, and the text between them."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(content)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def shown(document: Document) -> Tags:
    content = document._repr_html_()
    assert content.encode()  # no half of a surrogate pair
    found = Tags(content)
    assert {tag for tag, _ in found.tags} <= {"div", "b", "i", "img"}
    assert {name for _, each in found.tags for name in each} <= {"style", "src", "alt"}
    return found


def test_text_is_escaped_and_keeps_its_lines():
    found = shown(Document((Text("a\n b", "user"), Text("c", "user"), Text(HOSTILE, "assistant"))))
    assert found.text == "usera\n bcassistant" + HOSTILE.replace("\ud800", "?")


def test_images_are_small_thumbnails():
    pixels = np.random.default_rng(0).integers(0, 256, (1200, 2000, 3), np.uint8)
    document = Document((Image(PIL.Image.fromarray(pixels), alt=HOSTILE),))
    [[_, attributes]] = [each for each in shown(document).tags if each[0] == "img"]
    head, _, body = attributes["src"].partition(",")
    assert head == "data:image/png;base64"
    assert PIL.Image.open(io.BytesIO(base64.b64decode(body))).size == (256, 154)
    assert attributes["alt"] == HOSTILE.replace("\ud800", "?")
    assert document.images[0]._repr_html_() in document._repr_html_()


def test_an_image_that_cannot_be_read_says_why():
    document = Document((Image(Path("<b>none.png")), Image(b"damaged"), Text("after")))
    text = shown(document).text
    assert "<b>none.png does not exist" in text
    assert "the image in memory is not an image of a kind that can be read" in text
    assert text.endswith("after")


def test_long_documents_are_cut():
    assert shown(Document((Text("a" * 5000), Text("b"), Text("c")))).text == (
        "a" * 4000 + "…and 2 more segments"
    )
    image = Image(PIL.Image.new("RGB", (8, 8)))
    found = shown(Document((image,) * 30))
    assert sum(tag == "img" for tag, _ in found.tags) == 12
    assert found.text == "and 18 more segments"


@given(st.lists(st.text(st.characters(codec=None), max_size=40), max_size=4))
def test_any_text(texts):
    shown(Document(tuple(map(Text, texts))))
