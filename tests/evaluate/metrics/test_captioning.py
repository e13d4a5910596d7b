import math
import random
import shutil
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pardalis.errors import ConfigError
from pardalis.evaluate.metrics.captioning import (
    BleuCounts,
    DocumentFrequencies,
    cider_d,
    rouge_l,
)
from pardalis.evaluate.metrics.intervals import bootstrap_of
from pardalis.evaluate.metrics.meteor import meteor, why_no_meteor

WHY = "needs pip install --no-deps pycocoevalcap"
VOCABULARY = ("a the dog cat man on in with red blue ball runs sits and of").split()  # noqa: SIM905


def words(text: str) -> list[str]:
    return text.split()


def corpus(seed: int, n: int = 40) -> tuple[list[list[str]], list[list[list[str]]]]:
    """Return candidates that are like their references, and some that are empty or short."""
    generator = random.Random(seed)
    candidates, references = [], []
    for i in range(n):
        base = generator.choices(VOCABULARY, k=generator.randint(3, 14))
        others = [
            [word if generator.random() < 0.8 else generator.choice(VOCABULARY) for word in base]
            + generator.choices(VOCABULARY, k=generator.randint(0, 3))
            for _ in range(generator.randint(1, 5))
        ]
        candidates.append(base[:1] if i == 1 else base)
        references.append(others)
    return candidates, references


def as_theirs(candidates, references):
    gts = {i: [" ".join(each) for each in some] for i, some in enumerate(references)}
    return gts, {i: [" ".join(each)] for i, each in enumerate(candidates)}


@pytest.mark.parametrize("seed", [0, 1])
def test_scores_are_those_of_pycocoevalcap(seed):
    bleu = pytest.importorskip("pycocoevalcap.bleu.bleu", reason=WHY)
    cider = pytest.importorskip("pycocoevalcap.cider.cider", reason=WHY)
    rouge = pytest.importorskip("pycocoevalcap.rouge.rouge", reason=WHY)
    candidates, references = corpus(seed)
    gts, res = as_theirs(candidates, references)
    mean, each = cider.Cider().compute_score(gts, res)
    assert cider_d(candidates, references) == pytest.approx(each, abs=1e-12)
    assert cider_d(candidates, references).mean() == pytest.approx(mean, abs=1e-12)
    _, each = rouge.Rouge().compute_score(gts, res)
    assert rouge_l(candidates, references) == pytest.approx(each, abs=1e-12)
    whole, each = bleu.Bleu(4).compute_score(gts, res, verbose=0)
    counts = BleuCounts.of(candidates, references)
    assert counts.corpus() == pytest.approx(whole, rel=1e-12)
    np.testing.assert_allclose(counts.images().T, each, rtol=1e-12)


def test_cider_of_a_case_by_hand():
    # Two images; "a" and "cat" are in the references of both or one: idf 0 and ln 2.
    references = [[words("a cat")], [words("a dog")]]
    first, second = cider_d([words("a cat"), words("a cat sits down")], references)
    # Lengths 1 and 2 have cosine 1, and there is nothing longer: 10 (1 + 1 + 0 + 0) / 4.
    assert first == pytest.approx(5.0)
    assert second == 0.0
    [score] = cider_d(
        [words("the cat cat")],
        [[words("a cat")]],
        DocumentFrequencies({("cat",): 1, ("a",): 2, ("a", "cat"): 1}, 2),
    )
    # Unigrams: (ln 2, 2 ln 2) against (0, ln 2), of which min(2, 1) · 1 / (√5 · 1) is shared.
    assert score == pytest.approx(10 / 4 * math.exp(-1 / 72) / math.sqrt(5))


def test_bleu_of_the_papers_example():
    # Papineni et al. 2002, section 2.1: "the" counts twice, as in the first reference.
    candidate = words("the the the the the the the")
    references = [words("the cat is on the mat"), words("there is a cat on the mat")]
    counts = BleuCounts.of([candidate], [references])
    assert counts.matched[0].tolist() == [2, 0, 0, 0]
    assert counts.guessed[0].tolist() == [7, 6, 5, 4]
    assert counts.corpus()[0] == pytest.approx(2 / 7)


def test_bleu_of_short_candidates_is_lowered():
    counts = BleuCounts.of([words("on the mat")], [[words("cat on the mat now ok")]])
    assert counts.corpus()[:2] == pytest.approx([math.exp(1 - 6 / 3)] * 2)
    # The nearest length counts, and of two the shorter.
    counts = BleuCounts.of([["a"] * 4], [[["a"] * 6, ["a"] * 2]])
    assert counts.reference_length.tolist() == [2]


def test_rouge_of_the_papers_example():
    # Lin 2004, section 3.1: the first shares 3 words in order, the second 2.
    reference = words("police killed the gunman")
    candidates = [words("police kill the gunman"), words("the gunman kill police")]
    assert rouge_l(candidates, [[reference]] * 2) == pytest.approx([3 / 4, 2 / 4])


def test_rouge_takes_the_best_precision_and_recall_of_references():
    [score] = rouge_l([words("a b")], [[words("a b c d"), ["a"]]])
    assert score == pytest.approx(1.0)  # precision of the first, recall of the second


@settings(deadline=None)
@given(st.integers(0, 1000))
def test_a_corpus_of_its_references_has_the_best_scores(seed):
    _, references = corpus(seed, n=6)
    references = [some[:1] for some in references]
    candidates = [some[0] for some in references]
    assert rouge_l(candidates, references) == pytest.approx(1.0)
    assert BleuCounts.of(candidates, references).corpus()[0] == pytest.approx(1.0)
    assert (cider_d(candidates, references) <= 10 + 1e-9).all()


def test_the_interval_of_bleu_is_over_images():
    candidates, references = corpus(3)
    counts = BleuCounts.of(candidates, references)
    low, high = bootstrap_of(40, lambda drawn: counts.corpus(drawn)[3], resamples=200)
    assert low < counts.corpus()[3] < high


def test_empty_captions_score_nothing():
    references = [[words("a cat")], [words("a dog")]]
    for score in (cider_d, rouge_l):
        assert score([[], []], references).tolist() == [0, 0]
    assert BleuCounts.of([[], []], references).corpus() == pytest.approx(np.zeros(4), abs=1e-4)
    assert cider_d([], []).tolist() == []


@pytest.mark.parametrize("score", [cider_d, rouge_l, BleuCounts.of])
def test_images_need_references(score):
    with pytest.raises(ValueError, match="1 candidates have 2 lists of references"):
        score([["a"]], [[["a"]], [["a"]]])
    with pytest.raises(ValueError, match="image 1 has no reference"):
        score([["a"], ["a"]], [[["a"]], []])


def test_meteor_is_that_of_java():
    pytest.importorskip("pycocoevalcap.meteor.meteor", reason=WHY)
    if shutil.which("java") is None:
        pytest.skip("needs Java")
    assert why_no_meteor() is None
    references = [[words("a man rides a wave"), words("a surfer")], [words("two dogs")]]
    corpus, [same, synonym] = meteor([references[0][0], words("two hounds")], references)
    assert same == pytest.approx(1.0)
    assert 0 < synonym < corpus < 1


def test_without_java_or_the_package_a_sentence_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocoevalcap.meteor.meteor", None)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert "pip install --no-deps pycocoevalcap" in why_no_meteor()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match="METEOR is left out, because it needs Java"):
        meteor([["a"]], [[["a"]]])
