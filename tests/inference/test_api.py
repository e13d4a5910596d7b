"""Prompts in, documents out, through the public functions."""

import dataclasses

import numpy as np
import PIL.Image
import pytest

import pardalis
from pardalis.bundle import Bundle
from pardalis.codec import Codec
from pardalis.documents import Document, Image, Text
from pardalis.errors import DataError, RequestError
from pardalis.inference import EngineConfig, engine_config_for, to_document, to_request
from pardalis.vq import ImageTokenizer


@pytest.fixture
def image() -> PIL.Image.Image:
    return PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 20, 3), np.uint8))


def test_what_a_prompt_may_be(image, tmp_path):
    path = tmp_path / "owl.png"
    assert to_document("owl") == Document((Text("owl"),))
    mixed = to_document(["owl", path, b"bytes", image])
    assert [type(s) for s in mixed.segments] == [Text, Image, Image, Image]
    assert to_document(mixed) is mixed
    for alone in (path, b"bytes", image):
        assert to_document(alone) == Document((Image(alone),))


def test_modes(bundle, image):
    text = pardalis.generate(bundle, [image, "what"], mode="text", max_new_tokens=9)
    assert all(isinstance(s, Text) for s in text.segments)
    two = pardalis.generate(bundle, "owl", mode="image", max_images=2)
    assert [type(s) for s in two.segments] == [Image, Image]
    assert two.images[0].source.size == (16, 16)
    one = pardalis.generate(bundle, "owl", mode="interleaved", max_images=1, seed=3)
    assert len(one.images) <= 1


def test_a_model_without_an_image_decoder_reads_images_and_generates_text(bundle, image):
    codec = bundle.codec
    config = dataclasses.replace(codec.image_tokenizer.config, has_decoder=False)
    blind = ImageTokenizer(config)
    blind.load_state_dict(codec.image_tokenizer.state_dict(), strict=False)
    bundle = Bundle(bundle.model, Codec(codec.vocabulary, codec.text_tokenizer, blind.eval()), {})
    for seed in range(4):
        text = pardalis.generate(bundle, [image, "what"], temperature=5.0, seed=seed)
        assert not text.images
    for options in ({"mode": "image"}, {"max_images": 1}):
        with pytest.raises(RequestError, match="has no decoder, so it reads images but cannot"):
            pardalis.generate(bundle, "owl", **options)


def test_chat_is_a_turn_of_the_user(bundle, image):
    asked = Document((Image(image, role="user"), Text("what", role="user")))
    completion = pardalis.generate(bundle, [image, "what"], chat=True, seed=2)
    assert completion == pardalis.generate(bundle, asked, seed=2)
    assert {segment.role for segment in completion.segments} == {"assistant"}
    assert completion.text != pardalis.generate(bundle, [image, "what"], seed=2).text


def codes(document, bundle):
    return [np.asarray(image.source).tolist() for image in document.images]


def test_the_seed_and_the_number_decide(bundle):
    def generate(prompts, seed):
        return [
            codes(d, bundle)
            for d in pardalis.generate_many(bundle, prompts, mode="image", seed=seed)
        ]

    assert generate(["owl", "fox"], 1) == generate(["owl", "fox"], 1)
    assert generate(["owl", "fox"], 1)[0] == generate(["owl"], 1)[0]
    assert generate(["owl"], 1) != generate(["owl"], 2)
    first, second = generate(["owl", "owl"], 1)
    assert first != second


def test_a_prompt_that_leaves_too_few_tokens_for_an_image(bundle):
    prompt = "x" * 34  # 35 tokens with bos; an image takes 6
    with pytest.raises(RequestError, match="token budget is 5, but 6 are needed"):
        pardalis.generate(bundle, prompt, mode="image")
    assert not pardalis.generate(bundle, prompt, mode="interleaved").images


def test_a_prompt_that_fills_the_context(bundle):
    with pytest.raises(RequestError, match="has 51 tokens, which fills the model's context of 40"):
        pardalis.generate(bundle, "x" * 50)


def test_settings_that_contradict_each_other(bundle):
    with pytest.raises(RequestError, match="max_images must be 0 or left out"):
        pardalis.generate(bundle, "owl", mode="text", max_images=1)


def test_an_image_that_cannot_be_read(bundle, tmp_path):
    with pytest.raises(DataError, match=r"none\.png"):
        pardalis.generate(bundle, [tmp_path / "none.png"], mode="text")


def test_no_prompt_at_all(bundle):
    assert isinstance(pardalis.generate(bundle, [], max_new_tokens=5), Document)


def test_a_conversation_gets_one_turn_of_the_assistant(bundle):
    """Whatever the seed, the completion is one turn of the assistant."""

    def ask(document: Document) -> list[Document]:
        return pardalis.generate_many(bundle, [document] * 80, temperature=3.0, max_new_tokens=12)

    for completion in ask(Document((Text("Draw an owl.", role="user"),))):
        assert all(segment.role == "assistant" for segment in completion.segments)
    # Without roles some completions do hold turns, so there was something to stop at.
    plain = ask(Document((Text("Draw an owl."),)))
    assert any(
        segment.role == "assistant" for completion in plain for segment in completion.segments
    )


def test_guidance_of_all_forms(bundle):
    def generate(**options):
        return codes(pardalis.generate(bundle, "owl", mode="image", **options), bundle)

    plain = generate()
    assert generate(guidance=1.0) == plain
    assert generate(guidance=3) == generate(guidance=3.0) != plain
    assert generate(contrastive_alpha=0.1, contrastive_k=2) != plain


def test_a_config_and_options_over_it(bundle):
    config = pardalis.GenerationConfig(mode="image", seed=1, image_temperature=1.5)
    as_options = pardalis.generate(bundle, "owl", mode="image", seed=2, image_temperature=1.5)
    assert pardalis.generate(bundle, "owl", config, seed=2) == as_options
    assert pardalis.generate(bundle, "owl", config) != as_options


def test_all_are_checked_before_generation_begins(bundle, monkeypatch):
    monkeypatch.setattr("pardalis.inference.api.Engine", None)
    with pytest.raises(RequestError, match="has 51 tokens"):
        pardalis.generate_many(bundle, ["owl", "x" * 50])


def test_the_cache_is_as_large_as_requests_need(bundle):
    def config(n, **options):
        return engine_config_for(
            [to_request(bundle, "owl", max_new_tokens=10, **options) for _ in range(n)]
        )

    assert config(1).max_slots == 1
    assert config(1, guidance=2.0).max_slots == 3
    assert config(100).max_slots == EngineConfig().max_slots
    assert config(1).cache_tokens < bundle.model.config.context + 16
    assert config(100).cache_tokens == config(16).cache_tokens == 16 * config(1).cache_tokens


def test_more_prompts_than_may_wait(bundle):
    completions = pardalis.generate_many(bundle, ["owl"] * 150, mode="text", max_new_tokens=1)
    assert len(completions) == 150
