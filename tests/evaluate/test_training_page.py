import json

import numpy as np
import PIL.Image
import pytest
from lxml import etree, html

from pardalis.errors import DataError
from pardalis.evaluate.curves import codebook_chart
from pardalis.evaluate.training_page import write_training_page

COUNTS = np.array([5, 0, 1, 0, 10])
LAST = {"step": 40, "heldout_psnr": 17.51, "grad_norm": 0.7}


@pytest.fixture
def folder(tmp_path):
    lines = [
        {"step": 20 * i, "time_s": 61.0 * i, "loss_l1": 1 / (i + 1), "a_new_loss": 0.5,
         "images": 32.0, "steps_per_second": 3.0, "heldout_l1": 0.3, "heldout_psnr": 12.0 + i}
        for i in range(3)
    ]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def write(folder, **options):
    images = [PIL.Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    write_training_page(folder, images, images[::-1], COUNTS, LAST, **options)
    return html.fromstring((folder / "progress.html").read_bytes())


def test_the_page_shows_images_codes_and_a_chart_per_metric(folder):
    page = write(folder)
    stacks = [figure.xpath("img/@src") for figure in page.xpath("//*[@id='images']//figure")]
    assert len(stacks) == 3
    assert stacks[0] == stacks[2][::-1]  # original above, reconstruction below
    titles = page.xpath("//*[@id='curves']//figcaption/text()")
    # Quality metrics come first; costs have no chart.
    assert titles == ["PSNR (dB)", "loss l1", "a new loss", "l1"]
    assert len(page.xpath("//*[@id='curves']//figure/svg")) == 4
    words = page.text_content()
    for word in ("At step 40", "2 min 02 s", "2 of 5 codes", "held-out PSNR (dB)", "17.51"):
        assert word in words


def test_without_held_out_metrics_training_metrics_are_shown(folder):
    assert write(folder).xpath("//dl//dt/text()") == ["held-out PSNR (dB)"]
    write_training_page(folder, [], [], COUNTS, {"step": 40, "images": 12, "grad_norm": 0.7})
    page = html.fromstring((folder / "progress.html").read_bytes())
    assert page.xpath("//dl//dt/text()") == ["grad norm"]
    assert page.xpath("//dl//dd/text()") == ["0.7"]


def test_the_page_is_one_file_without_scripts(folder):
    page = write(folder)
    links = page.xpath("//@src | //@href | //@*[local-name() = 'xlink:href']")
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in links)
    assert not page.xpath("//script | //link")


def test_the_page_reloads_until_the_run_is_finished(folder):
    refresh = "//meta[@http-equiv='refresh']/@content"
    assert write(folder).xpath(refresh) == ["30"]
    finished = write(folder, is_finished=True)
    assert finished.xpath(refresh) == []
    assert "Finished after step 40" in finished.text_content()


def test_a_run_without_held_out_images_or_metrics_has_a_page(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    write_training_page(tmp_path, [], [], np.zeros(4, dtype=np.int64), {})
    page = html.fromstring((tmp_path / "progress.html").read_bytes())
    assert "There are no held-out images" in page.text_content()
    assert "4 of 4 codes" in page.text_content()


def test_damaged_metrics_leave_the_old_page(folder):
    write(folder)
    before = (folder / "progress.html").read_text()
    (folder / "metrics.jsonl").write_text("{\n{\n")
    with pytest.raises(DataError, match="is not a metrics line"):
        write(folder)
    assert (folder / "progress.html").read_text() == before


def outlines(counts: np.ndarray) -> list[str]:
    """Return the paths of a codebook chart, without random ids."""
    svg = etree.fromstring(codebook_chart(counts, "#15806a"))
    return svg.xpath("//*[local-name() = 'path']/@d")


def test_a_codebook_chart_sorts_codes_and_marks_unused_ones():
    counts = np.arange(16_384).clip(8192) - 8192
    shuffled = np.random.default_rng(0).permutation(counts)
    assert outlines(counts) == outlines(shuffled)
    assert outlines(counts) == outlines(3 * counts)  # relative to uniform use
    assert outlines(counts) != outlines(counts.clip(1))
    assert len(codebook_chart(counts, "#15806a")) < 100_000
