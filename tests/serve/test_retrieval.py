"""Documents of an index before the prompts of requests; answers name them."""

import base64
import io
import json
from dataclasses import asdict

import numpy as np
import PIL.Image
import pytest
from indexed_documents import write_source
from small_nets import write_clip

import pardalis
from pardalis import Engine
from pardalis.documents import Text
from pardalis.retrieval import ClipConfig, IndexConfig, Retrieved, Retriever, build_index
from pardalis.serve.filters import Filters

CAPTIONS = ["an owl", "a fox", "an oak", "two owls", "the cat"]
CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
COMPLETIONS, IMAGES = "/v1/completions", "/v1/images/generations"


@pytest.fixture(scope="module")
def retriever(codec, tmp_path_factory) -> Retriever:
    folder = tmp_path_factory.mktemp("retrieval")
    embedder = ClipConfig(folder=write_clip(folder / "clip"))
    source = write_source(folder, "pairs", CAPTIONS, range(5))
    config = IndexConfig(embedder=embedder, document_tokens=40)
    return Retriever(build_index(folder / "index", [source], codec, config), 2, embedder=embedder)


@pytest.fixture(scope="module")
def server(served_bundle, running, retriever):
    with Engine(served_bundle, retriever=retriever) as engine, running(engine) as found:
        yield found


def names(retrieved) -> list[dict]:
    assert retrieved
    return [asdict(each) for each in retrieved]


def test_answers_are_those_of_generate_and_name_what_was_retrieved(
    server, served_bundle, retriever
):
    options = {"seed": 3, "temperature": 1.0}
    texts = {"mode": "text", "max_new_tokens": 5, "retriever": retriever, **options}
    status, found = server.post(
        COMPLETIONS, {"model": "tiny", "prompt": "a fox", "max_tokens": 5, "n": 2, **options}
    )
    assert status == 200
    expected = pardalis.generate(served_bundle, "a fox", **texts)
    assert found["choices"][0]["text"] == expected.text
    assert found["retrieved"] == names(expected.retrieved)
    turn = pardalis.generate(served_bundle, "a fox", chat=True, **texts)
    body = {"model": "tiny", "modalities": ["text"], **options}
    messages = [{"role": "user", "content": "a fox"}]
    _, found = server.post(CHAT, {**body, "messages": messages, "max_tokens": 5})
    assert found["choices"][0]["message"]["content"] == turn.text
    assert found["retrieved"] == names(turn.retrieved)
    _, found = server.post(RESPONSES, {**body, "input": "a fox", "max_output_tokens": 5})
    assert found["output"][0]["content"][0]["text"] == turn.text
    assert found["retrieved"] == names(turn.retrieved)
    image = pardalis.generate(served_bundle, "a fox", mode="image", seed=3, retriever=retriever)
    _, found = server.post(IMAGES, {"prompt": "a fox", "seed": 3})
    pixels = PIL.Image.open(io.BytesIO(base64.b64decode(found["data"][0]["b64_json"])))
    assert (np.asarray(pixels) == np.asarray(image.images[0].source)).all()
    assert found["retrieved"] == names(image.retrieved)


def test_streams_name_it_too(server):
    body = {"model": "tiny", "stream": True, "seed": 3, "modalities": ["text"]}
    messages = [{"role": "user", "content": "a fox"}]
    asked = {
        CHAT: {**body, "messages": messages, "max_tokens": 3},
        RESPONSES: {**body, "input": "a fox", "max_output_tokens": 3},
        COMPLETIONS: {"model": "tiny", "stream": True, "prompt": "a fox", "max_tokens": 3},
        IMAGES: {"stream": True, "prompt": "a fox", "partial_images": 0},
    }
    for path, content in asked.items():
        head = {"Content-Type": "application/json"}
        status, _, sent = server.send("POST", path, json.dumps(content).encode(), head)
        assert status == 200
        lines = [line.removeprefix("data: ") for line in sent.decode().splitlines()]
        events = [json.loads(line) for line in lines if line.startswith("{")]
        told = [e.get("response", e)["retrieved"] for e in events
                if "retrieved" in e.get("response", e)]  # fmt: skip
        assert len(told) == 1, path
        assert {each["source"] for each in told[0]} == {"pairs"}


def test_a_response_shows_on_demand_what_the_documents_hold(server, served_bundle, retriever):
    codec = served_bundle.codec
    body = {"model": "tiny", "input": "a fox", "modalities": ["text"], "max_output_tokens": 3}
    _, plain = server.post(RESPONSES, {**body, "seed": 3})
    asked = {**body, "seed": 3, "include": ["retrieved.content"]}
    status, found = server.post(RESPONSES, asked)
    assert status == 200 and found["output"][0]["content"] == plain["output"][0]["content"]
    shown = [each.pop("content") for each in found["retrieved"]]
    assert found["retrieved"] == plain["retrieved"]
    for content, each in zip(shown, plain["retrieved"], strict=True):
        document = retriever.content(Retrieved(**each), codec)
        for part, segment in zip(content, document.segments, strict=True):
            if isinstance(segment, Text):
                assert part == {"type": "input_text", "text": segment.text}
            else:
                encoded = part["image_url"].removeprefix("data:image/png;base64,")
                pixels = PIL.Image.open(io.BytesIO(base64.b64decode(encoded)))
                assert (np.asarray(pixels) == np.asarray(segment.source)).all()
    head = {"Content-Type": "application/json"}
    sent = server.send("POST", RESPONSES, json.dumps({**asked, "stream": True}).encode(), head)[2]
    events = [json.loads(line[6:]) for line in sent.decode().splitlines() if "data: {" in line]
    assert [each["content"] for each in events[-1]["response"]["retrieved"]] == shown


def test_filters_of_answers_leave_its_names_alone(served_bundle, running, retriever):
    passing = Filters(answers=[lambda part: None])
    body = {"model": "tiny", "prompt": "a fox", "max_tokens": 3}
    asked = {"model": "tiny", "input": "a fox", "modalities": ["text"], "max_output_tokens": 3,
             "include": ["retrieved.content"]}  # fmt: skip
    with (
        Engine(served_bundle, retriever=retriever) as engine,
        running(engine, filters=passing) as server,
    ):
        status, found = server.post(COMPLETIONS, body)
        shown = server.post(RESPONSES, asked)[1]
    assert (status, len(found["retrieved"])) == (200, 2)
    assert shown["retrieved"] == found["retrieved"]  # what no filter has judged is not shown


def test_the_last_turn_of_a_user_is_what_documents_are_retrieved_for(server, retriever):
    answered = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "an oak"}]
    body = {"model": "tiny", "modalities": ["text"], "max_tokens": 2, "seed": 3}
    alone = {**body, "messages": [{"role": "user", "content": "a fox"}]}
    _, first = server.post(CHAT, alone)
    _, later = server.post(CHAT, {**alone, "messages": [*answered, *alone["messages"]]})
    assert later["retrieved"] == first["retrieved"]


def test_a_prompt_for_which_nothing_can_be_retrieved(server):
    status, found = server.post(COMPLETIONS, {"model": "tiny", "prompt": "", "max_tokens": 2})
    assert status == 400
    assert "nothing can be retrieved for it" in found["error"]["message"]
    status, found = server.post(COMPLETIONS, {"model": "tiny", "prompt": "fox", "max_tokens": 90})
    assert status == 400
    assert "may be retrieved" in found["error"]["message"]
    assert str(server.service.engine.retriever.index.folder) not in found["error"]["message"]
