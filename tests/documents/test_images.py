"""Every kind of image file becomes RGB, and every kind of damage becomes one clear error."""

import base64
import io
import struct
import warnings
import zlib

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ImageCms, ImageOps

from pardalis.documents import (
    MAX_PIXELS,
    from_data_uri,
    media_type,
    open_image,
    to_data_uri,
    to_png,
)
from pardalis.documents.images import from_base64, image_size
from pardalis.errors import DataError


def pixels(image):
    assert image.mode == "RGB"
    return np.asarray(image)


def test_rgb_comes_back_exactly_from_path_bytes_and_image(red_file, red_png):
    for source in (red_file, red_png, PIL.Image.new("RGB", (16, 12), "red")):
        assert (pixels(open_image(source)) == [255, 0, 0]).all()
        assert open_image(source).size == (16, 12)


def test_transparency_is_laid_on_white(encode):
    half = PIL.Image.new("RGBA", (2, 2), (0, 0, 0, 128))
    assert (pixels(open_image(encode(half))) == 127).all()
    assert (pixels(open_image(half)) == 127).all()


def test_the_two_blends_differ_by_less_than_a_level():
    """Chameleon's cuts off what Pillow's rounds: at every pair of opacity and colour."""
    opacity, colour = np.mgrid[:256, :256]
    rgba = np.stack([colour, colour, colour, opacity], axis=2).astype(np.uint8)
    layer = PIL.Image.fromarray(rgba)
    cut_off = pixels(open_image(layer, "chameleon"))[:, :, 0]
    rounded = pixels(open_image(layer, "pillow"))[:, :, 0]
    exact = opacity / 255 * colour + (1 - opacity / 255) * 255
    assert (np.abs(cut_off - (exact - 0.5)) < 0.5 + 1e-9).all()
    assert (np.abs(rounded - exact) < 0.5 + 1e-9).all()
    assert (rounded != cut_off).mean() == pytest.approx(0.487, abs=0.001)
    assert np.array_equal(cut_off[255], np.arange(256))
    assert (cut_off[0] == 255).all()
    assert np.array_equal(pixels(open_image(layer))[:, :, 0], cut_off)


def test_a_large_image_is_blended_in_blocks():
    noise = np.random.default_rng(0).integers(0, 256, (300, 500, 4), dtype=np.uint8)
    whole = pixels(open_image(PIL.Image.fromarray(noise)))
    for y in (0, 131, 132, 299):
        row = pixels(open_image(PIL.Image.fromarray(noise[y : y + 1])))
        assert np.array_equal(whole[y], row[0])


def test_grey_with_alpha_and_black_and_white(encode):
    assert (pixels(open_image(encode(PIL.Image.new("LA", (2, 2), (0, 0))))) == 255).all()
    assert (pixels(open_image(encode(PIL.Image.new("1", (2, 2), 1)))) == 255).all()
    assert (pixels(open_image(encode(PIL.Image.new("L", (2, 2), 77)))) == 77).all()


def test_a_palette_with_a_transparent_colour(encode):
    image = PIL.Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    assert pixels(open_image(encode(image, transparency=0)))[0].tolist() == [
        [255, 255, 255],
        [0, 0, 255],
    ]


def test_sixteen_bits_are_scaled_not_clipped(encode):
    values = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    assert pixels(open_image(encode(PIL.Image.fromarray(values))))[0, :, 0].tolist() == [
        0,
        100,
        255,
    ]


def chunk(kind, content):
    crc = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


