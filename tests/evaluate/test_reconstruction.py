import json
import sys
import weakref
from base64 import b64decode
from io import BytesIO

import numpy as np
import PIL.Image
import pytest
import torch
from lxml import html
from PIL import ImageChops

from pardalis.cli import tokenizer_evaluate
from pardalis.cli.common import Parser, echo_json
from pardalis.errors import ConfigError, DataError, RequestError
from pardalis.evaluate import image_tokenizer as image_tokenizer_module
from pardalis.evaluate.image_tokenizer import evaluate_image_tokenizer
from pardalis.evaluate.images import ImageSet
from pardalis.evaluate.reconstruction import MetricNets, evaluate_reconstruction
from pardalis.evaluate.reconstruction_page import meaning_of, write_evaluation
from pardalis.evaluate.similarity import Moments, frechet_distance
from pardalis.feature_nets import FeatureNet, PerceptualDistance
from pardalis.feature_nets.net import Network, Scaling
from pardalis.feature_nets.squeezenet import SqueezeNet
from pardalis.vq import ImageTokenizer, ImageTokenizerConfig

N = 12
FACTS = {"tokenizer": "a <tokenizer>", "data": "images"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of growing noise, two damaged files, and a caption without its image."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for i in range(N):
        pixels = 128 + generator.normal(0, 9 * i, (32, 40, 3))
        PIL.Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i:02}.png")
    (folder / "03b.png").write_bytes(b"")
    (folder / "07b.png").write_bytes((folder / "07.png").read_bytes()[:99])
    (folder / "lost.txt").write_text("a caption")
    return folder


@pytest.fixture(scope="module")
def evaluation(image_tokenizer, folder):
    return evaluate_reconstruction(image_tokenizer, ImageSet(folder, "folder"), MetricNets(), 4)


def squares(folder, config) -> list[PIL.Image.Image]:
    return [image for _, image in ImageSet(folder, "folder").squares(config)]


def test_readable_images_are_scored_and_others_named(evaluation):
    assert [image["name"] for image in evaluation.images] == [f"{i:02}.png" for i in range(N)]
    assert (evaluation.scores["images"], evaluation.scores["rejected"]) == (N, 3)
    unreadable = evaluation.rejected["unreadable-image"]
    assert [example["where"] for example in unreadable.examples] == ["03b.png", "07b.png"]
    assert "zero bytes" in unreadable.examples[0]["reason"]
    assert evaluation.rejected["missing-image"].count == 1


def test_scores_are_means_of_each_image_and_equal_those_of_a_report(
    evaluation, image_tokenizer, folder
):
    scores, reconstructions = evaluate_image_tokenizer(
        image_tokenizer, squares(folder, image_tokenizer.config)
    )
    found = evaluation.scores
    assert found["psnr"] == pytest.approx(scores.psnr)
    assert [image["psnr"] for image in evaluation.images] == pytest.approx(scores.psnr_of_each)
    assert found["ssim"] == pytest.approx(np.mean([p["ssim"] for p in evaluation.images]))
    low, high = found["psnr_interval"]
    assert low < found["psnr"] < high
    assert found["codebook_use"] == pytest.approx(scores.codebook_use)
    assert found["perplexity"] == pytest.approx(scores.perplexity)
    assert 2 ** found["bits_per_code"] == pytest.approx(scores.perplexity)
    assert evaluation.code_counts.sum() == N * image_tokenizer.config.codes_per_image
    name = evaluation.worst[0].name
    right = reconstructions[int(name[:2])]
    assert evaluation.worst[0].reconstruction.tobytes() == right.tobytes()


def test_the_worst_are_sorted_and_the_sample_is_random(evaluation):
    by_psnr = sorted(evaluation.images, key=lambda image: image["psnr"])
    assert evaluation.worst_by == "psnr"
    assert [example.name for example in evaluation.worst] == [p["name"] for p in by_psnr[:4]]
    assert len({example.name for example in evaluation.sample}) == 4
    assert {e.name for e in evaluation.sample} != {e.name for e in evaluation.worst}


def test_scores_do_not_depend_on_batches(evaluation, image_tokenizer, folder, monkeypatch):
    monkeypatch.setattr(image_tokenizer_module, "_PIXELS_PER_BATCH", 5 * 32**2)
    again = evaluate_reconstruction(image_tokenizer, ImageSet(folder, "folder"), MetricNets(), 4)
    for one, other in zip(evaluation.images, again.images, strict=True):
        # Batches of another size may round a pixel differently.
        assert one["psnr"] == pytest.approx(other["psnr"], abs=0.02)
        assert one["ssim"] == pytest.approx(other["ssim"], abs=1e-3)
    assert [e.name for e in again.sample] == [e.name for e in evaluation.sample]


