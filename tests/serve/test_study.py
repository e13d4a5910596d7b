"""The page of a study: what raters are sent, what they may send, and the page in a browser."""

import asyncio
import json
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from contextlib import closing
from http.client import HTTPConnection

import PIL.Image
import pytest
from browser import AXE, chromium

pytest.importorskip("fastapi", reason="the server needs FastAPI: pip install 'pardalis[serve]'")

from pardalis.documents import to_png
from pardalis.files import exclusive
from pardalis.serve import ServeConfig, listen
from pardalis.serve.server import AppServer
from pardalis.serve.study import STUDY_PAGE, create_study_app
from pardalis.studies.pairwise import Study


@pytest.fixture
def study(tmp_path):
    """Three items; model A says "first", model B says "second"."""
    folder = tmp_path / "study"
    (folder / "images").mkdir(parents=True)
    name = "0123456789abcdef.png"
    picture = PIL.Image.new("RGB", (4, 4), "red")
    (folder / "images" / name).write_bytes(to_png(picture))
    items = [
        {
            "prompt": [{"text": f"<b>prompt {n}</b>"}, {"image": name}],
            "answers": {"A": [{"text": f"first {n}"}, {"image": name}], "B": [{"text": "second"}]},
            "left": "BAB"[n],
            "category": "secret",
        }
        for n in range(3)
    ]
    models = {"A": "runs/mine", "B": "runs/theirs"}
    values = {"version": 1, "models": models, "seed": 7654321, "items": items}
    (folder / "study.json").write_text(json.dumps(values))
    return Study(folder)


class Site:
    """A study that is served in a thread."""

    def __init__(self, study, **options):
        config = ServeConfig(port=0, max_body_mib=1, **options)
        ready = threading.Event()

        def on_ready(url):
            self.url = url
            ready.set()

        self._server = AppServer(create_study_app(study, config), 1.0, on_ready)
        self._thread = threading.Thread(target=self._run, args=[config])
        self._thread.start()
        assert ready.wait(60)

    def _run(self, config):
        with listen(config) as listener:
            asyncio.run(self._server.serve(sockets=[listener]))

    def close(self):
        self._server.should_exit = True
        self._thread.join(60)
        assert not self._thread.is_alive()

    def send(self, method, path, body=None, kind="application/json", key=None):
        """Return status, headers and content of one request."""
        with closing(HTTPConnection(self.url.removeprefix("http://"), timeout=60)) as connection:
            content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            headers = {"Content-Type": kind} if kind else {}
            headers |= {"Authorization": f"Bearer {key}"} if key else {}
            connection.request(method, path, content, headers)
            response = connection.getresponse()
            return response.status, dict(response.headers), response.read()

    def judge(self, body, **options):
        status, _, content = self.send("POST", "/judgements", body, **options)
        return status, json.loads(content)


@pytest.fixture
def site(study):
    site = Site(study)
    yield site
    site.close()


@pytest.fixture
def closed(study):
    """A study that two keys open."""
    site = Site(study, api_keys=("first key", "second", "a+b&c%=", "a+b/c="))
    yield site
    site.close()


GOOD = {"rater": "Ada", "item": 0, "left": "fulfils", "right": "partially", "choice": "left"}


def test_a_judgement_is_resolved_on_the_server(site, study):
    assert site.judge(GOOD) == (200, {"items": 3, "judged": [0]})
    site.judge({**GOOD, "item": 1, "choice": "same"})
    first, second = study.judgements()[0]
    assert (first.fulfilment, first.choice) == ({"A": "partially", "B": "fulfils"}, "B")
    assert (second.fulfilment, second.choice) == ({"A": "fulfils", "B": "partially"}, "same")
    assert json.loads(site.send("GET", "/progress?rater=Ada")[2])["judged"] == [0, 1]
    assert json.loads(site.send("GET", "/progress?rater=Bob")[2])["judged"] == []


