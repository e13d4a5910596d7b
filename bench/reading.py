"""Text and images of real pages as the reader takes them, against what a browser shows.

The pages are of manuals that Debian packages (``apt-get download``, unpacked into a cache, nothing
is installed) and of pages that Chromium saved. The oracle is headless Chromium with scripts off:
``innerText`` of the part that holds the content, with a mark at the place of each image that is
visible and no smaller than the reader's limits. Both become sequences of words and images, whose
longest common subsequence tells what is found in its place. Needs ``chromium``,
``chromium-driver`` and the extra ``browser``. Prints JSON and, with ``--out``, writes it.

What the rules leave out on purpose (navigation, controls of forms, permalinks, icons) is left out
of the oracle's content by the same words of the rule, and counted beside: ``words_of_page`` is the
share of all words that the whole page shows.
"""

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from pardalis.documents import Document, Image, PageOptions, Rejection, read_mhtml, svg
from pardalis.documents.readers._site import read_pages
from pardalis.documents.readers.html import page_of

_RENDERED: set[bytes] = set()  # drawings
_MARKED = re.compile(r"\ue000(\d+)\ue001|\w+")

# Hides what the rules leave out, and marks the place of each visible image.
_SCRIPT = """
const [selector, declared, least, isStrict] = arguments;
const roots = selector ? [...document.querySelectorAll(selector)]
    .filter(e => !e.parentElement.closest(selector)) : [document.body];
const hide = e => e.style.setProperty('display', 'none', 'important');
for (const d of document.querySelectorAll('details')) d.open = true;
if (isStrict) for (const root of roots) {
    root.querySelectorAll('nav, search, [role=navigation], [role=search], select, textarea, input,'
        + 'iframe, canvas, audio, video').forEach(hide);
    root.querySelectorAll('button').forEach(
        e => { if (!e.closest('h1,h2,h3,h4,h5,h6,summary')) hide(e); });
    root.querySelectorAll('header, footer').forEach(e => {
        if (!e.parentElement.closest('article, aside, main, section, figure, blockquote')) hide(e);
    });
    root.querySelectorAll('a[href^="#"]').forEach(e => {
        if (['', '#', '¶', '§'].includes(e.textContent.trim()) && !e.querySelector('img')) hide(e);
    });
    root.querySelectorAll('i[aria-hidden=true], span[aria-hidden=true]').forEach(hide);
    root.querySelectorAll('td.linenos, .lineno').forEach(hide);
}
const images = [];
for (const root of roots) for (const e of root.querySelectorAll('img, object[type^=image]')) {
    const box = e.getBoundingClientRect(), style = getComputedStyle(e);
    const sides = ['width', 'height'].map(n => /^[0-9.]+(px)?$/.test(e.getAttribute(n) || '')
        ? parseFloat(e.getAttribute(n)) : Infinity);
    const isSvg = /[.]svgz?([?#]|$)/.test(e.currentSrc || e.data || '');
    const natural = Math.min(e.naturalWidth || 0, e.naturalHeight || 0);
    if (!box.width || style.visibility == 'hidden' || Math.min(...sides) < declared) continue;
    if (e.tagName == 'IMG' && (!natural || (natural < least && !isSvg))) continue;
    const mark = document.createTextNode(' \\ue000' + images.length + '\\ue001 ');
    images.push(e.currentSrc || e.data);
    e.parentNode.insertBefore(mark, e);
}
const text = roots.map(e => e.innerText).join('\\n');
return [text, images];
"""


@dataclass(frozen=True)
class Site:
    """Pages of one manual."""

    package: str
    pages: str  # a glob below the package's root
    content: str  # CSS selector of what is no navigation
    kind: str  # what wrote the pages


