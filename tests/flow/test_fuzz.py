"""Files that nobody thought of: valid ones, changed at random by their structure.

Each is refused with one sentence, in bounded time and memory, or it is read and works. The examples
are the same in every run; PARDALIS_FUZZ=1000 tries that many new ones of each kind.
"""

import io
import os
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzz
import hostile
import PIL.Image
import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pardalis.documents import Document, open_image
from pardalis.documents.readers import READERS
from pardalis.errors import PardalisError
from pardalis.pipeline import load_recipe
from pardalis.train import checkpoint

MORE = int(os.environ.get("PARDALIS_FUZZ", "0"))
ROOT = Path(__file__).parents[2]


def examples(n: int) -> Callable[[Any], Any]:
    """Try n examples, or as many new ones as the environment says."""
    return settings(
        max_examples=MORE or n,
        derandomize=not MORE,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def refused_or_used(use: Callable[[], object]) -> bool:
    """Return whether a file is refused with one sentence."""
    with hostile.limits(seconds=30):
        try:
            use()
        except PardalisError as error:
            said = str(error)
            assert "\n" not in said and len(said) <= 3000 and said.endswith((".", "?")), said[:500]
            return True
    return False


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Path]:
    """A function that copies a folder to a place where each example overwrites one file."""

    def copy(good: Path) -> Path:
        folder = tmp_path / good.name
        if not folder.exists():
            shutil.copytree(good, folder)
        return folder

    return copy


def changed(
    good: Path, folder: Path, name: str, content: bytes, use: Callable[[Path], object]
) -> None:
    """Use a copy of a folder with other content of one file, which is then restored."""
    (folder / name).write_bytes(content)
    refused_or_used(lambda: use(folder))
    shutil.copy(good / name, folder / name)


@pytest.mark.parametrize("name", ["bundle.json", "image_tokenizer/config.json"])
@examples(50)
@given(data=st.data())
def test_descriptions_of_a_bundle(good_bundle, copied, name, data) -> None:
    content = data.draw(fuzz.json_files((good_bundle / name).read_bytes()))
    changed(good_bundle, copied(good_bundle), name, content, hostile.use_bundle)


@examples(20)
@given(data=st.data())
def test_text_tokenizers(good_bundle, copied, data) -> None:
    name = "text_tokenizer.json"
    content = data.draw(fuzz.json_files((good_bundle / name).read_bytes()))
    changed(good_bundle, copied(good_bundle), name, content, hostile.use_bundle)


@pytest.mark.parametrize("name", ["model.safetensors", "image_tokenizer/model.safetensors"])
@examples(30)
@given(data=st.data())
def test_weights(good_bundle, copied, name, data) -> None:
    content = data.draw(fuzz.safetensors_files((good_bundle / name).read_bytes()))
    changed(good_bundle, copied(good_bundle), name, content, hostile.load_bundle)


@pytest.mark.parametrize("name", ["adapter_config.json", "pardalis.json"])
@examples(20)
@given(data=st.data())
def test_descriptions_of_an_adapter(good_bundle, good_adapter, copied, name, data) -> None:
    content = data.draw(fuzz.json_files((good_adapter / name).read_bytes()))
    use = hostile.use_adapter(good_bundle)
    changed(good_adapter, copied(good_adapter), name, content, use)


@examples(60)
@given(data=st.data())
def test_indexes_of_shards(good_shards, copied, data) -> None:
    content = data.draw(fuzz.json_files((good_shards / "index.json").read_bytes()))
    changed(good_shards, copied(good_shards), "index.json", content, hostile.use_shards)


@pytest.mark.parametrize("name", ["documents.npy", "rows-8-members.npy", "rows-8-offsets.npy"])
@examples(40)
@given(data=st.data())
def test_arrays_of_shards(good_shards, copied, name, data) -> None:
    content = data.draw(fuzz.npy_files((good_shards / name).read_bytes()))
    changed(good_shards, copied(good_shards), name, content, hostile.read_shards)


@examples(40)
@given(data=st.data())
def test_settings_of_codes(good_codes, copied, codec, data) -> None:
    content = data.draw(fuzz.json_files((good_codes / "codes.json").read_bytes()))
    use = lambda folder: hostile.use_codes(codec.image_tokenizer, folder)  # noqa: E731
    changed(good_codes, copied(good_codes), "codes.json", content, use)


