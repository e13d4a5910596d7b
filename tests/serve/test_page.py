"""The page, in a real browser, with a real engine whose steps can be slowed."""

import base64
import io
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch
from browser import AXE, Browser, chromium
from indexed_documents import write_source
from shapes import decoder_config
from small_nets import write_clip

from pardalis.bundle import Bundle
from pardalis.codec import Codec
from pardalis.documents import Document, Text
from pardalis.inference import Engine, EngineConfig
from pardalis.model import Decoder, initialise
from pardalis.retrieval import ClipConfig, IndexConfig, Retriever, RuleConfig, build_index
from pardalis.tokens import TextTokenizer
from pardalis.vq import ImageTokenizer, ImageTokenizerConfig

uvicorn = pytest.importorskip("uvicorn", reason="needs pip install 'pardalis[serve]'")

from pardalis.serve import ServeConfig, Service, create_app  # noqa: E402

PAGE = Path(__file__).parents[2] / "src" / "pardalis" / "serve" / "page"


class SlowEngine(Engine):
    """Waits before each step."""

    pause_s = 0.0

    def advance(self) -> None:
        time.sleep(self.pause_s)
        super().advance()


class Site:
    """A server with a tiny model, in a thread of this process."""

    def __init__(
        self, bundle: Bundle, config: ServeConfig, retriever: Retriever | None = None
    ) -> None:
        steps = EngineConfig(max_slots=4, steps_per_sync=8)  # so that images grow by rows
        self.engine = SlowEngine(bundle, steps, retriever=retriever)
        self.service = Service(self.engine, config, "tiny")
        self.cut_after: int | None = None  # parts of a response, after which its connection breaks
        self.bodies: list[dict[str, Any]] = []  # of the requests for responses
        self._app = create_app(self.service)
        self._server = uvicorn.Server(
            uvicorn.Config(self._serve, interface="asgi3", port=0, log_config=None)
        )
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        self.url = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"

    async def _serve(
        self, scope: Any, receive: Callable[..., Any], send: Callable[..., Any]
    ) -> None:
        parts = 0
        body = b""

        async def read() -> Any:
            nonlocal body
            message = await receive()
            if message["type"] == "http.request":
                body += message.get("body", b"")
                if not message.get("more_body") and scope["path"] == "/v1/responses":
                    self.bodies.append(json.loads(body))
            return message

        async def write(message: Any) -> None:
            nonlocal parts
            parts += message["type"] == "http.response.body"
            if scope["path"] == "/v1/responses" and parts == self.cut_after:
                raise RuntimeError("the connection is cut")
            await send(message)

        await self._app(scope, read, write)

    def close(self) -> None:
        self._server.should_exit = True
        self.service.abort_all()
        self._thread.join(30)
        self.service.close()
        self.engine.close()