def test_nothing_that_is_sent_tells_the_model(site):
    site.judge(GOOD)
    sent = b""
    for path in ("/", "/study.js", "/progress?rater=Ada", "/items/0", "/items/1", "/items/2"):
        status, headers, content = site.send("GET", path)
        assert status == 200
        sent += content + str(headers).encode()
    for secret in (b"mine", b"theirs", b"7654321", b"secret", b'"A"', b'"B"', b"seed"):
        assert secret not in sent
    item = json.loads(site.send("GET", "/items/0")[2])
    assert (item["left"][0]["text"], item["right"][0]["text"]) == ("second", "first 0")
    assert item.keys() == {"prompt", "left", "right"}
    for path in ("/study.json", "/judgements.jsonl", "/../study.json", "/images/..%2fstudy.json"):
        assert site.send("GET", path)[0] in (400, 404, 405)
    status, headers, content = site.send("GET", "/images/0123456789abcdef.png")
    assert (status, headers["content-type"]) == (200, "image/png")
    assert b"tEXt" not in content


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"item": 3}, "The study has no item 3; its items are 0 to 2."),
        ({"item": -1}, "no item -1"),
        ({"item": "0"}, "item: input should be a valid integer"),
        ({"item": True}, "item: input should be a valid integer"),
        ({"rater": "a\nb"}, "name of a rater has 1 to 80 characters"),
        ({"rater": "x" * 300}, "rater: string should have at most 200"),
        ({"left": "A"}, "left: input should be"),
        ({"choice": "A"}, "choice: input should be"),
        ({"more": 1}, "more is not supported"),
    ],
)
def test_what_is_refused(site, study, changes, message):
    status, content = site.judge({**GOOD, **changes})
    assert status == 400
    assert message in content["error"]["message"]
    assert study.judgements() == ([], 0)


def test_bodies_that_are_none(site, study):
    for body in (b"", b"{", b"[]", b"3", b"\xff", b'{"rater": "\\ud800"}', b"[" * 100_000):
        assert site.judge(body)[0] == 400
    assert site.judge(b" " * (1 << 20) + b"{}")[0] == 413
    # A page of another site may send these without asking this one first.
    for kind in ("text/plain", "application/x-www-form-urlencoded", None):
        assert site.judge(GOOD, kind=kind)[0] == 400
    assert study.judgements() == ([], 0)


def test_many_raters_at_once(site, study):
    def judge(rater):
        for item in range(3):
            site.judge({**GOOD, "rater": rater, "item": item})

    threads = [threading.Thread(target=judge, args=[f"rater {n}"]) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found, n_damaged = study.judgements()
    assert (len(found), n_damaged) == (24, 0)


def test_the_page_is_within_the_policy(site):
    for path in ("/", "/study.js", "/study.css", "/look/style.css", "/look/dom.js"):
        status, headers, _ = site.send("GET", path)
        assert status == 200
        assert "script-src 'self';" in headers["content-security-policy"]
    assert site.send("GET", "/look/index.html")[0] == 404
    for path in STUDY_PAGE.iterdir():
        text = path.read_text()
        assert not re.search(r"https?:|//[a-z]+\.|@import|innerHTML|\beval\(", text), path.name
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=\"|<script(?! [^>]*src=)", text)


def test_without_a_key_nothing_of_the_study_is_told(closed, study):
    paths = ("/progress?rater=Ada", "/items/0", "/images/0123456789abcdef.png")
    for key in (None, "wrong", "first"):
        for path in paths:
            status, headers, content = closed.send("GET", path, key=key)
            assert (status, headers["www-authenticate"]) == (401, "Bearer")
            assert b"prompt" not in content
        assert closed.judge(GOOD, key=key)[0] == 401
    assert study.judgements() == ([], 0)
    for path in ("/", "/study.js", "/look/dom.js"):  # the page asks for the key
        assert closed.send("GET", path)[0] == 200
    for key in ("first key", "second"):
        for path in paths:
            assert closed.send("GET", path, key=key)[0] == 200
        assert closed.judge(GOOD, key=key)[0] == 200
    assert len(study.judgements()[0]) == 1