@examples(60)
@given(data=st.data())
def test_metadata_of_checkpoints(good_checkpoint, copied, data) -> None:
    name = data.draw(st.sampled_from((".metadata", "run.json")))
    kind = fuzz.checkpoint_metadata if name == ".metadata" else fuzz.json_files
    content = data.draw(kind((good_checkpoint / name).read_bytes()))
    changed(good_checkpoint, copied(good_checkpoint), name, content, checkpoint.load)


@examples(30)
@given(data=st.data())
def test_entries_of_checkpoints(good_checkpoint, copied, data) -> None:
    [name] = [path.name for path in good_checkpoint.glob("*.distcp")]
    content = data.draw(fuzz.contents((good_checkpoint / name).read_bytes()))
    changed(good_checkpoint, copied(good_checkpoint), name, content, checkpoint.load)


def written(tables: Any) -> bytes | None:
    """Return a recipe as TOML; None if its values cannot be written so."""
    try:
        return tomli_w.dumps(tables).encode("utf-8", "surrogatepass")
    except (RecursionError, TypeError, AttributeError):  # nested too deeply, or no table
        return None


@pytest.mark.parametrize("name", ["quickstart", "chameleon_7b", "image_tokenizer_losses"])
@examples(60)
@given(data=st.data())
def test_recipes(tmp_path, name, data) -> None:
    valid = (ROOT / "recipes" / f"{name}.toml").read_bytes()
    document = tomllib.loads(valid.decode())
    tables = fuzz.documents(document).map(fuzz.toml_values)
    as_toml = tables.map(written).filter(bool)
    (tmp_path / "recipe.toml").write_bytes(data.draw(as_toml | fuzz.contents(valid)))
    refused_or_used(lambda: load_recipe(tmp_path / "recipe.toml").expanded)


def image(kind: str) -> bytes:
    made = io.BytesIO()
    PIL.Image.linear_gradient("L").resize((9, 7)).convert("RGB").save(made, kind)
    return made.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
@examples(50)
@given(data=st.data())
@pytest.mark.filterwarnings("ignore")  # of the library, about what it corrects itself
def test_images(kind, data) -> None:
    content = data.draw(fuzz.contents(image(kind)))

    def use() -> None:
        opened = open_image(content)
        assert opened.mode == "RGB" and min(opened.size) >= 1

    refused_or_used(use)


JSONL = (
    b'{"name": "owl", "segments": [{"text": "An owl.", "weight": 0.5}, {"image": "owl.png"}]}\n'
    b'{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}\n'
    b'{"text": "A fox.", "image": "owl.png"}\n'
)
HTML = (
    b"<html><head><title>Owls</title></head><body><h1>Owls</h1><p>An <b>owl</b> sits.</p>"
    b'<figure><img src="owl.png" width="90" height="90"><figcaption>It</figcaption></figure>'
    b'<table><tr><td>1</td></tr></table><img src="data:image/png;base64,iVBOR"></body></html>'
)
PAIRS = b'{"prompt": "An owl", "chosen": " sits.", "rejected": [{"text": " runs."}]}\n'


FOLDER = b'{"file_name": "owl.png", "text": "An owl."}\n'


@pytest.mark.parametrize(
    ("reader", "name", "valid"),
    [
        pytest.param("jsonl", "a.jsonl", JSONL, id="jsonl"),
        pytest.param("pairs", "a.jsonl", PAIRS, id="pairs"),
        pytest.param("html", "a.html", HTML, id="html"),
        pytest.param("folder", "captions.jsonl", FOLDER, id="folder"),
    ],
)
@examples(60)
@given(data=st.data())
def test_documents(tmp_path, reader, name, valid, data) -> None:
    kind = fuzz.contents if reader == "html" else fuzz.jsonl_files
    folder = tmp_path / reader
    folder.mkdir(exist_ok=True)
    (folder / "owl.png").write_bytes(image("PNG"))
    (folder / name).write_bytes(data.draw(kind(valid)))
    source = folder if reader == "folder" else folder / name

    def use() -> None:
        for item in READERS[reader](source):
            if isinstance(item, Document):
                assert item.segments
                item.text.encode()
            else:
                assert item.reason and "\n" not in item.reason

    refused_or_used(use)
