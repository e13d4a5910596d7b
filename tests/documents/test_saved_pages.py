"""Pages that a browser saved into one file, and books: whole, damaged and hostile ones."""

import base64
import io
import struct
import zipfile
from email.message import EmailMessage

import hostile
import PIL.Image
import pytest

from pardalis.documents import (
    Document,
    Omission,
    PageOptions,
    Rejection,
    read_epub,
    read_html,
    read_mhtml,
)
from pardalis.documents.readers import epub


@pytest.fixture(autouse=True)
def bounded():
    with hostile.limits(seconds=30):
        yield


NESTED = b"".join(
    b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (i, i) for i in range(9999)
)


def kept(items):
    return [item for item in items if not isinstance(item, Omission)]


def test_pages_of_other_readers_in_a_folder_are_left_out_by_name(tmp_path):
    (tmp_path / "a.html").write_text("<p>An owl.")
    (tmp_path / "b.mhtml").write_bytes(b"x")
    (tmp_path / "c.epub").write_bytes(b"x")
    document, *rest = read_html(tmp_path)
    assert document.text == "An owl." and all(isinstance(each, Omission) for each in rest)
    assert [each.kind for each in rest] == ["other-reader"] * 2
    assert rest[0].reason.endswith("b.mhtml looks like a saved page; reader = 'mhtml' reads it.")
    assert rest[1].reason.endswith("c.epub looks like a book; reader = 'epub' reads it.")
    assert [each.kind for each in read_epub(tmp_path)] == [
        "other-reader", "other-reader", "unreadable-book",
    ]  # fmt: skip


# ── MHTML ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def saved(tmp_path, encode):
    """Write a page with parts as a browser saves it: saved(page, charset) gives its path."""

    def run(page: str, charset: str = "utf-8", name: str = "page.mhtml"):
        message = EmailMessage()
        message["Snapshot-Content-Location"] = "https://owls.example/barn/index.html"
        message.make_related()
        red = encode(PIL.Image.new("RGB", (60, 60), "red"))
        of_page = f"text/html; charset={charset}"
        parts = [
            ("text/css", "https://owls.example/a.css", b"p{}"),
            ("text/html", "https://owls.example/frame.html", b"<p>a frame</p>"),
            (of_page, "https://owls.example/barn/index.html", page.encode(charset)),
            ("image/png", "https://owls.example/owl.png", red),
            ("image/png", "", red),
        ]
        for number, (kind, place, content) in enumerate(parts):
            part = EmailMessage()
            part["Content-Type"] = kind
            part["Content-Transfer-Encoding"] = "base64"
            if place:
                part["Content-Location"] = place
            part["Content-ID"] = f"<part{number}@owls>"
            part.set_payload(base64.encodebytes(content).decode())
            message.attach(part)
        path = tmp_path / name
        path.write_bytes(message.as_bytes())
        return path

    return run


def test_a_page_saved_by_a_browser(saved):
    path = saved(
        """<nav>menu</nav><p>Größe</p><img src="../owl.png"><img src="cid:part4@owls">
        <img src="gone.png"><img src="/owl.png" alt="again">""",
        "iso-8859-1",
    )
    rejection, document, omission = read_mhtml(path)
    assert rejection.kind == "remote-image" and "without this image" in rejection.reason
    assert document.text.strip() == "Größe" and document.name == "page.mhtml"
    assert len(document.images) == 3 and document.images[2].alt == "again"
    assert omission.kind == "navigation"


def test_a_folder_of_saved_pages_has_options(saved, tmp_path):
    saved("<div id=a>An owl.</div>b", name="b.mht")
    saved("<div id=a>A newt.</div>b")
    (tmp_path / "no.html").write_text("x")
    documents = kept(read_mhtml(tmp_path, PageOptions(content="#a")))
    assert [document.text for document in documents] == ["An owl.", "A newt."]


def test_a_page_that_is_its_only_part(tmp_path):
    head = b"MIME-Version: 1.0\nContent-Type: text/html; charset=windows-1251\n\n"
    (tmp_path / "a.mht").write_bytes(head + "<p>Сова".encode("cp1251"))
    [document] = read_mhtml(tmp_path)
    assert document.text == "Сова"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not MHTML"),
        (b"<p>a page</p>", "not MHTML"),
        (b"Content-Type: text/html\n\n<p>x", "not MHTML"),
        (b"Content-Type: multipart/related\n\n<p>x", "not MHTML"),
        (b"Content-Type: multipart/related; boundary=b\n\n--b\n\nx\n--b--", "not MHTML"),
        (NESTED, "nested"),
        (b"\0" * 5000, "not MHTML"),
    ],
)
def test_what_is_no_saved_page_is_rejected(tmp_path, content, reason):
    (tmp_path / "a.mhtml").write_bytes(content)
    [rejection] = read_mhtml(tmp_path)
    assert rejection.kind == "unreadable-page" and reason in rejection.reason