def test_the_command(study):
    command = [sys.executable, "-m", "pardalis", "study", "serve", study.folder, "--port", "0"]
    keys = study.folder.parent / "keys.txt"
    keys.write_text("one\n")
    command += ["--api-key-file", keys]
    process = subprocess.Popen(
        [*map(str, command), "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        said = json.loads(process.stdout.readline())
        assert said["items"] == 3
        request = urllib.request.Request(
            f"{said['url']}/items/0", headers={"Authorization": "Bearer one"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            assert json.load(response)["right"][0] == {"text": "first 0"}
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
        assert done.returncode == 75
        assert "Another process is running in" in done.stderr
        process.send_signal(signal.SIGTERM)
        log = process.communicate(timeout=60)[1]
        assert process.returncode == 0, log
    finally:
        process.kill()
        process.communicate()
    with exclusive(study.folder):
        pass


# ── in a browser ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("downloads")) as browser:
        yield browser


@pytest.fixture
def page(tab, site):
    """The page, which must cause no error in the console."""
    tab.complaints()
    tab.driver.get(site.url)
    yield tab
    assert tab.complaints() == []


def test_a_rater_judges_all_by_keys_and_comes_back(page, site, study):
    page.write("#rater", "Ada\ue007")  # Enter
    page.until(lambda: page.texts("#left") == ["second"])
    assert page.texts("#prompt-title") == ["Prompt 1"]
    assert page.texts("#prompt") == ["<b>prompt 0</b>"]  # as text
    for n, keys in enumerate(("1 5 7", "6 3 8", "2 2 4 9")):
        page.until(lambda n=n: page.texts("#prompt-title") == [f"Prompt {n + 1}"])
        page.until(lambda: page.find("#next").is_enabled())
        for key in keys.split():
            page.write("body", key)
        page.write("body", "\ue007")
        if n == 1:
            page.until(lambda: page.texts("#count") == ["2 of 3 judged"])
            page.driver.get(site.url)
            assert page.find("#rater").get_property("value") == "Ada"
            page.write("#rater", "\ue007")
    page.until(lambda: page.find("#done").is_displayed())
    said = [(each.item, each.fulfilment, each.choice) for each in study.judgements()[0]]
    assert said == [
        (0, {"B": "fulfils", "A": "partially"}, "B"),
        (1, {"A": "does not", "B": "does not"}, "same"),
        (2, {"B": "partially", "A": "fulfils"}, "A"),
    ]


def test_a_link_with_a_key_opens_the_study(tab, closed, study):
    tab.complaints()
    tab.driver.get(f"{closed.url}/#key=first%20key")
    assert tab.driver.current_url == f"{closed.url}/"  # the key left the address bar
    tab.write("#rater", "Ada\ue007")
    tab.until(lambda: tab.find("#item").is_displayed())
    assert tab.js("return document.querySelector('#prompt img').naturalWidth") == 4
    assert not tab.find("#key").is_displayed()
    tab.driver.get(closed.url)  # in the same tab, without the key
    tab.write("#rater", "\ue007")
    tab.until(lambda: tab.find("#item").is_displayed())
    assert tab.complaints() == []


@pytest.mark.parametrize("written", ["a+b/c=", "a%2Bb%2Fc%3D", "a+b&c%=", "a%2Bb%26c%25%3D"])
def test_a_key_with_signs_that_urls_know(tab, closed, written):
    tab.complaints()
    tab.driver.get("about:blank")
    tab.driver.get(f"{closed.url}/#key={written}")
    tab.write("#rater", "Ada\ue007")
    tab.until(lambda: tab.find("#item").is_displayed())
    assert tab.complaints() == []


def test_the_page_asks_for_the_key(tab, closed):
    tab.driver.get("about:blank")
    tab.driver.get(closed.url)
    tab.js("sessionStorage.clear()")
    tab.driver.refresh()
    assert not tab.find("#key").is_displayed()
    tab.write("#rater", "Ada\ue007")
    tab.until(lambda: tab.find("#key").is_displayed())
    assert tab.texts("#notice") == [
        "This study needs its key; enter it, or open the link that you were given."
    ]
    for key, shown in (("wrong", "#start"), ("second", "#item")):
        tab.until(lambda: tab.find("#start button").is_enabled())
        tab.js("document.querySelector('#key').value = ''")
        tab.write("#key", f"{key}\ue007")
        tab.until(lambda shown=shown: tab.find(shown).is_displayed())
        tab.until(lambda: tab.find("#start button").is_enabled())
    tab.until(lambda: tab.find("#item").is_displayed())
    tab.complaints()  # of the requests that were refused


def test_the_choice_waits_for_the_two_answers(page, study):
    page.write("#rater", "Ada\ue007")
    page.until(lambda: page.find("#item").is_displayed())
    page.until(lambda: page.find("#next").is_enabled())
    page.write("body", "7")
    page.write("body", "1")
    assert not page.find("#choice [value=left]").is_enabled()
    page.write("body", "\ue007")  # the browser says what is missing
    assert page.texts("#prompt-title") == ["Prompt 1"]
    assert study.judgements() == ([], 0)
    page.write("body", "4")
    page.until(lambda: page.find("#choice [value=left]").is_enabled())


@pytest.mark.skipif(not AXE.is_file(), reason="needs PARDALIS_AXE, axe.min.js of npm's axe-core")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_barrier_that_axe_finds(page, scheme):
    page.prefer(scheme)
    page.js(AXE.read_text())

    def check():
        found = page.driver.execute_async_script(
            "const done = arguments[0]; axe.run().then((all) => done(all.violations.map("
            "(one) => [one.id, one.impact, one.nodes.map((node) => node.html).join(' ')])))"
        )
        assert [one for one in found if one[1] in ("serious", "critical", "moderate")] == []

    check()
    page.write("#rater", "Ada\ue007")
    page.until(lambda: page.find("#next").is_enabled() and page.find("#item").is_displayed())
    check()
    page.write("body", "1")
    page.write("body", "4")
    check()