def test_memory_does_not_grow_with_the_number_of_images(image_tokenizer, monkeypatch):
    monkeypatch.setattr(image_tokenizer_module, "_PIXELS_PER_BATCH", 2 * 32**2)
    made = []
    most_alive = 0

    class Many(ImageSet):
        def __init__(self):
            self.rejected = {}

        def __len__(self):
            return 20

        def squares(self, config):
            nonlocal most_alive
            for i in range(20):
                image = PIL.Image.new("RGB", (32, 32), (12 * i, 90, 90))
                made.append(weakref.ref(image))
                most_alive = max(most_alive, sum(ref() is not None for ref in made))
                yield str(i), image
                del image

    evaluate_reconstruction(image_tokenizer, Many(), MetricNets(), 3)
    assert most_alive <= 3 + 3 + 2 * 2 + 1  # the worst, the sample, a batch and the next image


class Corners(Network):
    """Features that are the mean colours of four parts of an image."""

    widths = (3, 3)
    classifier = "-"
    scaling = Scaling(mean=(127.5,) * 3, std=(127.5,) * 3)
    side = 32

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        return [pixels, torch.nn.functional.avg_pool2d(pixels, 16)]


@pytest.mark.parametrize(
    ("net", "score"), [("squeezenet", "frechet_squeezenet"), ("inception_v3", "fid")]
)
def test_scores_are_named_after_their_nets(image_tokenizer, folder, net, score):
    corners = FeatureNet(net, Corners())
    ones = [torch.ones(3, 1, 1), torch.zeros(3, 1, 1)]
    nets = MetricNets(
        perceptual=PerceptualDistance(corners, ones, "perceptual_corners"),
        frechet=corners,
        ocr=lambda _: ["owl"],
    )
    found = evaluate_reconstruction(image_tokenizer, ImageSet(folder, "folder"), nets, 1)
    assert set(found.scores) == {
        "images", "rejected", "psnr", "psnr_interval", "ssim", "ssim_interval",
        "perceptual_corners", "perceptual_corners_interval", score, "words", "word_recall",
        "codebook_use", "perplexity", "bits_per_code",
    }  # fmt: skip
    assert all(meaning_of(name) for name in found.scores if not name.endswith("_interval"))
    assert found.worst_by == "perceptual_corners"
    distances = [image["perceptual_corners"] for image in found.images]
    assert found.worst[0].scores["perceptual_corners"] == max(distances) > 0
    assert found.scores["perceptual_corners"] == pytest.approx(np.mean(distances))
    # The same from all images in one batch.
    _, reconstructions = evaluate_image_tokenizer(
        image_tokenizer, squares(folder, image_tokenizer.config)
    )
    sets = []
    for images in (squares(folder, image_tokenizer.config), reconstructions):
        colours = np.stack([np.asarray(image) for image in images]).mean((1, 2)) / 127.5 - 1
        sets.append(Moments(3))
        sets[-1].add(torch.from_numpy(colours).float())
    assert found.scores[score] == pytest.approx(frechet_distance(*sets), rel=1e-3)


def test_word_recall_is_over_the_words_of_all_images(image_tokenizer, tmp_path):
    colours = {"red": ["An owl", "sat"], "blue": ["owl"], "lime": []}
    for colour in colours:
        PIL.Image.new("RGB", (32, 32), colour).save(tmp_path / f"{colour}.png")
    seen = {PIL.Image.new("RGB", (1, 1), c).tobytes(): lines for c, lines in colours.items()}

    def read(image: PIL.Image.Image) -> list[str]:
        return seen.get(image.crop((0, 0, 1, 1)).tobytes(), ["the OWL"])  # of reconstructions

    found = evaluate_reconstruction(
        image_tokenizer, ImageSet(tmp_path, "folder"), MetricNets(ocr=read)
    )
    assert (found.scores["words"], found.scores["word_recall"]) == (4, pytest.approx(2 / 4))
    assert [(p["words"], p["words_recalled"]) for p in found.images] == [(1, 1), (0, 0), (3, 1)]


def test_one_image_has_no_frechet_distance_and_no_words_have_no_recall(image_tokenizer, folder):
    nets = MetricNets(frechet=FeatureNet("corners", Corners()), ocr=lambda _: [])
    found = evaluate_reconstruction(
        image_tokenizer, ImageSet(folder, "folder", max_images=1), nets
    ).scores
    assert found["frechet_corners"] is found["word_recall"] is None


