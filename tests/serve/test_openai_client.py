"""OpenAI's own client on every endpoint, streaming and not."""

import base64
import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import pardalis
from pardalis.documents import Document, Image, Text
from pardalis.serve.chat import image_part
from pardalis.serve.service import WholeImage

openai = pytest.importorskip("openai", reason="the client of OpenAI is not installed")

USER = [{"role": "user", "content": "an owl"}]
IMAGE_ONLY = {"modalities": ["image"]}


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def picture() -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(noise).save(buffer, format="PNG")
    return buffer.getvalue()


def data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def pixels(png: bytes | str) -> list:
    content = base64.b64decode(png.rpartition(",")[2]) if isinstance(png, str) else png
    return np.asarray(PIL.Image.open(io.BytesIO(content))).tolist()


def drawn(response: pardalis.Response) -> list:
    return [np.asarray(image.source).tolist() for image in response.images]


def test_models(client):
    assert [model.id for model in client.models.list().data] == ["tiny"]
    assert client.models.retrieve("tiny").context == 96


# ── chat ─────────────────────────────────────────────────────────────────────────────────────────


def test_chat_gives_the_answer_of_generate(client, served_bundle):
    expected = pardalis.generate(
        served_bundle, "an owl", chat=True, max_new_tokens=40, seed=3, temperature=1.2
    )
    found = client.chat.completions.create(
        model="tiny", messages=USER, max_tokens=40, seed=3, temperature=1.2
    )
    [choice] = found.choices
    parts = choice.message.content_parts
    kinds = ["image_url" if isinstance(s, Image) else "text" for s in expected.segments]
    assert [part["type"] for part in parts] == kinds
    assert choice.message.content == expected.text
    assert [pixels(p["image_url"]["url"]) for p in parts if p["type"] != "text"] == drawn(expected)
    assert len(choice.message.images if kinds.count("image_url") else []) == len(expected.images)
    assert choice.finish_reason == ("length" if expected.reason == "length" else "stop")
    used, own = found.usage, expected.usage
    assert (used.prompt_tokens, used.completion_tokens) == (
        own.prompt_tokens,
        own.completion_tokens,
    )
    assert used.completion_tokens_details.image_tokens == own.completion_image_tokens
    assert found.seed == 3


@pytest.mark.parametrize("seed", [1, 2])
def test_chunks_join_to_the_completion(client, seed):
    arguments = {"model": "tiny", "messages": USER, "max_tokens": 60, "seed": seed, "n": 2,
                 "temperature": 1.0}  # fmt: skip
    whole = client.chat.completions.create(**arguments)
    chunks = list(
        client.chat.completions.create(
            **arguments, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[-1].usage == whole.usage
    for choice in whole.choices:
        deltas = [c.choices[0] for c in chunks if c.choices and c.choices[0].index == choice.index]
        assert deltas[0].delta.role == "assistant"
        assert "".join(d.delta.content or "" for d in deltas) == choice.message.content
        images = [i for d in deltas for i in getattr(d.delta, "images", [])]
        expected = getattr(choice.message, "images", [])
        assert [pixels(i["image_url"]["url"]) for i in images] == [
            pixels(i["image_url"]["url"]) for i in expected
        ]
        assert [i["index"] for i in images] == list(range(len(images)))
        assert [d.finish_reason for d in deltas if d.finish_reason] == [choice.finish_reason]


def test_modalities_limit_the_answer(client):
    def create(modalities):
        found = client.chat.completions.create(
            model="tiny", messages=USER, modalities=modalities, max_tokens=30
        )
        return found.choices[0].message

    assert not hasattr(create(["text"]), "images")
    message = create(["image"])
    assert message.content == ""
    assert len(message.images) == 1


def test_images_in_every_turn(client, served_bundle, picture):
    """The prompt has the tokens that Python's engine gives the same conversation."""
    answer = WholeImage(0, picture)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [
            {"type": "text", "text": "What is it?"},
            {"type": "image_url", "image_url": {"url": data_url(picture), "detail": "auto"}},
        ]},
        {"role": "assistant", "content": "An owl.", "images": [image_part(answer, 0)],
         "content_parts": [{"type": "text", "text": "An owl."}, image_part(answer)]},
        {"role": "user", "content": "Again."},
    ]  # fmt: skip
    document = Document((
        Text("Be brief.", "system"), Text("What is it?", "user"), Image(picture, role="user"),
        Text("An owl.", "assistant"), Image(picture, role="assistant"), Text("Again.", "user"),
    ))  # fmt: skip
    found = client.chat.completions.create(model="tiny", messages=messages, max_tokens=5, seed=1)
    expected = pardalis.generate(served_bundle, document, max_new_tokens=5, seed=1)
    assert found.usage.prompt_tokens == expected.usage.prompt_tokens
    assert found.usage.prompt_tokens_details.image_tokens == expected.usage.prompt_image_tokens > 0
    assert found.choices[0].message.content == expected.text
    del messages[2]["content_parts"]  # then the text comes before the images
    again = client.chat.completions.create(model="tiny", messages=messages, max_tokens=5, seed=1)
    assert again.usage == found.usage


