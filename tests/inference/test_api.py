"""Prompts in, documents out, through the public functions."""

import dataclasses
import inspect
import pydoc
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import pardalis
from pardalis.bundle import Bundle
from pardalis.codec import Codec
from pardalis.documents import Document, Image, Text
from pardalis.errors import BundleError, ConfigError, DataError, RequestError
from pardalis.inference import (
    EngineConfig,
    Response,
    ScoreRequest,
    engine_config_for,
    to_document,
    to_request,
)
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


def test_options_of_images_say_nothing_of_text(bundle):
    """A client may send one set of options with every request."""
    images = {"guidance": 3.0, "image_guidance": 1.2, "image_temperature": 0.1, "image_top_k": 2,
              "image_top_p": 0.5, "max_images": 4}  # fmt: skip
    plain = pardalis.generate(bundle, "owl", mode="text", max_new_tokens=9)
    for options in (images, {"contrastive_alpha": 0.1, "contrastive_k": 2}):
        found = pardalis.generate(bundle, "owl", mode="text", max_new_tokens=9, **options)
        assert found.segments == plain.segments
    guided = pardalis.generate(bundle, "owl", max_images=0, guidance=3.0, max_new_tokens=9)
    assert guided.segments == pardalis.generate(
        bundle, "owl", max_images=0, max_new_tokens=9
    ).segments  # fmt: skip
    with pytest.raises(RequestError, match="guidance must be a number"):  # but it has to be right
        pardalis.generate(bundle, "owl", mode="text", guidance=float("inf"))


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


def test_scores_have_more_slots_if_they_are_short():
    def slots(length, n=200):
        request = ScoreRequest(prompt_ids=(1,) * (length - 1), continuation_ids=(2,))
        config = engine_config_for([request] * n)
        assert config.cache_tokens == config.max_slots * (length + 1)
        return config.max_slots

    assert slots(20) == 64 and slots(20, n=7) == 7
    assert slots(128) == 32
    assert slots(256) == slots(2000) == EngineConfig().max_slots


def test_more_prompts_than_may_wait(bundle):
    completions = pardalis.generate_many(bundle, ["owl"] * 150, mode="text", max_new_tokens=1)
    assert len(completions) == 150


# ── bundles as paths, errors in a batch, what a result tells ─────────────────────────────────


def test_a_path_in_place_of_a_bundle(bundle, tmp_path):
    bundle.save(tmp_path / "bundle")
    expected = pardalis.generate(bundle, "owl", seed=1)
    for path in (tmp_path / "bundle", str(tmp_path / "bundle")):
        assert pardalis.generate(path, "owl", seed=1) == expected
        assert pardalis.generate_many(path, ["owl"], seed=1) == [expected]
        assert pardalis.score(path, [("owl", "fox")]) == pardalis.score(bundle, [("owl", "fox")])
        with pardalis.Engine(path, max_slots=1) as engine:
            assert engine.submit("owl", seed=1).wait() == expected
    with pytest.raises(BundleError, match="No bundle at none; give the path"):
        pardalis.generate("none", "owl")
    with pytest.raises(BundleError, match="No bundle at "):
        pardalis.generate("x" * 5000, "owl")


def test_fields_of_the_engine_as_options(bundle):
    with pardalis.Engine(bundle, EngineConfig(page_size=8), max_slots=np.int64(3)) as engine:
        assert engine.config == EngineConfig(page_size=8, max_slots=3)
    for options, message in (
        ({"max_slot": 3}, "Unknown key 'max_slot'; did you mean 'max_slots'?"),
        ({"max_slots": "3"}, "max_slots must be of type int, got '3'."),
        ({"max_slots": 0}, "max_slots must be at least 1, got 0."),
    ):
        with pytest.raises(ConfigError) as caught:
            pardalis.Engine(bundle, **options)
        assert str(caught.value) == message
    with pytest.raises(ConfigError, match="max_slots must be of type int"):
        pardalis.Engine(bundle, max_slots=1.5)


def test_one_bad_prompt_costs_only_itself(bundle, tmp_path):
    prompts = ["owl", tmp_path / "none.png", "fox", "x" * 50, None]
    with pytest.raises(DataError, match=r"^prompts\[1\]: .*none\.png does not exist"):
        pardalis.generate_many(bundle, prompts, mode="text")
    found = pardalis.generate_many(bundle, prompts, errors="return", mode="text", seed=1)
    assert [type(each) for each in found] == [
        Response, DataError, Response, RequestError, RequestError,
    ]  # fmt: skip
    whole = pardalis.generate_many(bundle, ["owl", "fox", "fox"], mode="text", seed=1)
    assert (found[0], found[2]) == (whole[0], whole[2])
    assert str(found[3]).startswith("The prompt has 51 tokens")
    assert pardalis.generate_many(bundle, [None], errors="return", mode="text")
    with pytest.raises(RequestError, match="errors must be 'raise' or 'return', got 'ignore'"):
        pardalis.generate_many(bundle, prompts, errors="ignore")


