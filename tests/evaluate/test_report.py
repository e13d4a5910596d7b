import json
import shutil

import pytest
from lxml import html

from pardalis.errors import DataError
from pardalis.evaluate.page import _duration, _ordinal, _percent, _spread
from pardalis.evaluate.report import write_report
from pardalis.evaluate.run_folder import Metrics, RunFolder

N_TRAIN, N_HELD_OUT = 9, 4  # see conftest.py


@pytest.fixture(scope="module")
def report(finished_run, image_tokenizer, features):
    return write_report(finished_run, image_tokenizer, features)


def test_the_numbers_are_those_of_the_run(finished_run, report):
    assert json.loads((finished_run / "report.json").read_text()) == report
    assert report["n_concepts_train"] == N_TRAIN
    assert report["n_concepts_heldout"] == N_HELD_OUT
    assert report["gallery_size"] == report["retrieval_candidates"] == N_TRAIN + N_HELD_OUT
    assert report["seconds"] == pytest.approx(31.4 + 322.0 + 24.8 + 480.5 + 61.2)
    assert report["peak_rss_gib"] == 2.1
    # Train concepts were drawn as their own originals, held-out ones as another picture.
    assert report["retrieval_top1_train"] == 1.0
    assert report["retrieval_top1_heldout"] == 0.0
    assert report["retrieval_chance"] == pytest.approx(1 / 13)
    # The first caption of each split is wrong.
    assert report["caption_exact_train"] == pytest.approx(8 / 9)
    assert report["caption_exact_heldout"] == pytest.approx(3 / 4)
    assert report["loss_text"] == pytest.approx(2.04, abs=0.1)
    assert report["heldout_loss_image"] == pytest.approx(4.2, abs=0.01)
    assert report["tokens_text"] == 18_000
    assert 0 < report["psnr"] < 100
    assert 0 < report["codebook_use"] <= 1


def test_the_page_is_one_file_without_scripts(finished_run, report):
    page = html.fromstring((finished_run / "report.html").read_bytes())
    links = page.xpath("//@src | //@href | //@*[local-name() = 'xlink:href']")
    assert len(links) > 50
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in links)
    text = (finished_run / "report.html").read_text()
    assert "<script" not in text
    assert "@import" not in text
    assert "url(http" not in text
    anchors = {link[1:] for link in page.xpath("//nav//a/@href")}
    assert anchors == set(page.xpath("//section/@id"))


def test_the_page_shows_every_part(finished_run, report):
    page = html.fromstring((finished_run / "report.html").read_bytes())
    assert len(page.xpath("//article[contains(@class, 'drawn')]")) == N_TRAIN + N_HELD_OUT
    assert len(page.xpath("//section[@id='captions']//tbody/tr")) == N_TRAIN + N_HELD_OUT
    assert len(page.xpath("//article[contains(@class, 'page')]//img")) == 4
    assert len(page.xpath("//figure/svg")) == 5
    words = page.text_content()
    for word in ("OpenMoji, https://openmoji.org", "empty-picture", "owl.png holds zero bytes",
                 "15 min 20 s", "seed = 7"):  # fmt: skip
        assert word in words
    numbers = set(page.xpath("//section[@id='numbers']//td[1]/code/text()"))
    assert numbers == set(report)


def test_words_of_the_run_are_text_and_never_markup(finished_run, report):
    text = (finished_run / "report.html").read_text()
    assert "thing 0 &lt;&amp;&gt;" in text
    assert "&lt;b&gt;its form&lt;/b&gt;" in text
    assert "<b>its form" not in text


def test_a_run_without_held_out_answers_has_gaps_instead_of_numbers(run, image_tokenizer, features):
    path = run / "answers/answers.json"
    answers = json.loads(path.read_text())
    for kind in ("pictures", "captions", "pages"):
        answers[kind] = [answer for answer in answers[kind] if answer["split"] == "train"]
    path.write_text(json.dumps(answers))
    numbers = write_report(run, image_tokenizer, features)
    assert numbers["retrieval_top1_heldout"] is None
    assert numbers["caption_exact_heldout"] is None
    assert "No captions of this kind were written." in (run / "report.html").read_text()


def test_a_report_is_the_same_for_a_copy_of_the_run(run, image_tokenizer, features, report):
    assert write_report(run, image_tokenizer, features) == report