def test_log_probs(client, served_bundle):
    found = client.chat.completions.create(
        model="tiny", messages=USER, modalities=["text"], max_tokens=6, logprobs=True,
        top_logprobs=3,
    )  # fmt: skip
    expected = pardalis.generate(
        served_bundle, "an owl", chat=True, mode="text", max_new_tokens=6, logprobs=3
    )
    content = found.choices[0].logprobs.content
    assert [t.logprob for t in content] == [t.log_prob for t in expected.log_probs]
    assert [len(t.top_logprobs) for t in content] == [3] * len(content)
    chunks = client.chat.completions.create(
        model="tiny", messages=USER, modalities=["text"], max_tokens=6, logprobs=True,
        top_logprobs=3, stream=True,
    )  # fmt: skip
    streamed = [t for c in chunks if (p := c.choices[0].logprobs) for t in p.content]
    assert streamed == content


def test_stop(client, served_bundle):
    text = pardalis.generate(
        served_bundle, "an owl", chat=True, mode="text", max_new_tokens=20
    ).text
    stop = text[3:5]
    found = client.chat.completions.create(
        model="tiny", messages=USER, modalities=["text"], max_tokens=20, stop=stop
    )
    assert found.choices[0].message.content == text[: text.index(stop)]
    assert found.choices[0].finish_reason == "stop"


def test_a_seed_is_drawn_and_told(client):
    def create(**seed):
        return client.chat.completions.create(
            model="tiny", messages=USER, max_tokens=20, temperature=1.5, **seed
        )

    first, second = create(), create()
    assert first.seed != second.seed
    again = create(seed=first.seed)
    assert again.choices[0].message.content == first.choices[0].message.content


# ── responses ────────────────────────────────────────────────────────────────────────────────────


def test_a_response_has_texts_and_images_in_order(client, served_bundle):
    expected = pardalis.generate(
        served_bundle, "an owl", chat=True, max_new_tokens=80, seed=11, temperature=1.2
    )
    found = client.responses.create(
        model="tiny", input="an owl", max_output_tokens=80, temperature=1.2,
        extra_body={"seed": 11},
    )  # fmt: skip
    assert [type(segment) for segment in expected.segments] == [Text, Image, Text, Image, Text]
    kinds = {Text: "message", Image: "image_generation_call"}
    assert [item.type for item in found.output] == [kinds[type(s)] for s in expected.segments]
    assert found.output_text == expected.text
    images = [item for item in found.output if item.type == "image_generation_call"]
    assert [pixels(image.result) for image in images] == drawn(expected)
    assert found.usage.output_tokens == expected.usage.completion_tokens
    ended = "incomplete" if expected.reason == "length" else "completed"
    assert found.status == ended


def test_events_of_a_response(client):
    arguments = {"model": "tiny", "input": "an owl", "temperature": 1.2, "max_output_tokens": 80}
    whole = client.responses.create(**arguments, extra_body={"seed": 11})
    events = list(client.responses.create(**arguments, stream=True, extra_body={"seed": 11}))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    last = events[-1]
    assert last.type == f"response.{whole.status}"
    for one, other in zip(last.response.output, whole.output, strict=True):
        assert one.type == other.type
        if one.type == "message":
            assert one.content == other.content
        else:
            assert pixels(one.result) == pixels(other.result)
    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert done == last.response.output
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert text == whole.output_text
    added = [e.output_index for e in events if e.type == "response.output_item.added"]
    assert added == list(range(len(done)))


def test_an_image_is_shown_while_it_is_written(client):
    arguments = {"model": "tiny", "input": "an owl", "stream": True}
    body = {**IMAGE_ONLY, "seed": 1}
    events = list(client.responses.create(**arguments, extra_body=body))
    partial = [e for e in events if e.type == "response.image_generation_call.partial_image"]
    assert [event.partial_image_index for event in partial] == list(range(len(partial)))
    assert len(partial) == 1  # of two rows of codes: the last is the whole image
    whole = np.asarray(pixels(events[-1].response.output[0].result))
    shown = np.asarray(pixels(partial[0].partial_image_b64))
    assert shown.shape == whole.shape
    assert (shown[8:] == shown[8, 0]).all()  # grey below the first row
    tools = [{"type": "image_generation", "partial_images": 0}]
    none = client.responses.create(**arguments, tools=tools, extra_body=body)
    assert not [e for e in none if "partial" in e.type]


