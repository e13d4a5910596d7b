"""Infilling: the whole document comes back, with what the reference loop writes for each mask."""

import numpy as np
import PIL.Image
import pytest
import torch
from shapes import changed

import pardalis
from pardalis.bundle import Bundle
from pardalis.codec import Codec
from pardalis.documents import Image, Text
from pardalis.errors import RequestError
from pardalis.inference import (
    Engine,
    EngineConfig,
    Finished,
    GenerationConfig,
    Guidance,
    ImageBegun,
    ImageDone,
    ImageRows,
    Infilling,
    Mask,
    ScoreRequest,
    generate_reference,
    infill,
    infill_many,
    to_request,
)
from pardalis.inference.mask import _are_rows
from pardalis.inference.token_loop import generate_ids
from pardalis.interop import extend_vocabulary
from pardalis.model import Decoder, initialise
from pardalis.tokens import END_MASK, mask_names, restore

PHOTO = PIL.Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3))


def extended(bundle: Bundle, *names: str) -> Bundle:
    """Return a random model whose vocabulary has these special ids."""
    codec = bundle.codec
    vocabulary = codec.vocabulary.extended(names, writable=[n for n in names if n == END_MASK])
    codec = Codec(vocabulary, codec.text_tokenizer, codec.image_tokenizer)
    config = changed(bundle.model.config, vocab_size=vocabulary.size, context=64)
    return Bundle(initialise(Decoder(config), 3).eval(), codec, {})


@pytest.fixture
def paper(bundle) -> Bundle:
    return extended(bundle, *mask_names(4))


@pytest.fixture
def own_ends(bundle) -> Bundle:
    """Its gaps end now and then."""
    bundle = extended(bundle, *mask_names(4), END_MASK)
    with torch.no_grad():
        bundle.model.head.weight[bundle.codec.vocabulary.end_mask_id] *= 4
    return bundle


def texts(document) -> list[str]:
    return [s.text if isinstance(s, Text) else "[image]" for s in document.segments]


def test_a_mask_in_text_between_images(paper):
    response = infill(
        paper, ["An ", Mask(), " sat", PHOTO], max_new_tokens=9, temperature=1.0, seed=4
    )
    [filled] = response.filled
    assert texts(response) == [f"An{filled.text} sat", "[image]"]
    assert response.images[0].source is PHOTO
    assert response.reason in ("eos", "length")
    assert response.usage.completion_tokens <= 9
    assert filled.text


def test_it_is_what_the_reference_loop_writes_and_it_restores(paper):
    config = GenerationConfig(max_new_tokens=9, temperature=1.0, seed=4)
    request = Infilling(paper, ["An", Mask(), PHOTO], config).request()
    ids = generate_reference(paper.model, paper.codec.grammar, request)
    [response] = infill_many(paper, [["An", Mask(), PHOTO]], config)
    document = paper.codec.decode(restore([*request.prompt_ids, *ids], paper.codec.vocabulary))
    assert response.text == document.text
    assert len(document.images) == 1


def test_several_masks_are_filled_one_after_the_other(own_ends):
    prompt = ["An", Mask(), " sat", Mask(), PHOTO, Mask("image"), " fox"]
    config = GenerationConfig(max_new_tokens=6, temperature=1.0, image_temperature=1.0, seed=1)
    response = infill(own_ends, prompt, config)
    first, second, image = response.filled
    assert texts(response) == [f"An{first.text} sat{second.text}", "[image]", "[image]", " fox"]
    assert response.images[1] == image.images[0]
    infilling, vocabulary = Infilling(own_ends, prompt, config), own_ends.codec.vocabulary
    ids = list(infilling.request().prompt_ids)
    for mask in vocabulary.masks[:3]:  # the oracle: each request completed by the reference loop
        assert ids[-1] == mask
        with Engine(own_ends) as engine:
            request = infilling.request()
            assert list(request.prompt_ids) == ids
            new = generate_reference(own_ends.model, own_ends.codec.grammar, request)
            completion = engine.submit_request(request)
            completion.wait()
            infilling.add(completion)
        assert completion.token_ids == new
        ends = {vocabulary.end_mask_id, vocabulary.eos_id, vocabulary.end_image_id}
        ids += [*(new[:-1] if new[-1] in ends else new), vocabulary.end_mask_id]
        ids += [vocabulary.masks[vocabulary.masks.index(mask) + 1]]
    assert infilling.response() == response
    whole = own_ends.codec.decode([*restore(ids[:-1], vocabulary), vocabulary.eos_id])
    assert whole.text == response.text


