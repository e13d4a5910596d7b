"""A gap of a text, filled by ``POST /v1/completions`` with a ``suffix``."""

import base64
import io

import numpy as np
import PIL.Image
import pytest
from shapes import changed

import pardalis
from pardalis import Engine, Mask
from pardalis.bundle import Bundle
from pardalis.codec import Codec
from pardalis.model import Decoder, initialise
from pardalis.tokens import mask_names


@pytest.fixture(scope="module")
def infilling_bundle(served_bundle) -> Bundle:
    codec = served_bundle.codec
    vocabulary = codec.vocabulary.extended(mask_names(2))
    codec = Codec(vocabulary, codec.text_tokenizer, codec.image_tokenizer)
    config = changed(served_bundle.model.config, vocab_size=vocabulary.size)
    return Bundle(initialise(Decoder(config), 0).eval(), codec, {})


def test_a_suffix_stands_behind_the_completion(infilling_bundle, running):
    body = {"model": "tiny", "prompt": "an owl ", "suffix": " oak", "max_tokens": 6, "seed": 3}
    body["temperature"] = 1.0
    with Engine(infilling_bundle) as engine, running(engine) as server:
        status, found = server.post("/v1/completions", body)
    assert status == 200
    prompt, options = ["an owl ", Mask(), " oak"], {"max_new_tokens": 6, "seed": 3}
    response = pardalis.infill(infilling_bundle, prompt, temperature=1.0, **options)
    assert found["choices"][0]["text"] == response.filled[0].text
    assert response.text == f"an owl{response.filled[0].text} oak"


def test_an_empty_suffix_is_none(server):
    body = {"model": "tiny", "prompt": "an owl", "max_tokens": 3, "seed": 3}
    status, plain = server.post("/v1/completions", body)
    assert status == 200
    status, found = server.post("/v1/completions", {**body, "suffix": ""})
    assert (status, found.get("choices")) == (200, plain["choices"])


def test_guidance_against_a_mask(infilling_bundle, running):
    body = {"model": "tiny", "prompt": "an owl", "seed": 3, "guidance": 4.0}
    path = "/v1/images/generations"
    with Engine(infilling_bundle) as engine, running(engine) as server:
        status, found = server.post(path, {**body, "unconditional": "mask"})
        _, plain = server.post(path, body)
        wrong = server.post(path, {**body, "unconditional": "text"})
        alone = server.post(path, {"prompt": "an owl", "unconditional": "mask"})
    assert status == 200
    assert (wrong[0], wrong[1]["error"]["param"]) == (400, "unconditional")
    assert (alone[0], alone[1]["error"]["param"]) == (400, "unconditional")
    options = {"mode": "image", "seed": 3, "guidance": 4.0}
    expected = pardalis.generate(infilling_bundle, "an owl", unconditional="mask", **options)
    [data], [other] = found["data"], plain["data"]
    image = np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(data["b64_json"]))))
    assert (image == np.asarray(expected.images[0].source)).all()
    assert data["b64_json"] != other["b64_json"]