@pytest.fixture(scope="module")
def bundle(text_tokenizer: TextTokenizer) -> Bundle:
    """64-pixel images of 8 rows; it writes noise."""
    config = ImageTokenizerConfig(
        resolution=64, patch_size=4, channels=8, channel_multipliers=(1, 2), n_res_blocks=1,
        norm_groups=4, z_channels=8, code_width=8, n_codes=32,
    )  # fmt: skip
    torch.set_num_threads(1)
    tokenizer = ImageTokenizer(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    codec = Codec.of(text_tokenizer, tokenizer)
    model = decoder_config(
        vocab_size=codec.vocabulary.size, context=600, d_model=32, n_layers=2, n_heads=4,
        n_kv_heads=2, d_ff=64, init_std=0.3,
    )  # fmt: skip
    return Bundle(initialise(Decoder(model), 0).eval(), codec, {})


@pytest.fixture
def sites(bundle: Bundle) -> Iterator[Callable[..., Site]]:
    opened: list[Site] = []

    def start(retriever: Retriever | None = None, **config: Any) -> Site:
        opened.append(Site(bundle, ServeConfig(partial_interval_s=0.0, **config), retriever))
        return opened[-1]

    yield start
    for site in opened:
        site.close()


@pytest.fixture
def site(sites: Callable[..., Site]) -> Site:
    """A server; its port is new, so that the browser has kept nothing of it."""
    return sites()


@pytest.fixture(scope="module")
def retriever(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Retriever:
    """Of documents of a text and an image."""
    folder = tmp_path_factory.mktemp("retrieval")
    embedder = ClipConfig(folder=write_clip(folder / "clip"))
    source = write_source(folder, "pairs", ["an owl", "a <b>fox</b>", "an oak"], range(3))
    index = build_index(folder / "index", [source], bundle.codec, IndexConfig(embedder=embedder))
    return Retriever(index, 2, embedder=embedder, rules=RuleConfig(max_score=1.0))


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def tab(downloads: Path) -> Iterator[Browser]:
    with chromium(downloads) as browser:
        yield browser


@pytest.fixture
def page(tab: Browser, site: Site) -> Iterator[Browser]:
    """The page of a server, which must cause no error in the console."""
    tab.complaints()
    tab.open(site.url)
    yield tab
    assert tab.complaints() == []
    tab.resize(1200, 800)
    tab.prefer("light")


def choose(page: Browser, selector: str, value: str) -> None:
    page.js(
        "const one = document.querySelector(arguments[0]); one.value = arguments[1];"
        "for (const kind of ['input', 'change']) one.dispatchEvent(new Event(kind))",
        selector, value,
    )  # fmt: skip


def send(
    page: Browser, text: str, mode: str = "text", *, wait: bool = True, most: int = 12
) -> None:
    choose(page, "#mode", mode)
    choose(page, "#setting-max_output_tokens", str(most) if mode == "text" else "")
    page.write("#prompt", f"{text}\ue007")  # Enter
    if wait:
        page.until(lambda: not page.find("#prompt").get_property("value"))
        finish(page)


def send_long(page: Browser) -> None:
    """Ask for a text of which the model writes 500 tokens, and do not wait for it."""
    choose_long(page)
    send(page, "go on", most=500, wait=False)


def choose_long(page: Browser) -> None:
    """Choose settings with which the model does not end its text early."""
    choose(page, "#setting-temperature", "2")
    choose(page, "#setting-seed", "1")


def finish(page: Browser) -> None:
    page.until(lambda: not page.find("#stop").is_displayed())


def shown(page: Browser, role: str) -> list[str]:
    return page.texts(f".message.{role} .text")


def drop(page: Browser, kind: str) -> None:
    """Drop or paste an image of 3 x 2 pixels."""
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (3, 2), "red").save(buffer, "PNG")
    page.js(
        """
        const bytes = Uint8Array.from(atob(arguments[0]), (one) => one.charCodeAt(0));
        const data = new DataTransfer();
        data.items.add(new File([bytes], `${arguments[1]}.png`, { type: "image/png" }));
        const more = { bubbles: true, cancelable: true };
        const target = document.getElementById("prompt");
        target.dispatchEvent(arguments[1] === "paste"
          ? new ClipboardEvent("paste", { ...more, clipboardData: data })
          : new DragEvent("drop", { ...more, dataTransfer: data }));
        """,
        base64.b64encode(buffer.getvalue()).decode(),
        kind,
    )


# ── without a browser ────────────────────────────────────────────────────────────────────────────


def test_nothing_is_loaded_from_elsewhere_or_read_as_html() -> None:
    files = [path for path in PAGE.iterdir() if path.suffix != ".svg"]
    assert {"index.html", "style.css", "main.js"} <= {path.name for path in files}
    for path in files:
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//[a-z]+\.|@import", text), path.name
        assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|\beval\(", text)
    html = (PAGE / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script(?! [^>]*src=)", html)


def test_each_file_is_asked_for_anew_and_within_the_policy(site: Site) -> None:
    from fastapi.testclient import TestClient

    client = TestClient(create_app(site.service))
    for path in ("/", "/main.js", "/style.css", "/icon.svg"):
        answer = client.get(path)
        assert answer.status_code == 200
        assert answer.headers["Cache-Control"] == "no-cache"
        assert "script-src 'self';" in answer.headers["Content-Security-Policy"]


# ── a conversation ───────────────────────────────────────────────────────────────────────────────


def test_a_text_streams_and_the_conversation_is_sent_as_items(page: Browser, site: Site) -> None:
    assert page.texts("#greeted") == ["tiny"]
    send(page, "first <b>line</b>")
    assert shown(page, "user") == ["first <b>line</b>"]  # no HTML
    [said] = shown(page, "assistant")
    assert said
    send(page, "second")
    assert [item["role"] for item in site.bodies[1]["input"]] == ["user", "assistant", "user"]
    assert site.bodies[1]["input"][1]["content"] == [{"type": "output_text", "text": said}]
    assert site.bodies[1]["modalities"] == ["text"]
    assert site.bodies[1]["max_output_tokens"] == 12
    choose(page, "#setting-reads", "last")
    send(page, "third")
    assert len(site.bodies[2]["input"]) == 1
    assert "complete: " in page.texts("#live")[0]


def test_shift_enter_starts_a_line(page: Browser) -> None:
    from selenium.webdriver.common.keys import Keys

    page.find("#prompt").send_keys("one", Keys.SHIFT + Keys.ENTER, Keys.NULL, "two")
    assert page.find("#prompt").get_property("value") == "one\ntwo"
    assert page.all(".message") == []


def test_an_image_grows_row_by_row_and_is_shown_large(page: Browser, site: Site) -> None:
    site.engine.pause_s = 0.15
    page.js(
        """
        window.seen = [];
        new MutationObserver(() => {
          const frame = document.querySelector(".assistant .frame");
          const state = frame && [frame.dataset.rows, frame.querySelector("img").src.length,
            document.querySelector("figcaption").textContent];
          if (state && state[0] !== window.seen.at(-1)?.[0]) window.seen.push(state);
        }).observe(document.getElementById("messages"),
          { subtree: true, childList: true, attributes: true });
        """
    )
    send(page, "a flat drawing of a deer", "image")
    seen = page.js("return window.seen")
    rows = [int(state[0]) for state in seen if state[0] not in ("all", "0")]
    assert len(rows) >= 3 and rows == sorted(set(rows))
    assert seen[-1][0] == "all"
    assert any(re.fullmatch(r"Writing row \d of 8", state[2]) for state in seen)
    image = page.find(".assistant img")
    assert image.get_property("naturalWidth") == 64 and image.size["width"] == 256
    assert image.value_of_css_property("image-rendering") == "pixelated"
    assert image.get_attribute("alt") == "Image generated for: a flat drawing of a deer"
    page.click(".assistant .frame")
    assert page.find("#viewer-image").is_displayed()
    assert re.fullmatch(r"tiny, seed \d+", page.find("#viewer-facts").text)
    page.write("#viewer", "\ue00c")  # Escape closes it


def test_text_and_images_in_both_directions(page: Browser, site: Site, tmp_path: Path) -> None:
    PIL.Image.new("RGB", (2000, 20), "blue").save(tmp_path / "wide.jpg")
    page.find("#files").send_keys(str(tmp_path / "wide.jpg"))
    page.until(lambda: len(page.all("#attachments img")) == 1)
    drop(page, "drop")
    page.until(lambda: len(page.all("#attachments img")) == 2)
    drop(page, "paste")
    page.until(lambda: len(page.all("#attachments img")) == 3)
    page.click("#attachments li:nth-child(2) button")
    send(page, "what is it?", "image")
    [item] = site.bodies[0]["input"]
    kinds = [part["type"] for part in item["content"]]
    assert kinds == ["input_image", "input_image", "input_text"]
    assert item["content"][0]["image_url"].startswith("data:image/jpeg;base64,")
    first = page.find(".user img")
    assert first.get_property("naturalWidth") == 1024  # made smaller before it is sent
    send(page, "and now?")
    called = site.bodies[1]["input"][1]
    assert called["type"] == "image_generation_call" and called["status"] == "completed"
    assert PIL.Image.open(io.BytesIO(base64.b64decode(called["result"]))).size == (64, 64)


def test_a_file_that_is_no_image(page: Browser, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("words")
    page.find("#files").send_keys(str(tmp_path / "notes.txt"))
    page.until(lambda: "notes.txt is no image" in page.find("#notice").text)


def test_stop_keeps_what_came(page: Browser, site: Site) -> None:
    site.engine.pause_s = 0.1
    send_long(page)
    page.until(lambda: "".join(shown(page, "assistant")))
    page.write("#prompt", "\ue00c")  # Escape
    finish(page)
    assert page.texts(".assistant .note") == ["Stopped."]
    assert shown(page, "assistant")[0]
    page.until(lambda: not site.service.open)
    send(page, "an image", "image", wait=False)
    page.until(lambda: page.all(".frame[data-rows='2']"))
    page.click("#stop")
    finish(page)
    assert re.fullmatch(r"Stopped at row \d of 8", page.texts(".assistant figcaption")[0])


def test_another_response_and_an_edited_message_are_branches(page: Browser, site: Site) -> None:
    send(page, "first")
    [one] = shown(page, "assistant")
    page.click(".assistant [aria-label='Another response']")
    page.until(lambda: page.texts(".assistant .versions") == ["2/2"])
    finish(page)
    [other] = shown(page, "assistant")
    assert other != one
    page.click("[aria-label='Earlier version']")
    assert shown(page, "assistant") == [one]
    page.click(".user [aria-label='Edit this message']")
    assert page.find("#prompt").get_property("value") == "first"
    send(page, " changed")
    assert shown(page, "user") == ["first changed"]
    assert page.texts(".user .versions") == ["2/2"]
    assert len(site.bodies[-1]["input"]) == 1
    page.click(".user [aria-label='Earlier version']")
    assert shown(page, "user") == ["first"]
    assert shown(page, "assistant") == [one] and page.texts(".assistant .versions") == ["1/2"]
    focused = page.js("return document.activeElement.ariaLabel")
    assert focused == "Later version"  # the keyboard stays where it was


def test_a_seed_repeats_a_response(page: Browser) -> None:
    choose(page, "#setting-seed", "7")
    choose(page, "#setting-temperature", "1")
    send(page, "again")
    page.click("#new")
    page.until(lambda: page.all(".message") == [])
    send(page, "again")
    [said] = shown(page, "assistant")
    page.click("#conversations li:last-child a")
    page.until(lambda: shown(page, "assistant") == [said])
    assert page.texts(".assistant .facts") == ["seed 7"]


def test_retrieved_documents_are_shown_below_the_response(
    tab: Browser, sites: Callable[..., Site], retriever: Retriever, downloads: Path
) -> None:
    site = sites(retriever)
    tab.open(site.url)
    send(tab, "a fox")
    expected = retriever.retrieved(retriever.find(Document((Text("a fox"),))))
    assert tab.texts(".retrieved summary") == [f"Read before: {len(expected)} documents"]
    assert tab.texts(".retrieved .facts") == [
        f"{each.name} (pairs), found by its {each.by}, score {each.score:.2f}" for each in expected
    ]
    assert not tab.find(".retrieved ol").is_displayed()
    tab.find(".retrieved summary").send_keys("\ue007")  # by the keyboard
    assert tab.find(".retrieved ol").is_displayed()
    read = [retriever.content(each, site.engine.bundle.codec).text for each in expected]
    assert tab.texts(".retrieved .read") == read and tab.all(".retrieved b") == []
    images = tab.all(".retrieved img")
    assert [image.get_attribute("alt") for image in images] == [
        f"Image of {each.name}" for each in expected
    ]
    assert all(image.get_property("naturalWidth") == 64 for image in images)
    images[0].click()
    assert tab.find("#viewer-facts").text == tab.texts(".retrieved .facts")[0]
    tab.click("#viewer .close")
    tab.driver.refresh()  # it is kept with the conversation
    tab.until(lambda: len(tab.all(".retrieved img")) == len(expected))
    tab.command("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
    tab.click("#manage")
    tab.click("#export-html")
    file = downloads / "a-fox.html"
    tab.until(file.exists)
    assert f"Read before: {expected[0].name} (pairs)" in tab.until(file.read_text)
    tab.click("#manager .close")
    assert tab.complaints() == []


# ── what is kept ─────────────────────────────────────────────────────────────────────────────────


def test_conversations_are_kept_renamed_and_deleted(page: Browser, site: Site) -> None:
    send(page, "a flat drawing of a deer", "image")
    source = page.find(".assistant img").get_attribute("src")
    page.driver.refresh()
    page.until(lambda: page.all(".assistant img"))
    assert page.find(".assistant img").get_attribute("src") == source
    assert page.find("#mode").get_property("value") == "image"
    page.click("#manage")
    page.find("#name").clear()
    page.write("#name", "Deer\ue007")
    page.until(lambda: page.texts("#conversations a") == ["Deer"])
    page.click("#new")
    page.until(lambda: page.find("#empty").is_displayed())
    send(page, "another")
    page.until(lambda: page.texts("#conversations a") == ["another", "Deer"])
    page.click("#manage")
    page.click("#delete")
    page.click("#delete")  # it asks once
    page.until(lambda: page.texts("#conversations a") == ["Deer"])
    page.open(site.url)
    page.until(lambda: page.texts("#conversations a") == ["Deer"])


def test_a_reload_keeps_what_was_written(page: Browser, site: Site) -> None:
    site.engine.pause_s = 0.1
    send_long(page)
    page.until(lambda: len("".join(shown(page, "assistant"))) > 20)
    time.sleep(1.2)  # it is saved each second
    page.driver.refresh()
    page.until(lambda: page.texts(".assistant .note") == ["Stopped."])
    assert "".join(shown(page, "assistant"))


def test_without_room_the_page_says_so_and_goes_on(page: Browser, site: Site) -> None:
    page.command("Storage.overrideQuotaForOrigin", origin=site.url, quotaSize=1)
    send(page, "first")
    page.until(lambda: "no room left" in page.find("#notice").text)
    assert shown(page, "assistant")[0]


@pytest.mark.parametrize(("button", "ending"), [("html", "html"), ("markdown", "md")])
def test_export(page: Browser, downloads: Path, button: str, ending: str) -> None:
    page.command("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
    send(page, f"<i>an owl</i> {button}", "image")
    page.click("#manage")
    page.click(f"#export-{button}")
    file = downloads / f"i-an-owl-i-{button}.{ending}"
    page.until(file.exists)
    text = page.until(file.read_text)
    assert "data:image/png;base64,iVBOR" in text
    escaped = "&lt;i&gt;an owl&lt;/i&gt;" if ending == "html" else r"\<i\>an owl\</i\>"
    assert escaped in text and "<i>" not in text
    page.click("#manager .close")


# ── errors ───────────────────────────────────────────────────────────────────────────────────────


def test_a_lost_connection_is_said_and_the_text_stays(page: Browser, site: Site) -> None:
    site.engine.pause_s = 0.05
    site.cut_after = 8
    choose_long(page)
    send(page, "go on", most=300)
    assert "connection to the server was lost" in page.find("#notice").text
    assert page.texts(".assistant .note") == ["The connection was lost here."]
    assert shown(page, "assistant")[0]
    site.cut_after, site.engine.pause_s = None, 0.0
    choose(page, "#setting-max_output_tokens", "9")
    page.click("#notice .link")  # try again
    page.until(lambda: page.texts(".assistant .versions") == ["2/2"])
    finish(page)
    assert page.find("#notice").text == ""
    assert all("INCOMPLETE" in message for message in page.complaints())


def test_a_full_context_is_said_with_what_to_do(page: Browser) -> None:
    send(page, "hello")
    send(page, "words " * 300)
    assert "fills the model's context" in page.find("#notice").text
    assert page.find("#notice .link").text == "Let the model read only the last message"
    assert all("400" in message for message in page.complaints())


def test_a_key_is_asked_for_and_sent(tab: Browser, sites: Callable[..., Site]) -> None:
    site = sites(api_keys=("secret",))
    tab.driver.get(site.url)
    tab.until(lambda: "needs its API key" in tab.find("#notice").text)
    tab.click("#notice .link")
    tab.write("#setting-api_key", "secret")
    tab.click("#settings footer .filled")
    tab.until(lambda: tab.texts("#model option") == ["tiny"])
    send(tab, "hello")
    assert shown(tab, "assistant")[0]
    assert "secret" not in tab.js("return JSON.stringify(localStorage)")
    assert all("401" in message for message in tab.complaints())


# ── the gallery ──────────────────────────────────────────────────────────────────────────────────


def test_a_refusal_is_shown_and_left_out_of_what_follows(
    tab: Browser, sites: Callable[..., Site], tmp_path: Path
) -> None:
    (tmp_path / "words.txt").write_text("sesame")
    site = sites(request_filters=(f"blocklist:{tmp_path / 'words.txt'}",))
    tab.open(site.url)
    send(tab, "open, sesame")
    [said] = tab.texts(".message.assistant .text.refusal")
    assert said == "The text has a word or phrase that this server refuses."
    assert tab.texts(".message.assistant .note") == ["Refused by a filter of this server."]
    send(tab, "an owl")
    assert len(tab.texts(".message.assistant .text.refusal")) == 1
    [item] = site.bodies[-1]["input"]
    assert item["content"] == [{"type": "input_text", "text": "an owl"}]


def test_gallery(page: Browser, site: Site) -> None:
    site.engine.pause_s = 0.02
    page.click("#open-gallery")
    choose(page, "#gallery-count", "6")
    choose(page, "#gallery-seed", "40")
    page.write("#gallery-prompt", "a flat drawing of a deer\ue007")
    page.until(lambda: len(page.all(".tiles .frame.written")) == 6)
    assert page.texts(".tiles .facts") == [f"seed {40 + n}" for n in range(6)]
    sources = page.js("return [...document.querySelectorAll('.tiles img')].map((one) => one.src)")
    assert len(set(sources)) == 6
    page.until(lambda: page.find("#gallery-go").is_displayed())
    page.click(".tiles li:nth-child(3) .frame")
    assert page.find("#viewer-facts").text == "tiny, seed 42"
    page.click("#viewer-on")
    assert page.find("#viewer-facts").text == "tiny, seed 43"
    page.command("Browser.setDownloadBehavior", behavior="deny")
    page.click("#viewer-save")
    page.click("#viewer .close")
    site.engine.pause_s = 0.2
    page.click("#gallery-go")
    page.until(lambda: page.all(".frame[data-rows='2']"))
    page.click("#gallery-stop")
    page.until(lambda: page.find("#gallery-go").is_displayed())
    assert len(page.all(".tiles .frame.written")) < 12


# ── for everybody ────────────────────────────────────────────────────────────────────────────────


def test_light_and_dark(page: Browser) -> None:
    def ground() -> float:
        colour = page.js("return getComputedStyle(document.body).backgroundColor")
        return float(re.search(r"\(([\d.]+)", colour)[1])  # lightness

    page.prefer("light")
    assert ground() > 0.9
    page.prefer("dark")
    assert ground() < 0.3
    page.js("document.querySelector('[name=theme][value=light]').click()")
    assert ground() > 0.9
    page.driver.refresh()
    page.until(lambda: ground() > 0.9)


def test_a_phone(page: Browser) -> None:
    page.resize(360, 640)
    send(page, "a" * 200 + " flat drawing", "image")
    wide = "return document.documentElement.scrollWidth"
    assert page.js(wide) <= 360
    assert page.js("return document.getElementById('sidebar').inert")
    page.click("#menu")
    page.until(lambda: page.js("return document.activeElement.id") == "new")
    page.write("#new", "\ue00c")
    assert page.js("return document.activeElement.id") == "menu"
    page.click("#open-settings")
    assert page.js(wide) <= 360
    page.click("#settings footer .filled")
    page.click("#menu")
    page.until(lambda: page.find("#open-gallery").is_displayed())
    page.until(lambda: page.find("#sidebar").location["x"] == 0)
    page.click("#open-gallery")
    page.write("#gallery-prompt", "a deer\ue007")
    page.until(lambda: page.all(".tiles .frame.written"))
    assert page.js(wide) <= 360
    page.until(lambda: page.find("#gallery-go").is_displayed())


def test_the_keyboard_reaches_everything_in_order(page: Browser) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    page.js("document.body.tabIndex = -1; document.body.focus()")
    order = []
    for _ in range(8):
        ActionChains(page.driver).send_keys("\ue004").perform()  # Tab
        order.append(page.js("const one = document.activeElement; return one.id || one.className"))
    assert order[:3] == ["skip", "new", "open-gallery"]
    assert order.index("model") < order.index("manage") < order.index("open-settings")
    page.find(".skip").send_keys("\ue007")
    assert page.js("return document.activeElement.id") == "prompt"


@pytest.mark.skipif(not AXE.is_file(), reason="needs PARDALIS_AXE, axe.min.js of npm's axe-core")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_barrier_that_axe_finds(
    tab: Browser, sites: Callable[..., Site], retriever: Retriever, scheme: str
) -> None:
    page = tab
    page.open(sites(retriever).url)
    page.prefer(scheme)
    page.js(AXE.read_text())

    def check() -> None:
        found = page.driver.execute_async_script(
            "const done = arguments[0]; axe.run().then((all) => done(all.violations.map("
            "(one) => [one.id, one.impact, one.nodes.map((node) => node.html).join(' ')])))"
        )
        assert [one for one in found if one[1] in ("serious", "critical", "moderate")] == []

    check()
    send(page, "hello")
    send(page, "an image", "image")
    page.click(".retrieved summary")
    check()
    page.click("#open-settings")
    check()
    page.click("#settings footer .filled")
    page.click("#manage")
    check()
    page.click("#manager .close")
    page.click("#open-gallery")
    page.write("#gallery-prompt", "a deer\ue007")
    page.until(lambda: len(page.all(".tiles .frame.written")) == 6)
    page.until(lambda: page.find("#gallery-go").is_displayed())
    check()
