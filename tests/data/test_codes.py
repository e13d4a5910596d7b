"""Bulk codes: what is written, resumed, shared, refused, and turned back into images."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from pardalis.data import SourceConfig, codes
from pardalis.data.codes import Worker, decode_codes, encode_source, read_settings
from pardalis.documents import READERS
from pardalis.errors import ConfigError, DataError
from pardalis.vq import ImageTokenizer, ImageTokenizerConfig, stream
from pardalis.vq.stream import encode_stream


@pytest.fixture(autouse=True)
def three_per_part(monkeypatch):
    monkeypatch.setattr(codes, "_IMAGES_PER_PART", 3)


@pytest.fixture
def tokenizer() -> ImageTokenizer:
    torch.set_num_threads(1)
    config = ImageTokenizerConfig(
        resolution=16, patch_size=4, channels=8, channel_multipliers=(1, 2), n_res_blocks=1,
        norm_groups=4, z_channels=8, code_width=6, n_codes=32,
    )  # fmt: skip
    made = ImageTokenizer(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return made


def noise(seed: int) -> PIL.Image.Image:
    array = np.random.default_rng(seed).integers(0, 256, (18, 30, 3), dtype=np.uint8)
    return PIL.Image.fromarray(array)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eight items: seven files in two folders, of which one is broken, and a lonely caption."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for i in range(4):
        noise(i).save(folder / f"{i}.png")
    (folder / "2.png").write_bytes(b"no image")
    for i in range(4, 7):
        noise(i).save(folder / "sub" / f"{i}.png")
    (folder / "sub" / "z.txt").write_text("A caption without its image.")
    return folder


def source(path: Path, reader: str = "folder") -> SourceConfig:
    return SourceConfig(name="images", reader=reader, path=path)


def written(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def by_name(folder: Path) -> dict[str, list[int]]:
    found = {}
    for path in sorted(folder.glob("part-*.npy")):
        names = path.with_suffix(".jsonl").read_text().splitlines()
        rows = np.load(path)
        assert rows.dtype == np.uint16
        assert len(names) == len(rows)
        found |= {json.loads(name): row.tolist() for name, row in zip(names, rows, strict=True)}
    return found


# ── the stream ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("batch", [None, 1, 3])
def test_a_stream_keeps_the_order_and_omits_nothing(tokenizer, photos, batch):
    images = [noise(i) for i in range(5)]
    sources = [images[0], photos / "2.png", *images[1:], photos / "none.png"]
    found = list(encode_stream(tokenizer, iter(sources), batch=batch))
    expected = tokenizer.codes_of(images).tolist()
    assert [i for i, each in enumerate(found) if isinstance(each, DataError)] == [1, 6]
    assert [each for each in found if not isinstance(each, DataError)] == expected
    assert "none.png does not exist" in str(found[6])


def test_a_stream_opens_only_a_little_ahead(tokenizer, monkeypatch):
    monkeypatch.setattr(stream, "_MAX_THREADS", 2)
    taken = []

    def endless():
        i = 0
        while True:
            taken.append(i)
            yield noise(i % 3)
            i += 1

    found = encode_stream(tokenizer, endless(), batch=2)
    for _ in range(10):
        next(found)
    assert len(taken) <= 10 + 2 * 2 + 2 + 2
    found.close()


def test_batches_of_a_stream_have_one_size(tokenizer, monkeypatch):
    sizes = []
    encode = tokenizer.encode
    monkeypatch.setattr(
        tokenizer, "encode", lambda pixels: sizes.append(len(pixels)) or encode(pixels)
    )
    assert len(list(encode_stream(tokenizer, [noise(i) for i in range(7)], batch=3))) == 7
    assert sizes == [3, 3, 3]


def test_fit_reaches_the_images(tokenizer):
    cropped, padded = (
        list(encode_stream(tokenizer, [noise(0)], image_fit=fit)) for fit in ("crop", "pad")
    )
    assert cropped != padded


# ── encoding ─────────────────────────────────────────────────────────────────────────────────────


def test_a_folder_becomes_parts(tokenizer, photos, tmp_path):
    folder = tmp_path / "codes"
    report = encode_source(tokenizer, source(photos), folder)
    assert (report.images, report.unchanged, report.rejected) == (8, 0, 2)
    assert sorted(written(folder)) == [
        "codes.json",
        "part-00000.jsonl", "part-00000.npy", "part-00000.rejected.jsonl",
        "part-00001.jsonl", "part-00001.npy",
        "part-00002.jsonl", "part-00002.npy", "part-00002.rejected.jsonl",
    ]  # fmt: skip
    names = ["0.png", "1.png", "3.png", "sub/4.png", "sub/5.png", "sub/6.png"]
    found = by_name(folder)
    assert list(found) == names
    assert list(found.values()) == tokenizer.codes_of([photos / name for name in names]).tolist()
    broken = json.loads((folder / "part-00000.rejected.jsonl").read_text())
    assert (broken["where"], broken["kind"]) == ("2.png", "unreadable-image")
    assert "2.png is not an image" in broken["reason"]
    lonely = json.loads((folder / "part-00002.rejected.jsonl").read_text())
    assert lonely["kind"] == "missing-image"
    settings = read_settings(folder)
    assert settings["tokenizer"] == tokenizer.fingerprint()
    assert settings["config"]["resolution"] == 16


def test_a_part_may_be_empty(tokenizer, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").touch()
    report = encode_source(tokenizer, source(tmp_path / "photos"), tmp_path / "codes")
    assert (report.images, report.rejected) == (1, 1)
    assert np.load(tmp_path / "codes" / "part-00000.npy").shape == (0, 4)
    assert decode_codes(tokenizer, tmp_path / "codes", tmp_path / "back").images == 0


def test_images_of_one_document_have_names(tokenizer, tmp_path):
    noise(0).save(tmp_path / "a.png")
    line = {"name": "page", "segments": [{"image": "a.png"}, {"text": "x"}, {"image": "a.png"}]}
    (tmp_path / "pages.jsonl").write_text(json.dumps(line))
    encode_source(tokenizer, source(tmp_path / "pages.jsonl", "jsonl"), tmp_path / "codes")
    found = by_name(tmp_path / "codes")
    assert list(found) == ["page", "page#2"]
    assert found["page"] == found["page#2"]


def test_names_need_not_be_unicode(tokenizer, tmp_path):
    (tmp_path / "photos").mkdir()
    noise(0).save(os.fsencode(tmp_path / "photos") + b"/caf\xe9.png", format="PNG")
    encode_source(tokenizer, source(tmp_path / "photos"), tmp_path / "codes")
    assert list(by_name(tmp_path / "codes")) == ["caf\udce9.png"]
    decode_codes(tokenizer, tmp_path / "codes", tmp_path / "back")
    assert os.listdir(os.fsencode(tmp_path / "back")) == [b"caf\xe9.png"]


def test_a_file_system_without_hard_links(tokenizer, photos, tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    for _ in range(2):
        encode_source(tokenizer, source(photos), tmp_path / "codes")
    assert read_settings(tmp_path / "codes")["images_per_part"] == 3
    assert not list((tmp_path / "codes").glob(".*"))
    changed = SourceConfig(name="other", reader="folder", path=photos / "sub")
    with pytest.raises(ConfigError, match="holds codes of other images"):
        encode_source(tokenizer, changed, tmp_path / "codes")


def test_codes_of_version_1_are_read_and_completed(tokenizer, photos, tmp_path):
    folder = tmp_path / "codes"
    encode_source(tokenizer, source(photos), folder)
    settings = json.loads((folder / "codes.json").read_text())
    old = {key.replace("image", "picture"): value for key, value in settings.items()}
    assert {"pictures", "pictures_per_part"} < set(old)
    (folder / "codes.json").write_text(json.dumps(old | {"version": 1}))
    assert read_settings(folder) == settings
    (folder / "part-00001.npy").unlink()
    assert encode_source(tokenizer, source(photos), folder).unchanged == 5
    assert decode_codes(tokenizer, folder, tmp_path / "back").images == 6


def test_a_source_is_read_once_to_survey_it_and_once_to_encode_it(
    tokenizer, photos, tmp_path, monkeypatch
):
    readings, reader = [], READERS["folder"]
    monkeypatch.setitem(READERS, "folder", lambda path: readings.append(path) or reader(path))
    encode_source(tokenizer, source(photos), tmp_path / "codes")
    assert len(readings) == 2
    encode_source(tokenizer, source(photos), tmp_path / "codes")
    assert len(readings) == 3


def test_an_interrupted_run_resumes(tokenizer, photos, tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    encode_source(tokenizer, source(photos), whole)
    encode, calls = tokenizer.encode, []

    def dies(pixels):
        calls.append(len(pixels))
        if len(calls) == 5:
            raise KeyboardInterrupt
        return encode(pixels)

    monkeypatch.setattr(tokenizer, "encode", dies)
    with pytest.raises(KeyboardInterrupt):
        encode_source(tokenizer, source(photos), cut, batch=1)
    assert [path.name for path in sorted(cut.glob("*.npy"))] == ["part-00000.npy"]
    report = encode_source(tokenizer, source(photos), cut, batch=1)
    assert (report.images, report.unchanged, report.rejected) == (8, 3, 2)
    assert written(cut) == written(whole)
    n_calls = len(calls)
    report = encode_source(tokenizer, source(photos), cut)
    assert (report.images, report.unchanged, report.rejected) == (8, 8, 2)
    assert len(calls) == n_calls
    assert written(cut) == written(whole)


def test_workers_write_what_one_process_writes(tokenizer, photos, tmp_path):
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    encode_source(tokenizer, source(photos), whole)
    reports = [
        encode_source(tokenizer, source(photos), shared, worker=Worker(rank, 2)) for rank in (1, 0)
    ]
    assert [(report.images, report.rejected) for report in reports] == [(3, 0), (5, 2)]
    assert written(shared) == written(whole)


def test_the_worker_is_the_rank_of_torchrun(monkeypatch):
    assert Worker.from_environment() == Worker(0, 1)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert Worker.from_environment() == Worker(2, 4)


@pytest.mark.parametrize(("rank", "size"), [(2, 2), (-1, 2), (0, 0)])
def test_a_wrong_rank_is_refused(rank, size):
    with pytest.raises(
        ConfigError, match=rf"rank must be from 0 to size - 1, got rank {rank} and size {size}"
    ):
        Worker(rank, size)


def test_other_settings_are_refused(tokenizer, photos, tmp_path):
    folder = tmp_path / "codes"
    encode_source(tokenizer, source(photos), folder)
    before = written(folder)
    with pytest.raises(ConfigError, match="was begun with fit crop, but now it is pad; use"):
        encode_source(tokenizer, source(photos), folder, image_fit="pad")
    tokenizer.compute_in(torch.bfloat16)
    with pytest.raises(ConfigError, match="begun with dtype float32, but now it is bfloat16"):
        encode_source(tokenizer, source(photos), folder)
    tokenizer.compute_in(torch.float32)
    noise(9).save(photos / "1.png")
    with pytest.raises(ConfigError, match="holds codes of other images, or the images have"):
        encode_source(tokenizer, source(photos), folder)
    assert written(folder) == before


def test_a_refused_run_leaves_nothing_behind(tokenizer, photos, tmp_path):
    (tmp_path / "empty").mkdir()
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"name": "a", "segments": [{"text": "no image"}]}\n')
    for nothing in (source(tmp_path / "empty"), source(texts, "jsonl")):
        with pytest.raises(DataError, match="holds no images, so there is nothing to encode"):
            encode_source(tokenizer, nothing, tmp_path / "codes")
    assert not (tmp_path / "codes").exists()
    with pytest.raises(ConfigError, match=r"texts\.jsonl is a file, but a folder is to be written"):
        encode_source(tokenizer, source(photos), texts)
    encode_source(tokenizer, source(photos), tmp_path / "codes")
    with pytest.raises(ConfigError, match=r"texts\.jsonl is a file"):
        decode_codes(tokenizer, tmp_path / "codes", texts)


def test_another_tokenizer_is_refused(tokenizer, photos, tmp_path):
    folder = tmp_path / "codes"
    encode_source(tokenizer, source(photos), folder)
    with torch.no_grad():
        tokenizer.quant_conv.bias.add_(1)
    with pytest.raises(ConfigError, match=r"was begun with tokenizer [0-9a-f]{16}, but now"):
        encode_source(tokenizer, source(photos), folder)
    with pytest.raises(DataError, match=r"are of image tokenizer [0-9a-f]{16}, but `tokenizer` is"):
        decode_codes(tokenizer, folder, tmp_path / "back")


def test_many_codes_take_four_bytes(tokenizer, photos, tmp_path, monkeypatch):
    config = ImageTokenizerConfig(
        resolution=16, patch_size=8, channels=4, channel_multipliers=(1,), n_res_blocks=1,
        z_channels=4, code_width=2, n_codes=(1 << 16) + 1,
    )  # fmt: skip
    encode_source(ImageTokenizer(config).eval(), source(photos), tmp_path / "codes")
    assert np.load(tmp_path / "codes" / "part-00000.npy").dtype == np.uint32


# ── decoding ─────────────────────────────────────────────────────────────────────────────────────


def test_codes_are_decoded_to_images(tokenizer, photos, tmp_path, monkeypatch):
    folder, back = tmp_path / "codes", tmp_path / "back"
    encode_source(tokenizer, source(photos), folder)
    report = decode_codes(tokenizer, folder, back)
    assert (report.images, report.unchanged) == (6, 0)
    files = sorted(path.relative_to(back).as_posix() for path in back.rglob("*.png"))
    assert files == ["0.png", "1.png", "3.png", "sub/4.png", "sub/5.png", "sub/6.png"]
    codes_ = tokenizer.codes_of([photos / name for name in files])
    for name, expected in zip(files, tokenizer.images_of(codes_), strict=True):
        with PIL.Image.open(back / name) as image:
            assert np.array_equal(np.asarray(image), np.asarray(expected))
    (back / "3.png").unlink()
    report = decode_codes(tokenizer, folder, back)
    assert (report.images, report.unchanged) == (6, 5)
    assert (back / "3.png").exists()


def test_output_names_stay_in_the_folder_and_are_unique(tokenizer, tmp_path):
    noise(0).save(tmp_path / "a.png")
    names = ["../out", "/etc/a", "a.png", "a", "b.jpg", "é" * 300, "...", "x\0y", "a~0-3"]
    lines = [{"name": name, "segments": [{"image": "a.png"}]} for name in names]
    (tmp_path / "pages.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    encode_source(tokenizer, source(tmp_path / "pages.jsonl", "jsonl"), tmp_path / "codes")
    back = tmp_path / "x" / "back"
    decode_codes(tokenizer, tmp_path / "codes", back)
    files = sorted(path.relative_to(back).as_posix() for path in back.rglob("*") if path.is_file())
    assert len(files) == len(names)
    assert {"out.png", "etc/a.png", "a.png", "b.jpg.png", "image.png", "x_y.png"} <= set(files)
    assert os.listdir(tmp_path / "x") == ["back"]


def test_images_without_codes_are_omitted(tokenizer, photos, tmp_path, caplog):
    encode_source(tokenizer, source(photos), tmp_path / "codes", worker=Worker(1, 2))
    report = decode_codes(tokenizer, tmp_path / "codes", tmp_path / "back")
    assert report.images == 3
    assert "holds 1 of 3 parts; the rest is not encoded yet" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "codes.json").unlink(), r"codes\.json is missing; encode first\."),
        (lambda f: (f / "codes.json").write_text("{"), "does not describe codes"),
        (
            lambda f: (f / "codes.json").write_text('{"format": "pardalis-codes", "version": 9}'),
            "says pardalis-codes version 9; this Pardalis reads",
        ),
        (lambda f: (f / "part-00001.npy").write_bytes(b"\x93NUM"), r"part-00001\.npy cannot be"),
        (lambda f: (f / "part-00001.jsonl").unlink(), r"part-00001\.jsonl cannot be read"),
    ],
)
def test_broken_codes_are_named(tokenizer, photos, tmp_path, change, message):
    folder = tmp_path / "codes"
    encode_source(tokenizer, source(photos), folder)
    change(folder)
    with pytest.raises(DataError, match=message):
        decode_codes(tokenizer, folder, tmp_path / "back")