SITES = (
    Site("gimp-help-en", "usr/share/gimp/2.0/help/en/*.html",
         "body > div:not(.navheader):not(.navfooter)", "DocBook"),
    Site("debian-handbook", "usr/share/doc/debian-handbook/html/en-US/*.html",
         "body > div:not(#banner)", "Publican"),
    Site("debian-handbook", "usr/share/doc/debian-handbook/html/ja-JP/*.html",
         "body > div:not(#banner)", "Publican, Japanese"),
    Site("python-sklearn-doc", "usr/share/doc/python-sklearn-doc/html/[!s]*/*.html",
         "#sk-page-content-wrapper", "Sphinx"),
    Site("python3.11-doc", "usr/share/doc/python3.11/html/*/*.html", "div[role=main]", "Sphinx"),
    Site("libeigen3-doc", "usr/share/doc/libeigen3-dev/html/*.html", "div.contents", "Doxygen"),
    Site("fltk1.3-doc", "usr/share/doc/fltk1.3-doc/HTML/*.html", "div.contents", "Doxygen"),
    Site("git-doc", "usr/share/doc/git-doc/*.html", "#content", "AsciiDoc"),
    Site("gnucash-docs", "usr/share/doc/gnucash-docs/gnucash-guide-en/*.html",
         "body > div:not(.navheader):not(.navfooter)", "DocBook"),
    Site("developers-reference", "usr/share/developers-reference/*.html", "div[role=main]",
         "Sphinx"),
    Site("libgtk-4-doc", "usr/share/doc/libgtk-4-doc/*/*.html", "#main",
         "gi-docgen"),
    Site("libcairo2-doc", "usr/share/gtk-doc/html/cairo/*.html",
         "body > div:not(.footer)", "gtk-doc"),
    Site("cppreference-doc-en-html", "usr/share/cppreference/doc/html/en/**/*.html", "#content",
         "MediaWiki"),
    Site("openjdk-17-doc", "usr/share/doc/openjdk-17-jre-headless/api/**/*.html", "main",
         "javadoc"),
    Site("rust-doc", "usr/share/doc/rust-doc/html/**/*.html", "main", "rustdoc"),
    Site("gnuplot-doc", "usr/share/doc/gnuplot/htmldocs/*.html", "body", "LaTeX2HTML"),
    Site("octave-doc", "usr/share/doc/octave/**/*.html", "body", "Texinfo"),
    Site("mkdocs-doc", "usr/share/doc/mkdocs/html/*/*.html", "div[role=main]", "MkDocs"),
)  # fmt: skip


def unpacked(package: str, cache: Path) -> Path:
    """Return the folder of a package's files, which is downloaded once."""
    folder = cache / package
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=cache) as work:
            subprocess.run(["apt-get", "download", "-q", package], cwd=work, check=True)
            [archive] = Path(work).glob("*.deb")
            subprocess.run(["dpkg", "-x", str(archive), str(folder)], check=True)
    return folder