def test_a_saved_page_cut_anywhere_is_read_or_rejected(saved):
    path = saved("<p>Größe</p><img src='../owl.png'>")
    content = path.read_bytes()
    for end in range(0, len(content), 97):
        path.write_bytes(content[:end])
        assert all(isinstance(item, Document | Rejection) for item in read_mhtml(path))


# ── EPUB ─────────────────────────────────────────────────────────────────────────────────────────

CONTAINER = '<container><rootfiles><rootfile full-path="OEBPS/a.opf"/></rootfiles></container>'
PACKAGE = """<package xmlns="http://www.idpf.org/2007/opf" xmlns:dc="http://purl.org/dc/elements/1.1/">
<metadata><dc:rights>CC BY 4.0</dc:rights></metadata><manifest>
<item id="nav" href="nav.xhtml" media-type="application/xhtml+xml" properties="nav"/>
<item id="two" href="text/two%20owls.xhtml" media-type="application/xhtml+xml"/>
<item id="one" href="text/one.xhtml" media-type="application/xhtml+xml"/>
<item id="cover" href="owl.png" media-type="image/png"/></manifest>
<spine><itemref idref="nav"/><itemref idref="one"/><itemref idref="two"/>{more}</spine></package>"""
ENCRYPTION = """<encryption xmlns:enc="http://www.w3.org/2001/04/xmlenc#"><enc:CipherData>
<enc:CipherReference URI="OEBPS/text/one.xhtml"/></enc:CipherData></encryption>"""
ONE = '<html xmlns="http://www.w3.org/1999/xhtml"><head><title/></head><body>{}</body></html>'


@pytest.fixture
def book(tmp_path, encode):
    """Write a book: book({name: content or None}) changes its files; gives its items."""
    red = encode(PIL.Image.new("RGB", (60, 60), "red"))

    def run(changes=(), compression=zipfile.ZIP_DEFLATED):
        files = {
            "mimetype": b"application/epub+zip",
            "META-INF/container.xml": CONTAINER,
            "OEBPS/a.opf": PACKAGE.format(more=""),
            "OEBPS/nav.xhtml": ONE.format("contents"),
            "OEBPS/text/one.xhtml": ONE.format('<p>One.</p><img src="../owl.png"/>'),
            "OEBPS/text/two owls.xhtml": ONE.format("<p>Two<a id='x'/>.</p>"),
            "OEBPS/owl.png": red,
        } | dict(changes)
        with zipfile.ZipFile(tmp_path / "a.epub", "w", compression) as archive:
            for name, content in files.items():
                if content is not None:
                    archive.writestr(name, content)
        return kept(read_epub(tmp_path))

    return run


def test_the_chapters_of_a_book_come_in_order(book):
    one, two = book()
    assert (one.name, two.name) == (
        "a.epub/OEBPS/text/one.xhtml",
        "a.epub/OEBPS/text/two owls.xhtml",
    )
    assert (one.text, two.text) == ("One.\n", "Two.")
    assert len(one.images) == 1 and one.licence == "CC BY 4.0"


def test_a_chapter_is_read_once_and_found_as_its_name_looks(book, tmp_path):
    package = PACKAGE.replace("text/one.xhtml", "Text/One.XHTML#start")
    again = '<itemref idref="one"/><itemref idref="two"/>'
    assert len(book({"OEBPS/a.opf": package.format(more=again)})) == 2
    assert "navigation" in {getattr(item, "kind", "") for item in read_epub(tmp_path)}


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("../../../../etc/hostname", "outside-image"),
        ("/etc/hostname", "missing-image"),
        ("file:///etc/hostname", "missing-image"),
        ("https://x.example/a.png", "remote-image"),
        ("gone.png", "missing-image"),
        ("", "missing-image"),
        ("../text/one.xhtml", "unreadable-image"),
        ("http://[", "missing-image"),
        ("a%00b.png", "missing-image"),
    ],
)
def test_images_outside_a_book_are_not_read(book, address, kind):
    rejection, document, _ = book({"OEBPS/text/one.xhtml": ONE.format(f'x<img src="{address}"/>')})
    assert rejection.kind == kind and document.text == "x"