@pytest.mark.parametrize("max_images", [1, 3, 5, 14, 99])
def test_images_are_evenly_spaced_over_the_source(image_tokenizer, folder, max_images):
    images = ImageSet(folder, "folder", max_images=max_images)
    names = [name for name, _ in images.squares(image_tokenizer.config)]
    unreadable = images.rejected.get("unreadable-image")
    assert (
        len(names) + (unreadable.count if unreadable else 0) == len(images) == min(max_images, 14)
    )
    gaps = np.diff([int(name[:2]) for name in names])
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= 2


def test_documents_with_several_images_name_each(image_tokenizer, tmp_path):
    for name in ("a", "b"):
        PIL.Image.new("RGB", (48, 48)).save(tmp_path / f"{name}.png")
    page = tmp_path / "page.html"
    page.write_text('<p>One</p><img src="a.png"><p>and two</p><img src="b.png">')
    [first, second] = [name for name, _ in ImageSet(page, "html").squares(image_tokenizer.config)]
    assert second == f"{first}#2"


def test_padding_keeps_what_cropping_removes(image_tokenizer, tmp_path):
    wide = PIL.Image.new("RGB", (64, 32), "red")
    wide.paste("blue", (16, 0, 48, 32))
    wide.save(tmp_path / "wide.png")
    colours = {}
    for fit in ("crop", "pad"):
        [(_, image)] = ImageSet(tmp_path, "folder", fit).squares(image_tokenizer.config)
        colours[fit] = {colour for _, colour in image.getcolors(4096)}
    assert colours["crop"] == {(0, 0, 255)}
    assert {(255, 0, 0), (255, 255, 255)} <= colours["pad"]


def test_no_readable_image_is_an_error(image_tokenizer, tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match="holds no image that can be read"):
        evaluate_reconstruction(image_tokenizer, ImageSet(tmp_path, "folder"), MetricNets())


def test_images_that_are_too_small_for_a_net_are_refused_before_any_is_read(tmp_path):
    config = ImageTokenizerConfig(
        resolution=16, patch_size=4, channels=8, channel_multipliers=(1, 2), n_res_blocks=1,
        z_channels=8, code_width=4, n_codes=24,
    )  # fmt: skip
    net = FeatureNet("squeezenet", SqueezeNet())
    nets = MetricNets(perceptual=PerceptualDistance(net, [torch.ones(1)] * 7, "perceptual"))
    with pytest.raises(ConfigError, match=r"squeezenet needs images of at least 17 .* got 16; "):
        evaluate_reconstruction(ImageTokenizer(config).eval(), ImageSet(tmp_path, "folder"), nets)


def test_a_tokenizer_without_a_decoder_is_refused(folder):
    config = ImageTokenizerConfig(
        resolution=32, patch_size=4, channels=8, channel_multipliers=(1, 2), n_res_blocks=1,
        z_channels=8, code_width=4, n_codes=24, has_decoder=False,
    )  # fmt: skip
    with pytest.raises(RequestError, match="has no decoder"):
        evaluate_reconstruction(
            ImageTokenizer(config).eval(), ImageSet(folder, "folder"), MetricNets()
        )


def open_uri(uri: str) -> PIL.Image.Image:
    return PIL.Image.open(BytesIO(b64decode(uri.removeprefix("data:image/png;base64,"))))


def test_the_page_is_self_contained(evaluation, tmp_path):
    write_evaluation(tmp_path, evaluation, FACTS)
    saved = json.loads((tmp_path / "scores.json").read_text())
    assert saved["scores"] == evaluation.scores
    assert saved["tokenizer"] == "a <tokenizer>"
    assert saved["rejected"]["unreadable-image"]["count"] == 2
    lines = (tmp_path / "images.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == evaluation.images
    page = html.fromstring((tmp_path / "page.html").read_bytes())
    links = page.xpath("//@src | //@href | //@*[local-name() = 'xlink:href']")
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in links)
    assert not page.xpath("//script | //link")
    anchors = {link[1:] for link in page.xpath("//nav//a/@href")}
    assert anchors == set(page.xpath("//section/@id"))
    words = page.text_content()
    for word in ("a <tokenizer>", "03b.png", "zero bytes", "peak signal-to-noise ratio"):
        assert word in words
    assert len(page.xpath("//section[@id='codebook']//svg")) == 1


