"""Documents before prompts: which they are, what they leave room for, who tells of them."""

import copy
from dataclasses import asdict

import numpy as np
import pytest
from indexed_documents import write_source
from shapes import decoder_config

import pardalis
from pardalis.bundle import Bundle
from pardalis.documents import Document, Image, Text
from pardalis.errors import ConfigError, DataError, RequestError
from pardalis.inference import (
    DocumentsRetrieved,
    Engine,
    PromptFile,
    ScoreRequest,
    TextDelta,
    generate_ranked,
    to_request,
)
from pardalis.model import Decoder, initialise
from pardalis.retrieval import ClipConfig, ExactSearch, Retriever, RuleConfig, build_index
from pardalis.retrieval.embedders import Queries, embed
from pardalis.retrieval.retriever import retrieve


@pytest.fixture
def bundle(codec) -> Bundle:
    config = decoder_config(
        vocab_size=codec.vocabulary.size, context=80, d_model=32, n_layers=1, n_heads=4,
        n_kv_heads=2, d_ff=64,
    )  # fmt: skip
    return Bundle(initialise(Decoder(config), 0).eval(), codec, {})


@pytest.fixture
def retriever(index, clip_folder) -> Retriever:
    return Retriever(index, 2, embedder=ClipConfig(folder=clip_folder))


def test_the_best_document_stands_next_to_the_prompt(bundle, index, retriever):
    request = to_request(bundle, "a fox", mode="text", max_new_tokens=4, retriever=retriever)
    plain = to_request(bundle, "a fox", mode="text", max_new_tokens=4)
    first, second = retriever.find(Document((Text("a fox"),)))
    ids = [*index.document(second.number).ids[:-1], *index.document(first.number).ids[1:-1]]
    assert request.prompt_ids == (*map(int, ids), *plain.prompt_ids[1:])
    assert [each.name for each in request.retrieved] == [
        index.source_and_name(each.number)[1] for each in (first, second)
    ]
    assert first.score >= second.score and {first.by, second.by} == {"text"}


def test_only_what_leaves_room_is_put_before_the_prompt(bundle, index, retriever):
    few = to_request(bundle, "a fox", mode="text", max_new_tokens=56, retriever=retriever)
    assert len(few.retrieved) == 1
    assert len(few.prompt_ids) + 56 <= 80
    assert few.limits.max_new_tokens == 56
    image = to_request(bundle, "a fox", mode="image", retriever=retriever)
    assert len(image.retrieved) == 2
    with pytest.raises(RequestError, match=r"each is longer than the .* tokens that are left"):
        to_request(bundle, "a fox", mode="text", max_new_tokens=77, retriever=retriever)


def test_an_image_finds_by_image(index, clip_folder, source):
    net = ClipConfig(folder=clip_folder)
    loose = Retriever(index, 1, embedder=net, rules=RuleConfig(max_score=1.0))
    query = Document((Image(source.path.parent / "3.png"),))
    [found] = loose.find(query)
    scores = index.vectors @ embed(index.embedder(net), [query]).image[0]
    assert (found.number, found.by) == (int(scores[index.is_mixed].argmax()), "image")
    assert found.score == pytest.approx(float(scores[found.number]))


def test_a_response_says_what_was_retrieved(bundle, retriever):
    response = pardalis.generate(
        bundle, "a fox", mode="text", max_new_tokens=3, retriever=retriever
    )
    assert [each.source for each in response.retrieved] == ["pairs", "pairs"]
    assert response.usage.prompt_tokens > 20
    assert pardalis.generate(bundle, "a fox", mode="text", max_new_tokens=3).retrieved == ()
    many = pardalis.generate_many(
        bundle, ["a fox", "an owl"], mode="text", max_new_tokens=3, retriever=retriever
    )
    assert many[0].retrieved == response.retrieved != many[1].retrieved


def test_candidates_continue_the_same_documents(bundle, retriever, monkeypatch):
    options = {"mode": "text", "max_new_tokens": 3, "temperature": 1.0, "retriever": retriever}
    searches, before = [], Retriever.before
    monkeypatch.setattr(Retriever, "before", lambda *given: searches.append(1) or before(*given))
    found = generate_ranked(bundle, "a fox", candidates=3, rank_by="likelihood", **options)
    assert len(searches) == 1
    alone = pardalis.generate(bundle, "a fox", **options)
    [first] = [each.response for each in found if each.number == 0]
    assert first == alone
    prompt_ids = to_request(bundle, "a fox", **options).prompt_ids
    for each in found:
        assert each.response.retrieved == alone.retrieved
        assert each.response.usage.prompt_tokens == len(prompt_ids)
        ids = tuple(bundle.codec.encode_continuation(each.response))
        [score] = pardalis.score(
            bundle, [ScoreRequest(prompt_ids=prompt_ids, continuation_ids=ids)]
        )
        assert each.score == pytest.approx(score.log_prob / len(ids), abs=1e-5)