@pytest.mark.parametrize(
    ("changes", "kind", "reason"),
    [
        ({"META-INF/container.xml": None}, "unreadable-book", "no EPUB"),
        ({"META-INF/container.xml": "<container/>"}, "unreadable-book", "names no package"),
        ({"META-INF/container.xml": "<container"}, "unreadable-book", "not sound XML"),
        (
            {"META-INF/container.xml": CONTAINER.replace("OEBPS/", "../../")},
            "unreadable-book",
            "no file",
        ),
        ({"OEBPS/a.opf": None}, "unreadable-book", "no file 'OEBPS/a.opf'"),
        ({"OEBPS/a.opf": b"\xff\xfe\0"}, "unreadable-book", "not sound XML"),
        ({"OEBPS/a.opf": "<a>" * 5000}, "unreadable-book", "not sound XML"),
        ({"OEBPS/text/one.xhtml": None}, "missing-chapter", "does not hold"),
        (
            {"OEBPS/a.opf": PACKAGE.format(more='<itemref idref="no"/>')},
            "missing-chapter",
            "does not hold",
        ),
        ({"OEBPS/text/one.xhtml": b""}, "unreadable-page", "it is empty"),
        ({"OEBPS/a.opf": "<package><manifest/></package>"}, "unreadable-book", "no chapters"),
        (
            {"OEBPS/a.opf": PACKAGE.format(more='<itemref idref="cover"/>')},
            "unread-chapter",
            "of the type 'image/png'",
        ),
        (
            {"META-INF/encryption.xml": ENCRYPTION, "OEBPS/text/one.xhtml": bytes(range(256))},
            "unreadable-page",
            "it is encrypted",
        ),
        ({"OEBPS/text/one.xhtml": ONE.format("<div>" * 50_000)}, "unreadable-page", "nested"),
    ],
)
def test_a_damaged_book_is_counted(book, changes, kind, reason):
    found = [item for item in book(changes) if isinstance(item, Rejection)]
    assert [item.kind for item in found] == [kind]
    assert reason in found[0].reason and found[0].reason.endswith(".")


def test_what_unpacks_to_too_much_is_refused(book, monkeypatch):
    monkeypatch.setattr(epub, "_MOST_BYTES", 1 << 20)
    rejection, _ = book({"OEBPS/text/one.xhtml": b"\0" * (1 << 21)})
    assert "unpacks to too many bytes" in rejection.reason
    monkeypatch.setattr(epub, "_MOST_FILES", 5)
    [rejection] = book()
    assert "more than 5 files" in rejection.reason


def test_a_size_that_an_archive_states_is_not_believed(book, tmp_path):
    book(compression=zipfile.ZIP_STORED)
    path = tmp_path / "a.epub"
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\1\2", content.index(b"PK\1\2") + 4)
    struct.pack_into("<II", content, at + 20, 0xFFFFFFF0, 0xFFFFFFF0)
    path.write_bytes(content)
    assert all(isinstance(item, Document | Rejection) for item in read_epub(path))


def test_an_encrypted_book_is_named_so(book, tmp_path):
    book()
    path = tmp_path / "a.epub"
    content = bytearray(path.read_bytes())
    at = 0
    while (at := content.find(b"PK\1\2", at)) >= 0:
        content[at + 8] |= 1
        at += 4
    path.write_bytes(content)
    [rejection] = read_epub(path)
    assert "encrypted" in rejection.reason


def test_a_book_cut_anywhere_is_read_or_rejected(book, tmp_path):
    book()
    content = (tmp_path / "a.epub").read_bytes()
    for end in range(0, len(content), 53):
        (tmp_path / "a.epub").write_bytes(content[:end])
        [item] = read_epub(tmp_path)
        assert isinstance(item, Rejection) and item.kind == "unreadable-book"
    for at in range(0, len(content), 29):
        (tmp_path / "a.epub").write_bytes(content[:at] + b"\xff" + content[at + 1 :])
        assert all(isinstance(item, Document | Rejection) for item in read_epub(tmp_path))


def test_a_file_that_is_no_archive(tmp_path):
    (tmp_path / "a.epub").write_bytes(b"PK\3\4 no archive")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w"):
        pass
    (tmp_path / "b.epub").write_bytes(buffer.getvalue())
    assert [item.kind for item in read_epub(tmp_path)] == ["unreadable-book"] * 2


def test_what_books_repeat_is_left_out(book, tmp_path):
    more = "".join(f'<itemref idref="i{n}"/>' for n in range(6))
    items = "".join(
        f'<item id="i{n}" href="{n}.xhtml" media-type="application/xhtml+xml"/>' for n in range(6)
    )
    package = PACKAGE.format(more=more).replace("</manifest>", f"{items}</manifest>")
    chapters = {
        f"OEBPS/{n}.xhtml": ONE.format(f"<p>Chapter {n}.</p><p>A book.</p>") for n in range(6)
    }
    book({"OEBPS/a.opf": package, **chapters})
    documents = [
        item
        for item in read_epub(tmp_path, PageOptions(repeated=0.5))
        if isinstance(item, Document)
    ]
    assert [document.text for document in documents[2:]] == [f"Chapter {n}." for n in range(6)]
