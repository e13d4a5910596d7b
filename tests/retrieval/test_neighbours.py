"""Candidates of the documents of a source, found once, and the transform that draws from them."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from indexed_documents import write_source

from pardalis import config as configs
from pardalis.data import Loader, Shards, SourceConfig, Transforms, prepare_source
from pardalis.data.prepare import PrepareConfig
from pardalis.documents import Document, read_jsonl
from pardalis.errors import ConfigError, DataError
from pardalis.retrieval import (
    ClipConfig,
    IndexConfig,
    Neighbours,
    Retrieval,
    RuleConfig,
    build_index,
    draw,
    laid_out,
    write_neighbours,
)
from pardalis.retrieval.embedders import embed
from pardalis.retrieval.transform import NEIGHBOURS
from pardalis.seeds import derive
from pardalis.tokens import Encoded

LOOSE = RuleConfig(max_score=1.0, query_dropout=0.0)


@pytest.fixture
def embedder(index, clip_folder):
    return index.embedder(ClipConfig(folder=clip_folder))


def found_for(folder, source, index, embedder, rules=LOOSE, **changes):
    options = {"document_tokens": 40, "n_documents": 7, "seed": 0} | changes
    report = write_neighbours(folder, source, index, embedder, index.search(), rules, **options)
    return report, Neighbours.open(folder, index)


def test_candidates_are_the_nearest_by_text_and_by_image(tmp_path, source, index, embedder):
    report, neighbours = found_for(tmp_path / "n", source, index, embedder)
    documents = list(read_jsonl(source.path))
    queries = embed(embedder, documents)
    for number, document in enumerate(documents):
        found = neighbours.of(document.name)
        mixed_first = [*range(6), 6]
        ranked = {
            by: sorted(
                (n for n in mixed_first if n != number),
                key=lambda n, v=vectors: (n == 6, -float(index.vectors[n] @ v[number]), n),
            )
            for by, vectors in (("text", queries.text), ("image", queries.image))
        }
        expected = ranked["text"][:2]
        if number == 6:  # a text alone finds all by it
            expected = ranked["text"][:4]
        else:
            expected += [n for n in ranked["image"] if n not in expected][:2]
        assert found == expected, document.name
    assert (report.documents, report.candidates, report.without) == (7, 28, 0)


def test_parts_and_swapped_documents_have_the_candidates_of_the_whole(
    tmp_path, source, index, embedder
):
    _, neighbours = found_for(tmp_path / "n", source, index, embedder)
    assert neighbours.of("pairs-0#swapped#2") == neighbours.of("pairs-0") != []
    assert neighbours.of("unknown") == neighbours.of("unknown#1") == []


def test_a_copy_in_another_source_is_too_near(tmp_path, source, index, embedder):
    """The same content with another name, and with its parts swapped, has the score 1."""
    records = [json.loads(line) for line in source.path.read_text().splitlines()]
    copied = shutil.copytree(source.path.parent, tmp_path / "copy")
    lines = []
    for record in records:
        swapped = {"name": f"other {record['name']}", "segments": record["segments"][::-1]}
        lines.append(json.dumps(swapped) + "\n")
    (copied / "other.jsonl").write_text("".join(lines))
    other = SourceConfig(name="other", reader="jsonl", path=copied / "other.jsonl")
    rules = replace(LOOSE, max_score=0.9999)
    _, neighbours = found_for(tmp_path / "n", other, index, embedder, rules)
    for number in range(7):
        assert number not in neighbours.of(f"other pairs-{number}")


def test_dropped_words_do_not_hide_a_copy(tmp_path, source, index, embedder):
    """A document is compared whole, though words of its query are dropped."""
    rules = RuleConfig(max_score=0.9999, query_dropout=0.9)
    other = replace(source, name="renamed")  # not known as the document itself
    _, neighbours = found_for(tmp_path / "n", other, index, embedder, rules)
    assert all(n not in neighbours.of(f"pairs-{n}") for n in range(7))


def test_longer_documents_are_no_candidates(tmp_path, source, index, embedder):
    longest = int(np.sort(index.lengths)[3])
    _, neighbours = found_for(tmp_path / "n", source, index, embedder, document_tokens=longest)
    found = {number for name in neighbours.numbers_of for number in neighbours.of(name)}
    assert found and all(index.lengths[number] <= longest for number in found)


def test_a_source_that_gets_nothing_is_an_error_and_nothing_is_written(
    tmp_path, source, index, embedder
):
    with pytest.raises(DataError, match=r"No document of source 'pairs' may get one of the 7 doc"):
        found_for(tmp_path / "n", source, index, embedder, document_tokens=3)
    assert not (tmp_path / "n").exists()


# ── the transform ────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def run(tmp_path, source, index, embedder):
    """A run folder with shards of the source, its index and its candidates."""
    run = tmp_path / "run"
    shutil.copytree(index.folder, run / "retrieval" / "index")
    found_for(run / NEIGHBOURS / "pairs", source, index, embedder)
    return run


def test_drawn_documents_stand_before_the_document(run, index, codec):
    transform = Retrieval(documents=2, document_tokens=40)
    transforms = Transforms([transform], codec.grammar, "pairs", run)
    candidates = Neighbours.open(run / NEIGHBOURS / "pairs", index).of("pairs-1")
    query, seen = index.document(1), set()
    for epoch in range(12):
        found = transforms.load(query, "pairs-1", 5, epoch)
        seed = derive(5, "transform", 0, "retrieval", "pairs", ascii("pairs-1"), epoch)
        drawn = draw(candidates, 2, seed)
        ids = [*index.document(drawn[0]).ids[:-1], *index.document(drawn[1]).ids[1:-1]]
        assert found.ids.tolist() == [*ids, *query.ids[1:]]
        codec.grammar.validate(found.ids)
        assert len(found) <= transform.room(len(query))
        assert (found.weights == 1).all()
        seen.add(tuple(drawn))
    assert len(seen) > 3  # others in other epochs
    assert Retrieval().documents == 3  # as CM3Leon
    again = Transforms([transform], codec.grammar, "pairs", run)
    assert again.load(query, "pairs-1", 5, 11) == found


def test_retrieved_documents_need_not_be_learnt(run, index, codec):
    transform = Retrieval(documents=2, learn_retrieved=False)
    found = Transforms([transform], codec.grammar, "pairs", run).load(
        index.document(1), "pairs-1", 0, 0
    )
    n = len(found) - len(index.document(1))
    assert n > 0
    assert found.weights[1 : n + 1].tolist() == [0] * n
    assert (found.weights[n + 1 :] == 1).all() and found.weights[0] == 1


def test_a_document_without_candidates_stays_as_it_is(run, index, codec):
    transforms = Transforms([Retrieval()], codec.grammar, "pairs", run)
    assert transforms.load(index.document(2), "unknown", 0, 0) == index.document(2)


def test_the_packer_keeps_room_for_them(run, source, codec, config):
    """Rows of the loader hold the query and its documents, and no row overflows."""
    transform = Retrieval(documents=2, document_tokens=40, varies=True)
    listed = replace(source, transforms=(transform,))
    prepare_source(listed, codec, run / "shards", PrepareConfig(row_tokens=150))
    shards = Shards.open(run / "shards")
    loader = Loader(
        {"pairs": shards}, {"pairs": 1.0}, 150, 2, 0, codec.vocabulary.pad_id,
        {"pairs": Transforms([transform], codec.grammar, "pairs", run)},
    )  # fmt: skip
    lengths = set()
    for step in range(12):
        batch = loader.batch(step)
        lengths |= set((batch.documents >= 0).sum(1).tolist())
    assert max(lengths) <= 150 and len(lengths) > 3


def test_separators_stand_behind_each_retrieved_document(tmp_path, source, codec, clip_folder):
    vocabulary = codec.vocabulary.extended(("break",))
    wider = type(codec)(vocabulary, codec.text_tokenizer, codec.image_tokenizer)
    described = IndexConfig(
        embedder=ClipConfig(folder=clip_folder), document_tokens=40, separator="break"
    )
    index = build_index(tmp_path / "index", [source], wider, described)
    query = index.document(0)
    found = laid_out([index.document(1), index.document(6)], query, wider.grammar, "break")
    end = vocabulary.special["break"]
    one, other = (index.document(n).ids[1:-1].tolist() for n in (1, 6))
    assert found.ids.tolist() == [query.ids[0], *one, end, *other, end, *query.ids[1:]]
    wider.grammar.validate(found.ids)
    with pytest.raises(DataError, match="The separator 'break'"):
        laid_out([query], query, codec.grammar, "break")


def test_a_prompt_without_bos_gets_documents_too(index, codec):
    plain = type(codec)(
        codec.vocabulary, codec.text_tokenizer, codec.image_tokenizer, adds_bos=False
    )
    document = plain.encode(Document(index_segments(codec, index)))
    found = laid_out([document], Encoded.of(document.ids[:-1]), plain.grammar, "")
    assert found.ids.tolist() == [*document.ids[:-1], *document.ids[:-1]]


def index_segments(codec, index):
    return codec.decode(index.document(0).ids).segments


# ── what is refused ──────────────────────────────────────────────────────────────────────────────


def test_a_transform_needs_the_run(index, codec):
    with pytest.raises(ConfigError, match="'retrieval' of source 'pairs' reads files of a run"):
        Transforms([Retrieval()], codec.grammar, "pairs").load(index.document(0), "pairs-0", 0, 0)


def test_candidates_of_another_index_are_refused(run, tmp_path, codec, config):
    source = write_source(tmp_path, "some", ["an owl", "a fox"], [0, 1])
    other = build_index(tmp_path / "other", [source], codec, config)
    with pytest.raises(DataError, match=r"are of another index than .*run the stage 'retrieval'"):
        Neighbours.open(run / NEIGHBOURS / "pairs", other)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("neighbours.json", b"{", "cannot be read"),
        ("neighbours.json", b'{"format": "pardalis-neighbours", "version": 9}', "this format and"),
        ("names.jsonl", b"3\n", "3 is not a name"),
        ("names.jsonl", b'"a"\n', "for each of the 1 names"),
        ("numbers.npy", b"", "cannot be read"),
    ],
)
def test_damaged_candidates_are_refused(run, index, name, content, message):
    folder = run / NEIGHBOURS / "pairs"
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        Neighbours.open(folder, index)


def test_numbers_beyond_the_index_are_refused(run, index):
    folder = run / NEIGHBOURS / "pairs"
    np.save(folder / "numbers.npy", np.full((7, 4), 7))
    with pytest.raises(DataError, match="does not name documents of the index"):
        Neighbours.open(folder, index)


@pytest.mark.parametrize(
    ("values", "message"),
    [({"documents": 0}, "documents must be at least 1"), ({"document_tokens": 2}, "at least 3")],
)
def test_wrong_options_of_the_transform(values, message):
    with pytest.raises(ConfigError, match=message):
        configs.from_dict(Retrieval, values)