def test_an_image_that_fails_costs_only_its_prompt(bundle, monkeypatch):
    decode, images = ImageTokenizer.images_of, []

    def fail_once(self, codes):
        images.append(codes)
        if len(images) == 1:
            raise RuntimeError("no memory left")
        return decode(self, codes)

    def generate(**options):
        images.clear()
        return pardalis.generate_many(bundle, ["owl", "fox"], mode="image", **options)

    monkeypatch.setattr(ImageTokenizer, "images_of", fail_once)
    found = generate(errors="return")
    assert sorted(type(each).__name__ for each in found) == ["RequestError", "Response"]
    with pytest.raises(RequestError, match="An image could not be decoded: no memory left"):
        generate()


def test_one_prompt_is_not_many(bundle, image):
    for prompt in ("owl", b"owl", Path("owl"), image, Document(()), {"role": "user"}, np.zeros(3)):
        with pytest.raises(
            RequestError, match="prompts must be a list of prompts, got one of type"
        ):
            inspect.unwrap(pardalis.generate_many)(bundle, prompt)
    assert len(pardalis.generate_many(bundle, (p for p in ("owl", "fox")), max_new_tokens=1)) == 2


def test_what_a_result_tells(bundle, image):
    options = {"mode": "text", "max_new_tokens": 5, "temperature": 2.0, "logprobs": 2}
    result = pardalis.generate(bundle, [image, "owl"], **options)
    assert (result.reason, result.truncated) == ("length", True)
    usage = result.usage
    assert usage.prompt_image_tokens == 6  # begin_image, 4 codes, end_image
    assert usage.prompt_text_tokens == len(bundle.codec.encode_prompt(to_document("owl")))
    assert (usage.completion_text_tokens, usage.completion_image_tokens, usage.images) == (5, 0, 0)
    assert len(result.log_probs) == 5
    assert len(result.log_probs[0].top) == 2
    drawn = pardalis.generate(bundle, "owl", mode="image", max_images=2)
    assert (drawn.reason, drawn.truncated, drawn.log_probs) == ("images", False, ())
    usage = drawn.usage
    assert (usage.completion_image_tokens, usage.completion_tokens, usage.images) == (12, 12, 2)
    assert usage.seconds >= usage.first_event_s > 0


def test_a_result_is_a_document(bundle):
    result = pardalis.generate(bundle, "owl", mode="text", max_new_tokens=5, temperature=2.0)
    plain = Document(result.segments)
    assert isinstance(result, Document)
    assert result == plain
    assert plain == result
    assert hash(result) == hash(plain)
    assert result != Document((*result.segments, Text("x")))
    assert result != "owl"
    assert dataclasses.replace(result, name="a").name == "a"
    tokens = f"{result.usage.prompt_tokens} + 5 tokens"
    assert repr(result) == f"<Response {result.text!r}, reason='length', truncated, {tokens}>"
    whole = pardalis.generate(bundle, "owl", mode="image")
    assert repr(whole).startswith("<Response '[image]', reason='images', ")


def test_numbers_of_numpy(bundle):
    options = {"seed": np.int64(3), "temperature": np.float32(2), "max_new_tokens": np.uint8(4)}
    result = pardalis.generate(bundle, "owl", mode=np.str_("text"), **options)
    assert result == pardalis.generate(
        bundle, "owl", mode="text", seed=3, temperature=2.0, max_new_tokens=4
    )


@pytest.mark.parametrize(
    "function", [pardalis.generate, pardalis.generate_many, pardalis.Engine.submit]
)
def test_help_is_complete(function):
    shown = pydoc.plain(pydoc.render_doc(function))
    assert "{options}" not in shown
    for option in dataclasses.fields(pardalis.GenerationConfig):
        assert f"{option.name}: " in shown
    for title in ("Args:", "Options:", "Raises:"):
        assert title in shown
    for parameter in inspect.signature(function).parameters.keys() - {"self"}:
        assert f" {parameter}: " in shown


def test_what_a_notebook_shows(bundle):
    result = pardalis.generate(bundle, "owl", mode="image")
    assert '<img src="data:image/png;base64,' in result._repr_html_()
    assert "reason=&#x27;images&#x27;" in result._repr_html_()
    described = dataclasses.replace(bundle, made_by={"recipe": "<script>" + "x" * 300})
    shown = described._repr_html_()
    assert "&lt;script&gt;" in shown
    assert "x" * 200 not in shown
    assert "<th>context</th><td>40 tokens</td>" in shown
    assert repr(bundle).startswith("<Bundle parameters: ")