def test_the_first_event_says_what_was_retrieved(bundle, retriever):
    with Engine(bundle, retriever=retriever) as engine:
        completion = engine.submit("a fox", mode="text", max_new_tokens=8)
        first, *rest = list(completion)
        assert first == DocumentsRetrieved(completion.key, completion.document.retrieved)
        assert not any(isinstance(event, DocumentsRetrieved) for event in rest)
    with Engine(bundle) as engine:
        events = list(engine.submit("a fox", mode="text", max_new_tokens=8))
        assert not any(isinstance(event, DocumentsRetrieved) for event in events)
        assert any(isinstance(event, TextDelta) for event in events)


def test_a_file_of_prompts_gets_documents(bundle, retriever, tmp_path):
    (tmp_path / "prompts.txt").write_text("a fox\nan owl\n")
    options = {"mode": "text", "max_new_tokens": 3}
    with Engine(bundle, retriever=retriever) as engine:
        file = PromptFile(engine, tmp_path / "prompts.txt", tmp_path / "out", **options)
        assert file.run().failed == 0
    expected = pardalis.generate(bundle, "a fox", retriever=retriever, **options)
    record = (tmp_path / "out" / "completions.jsonl").read_text().splitlines()[0]
    assert f'"name": "{expected.retrieved[0].name}"' in record
    with (
        Engine(bundle) as engine,
        pytest.raises(ConfigError, match="of another bundle or with other options"),
    ):
        PromptFile(engine, tmp_path / "prompts.txt", tmp_path / "out", **options).run()


def test_no_documents_change_nothing(bundle, index, clip_folder):
    none = Retriever(index, 0, embedder=ClipConfig(folder=clip_folder))
    assert to_request(bundle, "a fox", mode="text", retriever=none) == to_request(
        bundle, "a fox", mode="text"
    )


# ── what is refused ──────────────────────────────────────────────────────────────────────────────


def test_an_empty_query(bundle, retriever):
    with pytest.raises(RequestError, match="The query has neither text nor an image that can be"):
        to_request(bundle, "", mode="text", retriever=retriever)


def test_an_empty_retrieval(bundle, index, clip_folder):
    strict = Retriever(
        index, embedder=ClipConfig(folder=clip_folder), rules=RuleConfig(max_score=0.0)
    )
    with pytest.raises(RequestError, match=r"None of the 7 documents .* max_score \(0.0\)"):
        to_request(bundle, "a fox", mode="text", max_new_tokens=3, retriever=strict)


def test_an_index_of_another_codec(bundle, retriever):
    codec = bundle.codec
    other = type(codec)(codec.vocabulary, codec.text_tokenizer, codec.image_tokenizer, "pad")
    with pytest.raises(DataError, match="but the model has codec"):
        to_request(Bundle(bundle.model, other, {}), "a fox", mode="text", retriever=retriever)


def test_an_index_that_is_built_anew_meanwhile(
    bundle, source, codec, config, clip_folder, tmp_path
):
    folder = tmp_path / "index"
    old = build_index(folder, [source], codec, config)
    retriever = Retriever(folder, 2, embedder=ClipConfig(folder=clip_folder))
    expected = to_request(bundle, "owl", mode="text", max_new_tokens=3, retriever=Retriever(
        old, 2, embedder=ClipConfig(folder=clip_folder)
    ))  # fmt: skip
    (tmp_path / "other").mkdir()
    other = write_source(tmp_path / "other", "pairs", ["one more owl"], [0])
    assert build_index(folder, [other], codec, config).identity != old.identity
    found = to_request(bundle, "owl", mode="text", max_new_tokens=3, retriever=retriever)
    assert found == expected and retriever.index.identity == old.identity


def test_the_nearest_are_asked_for_in_steps(index):
    asked = []

    class Counted(ExactSearch):
        def nearest(self, queries, n):
            asked.append(n)
            return super().nearest(queries, n)

    many = copy.copy(index)
    many.vectors = np.repeat(index.vectors[-1:], 1000, axis=0)
    many.is_mixed = np.arange(1000) == 40
    vectors = index.vectors[-1:]
    queries = Queries(vectors, np.zeros_like(vectors))
    [found] = retrieve(many, Counted(many.vectors), queries, 1, RuleConfig(max_score=1.0))
    assert [each.number for each in found] == [40]
    assert asked == [32, 32, 256, 256]


def test_a_negative_number_of_documents(index):
    with pytest.raises(ConfigError, match="documents must be 0 or more, got -1"):
        Retriever(index, -1)


def test_facts_tell_retrievers_apart(index, clip_folder, retriever):
    other = Retriever(index, 1, embedder=ClipConfig(folder=clip_folder))
    assert retriever.facts() != other.facts()
    assert retriever.facts()["search"] == "exact"
    assert asdict(retriever.retrieved(retriever.find(Document((Text("owl"),))))[0])["by"] == "text"
