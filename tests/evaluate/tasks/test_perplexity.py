"""Losses of documents: against scores of whole documents, and windows over long ones."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_tasks import write_task

import pardalis
from pardalis.errors import ConfigError, DataError, RequestError
from pardalis.evaluate.metrics.intervals import bootstrap
from pardalis.evaluate.tasks import evaluate_tasks, paired_ratio, ratio, read_items, task_of
from pardalis.evaluate.tasks.perplexity import windows

TEXTS = """\
kind = "perplexity"
document = "{text}"

[data]
path = "items.jsonl"
"""
DOCUMENTS = TEXTS.replace('document = "{text}"\n', "").replace(
    "[data]", '[data]\nkind = "documents"'
)


def test_bits_per_byte_of_texts(bundle, tmp_path):
    texts = ["An owl sat on the naïve fox.", "The cat."]
    path = write_task(tmp_path, toml=TEXTS, items=[{"text": text} for text in texts])
    entry = evaluate_tasks(bundle, [path], tmp_path / "out")["tasks"]["animals"]
    scores = pardalis.score(bundle, [([], text) for text in texts])
    nats = -sum(score.log_prob for score in scores)
    n_bytes = sum(len(text.encode()) for text in texts)
    bits = entry["numbers"]["bits_per_byte"]
    assert bits["value"] == pytest.approx(nats / math.log(2) / n_bytes, rel=1e-5)
    assert bits["low"] <= bits["value"] <= bits["high"]
    n_tokens = sum(len(score.log_probs) for score in scores)
    assert entry["numbers"]["loss_text"]["value"] == pytest.approx(nats / n_tokens, rel=1e-5)
    assert list(entry["numbers"]) == ["bits_per_byte", "loss_text"]


def test_losses_by_modality_and_position(bundle, tmp_path):
    documents = [
        {"name": "a", "segments": [{"text": "An owl"}, {"image": "red.png"}, {"text": " sat."}]},
        {"name": "b", "segments": [{"image": "blue.png"}]},
    ]
    path = write_task(tmp_path, toml=DOCUMENTS, items=documents)
    numbers = evaluate_tasks(bundle, [path], tmp_path / "out")["tasks"]["animals"]["numbers"]
    assert list(numbers) == [
        "bits_per_byte", "loss_image", "loss_text", "loss_text_at_1", "loss_image_at_2",
        "loss_text_at_3",
    ]  # fmt: skip
    red, blue = tmp_path / "red.png", tmp_path / "blue.png"
    first, image, last, alone = pardalis.score(
        bundle,
        [([], "An owl"), ("An owl", red), (["An owl", red], " sat."), ([], blue)],
    )
    codes = [image.log_probs[1:-1], alone.log_probs[1:-1]]  # without what begins and ends them
    assert len(codes[0]) == 4
    expected = -(sum(codes[0]) + sum(codes[1])) / 8
    assert numbers["loss_image"]["value"] == pytest.approx(expected, rel=1e-4)
    assert numbers["loss_image_at_2"]["value"] == pytest.approx(-sum(codes[0]) / 4, rel=1e-4)
    for name, score in (("loss_text_at_1", first), ("loss_text_at_3", last)):
        mean = -score.log_prob / len(score.log_probs)
        assert numbers[name]["value"] == pytest.approx(mean, rel=1e-4)
    [record, _] = read_items(tmp_path / "out", "animals")
    assert record["answer"] == [{"text": "An owl"}, {"image": "red.png"}, {"text": " sat."}]
    assert [each["tokens"] for each in record["details"]["segments"]][1] == 4


def test_a_document_longer_than_the_context(bundle, tmp_path):
    segments = [{"text": "An owl sat on the old oak. " * 6}, {"image": "red.png"}] * 3
    path = write_task(tmp_path, toml=DOCUMENTS, items=[{"name": "a", "segments": segments}])
    evaluate_tasks(bundle, [path], tmp_path / "out")
    [record] = read_items(tmp_path / "out", "animals")
    assert record["details"]["windows"] > 2
    tokens = [len(bundle.codec.text_tokenizer.encode(segments[0]["text"])), 4] * 3
    assert [each["tokens"] for each in record["details"]["segments"]] == tokens


@given(st.lists(st.integers(0, 5), max_size=12), st.integers(8, 20), st.floats(0, 0.9))
def test_windows_predict_each_token_once(lengths, length, overlap):
    """Runs of text of these lengths, with images of 6 tokens between them."""
    may_begin = [b for n in lengths for b in [True] * n + [True] + [False] * 5]
    found = []
    try:
        for start, first, stop in windows(may_begin, length, overlap):
            assert may_begin[start]
            assert start <= first < stop <= start + length
            assert first - start >= min(first, int(overlap * length))
            found += range(first, stop)
    except RequestError:
        assert int(overlap * length) + 6 > length  # an image and the overlap do not fit
    else:
        assert found == list(range(len(may_begin)))


def test_what_does_not_apply(tmp_path):
    values = {"name": "t", "kind": "perplexity", "data": {"path": "x.jsonl"}}
    with pytest.raises(ConfigError, match="shots does not apply to perplexity"):
        task_of(values | {"shots": 1})
    with pytest.raises(ConfigError, match=r"overlap must lie in \[0, 1\)"):
        task_of(values | {"overlap": 1.0})
    path = write_task(tmp_path, toml=TEXTS, items=[{"text": ""}])
    with pytest.raises(DataError, match="item '0': the document is empty, so it has no loss"):
        evaluate_tasks(tmp_path, [path], tmp_path / "out")


def test_an_item_is_drawn_with_its_values_of_all_seeds():
    tops, ids = [1.0, 5.0, 2.0, 9.0], list("abab")
    together = ratio(tops, [1.0] * 4, ids)
    assert together == ratio([3.0, 14.0], [2.0, 2.0]) and together.low == 1.5
    bottoms = [1.0] * 4
    change = paired_ratio((tops, [2.0] * 4), (bottoms, bottoms), ids)
    assert change == paired_ratio(([3.0, 14.0], [4.0, 4.0]), ([2.0, 2.0], [2.0, 2.0]))


def test_a_ratio_of_equal_weights_is_a_mean():
    values = [float(n % 7) for n in range(60)]
    number = ratio([2 * value for value in values], [2.0] * 60)
    interval = bootstrap(values)
    assert number.value == pytest.approx(sum(values) / 60)
    assert (number.low, number.high) == pytest.approx(tuple(interval), abs=0.05)