def test_without_packages_of_pages_the_scores_are_kept(evaluation, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    write_evaluation(tmp_path, evaluation, FACTS)
    assert {path.name for path in tmp_path.iterdir()} == {"scores.json", "images.jsonl"}
    assert "(page.html) is left out, because jinja2 is not installed" in caplog.text


def test_the_page_shows_original_reconstruction_and_difference(evaluation, tmp_path):
    write_evaluation(tmp_path, evaluation, FACTS)
    page = html.fromstring((tmp_path / "page.html").read_bytes())
    figures = page.xpath("//section[@id='worst']//figure")
    assert len(figures) == 4
    for figure, example in zip(figures, evaluation.worst, strict=True):
        assert example.name in figure.text_content()
        before, after, difference = map(open_uri, figure.xpath("img/@src"))
        assert before.tobytes() == example.original.tobytes()
        assert after.tobytes() == example.reconstruction.tobytes()
        expected = ImageChops.difference(before, after).point(lambda value: 2 * value)
        assert difference.tobytes() == expected.tobytes()


# ── the command ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def saved(image_tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    image_tokenizer.save(folder)
    return folder


def run(*arguments: object) -> None:
    parser = Parser()
    tokenizer_evaluate.add(parser.add_subparsers())
    options = parser.parse_args(["evaluate", *map(str, arguments)])
    options.run(options)
    if options.json:
        echo_json(options.result)


BARE = ("--perceptual", "none", "--frechet", "none")


def test_the_command_prints_scores_and_rejected_images(saved, folder, capsys):
    run(saved, folder, *BARE)
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == ["images", "12"]
    assert any(line.startswith("psnr ") and " to " in line for line in out.splitlines())
    assert "2 unreadable-image, such as 03b.png:" in out


def test_the_command_prints_what_it_writes(saved, folder, tmp_path, capsys):
    run(saved, folder, "-o", tmp_path / "out", "--json", "--worst", 2, *BARE)
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "out/scores.json").read_text())
    assert printed["scores"]["images"] == N
    assert (printed["resolution"], printed["codes_per_image"]) == (32, 16)
    page = html.fromstring((tmp_path / "out/page.html").read_bytes())
    assert len(page.xpath("//section[@id='worst']//figure")) == 2


def test_the_command_finds_the_reader_by_the_name(saved, folder, tmp_path, capsys):
    lines = tmp_path / "some.jsonl"
    segments = [{"text": "noise"}, {"image": str(folder / "05.png")}]
    lines.write_text(json.dumps({"name": "a", "segments": segments}) + "\n")
    run(saved, lines, "--json")  # with the packaged nets
    scores = json.loads(capsys.readouterr().out)["scores"]
    assert scores["images"] == 1
    assert scores["perceptual_squeezenet"] > 0
    assert scores["frechet_efficientnet_lite0"] is None  # undefined for one image


def test_data_without_images_is_an_error(saved, tmp_path):
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"name": "a", "segments": [{"text": "no image"}]}\n')
    with pytest.raises(DataError, match=r"texts\.jsonl holds no images"):
        run(saved, texts, *BARE)


def test_files_of_no_evaluation_are_not_replaced(saved, folder, tmp_path):
    """A list of images of one's own, in the folder that is evaluated."""
    (tmp_path / "images.jsonl").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds images.jsonl of no evaluation, which it would"):
        run(saved, folder, "-o", tmp_path, *BARE)
    assert (tmp_path / "images.jsonl").read_text() == "mine"


def test_an_output_that_is_a_file_is_refused_at_the_start(saved, folder, tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ConfigError, match="out is a file, but a folder is to be written"):
        run(saved, folder, "-o", tmp_path / "out", *BARE)
    assert "Evaluating" not in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--max-images", "0"), "--max-images must be at least 1, got 0"),
        (("--worst", "-1"), "--worst must be at least 1, got -1"),
        (("--frechet", "inception_v3"), "no package holds those of inception_v3"),
        (("--perceptual", "vgg16"), "--perceptual-weights are missing: no package holds those"),
        (("--perceptual-heads", "vgg.pth"), "--perceptual-heads of LPIPS are fitted to"),
        (("--frechet", "none", "--frechet-weights", "a.pth"), "leave out --frechet none"),
        (("--device", "abacus"), "No device 'abacus'"),
    ],
)
def test_invalid_options_are_refused(saved, folder, options, message):
    with pytest.raises(ConfigError, match=message):
        run(saved, folder, *options)