@pytest.mark.parametrize(
    ("missing", "stage"),
    [
        ("recipe.toml", "prepare"),
        ("stages.json", "prepare"),
        ("corpus/LICENCES.json", "corpus"),
        ("image_tokenizer", "image_tokenizer"),
        ("training", "train"),
        ("shards", "prepare"),
        ("answers", "answer"),
    ],
)
def test_a_missing_file_names_the_stage_to_run(run, missing, stage):
    path = run / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(DataError, match=f"{missing}.* is missing.*comes from the stage '{stage}'"):
        RunFolder.read(run)


def test_a_missing_run_is_told(tmp_path):
    with pytest.raises(DataError, match="There is no run folder"):
        RunFolder.read(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("stages.json", "[{", "stages.json is not JSON"),
        ("stages.json", "{}", "holds a dict, where a list was expected"),
        ("training/metrics.jsonl", '{"step": 1}\n{"loss"', "line 2, is not a line of metrics"),
        ("shards/pages.train/report.json", "{}", "is not a report of prepare"),
        ("answers/answers.json", "{}", "lacks gallery, pictures, captions, pages"),
    ],
)
def test_a_broken_file_is_named(run, name, content, message):
    (run / name).write_text(content)
    with pytest.raises(DataError, match=message):
        RunFolder.read(run)


def test_an_unknown_split_is_told(run):
    path = run / "answers/answers.json"
    path.write_text(path.read_text().replace('"heldout"', '"dev"'))
    with pytest.raises(
        DataError, match="'gallery' with the split 'dev'; a split is one of train, h"
    ):
        RunFolder.read(run)


def test_answers_whose_original_is_not_in_the_gallery_are_refused(run, image_tokenizer, features):
    path = run / "answers/answers.json"
    answers = json.loads(path.read_text())
    del answers["gallery"][3]
    path.write_text(json.dumps(answers))
    with pytest.raises(
        DataError, match=r"names the original corpus/pictures/3\.png, which its gallery"
    ):
        write_report(run, image_tokenizer, features)


def test_pictures_drawn_without_any_learnt_have_no_nearest(run, image_tokenizer, features):
    path = run / "answers/answers.json"
    path.write_text(path.read_text().replace('"train"', '"heldout"'))
    numbers = write_report(run, image_tokenizer, features)
    assert numbers["retrieval_top1_heldout"] == pytest.approx(9 / 13)
    assert "likeness to nearest" not in (run / "report.html").read_text()


def test_a_run_on_the_users_own_text_has_a_page_too(run, image_tokenizer, features):
    shutil.rmtree(run / "corpus")
    path = run / "answers/answers.json"
    answers = json.loads(path.read_text())
    answers |= {"gallery": [], "pictures": [], "captions": []}
    path.write_text(json.dumps(answers))
    numbers = write_report(run, image_tokenizer, features)
    assert numbers["gallery_size"] == 0
    assert numbers["psnr"] is numbers["retrieval_top1_train"] is numbers["retrieval_chance"] is None
    assert "Sources and licences" not in (run / "report.html").read_text()


def test_metrics_of_a_resumed_run_count_once():
    nan = float("nan")
    metrics = Metrics([{"step": 2, "heldout/loss": 3.0},
                       {"step": 2, "loss": 3.0}, {"step": 1, "loss": 5.0}, {"step": 2, "loss": 4.0},
                       {"step": 3, "loss": nan}, {"step": 4, "loss": None}])  # fmt: skip
    assert metrics.curve("loss") == ([1, 2], [5.0, 4.0])
    assert metrics.last("loss") == 4.0
    assert metrics.last("loss", 10) == 4.5
    assert metrics.last("heldout_loss") == 3.0
    assert metrics.last("other") is None


def test_numbers_are_worded_for_people():
    assert [_duration(s) for s in (8.23, 59, 60, 860, 7380)] == [
        "8.2 s", "59 s", "1 min 00 s", "14 min 20 s", "2 h 03 min",
    ]  # fmt: skip
    assert [_percent(x) for x in (0, 0.01, 0.034, 0.624, 0.996, 1)] == [
        "0 %", "1 %", "3.4 %", "62 %", "99.6 %", "100 %",
    ]  # fmt: skip
    assert [_ordinal(n) for n in (1, 2, 3, 4, 11, 12, 22, 100)] == [
        "1st", "2nd", "3rd", "4th", "11th", "12th", "22nd", "100th",
    ]  # fmt: skip
    assert _spread(range(10), 5) == [0, 2, 4, 6, 8]
    assert _spread(range(3), 5) == [0, 1, 2]