@pytest.mark.parametrize("options", [{"guidance": 2.0}, {"guidance": 2.0, "image_guidance": 1.2}])
def test_guidance_changes_nothing_where_no_image_is_made(paper, options):
    plain = {"max_new_tokens": 5, "temperature": 1.0}
    assert infill(paper, ["An", Mask()], **plain, **options) == infill(
        paper, ["An", Mask()], **plain
    )


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_half_of_an_image(paper, guidance):
    prompt = ["An owl", Mask(image=PHOTO, rows=(0.0, 0.5))]
    config = GenerationConfig(image_temperature=1.0, guidance=guidance, seed=2)
    request = Infilling(paper, prompt, config).request()
    vocabulary = paper.codec.vocabulary
    ids = generate_reference(paper.model, paper.codec.grammar, request)
    assert ids[-1] == vocabulary.end_image_id
    assert len(ids) == 3  # two of four codes, and the forced end
    with Engine(paper) as engine:
        completion = engine.submit_request(request)
        events = list(completion)
    assert completion.token_ids == ids
    assert [type(event) for event in events[:3]] == [ImageBegun, ImageRows, ImageDone]
    own = paper.codec.encode_continuation(pardalis.Document((Image(PHOTO),)))[1:-1]
    codes = [i - vocabulary.image.start for i in [*ids[:2], *own[2:]]]
    assert list(events[1].codes) == codes
    assert events[2].image == paper.codec.image_tokenizer.partial_image(codes)
    response = infill(paper, prompt, config)
    assert texts(response) == ["An owl", "[image]"]
    assert response.images[0].source == events[2].image


@pytest.mark.parametrize("n_masks", [1, 4])
def test_a_guided_gap_runs_in_the_smallest_cache_that_takes_it(bundle, n_masks):
    bundle = extended(bundle, *mask_names(n_masks))
    config = GenerationConfig(guidance=2.0)
    request = Infilling(bundle, ["owl", Mask(image=PHOTO, rows=(0.5, 1.0))], config).request()
    for cache_tokens in range(len(request.prompt_ids), 40):
        engine_config = EngineConfig(page_size=1, cache_tokens=cache_tokens, max_slots=2)
        with Engine(bundle, engine_config) as engine:
            try:
                engine.submit_request(request)
            except RequestError:  # too small
                continue
            assert any(isinstance(event, Finished) for _ in range(20) for event in engine.step())
            return
    pytest.fail("no cache takes the request")


def test_an_image_before_its_text(paper):
    response = infill(paper, [Mask("image"), "An owl"], image_temperature=1.0, guidance=2.0)
    assert texts(response) == ["[image]", "An owl"]
    assert (response.reason, response.usage.images) == ("images", 1)


def test_text_with_images_in_a_gap(paper):
    with torch.no_grad():
        paper.model.head.weight[paper.codec.vocabulary.begin_image_id] *= 8
    found = [
        infill(paper, ["An", Mask("any"), " fox"], temperature=1.0, max_new_tokens=20, seed=seed)
        for seed in range(3)
    ]
    assert any(response.images for response in found)
    assert not infill(paper, ["An", Mask(), " fox"], temperature=1.0, max_new_tokens=20).images


def test_ordinary_text_has_no_end_of_a_gap(own_ends):
    """However likely it is, beside a gap in the same batch, which it ends."""
    grammar = own_ends.codec.grammar
    end = own_ends.codec.vocabulary.end_mask_id
    with torch.no_grad():
        own_ends.model.head.weight[end] *= 8
    options = {"max_new_tokens": 12, "temperature": 1.0, "seed": 1}
    requests = [
        to_request(own_ends, "An owl", **options),
        to_request(own_ends, "An owl", mode="text", **options),
        Infilling(own_ends, ["An", Mask(), " fox"], GenerationConfig(**options)).request(),
        Infilling(own_ends, ["An", Mask("any"), " fox"], GenerationConfig(**options)).request(),
    ]
    expected = [generate_reference(own_ends.model, grammar, request) for request in requests]
    assert [end in ids for ids in expected] == [False, False, True, True]
    assert [ids[-1] for ids in expected[2:]] == [end, end]
    config = EngineConfig(page_size=2, steps_per_sync=3)
    assert generate_ids(own_ends.model, grammar, requests, config) == expected


def test_many_at_once_equal_one_by_one(own_ends):
    prompts = [["An", Mask()], ["A", Mask(), " fox", Mask()], [PHOTO, Mask()]]
    together = infill_many(own_ends, prompts, max_new_tokens=5)
    assert together == [infill(own_ends, prompt, max_new_tokens=5) for prompt in prompts]