def test_an_answer_is_sent_back_as_input(client, served_bundle):
    first = client.responses.create(
        model="tiny", input="an owl", extra_body={**IMAGE_ONLY, "seed": 1}
    )
    items = [
        {"role": "user", "content": "an owl"},
        *(item.model_dump(exclude_none=True) for item in first.output),
        {"role": "user", "content": [{"type": "input_text", "text": "Again."}]},
    ]
    found = client.responses.create(
        model="tiny", input=items, instructions="Be brief.", max_output_tokens=4,
        extra_body={"seed": 1},
    )  # fmt: skip
    image = PIL.Image.open(io.BytesIO(base64.b64decode(first.output[0].result)))
    document = Document((
        Text("Be brief.", "system"), Text("an owl", "user"), Image(image, role="assistant"),
        Text("Again.", "user"),
    ))  # fmt: skip
    expected = pardalis.generate(served_bundle, document, max_new_tokens=4, seed=1)
    assert found.usage.input_tokens == expected.usage.prompt_tokens
    assert found.output_text == expected.text


# ── images and completions ───────────────────────────────────────────────────────────────────────


def test_images(client, served_bundle):
    found = client.images.generate(
        prompt="an owl", model="tiny", n=2, size="16x16", extra_body={"seed": 4}
    )
    expected = [
        drawn(response)[0]
        for response in pardalis.generate_many(
            served_bundle, ["an owl", "an owl"], mode="image", seed=4
        )
    ]
    assert [pixels(image.b64_json) for image in found.data] == expected
    assert found.usage.output_tokens_details.image_tokens == found.usage.output_tokens == 12
    jpeg = client.images.generate(prompt="an owl", output_format="jpeg", extra_body={"seed": 4})
    image = PIL.Image.open(io.BytesIO(base64.b64decode(jpeg.data[0].b64_json)))
    assert image.format == "JPEG"


def test_events_of_images(client):
    arguments = {"prompt": "an owl", "model": "tiny", "extra_body": {"seed": 4}}
    events = list(client.images.generate(**arguments, stream=True, partial_images=2))
    kinds = [event.type.removeprefix("image_generation.") for event in events]
    assert kinds == ["partial_image", "completed"]
    whole = client.images.generate(**arguments)
    assert pixels(events[-1].b64_json) == pixels(whole.data[0].b64_json)
    assert events[-1].usage.total_tokens == whole.usage.total_tokens


def test_every_image_says_what_made_it(client):
    found = client.images.generate(prompt="an owl", model="tiny", extra_body={"seed": 4})
    info = PIL.Image.open(io.BytesIO(base64.b64decode(found.data[0].b64_json))).info
    assert info["Software"].startswith("Pardalis ")
    assert (info["Source"], info["Seed"]) == ("generated by the model tiny", "4")
    assert "owl" not in str(info)


def test_completions(client, served_bundle):
    found = client.completions.create(model="tiny", prompt="an owl", max_tokens=8, logprobs=2)
    expected = pardalis.generate(served_bundle, "an owl", mode="text", max_new_tokens=8, logprobs=2)
    assert found.choices[0].text == expected.text
    assert found.choices[0].logprobs.token_logprobs == [t.log_prob for t in expected.log_probs]
    chunks = list(
        client.completions.create(
            model="tiny",
            prompt="an owl",
            max_tokens=8,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(c.choices[0].text for c in chunks if c.choices) == expected.text
    assert chunks[-1].usage == found.usage


def test_many_clients_get_the_answers_they_would_get_alone(client, served_bundle):
    from concurrent.futures import ThreadPoolExecutor

    def ask(seed: int) -> str:
        return client.completions.create(
            model="tiny", prompt="an owl", max_tokens=12, temperature=1.0, seed=seed
        ).choices[0].text  # fmt: skip

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(ask, range(32)))
    assert found == [
        pardalis.generate(
            served_bundle, "an owl", mode="text", max_new_tokens=12, temperature=1.0, seed=seed
        ).text
        for seed in range(32)
    ]


def test_a_file_named_in_a_text_is_no_image(client, tmp_path: Path):
    file = tmp_path / "secret.png"
    file.write_bytes(b"x")
    found = client.completions.create(model="tiny", prompt=str(file)[:40], max_tokens=1)
    assert found.choices[0].text is not None
