"""Hugging Face's client of chat completions, with requests and a reader of events of its own."""

import base64
import io
import json

import PIL.Image
import pytest

import pardalis
from pardalis.documents import Document, Image, Text

hub = pytest.importorskip("huggingface_hub", reason="needs huggingface_hub, which transformers has")

USER = [{"role": "user", "content": "an owl"}]


@pytest.fixture
def client(server):
    with hub.InferenceClient(base_url=f"{server.url}/v1", api_key="any", timeout=120) as client:
        yield client


def test_the_answer_of_generate(client, served_bundle):
    expected = pardalis.generate(
        served_bundle, "an owl", chat=True, mode="text", max_new_tokens=20, seed=3, temperature=1.2
    )
    found = client.chat_completion(
        USER, model="tiny", max_tokens=20, seed=3, temperature=1.2, logprobs=True, top_logprobs=2,
        extra_body={"modalities": ["text"]},
    )  # fmt: skip
    [choice] = found.choices
    assert choice.message.content == expected.text
    assert choice.finish_reason == ("length" if expected.reason == "length" else "stop")
    assert found.usage.completion_tokens == expected.usage.completion_tokens
    assert found.usage.prompt_tokens == expected.usage.prompt_tokens
    assert len(choice.logprobs.content) == expected.usage.completion_tokens


def test_chunks_join_to_the_completion(client):
    arguments = {"model": "tiny", "max_tokens": 20, "seed": 3, "temperature": 1.2}
    whole = client.chat_completion(USER, **arguments)
    chunks = list(
        client.chat_completion(
            USER, **arguments, stream=True, stream_options={"include_usage": True}
        )
    )
    deltas = [chunk.choices[0] for chunk in chunks if chunk.choices]
    text = "".join(delta.delta.content or "" for delta in deltas)
    assert text == whole.choices[0].message.content
    assert deltas[-1].finish_reason == whole.choices[0].finish_reason
    assert vars(chunks[-1].usage) == vars(whole.usage)


def test_an_image_in_a_message(client, served_bundle):
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (16, 16), "red").save(buffer, format="PNG")
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    parts = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": "What is it?"},
    ]
    document = Document((Image(buffer.getvalue(), role="user"), Text("What is it?", "user")))
    expected = pardalis.generate(served_bundle, document, mode="text", max_new_tokens=8, seed=1)
    found = client.chat_completion(
        [{"role": "user", "content": parts}], model="tiny", max_tokens=8, seed=1,
        extra_body={"modalities": ["text"]},
    )  # fmt: skip
    assert found.choices[0].message.content == expected.text
    assert found.usage.prompt_tokens == expected.usage.prompt_tokens


def test_what_is_refused_is_said(client):
    with pytest.raises(hub.errors.HfHubHTTPError) as refused:
        client.chat_completion(USER, model="tiny", temperature=-1.0)
    assert refused.value.response.status_code == 400
    answer = json.loads(refused.value.response.text)
    assert answer["error"]["message"] == "temperature must be 0 or more, got -1.0."