def png(width, depth, colour_type, row, *chunks):
    """A PNG of one row, of a form that Pillow cannot write."""
    header = struct.pack(">IIBBBBB", width, 1, depth, colour_type, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0" + row))
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + b"".join(chunks) + body + chunk(b"IEND", b"")


def test_sixteen_bits_of_colour_with_and_without_transparency():
    """100 x 257 is a level of 100; Pillow keeps the upper bytes of colours."""
    rgb = png(2, 16, 2, struct.pack(">6H", 0, 65535, 25700, 25700, 0, 0))
    assert pixels(open_image(rgb))[0].tolist() == [[0, 255, 100], [100, 0, 0]]
    rgba = png(2, 16, 6, struct.pack(">8H", 0, 65535, 25700, 65535, 0, 0, 0, 0))
    assert pixels(open_image(rgba))[0].tolist() == [[0, 255, 100], [255, 255, 255]]
    grey = png(2, 16, 4, struct.pack(">4H", 25700, 65535, 25700, 0))
    assert pixels(open_image(grey))[0].tolist() == [[100] * 3, [255] * 3]


@pytest.mark.parametrize(
    ("depth", "colour_type", "row", "clear"),
    [
        (16, 0, struct.pack(">2H", 0, 25700), struct.pack(">H", 0)),
        (8, 0, bytes([0, 100]), struct.pack(">H", 0)),
        (8, 2, bytes([0, 0, 0, 100, 100, 100]), struct.pack(">3H", 0, 0, 0)),
    ],
)
def test_one_colour_that_is_transparent(depth, colour_type, row, clear):
    content = png(2, depth, colour_type, row, chunk(b"tRNS", clear))
    assert pixels(open_image(content))[0].tolist() == [[255] * 3, [100] * 3]


def test_one_bit_with_a_transparent_colour():
    """The first pixel is black and transparent, the second black of another palette entry."""
    palette = chunk(b"PLTE", bytes(6))
    content = png(2, 1, 3, bytes([0b01000000]), palette, chunk(b"tRNS", bytes([0, 255])))
    assert pixels(open_image(content))[0].tolist() == [[255] * 3, [0] * 3]


@pytest.mark.parametrize("mode", ["F", "I", "LAB"])
def test_pixels_without_defined_colours_are_refused(encode, mode):
    with pytest.raises(DataError, match=f"mode {mode}, whose RGB colours are not defined; save it"):
        open_image(encode(PIL.Image.new(mode, (2, 2)), "TIFF"))


def test_cmyk_jpeg(encode):
    content = encode(PIL.Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95)
    assert np.abs(pixels(open_image(content)).astype(int) - [255, 0, 0]).max() <= 6  # measured 1


def test_colours_of_a_cmyk_jpeg_are_stored_inverted(encode):
    """As Adobe's programs write them, and nearly everyone after them."""
    content = encode(PIL.Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG", quality=95)
    assert b"Adobe" in content
    assert np.abs(pixels(open_image(content)).astype(int) - [0, 255, 255]).max() <= 6


def test_cmyk_without_compression(encode):
    content = encode(PIL.Image.new("CMYK", (2, 2), (0, 255, 255, 0)), "TIFF")
    assert (pixels(open_image(content)) == [255, 0, 0]).all()


def test_a_colour_profile_changes_nothing(encode):
    """Chameleon's release ignores profiles, so pixels are what the file stores."""
    image = PIL.Image.new("RGB", (2, 2), (200, 30, 90))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    content = encode(image, "PNG", icc_profile=profile)
    assert PIL.Image.open(io.BytesIO(content)).info["icc_profile"]
    assert (pixels(open_image(content)) == [200, 30, 90]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "MPO"])
def test_every_orientation_stands_upright(encode, kind, orientation):
    """Pillow's own way of standing an image upright is the oracle."""
    corners = PIL.Image.new("RGB", (16, 8), "black")
    corners.paste("red", (0, 0, 8, 4))
    corners.paste("blue", (8, 4, 16, 8))
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encode(corners, kind, exif=exif, **options)
    with PIL.Image.open(io.BytesIO(content)) as image:
        expected = pixels(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(pixels(open_image(content)), expected)


@pytest.mark.parametrize("exif", [b"Exif\0\0rubbish of any kind", b"Exif\0\0MM\0*\xff\xff"])
def test_damaged_exif_data_do_not_spoil_an_image(encode, exif):
    content = encode(PIL.Image.new("RGB", (8, 4), "white"), "JPEG", exif=exif)
    assert open_image(content).size == (8, 4)


def test_a_rotated_jpeg_stands_upright(encode):
    image = PIL.Image.new("RGB", (16, 8), "black")
    image.paste("white", (0, 0, 8, 8))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # "turn a quarter to the right to see it"
    upright = open_image(encode(image, "JPEG", exif=exif, quality=95))
    assert upright.size == (8, 16)
    assert pixels(upright)[2].mean() > 200 > 50 > pixels(upright)[13].mean()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_gives_its_first_frame(encode, kind):
    frames = [PIL.Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (pixels(open_image(content)) == [255, 0, 0]).all()


def test_of_a_cameras_several_images_the_first(encode):
    frames = [PIL.Image.new("RGB", (8, 8), colour) for colour in ("white", "black")]
    content = encode(frames[0], "MPO", save_all=True, append_images=frames[1:])
    with PIL.Image.open(io.BytesIO(content)) as image:
        assert (image.format, image.n_frames) == ("MPO", 2)
    assert (pixels(open_image(content)) == 255).all()


@pytest.mark.parametrize("kind", ["BMP", "DIB", "ICO", "JPEG2000", "PPM", "TGA", "TIFF"])
def test_less_common_kinds(encode, kind):
    image = PIL.Image.linear_gradient("L").resize((16, 16)).convert("RGB")
    options = {"irreversible": False} if kind == "JPEG2000" else {}
    assert np.array_equal(pixels(open_image(encode(image, kind, **options))), pixels(image))


def test_an_image_without_pixels():
    with pytest.raises(DataError, match="the image in memory is 0 x 4 pixels, which is no"):
        open_image(PIL.Image.new("RGB", (0, 4)))


def test_programs_are_not_run_as_images(encode):
    """Pillow would start an interpreter of PostScript."""
    with pytest.raises(DataError, match="not an image of a kind that can be read"):
        open_image(encode(PIL.Image.new("RGB", (4, 4)), "EPS"))


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(DataError, match=r"owl\.png does not exist; an image was expected there\."):
        open_image(tmp_path / "owl.png")
    with pytest.raises(DataError, match=r"cannot be read: Is a directory\."):
        open_image(tmp_path)


def test_zero_bytes(tmp_path):
    (tmp_path / "zero.png").touch()
    with pytest.raises(DataError, match=r"zero\.png holds zero bytes; an image was expected\."):
        open_image(tmp_path / "zero.png")
    with pytest.raises(DataError, match="the image in memory holds zero bytes"):
        open_image(b"")


def test_unknown_kind():
    with pytest.raises(DataError, match="not an image of a kind that can be read; save it as PNG"):
        open_image(b"these are words")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
def test_truncated_files(encode, kind):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = encode(PIL.Image.fromarray(noise), kind)
    with pytest.raises(DataError, match="is truncated or damaged, and could not be decoded: "):
        open_image(content[: len(content) // 2])


def encoded(kind, mode):
    buffer = io.BytesIO()
    image = PIL.Image.linear_gradient("L").resize((9, 9)).convert(mode)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif} if kind in ("JPEG", "PNG", "WEBP", "TIFF") else {}
    image.save(buffer, kind, **options)
    return buffer.getvalue()


VALID = [
    encoded(kind, mode)
    for kind, modes in {
        "PNG": ("RGB", "RGBA", "LA", "P", "1", "I;16"),
        "JPEG": ("RGB", "L", "CMYK"),
        "MPO": ("RGB",),
        "GIF": ("P",),
        "WEBP": ("RGB", "RGBA"),
        "TIFF": ("RGB", "CMYK", "I;16", "F"),
        "BMP": ("RGB", "P"),
        "JPEG2000": ("RGB",),
        "PPM": ("RGB",),
        "ICO": ("RGBA",),
        "TGA": ("RGBA",),
    }.items()
    for mode in modes
]


@settings(deadline=None, max_examples=400)  # a damaged header may claim millions of pixels
@given(st.data())
def test_damage_anywhere_gives_an_image_or_a_data_error(data):
    """Bytes are changed, cut off or put in; what comes out is an image that can be used."""
    content = bytearray(data.draw(st.sampled_from(VALID)))
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(1, len(content)))
    content[cut:cut] = data.draw(st.binary(max_size=4))
    if data.draw(st.booleans()):
        del content[cut:]
    try:
        image = open_image(bytes(content))
    except DataError as error:
        assert str(error).endswith(".")
        return
    assert image.mode == "RGB"
    assert min(image.size) > 0


@pytest.mark.parametrize("name", ["PIL.Image.open", "PIL.Image.Image.load"])
def test_running_out_of_memory_is_not_called_damage(monkeypatch, red_png, name):
    def fail(*args, **kwargs):
        raise MemoryError

    source = red_png if name.endswith("open") else PIL.Image.new("RGB", (2, 2))
    monkeypatch.setattr(name, fail)
    with pytest.raises(MemoryError):
        open_image(source)


def png_claiming(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("height", [8_001, 9_500, 60_000])  # ours, Pillow's warning, Pillow's error
def test_an_image_of_too_many_pixels_is_refused_before_decoding(height):
    assert height * 10_000 > MAX_PIXELS
    with pytest.raises(
        DataError, match="more than 80 million pixels, the most that is decoded; scale"
    ):
        open_image(png_claiming(10_000, height))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("PNG", "image/png"), ("JPEG", "image/jpeg"), ("GIF", "image/gif"), ("WEBP", "image/webp")],
)
def test_media_types(encode, kind, expected):
    assert media_type(encode(PIL.Image.new("RGB", (2, 2)), kind)) == expected
    assert media_type(b"BM....") is None


def test_png_bytes_hold_the_same_pixels(encode):
    noise = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    with PIL.Image.open(io.BytesIO(to_png(PIL.Image.fromarray(noise)))) as image:
        assert image.format == "PNG"
        assert (pixels(image) == noise).all()


@given(st.binary())
def test_data_uris_round_trip(content):
    assert from_data_uri(to_data_uri(content)) == content


def test_data_uris_in_other_spellings():
    assert from_data_uri("DATA:image/png;BASE64,b3ds") == b"owl"
    assert from_data_uri("data:,an%20owl") == b"an owl"
    assert from_data_uri("data:;base64,b3%64s") == b"owl"
    assert from_base64(base64.encodebytes(bytes(200))) == bytes(200)


@pytest.mark.parametrize("uri", ["owl.png", "data:image/png;base64", "http://a/b,c"])
def test_what_is_not_a_data_uri(uri):
    with pytest.raises(DataError, match="is not a data URI, which reads data:image/png;base64"):
        from_data_uri(uri)


@pytest.mark.parametrize("text", ["b3d", "b3d$", "öö=="])
def test_broken_base64(text):
    with pytest.raises(DataError, match="The image's base64 text is broken"):
        from_base64(text)


# ── metadata ─────────────────────────────────────────────────────────────────────────────────────


def _chunk(kind: bytes, content: bytes) -> bytes:
    crc = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


def _segment(marker: int, content: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(content) + 2) + content


_LONG = zlib.compress(b"x" * 5_000_000)


@pytest.mark.parametrize(
    "extra",
    [
        _chunk(b"tEXt", b"Comment\0" + b"x" * 2_000_000),
        _chunk(b"zTXt", b"Comment\0\0" + _LONG),
        _chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + _LONG),
        _chunk(b"iCCP", b"p\0\0" + _LONG),
        _chunk(b"iCCP", b"p\0\0no profile"),
        _chunk(b"gAMA", b"\0"),
        _chunk(b"cHRM", b"\0"),
        _chunk(b"pHYs", b"\0"),
        _chunk(b"acTL", b"\0"),
        _chunk(b"eXIf", b"MM\0*nonsense"),
        _chunk(b"tEXt", b"a\0b")[:-4] + b"crc?",
        _chunk(b"prVt", b"private"),
    ],
)
def test_metadata_do_not_spoil_a_png(encode, tmp_path, extra):
    content = encode(PIL.Image.new("RGB", (16, 12), "red"))
    changed = content[:33] + extra + content[33:] + b"trailing bytes"
    assert (pixels(open_image(changed)) == pixels(open_image(content))).all()
    assert image_size(changed) == (16, 12)
    (tmp_path / "a.png").write_bytes(changed)
    assert image_size(tmp_path / "a.png") == (16, 12)
    late = content[:-12] + extra + content[-12:]
    assert (pixels(open_image(late)) == pixels(open_image(content))).all()


def test_transparency_and_orientation_survive_bad_metadata(encode):
    image = PIL.Image.new("P", (16, 12))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    content = encode(image, transparency=0, exif=exif)
    changed = content[:33] + _chunk(b"gAMA", b"\0") + content[33:]
    assert (pixels(open_image(changed)) == pixels(open_image(content))).all()
    assert open_image(changed).size == (12, 16)


@pytest.mark.parametrize(
    "extra",
    [
        _segment(0xE2, b"ICC_PROFILE\0\1\1no profile"),
        _segment(0xE1, b"Exif\0\0" + b"\xff" * 20),
        _segment(0xEE, b"Adobe"),
        _segment(0xED, b"Photoshop 3.0\x008BIM" + b"\xff" * 10),
        _segment(0xE0, b"JFIF\0"),
        _segment(0xFE, b"x" * 65_000) * 50,
    ],
)
def test_metadata_do_not_spoil_a_jpeg(encode, extra):
    content = encode(PIL.Image.new("RGB", (16, 12), "red"), "JPEG")
    changed = content[:2] + extra + content[2:] + b"trailing bytes"
    assert (pixels(open_image(changed)) == pixels(open_image(content))).all()
    assert image_size(changed) == (16, 12)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS"),
        (b"../../.git/annex/objects/a/b/SHA256E-s1--c.png", "git-annex"),
        (b"/annex/objects/SHA256E-s1--c.png\n", "git-annex"),
        (b"\n<!DOCTYPE HTML><p>404", "an HTML page"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
        (b"%PDF-1.7", "a PDF document"),
        (b"nothing", "not an image of a kind"),
        (b'{"error": "no such key"}', r"it is a text that begins '{\"error\": "),
        (b"outs:\n- md5: 1f\n  path: a.png\n", "it is a text that begins 'outs:"),
        (b"<?xml version='1.0'?><Error>", "an XML document"),
        (b"\x1f\x8b\x08rest", "it is a gzip file"),
        (b"PK\3\4rest", "it is a zip archive"),
        (b"8BPS\0\1", "it is a Photoshop document"),
        (b"\0\0\0 ftypisom", "it is a film"),
        (bytes(5000), "it is zeros alone"),
    ],
)
def test_what_is_no_image_is_called_by_its_name(tmp_path, content, what):
    (tmp_path / "a.png").write_bytes(content)
    for read in (open_image, image_size):
        with pytest.raises(DataError, match=what):
            read(tmp_path / "a.png")