def chosen(files: Sequence[Path], n: int) -> list[Path]:
    """Return pages at equal distances in a sorted list, without the smallest."""
    large = [file for file in sorted(files) if file.is_file() and file.stat().st_size > 4000]
    step = max(1, len(large) // n)
    return large[::step][:n]


def tokens(text: str, images: Sequence[str]) -> list[str]:
    """Return the words and images of a text in which images are marked."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return [
        f"image:{images[int(found[1])]}" if found[1] else found[0]
        for found in _MARKED.finditer(text)
    ]


def in_order(ours: Sequence[str], oracle: Sequence[str]) -> int:
    """Return the length of the longest common subsequence, by bits (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for at, token in enumerate(ours):
        places[token] = places.get(token, 0) | 1 << at
    whole = (1 << len(ours)) - 1
    row = whole
    for token in oracle:
        found = row & places.get(token, 0)
        row = ((row + found) | (row - found)) & whole
    return len(ours) - row.bit_count()


def words(sequence: Sequence[str]) -> list[str]:
    return [token for token in sequence if not token.startswith("image:")]


def of_document(document: Document | None) -> list[str]:
    """Return the words and images of a document."""
    parts, images = [], []
    for segment in document.segments if document else ():
        if isinstance(segment, Image):
            parts.append(f" \ue000{len(images)}\ue001 ")
            images.append(digest_of(segment.source))
        else:
            parts.append(segment.text)
    return tokens("".join(parts), images)


def digest_of(source: object) -> str:
    """Return what identifies an image; all drawings, which are rendered, are one."""
    content = source.read_bytes() if isinstance(source, Path) else bytes(source)  # type: ignore
    digest = hashlib.sha256(content).digest()
    return "drawing" if digest in _RENDERED else digest.hex()[:16]


def rendered(content: bytes, render: Callable[[bytes], bytes] = svg.render) -> bytes:
    """Render a drawing, and note what comes of it."""
    found = render(content)
    _RENDERED.add(hashlib.sha256(found).digest())
    return found


def shown_image(address: str) -> str:
    """Return the same of an image that the browser shows."""
    file = Path(unquote(urlsplit(address).path))
    if file.suffix.lower() in (".svg", ".svgz"):
        return "drawing"
    return digest_of(file) if file.is_file() else address


def read(page: Path, root: Path, options: PageOptions) -> Iterator[Document | Rejection]:
    """Read one page of a manual."""
    if page.suffix == ".mhtml":
        return read_mhtml(page, options)
    return read_pages(lambda: iter([page_of(page, root)]), options)


class Browser:
    """Headless Chromium without scripts of pages."""

    def __init__(self) -> None:
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,2000"):
            options.add_argument(flag)
        options.add_experimental_option(
            "prefs", {"profile.managed_default_content_settings.javascript": 2}
        )
        self._driver = webdriver.Chrome(options=options)
        self._driver.set_page_load_timeout(60)

    def shown(self, page: Path, selector: str, is_strict: bool) -> list[str]:
        """Return the words and images that a page shows; of a part without what rules leave out."""
        limits = PageOptions()
        self._driver.get(page.as_uri())
        text, images = self._driver.execute_script(
            _SCRIPT, selector, limits.declared_side, limits.min_side, is_strict
        )
        return tokens(text, [shown_image(each) for each in images])

    def save(self, page: Path, target: Path) -> None:
        """Save a page as the browser's menu does, into one file."""
        self._driver.get(page.as_uri())
        saved = self._driver.execute_cdp_cmd("Page.captureSnapshot", {"format": "mhtml"})
        target.write_bytes(saved["data"].encode())

    def close(self) -> None:
        self._driver.quit()


def measured(
    site: Site, pages: Sequence[tuple[Path, Path, str]], browser: Browser, root: Path
) -> dict[str, Any]:
    """Return what is found of some pages, and the worst of them.

    Args:
        pages: the file that is read, the one that the browser shows, and the selector of content.
    """
    sums: Counter[str] = Counter()
    worst: list[tuple[float, str]] = []
    seconds, n_bytes = 0.0, 0
    missing: Counter[str] = Counter()
    for page, original, content in pages:
        start = time.process_time()
        items = list(read(page, root, PageOptions(content=content)))
        seconds += time.process_time() - start
        n_bytes += page.stat().st_size
        whole = [i for i in read(page, root, PageOptions()) if isinstance(i, Document)]
        documents = [item for item in items if isinstance(item, Document)]
        ours = of_document(documents[0] if documents else None)
        oracle = browser.shown(original, content, is_strict=True)
        shown = browser.shown(original, "", is_strict=False)
        n_words = len(words(oracle))
        found = in_order(words(ours), words(oracle))
        placed = in_order(ours, oracle) - found
        recalled = (Counter(words(ours)) & Counter(words(oracle))).total()
        of_page = words(of_document(whole[0] if whole else None))
        sums.update(
            words=n_words, recalled=recalled, in_order=found, ours=len(words(ours)),
            images=len(oracle) - n_words, placed=placed, images_read=len(ours) - len(words(ours)),
            page_words=len(words(shown)),
            page_recalled=(Counter(of_page) & Counter(words(shown))).total(),
        )  # fmt: skip
        missing += Counter(words(oracle)) - Counter(words(ours))
        worst.append((found / max(1, n_words), page.name))
        for item in items:
            if isinstance(item, Rejection):
                sums[f"kind {item.kind}"] += getattr(item, "count", 1)
    share = lambda part, of: round(100 * sums[part] / max(1, sums[of]), 2)  # noqa: E731
    return {
        "site": site.package,
        "kind": site.kind,
        "pages": len(pages),
        "words": sums["words"],
        "word_recall_percent": share("recalled", "words"),
        "in_order_percent": share("in_order", "words"),
        "words_of_no_browser_percent": round(
            100 * (sums["ours"] - sums["recalled"]) / max(1, sums["ours"]), 2
        ),
        "images": sums["images"],
        "images_in_place_percent": share("placed", "images") if sums["images"] else None,
        "images_read": sums["images_read"],
        "whole_page_word_recall_percent": share("page_recalled", "page_words"),
        "mib_per_cpu_second": round(n_bytes / seconds / 2**20, 2),
        "counted": {k[5:]: n for k, n in sorted(sums.items()) if k.startswith("kind ")},
        "worst": [f"{name}: {100 * value:.1f}" for value, name in sorted(worst)[:2]],
        "missing": [f"{word} {n}" for word, n in missing.most_common(5)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/pardalis-pages").expanduser())
    parser.add_argument("--pages", type=int, default=8, help="of each site")
    parser.add_argument("--site", help="part of the name of the sites to measure")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    svg.render = rendered
    browser = Browser()
    results, to_save = [], []
    try:
        for site in SITES:
            if options.site and options.site not in site.package:
                continue
            root = unpacked(site.package, options.cache)
            pages = chosen(list(root.glob(site.pages)), options.pages)
            triples = [(page, page, site.content) for page in pages]
            results.append(measured(site, triples, browser, root))
            sys.stderr.write(json.dumps(results[-1]) + "\n")
            to_save += [triples[0], triples[-1]]
        saved = options.cache / "saved"
        saved.mkdir(exist_ok=True)
        of_saved = []
        for number, (_, page, content) in enumerate(to_save):
            target = saved / f"{number}.mhtml"
            browser.save(page, target)
            of_saved.append((target, page, content))
        by_browser = Site("saved by Chromium", "", "", "MHTML")
        results.append(measured(by_browser, of_saved, browser, saved))
    finally:
        browser.close()
    result = {"date": date.today().isoformat(), "sites": results}
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