def test_scores_of_what_stands_in_a_gap(paper):
    """Those of the model without a cache."""
    prompt = ["An owl", Mask(image=PHOTO, rows=(0.5, 1.0))]
    ids = Infilling(paper, prompt, GenerationConfig()).request().prompt_ids
    codes = tuple(paper.codec.vocabulary.image[:2])
    [score] = pardalis.score(paper, [ScoreRequest(prompt_ids=ids, continuation_ids=codes)])
    with torch.no_grad():
        logits = paper.model(torch.tensor([[*ids, *codes]]))[0].log_softmax(-1)
    expected = [logits[len(ids) - 1, codes[0]].item(), logits[len(ids), codes[1]].item()]
    assert score.log_probs == pytest.approx(expected, abs=1e-4)


def test_text_leaves_room_for_the_masks_behind_it(own_ends):
    """However long the model goes on, if the document itself fits."""
    with torch.no_grad():
        own_ends.model.head.weight[[own_ends.codec.vocabulary.end_mask_id]] = 0
    for seed in range(2):
        response = infill(own_ends, [Mask(), Mask("image"), "owl", Mask()], seed=seed)
        assert (len(response.filled), len(response.images)) == (3, 1)


# ── the mask as the unconditional branch ─────────────────────────────────────────────────────────


def test_guidance_against_a_mask(paper):
    """The branch reads the mask in the place of the text."""
    options = {"mode": "image", "guidance": 3.0, "image_temperature": 0.0}
    request = to_request(paper, "owl", unconditional="mask", **options)
    assert request.guidance == Guidance(text=3.0)
    ids = generate_reference(paper.model, paper.codec.grammar, request)
    with Engine(paper, EngineConfig(max_slots=4)) as engine:
        masked = engine.submit_request(request)
        plain = engine.submit("owl", **options)
        masked.wait(), plain.wait()
    assert masked.token_ids == ids
    assert masked.token_ids != plain.token_ids
    # The oracle, code by code.
    vocabulary, prompt = paper.codec.vocabulary, list(request.prompt_ids)
    columns = torch.tensor(list(vocabulary.image))
    opened = [vocabulary.begin_image_id]
    for _ in range(4):
        contexts = [*prompt, *opened], [vocabulary.bos_id, vocabulary.masks[0], *opened]
        with torch.no_grad():
            full, without = (paper.model(torch.tensor([c]))[0, -1, columns] for c in contexts)
        opened.append(int(columns[(without + 3.0 * (full - without)).argmax()]))
    assert ids[:5] == opened


# ── errors ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        (["An owl"], {}, "The prompt has no mask; give `Mask\\(\\)`"),
        (["An", Mask(), " owl", Mask()], {}, "so it fills one mask, got 2; leave"),
        (["An", Mask()], {"mode": "text"}, "mode does not apply to infilling"),
        (["An", Mask()], {"chat": True}, "chat does not apply to infilling"),
        ([Mask("image")], {"guidance": 2.0, "image_guidance": 1.2}, "image_guidance does not"),
        ([Mask(image="An owl")], {}, "The `image` of a mask is a text"),
        ([{"role": "user", "content": "An"}, Mask()], {}, "not in chat messages"),
        (["An owl " * 60, Mask()], {}, "with its masks, which fill the model's context of 64"),
        (["An owl " * 600, Mask()], {}, "has 4,199 bytes of text, so at least"),
        (["An", Mask()], {"temperature": -1}, "temperature must be 0 or more"),
    ],
)  # fmt: skip
def test_what_cannot_be_filled(paper, prompt, options, message):
    with pytest.raises(RequestError, match=message):
        infill(paper, prompt, **options)


@pytest.mark.parametrize("rows", [(0.5, 0.5), (0.1,), (0.1, 0.2, 0.3), ("a", "b"), 0.5, None])
def test_what_is_no_rows(rows):
    assert not _are_rows(rows)


def test_masks_are_checked():
    with pytest.raises(RequestError, match="A mask holds 'text', 'image' or 'any', got 'video'"):
        Mask("video")
    with pytest.raises(RequestError, match=r"two numbers from 0 \(top\) to 1"):
        Mask(image=PHOTO, rows=(0.5, 0.5))


def test_a_model_without_masks(bundle, own_ends):
    with pytest.raises(
        RequestError, match="has not learnt to infill: its vocabulary has no mask_0"
    ):
        infill(bundle, ["An", Mask()])
    with pytest.raises(RequestError, match="has no mask_0: it has not learnt to infill; leave"):
        to_request(bundle, "owl", mode="image", guidance=2.0, unconditional="mask")
    with pytest.raises(RequestError, match="unconditional applies to guidance only"):
        GenerationConfig(unconditional="mask")
    with pytest.raises(RequestError, match="fills up to 4 masks, got 5"):
        infill(own_ends, [Mask()] * 5)


def test_an_extended_model_takes_masks(bundle):
    more = extend_vocabulary(bundle, mask_names(2))
    assert infill(more, ["An", Mask()], max_new_tokens=3).filled