def test_lost_pixels_are_not_metadata(encode):
    content = encode(PIL.Image.effect_noise((64, 64), 90))
    with pytest.raises(DataError, match="truncated or damaged"):
        open_image(content[: len(content) // 2])
    with pytest.raises(DataError, match="of the kind image/png, and is truncated, damaged or"):
        open_image(content[:33] + _chunk(b"PLTE", b"\0")[:-4] + b"crc?" + content[33:])


# ── the ends of files ────────────────────────────────────────────────────────────────────────────


FORMS_OF_JPEG = [
    {},
    {"progressive": True},
    {"optimize": True, "quality": 20},
    {"restart_marker_blocks": 3},
    {"subsampling": 0},
]


@pytest.fixture(scope="module")
def slopes():
    y, x = np.mgrid[:70, :90]
    noise = np.random.default_rng(0).integers(0, 30, (70, 90, 3))
    return PIL.Image.fromarray((np.stack([y * 2, x * 2, y + x], axis=2) + noise).astype(np.uint8))


@pytest.mark.parametrize("options", FORMS_OF_JPEG)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_is_whole_without_its_end_marker(encode, slopes, options, mode):
    content = encode(slopes.convert(mode), "JPEG", **options)
    expected = pixels(open_image(content))
    body = content[:-2]
    for end in (b"", b"\xff", b"junk\xff\xd9", b"\xff" * 9 + b"\xd9", bytes(9000), b"\xff\xd9tail"):
        assert np.array_equal(pixels(open_image(body + end)), expected)


@pytest.mark.parametrize("options", FORMS_OF_JPEG)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_that_is_cut_is_refused_or_shows_all(encode, slopes, options, mode):
    """The last bits may change no pixel; grey in place of what is lost is no image."""
    content = encode(slopes.convert(mode), "JPEG", **options)
    expected = pixels(open_image(content))
    for lost in (*range(3, 40), 200, len(content) // 2):
        for end in (b"", bytes(9000)):
            try:
                image = open_image(content[:-lost] + end)
            except DataError as error:
                assert "truncated" in str(error)
                continue
            assert np.array_equal(pixels(image), expected)


@pytest.mark.parametrize("options", [each for each in FORMS_OF_JPEG if "progressive" not in each])
def test_an_end_marker_makes_a_cut_jpeg_no_whole_one(encode, slopes, options):
    content = encode(slopes, "JPEG", **options)
    for lost in (40, 200, len(content) // 2):
        with pytest.raises(DataError, match="is truncated or damaged"):
            open_image(content[:-lost] + b"\xff\xd9")


def test_scans_that_are_missing_are_told(encode, slopes):
    content = encode(slopes, "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    with pytest.raises(DataError, match=r"could not be decoded: it ends before its last scan\."):
        open_image(content[:last])


@pytest.mark.parametrize("lossless", [False, True])
def test_a_webp_needs_its_pixels_alone(encode, slopes, lossless):
    """Neither the size of the whole file, nor what stands behind the pixels."""
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    content = encode(slopes, "WEBP", lossless=lossless, exif=exif)
    expected = pixels(open_image(content))
    assert expected.shape == (90, 70, 3)
    for size in (0, 10, len(content) + 1000, 0xFFFFFFFF):
        changed = content[:4] + struct.pack("<I", size) + content[8:]
        assert np.array_equal(pixels(open_image(changed)), expected)
        assert image_size(changed) == (90, 70)
    upright = pixels(open_image(encode(slopes, "WEBP", lossless=lossless)))
    assert np.array_equal(pixels(open_image(content[:-5])), upright)
    layer = slopes.copy()
    layer.putalpha(PIL.Image.linear_gradient("L").resize(layer.size))
    content = encode(layer, "WEBP", lossless=lossless)
    changed = content[:4] + bytes(4) + content[8:]
    assert np.array_equal(pixels(open_image(changed)), pixels(open_image(content)))
    with pytest.raises(DataError, match="truncated or damaged"):
        open_image(content[: len(content) // 2])


@pytest.mark.parametrize("kind", ["WEBP", "GIF"])
def test_of_a_cut_animation_the_first_frame(encode, slopes, kind):
    content = encode(slopes, kind, save_all=True, append_images=[slopes.rotate(90)])
    expected = pixels(open_image(content))
    assert np.array_equal(pixels(open_image(content[:-200])), expected)


def test_the_end_of_a_png_says_nothing_of_its_pixels(encode, slopes):
    content = encode(slopes)
    for changed in (content[:-12], content[:-4], content[:-1] + b"?", content[:-14]):
        assert np.array_equal(pixels(open_image(changed)), pixels(slopes))
    with pytest.raises(DataError, match="truncated or damaged"):
        open_image(content[:-60])


@pytest.mark.parametrize("kind", ["TIFF", "PNG", "JPEG", "GIF", "WEBP"])
def test_a_damaged_header_is_not_called_a_strange_kind(encode, slopes, kind):
    content = encode(slopes, kind)[:12] + b"?"
    for read in (open_image, image_size):
        with pytest.raises(DataError, match="truncated"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read(content)


HEIC = base64.b64decode(  # 64 pixels, the left half blue and the right one red
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAVZtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAA"
    "AAAAAAAAAAACJpbG9jAAAAAERAAAEAAQAAAAABegABAAAAAAAAACkAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAAB"
    "AABodmMxAAAAAA5waXRtAAAAAAABAAAA1mlwcnAAAAC3aXBjbwAAAHhodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADw"
    "NgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQArQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbqSSmubgIaDAgA"
    "AAMAyAAAAwAIQGIAAQAHRAHBcrAiQAAAABNjb2xybmNseAABAA0ABoAAAAAUaXNwZQAAAAAAAABAAAAAQAAAABBwaX"
    "hpAAAAAAMICAgAAAAXaXBtYQAAAAAAAAABAAEEgQIDBAAAADFtZGF0AAAAJSgBr1j5DpJf//mYHyP2O0/+RcIkt8/i"
    "j/6iddf4v/RHEnHvbbg="
)


def test_heic_is_read_with_its_extra(monkeypatch):
    pytest.importorskip("pi_heif", reason="HEIC needs the extra heic")
    image = open_image(HEIC)
    assert image.size == image_size(HEIC) == (64, 64)
    for x, colour in ((8, (0, 0, 255)), (56, (255, 0, 0))):
        assert np.abs(np.subtract(image.getpixel((x, 32)), colour)).max() < 40
    for content in (HEIC[:-60], HEIC[:60], HEIC[:300] + b"\xff" * 200):
        with pytest.raises(DataError, match=r"damaged|not an image of a kind"):
            open_image(content)


def test_heic_without_its_extra_is_told(monkeypatch):
    monkeypatch.setattr("pardalis.documents.images.can_read_heic", lambda: False)
    for read in (open_image, image_size):
        with pytest.raises(DataError, match=r"extra heic \(pip install pardalis\[heic\]\)"):
            read(HEIC)
