"""Files that nobody thought of: valid ones, changed at random by their structure.

Each is refused with one sentence, in bounded time and memory, or it is read and works. The examples
are the same in every run; PARDALIS_FUZZ=1000 tries that many new ones of each kind.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import tarfile
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
from pardalis.evaluate.commands import commands
from pardalis.evaluate.metrics_file import Metrics
from pardalis.evaluate.sample_file import check_samples
from pardalis.files import read_json
from pardalis.interop import read_model
from pardalis.pipeline import load_recipe, read_records
from pardalis.studies.pairwise import Study
from pardalis.studies.pairwise_report import report_study
from pardalis.train import checkpoint, read_metrics
from pardalis.train.alarms import AlarmConfig, Alarms
from pardalis.train.skipping import read_skips

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


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "generation_config.json", "tokenizer_config.json"]
)
@examples(20)
@given(data=st.data())
def test_folders_of_other_libraries(good_bundle, good_export, copied, name, data) -> None:
    content = data.draw(fuzz.json_files((good_export / name).read_bytes()))

    def use(folder: Path) -> None:
        read_model(folder, image_tokenizer=good_bundle)

    changed(good_export, copied(good_export), name, content, use)


STAGES = json.dumps([
    {"name": "prepare", "identity": "0a", "steps": 3, "inputs": {"a": [1]}, "version": "0.1",
     "since": "0.1", "needs": [["train", "0b", 2]], "seconds": 0.5, "peak_rss_gib": 1.5,
     "finished": None}
])  # fmt: skip
METRICS = '{"step": 1, "time_s": 0.5, "loss": 2.5, "tokens": 9}\n' * 4
SKIPS = (
    '{"rollback": 1, "step": 2, "batch": 3, "first_position": 4, "last_position": 5, '
    '"cause": "a"}\n'
)
SAMPLES = json.dumps({
    "gallery": [{"name": "a", "image": "a.png", "split": "train", "caption": "An owl"}],
    "images": [{"prompt": "a", "generated": "a.png", "original": "a.png", "split": "heldout"}],
    "captions": [{"image": "a.png", "caption": "a", "expected": "b", "split": "train"}],
    "pages": [{"prompt": "a", "split": "train", "segments": [{"text": "a"}, {"image": "a.png"}]}],
    "captioned": {"train": 1}, "left_out": {"too_long": 1}, "image_tokens_per_second": 0.5,
})  # fmt: skip
STUDY = json.dumps({
    "version": 1, "models": {"A": "a", "B": "b"}, "seed": 1,
    "items": [{"prompt": [{"text": "a"}], "answers": {"A": [{"text": "a"}], "B": []}, "left": "A",
               "category": "a"}] * 2,
})  # fmt: skip
JUDGEMENTS = "".join(
    json.dumps({
        "rater": f"Ada {n}", "item": n, "fulfilment": {"A": "fulfils", "B": "partially"},
        "choice": "same", "time": "", "study": hashlib.sha256(STUDY.encode()).hexdigest()[:16],
    }) + "\n"
    for n in range(2)
)  # fmt: skip


def use_study(folder: Path) -> None:
    if not (folder / "study.json").exists():
        (folder / "study.json").write_text(STUDY)
    report_study(Study(folder))


def use_samples(folder: Path) -> None:
    samples = None
    with contextlib.suppress(ValueError):  # which the caller refuses
        samples = read_json(folder / "samples.json")
    if isinstance(samples, dict):
        check_samples(folder / "samples.json", samples, lambda: ())
        commands(folder, samples)


def use_metrics(folder: Path) -> None:
    lines = read_metrics(folder / "metrics.jsonl")
    Alarms(AlarmConfig(), lines)
    for name in {name for line in lines for name in line}:
        Metrics(lines).last(name, 3)


@pytest.mark.parametrize(
    ("name", "valid", "use"),
    [
        ("stages.json", STAGES, read_records), ("samples.json", SAMPLES, use_samples),
        ("metrics.jsonl", METRICS, use_metrics), ("skipped.jsonl", SKIPS, read_skips),
        ("study.json", STUDY, use_study), ("judgements.jsonl", JUDGEMENTS, use_study),
    ],
)  # fmt: skip
@examples(60)
@given(data=st.data())
def test_files_of_runs(tmp_path, name, valid, use, data) -> None:
    kind = fuzz.jsonl_files if name.endswith("l") else fuzz.json_files
    (tmp_path / name).write_bytes(data.draw(kind(valid.encode())))
    refused_or_used(lambda: use(tmp_path))


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


@pytest.mark.parametrize("name", ["index.json", "neighbours/neighbours.json"])
@examples(40)
@given(data=st.data())
def test_descriptions_of_indices(good_index, copied, name, data) -> None:
    content = data.draw(fuzz.json_files((good_index / name).read_bytes()))
    changed(good_index, copied(good_index), name, content, hostile.use_index)


@pytest.mark.parametrize("name", ["vectors.npy", "modalities.npy", "neighbours/numbers.npy"])
@examples(20)
@given(data=st.data())
def test_arrays_of_indices(good_index, copied, name, data) -> None:
    content = data.draw(fuzz.npy_files((good_index / name).read_bytes()))
    changed(good_index, copied(good_index), name, content, hostile.use_index)


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


PART = '{"type": "image_url", "image_url": {"url": "owl.png"}}'
CHAT = f"""\
{{"messages": [{{"role": "system", "content": "Hi"}}, {{"role": "user", "content": [{PART}]}}, \
{{"role": "assistant", "content": "Ho", "weight": 0}}]}}
{{"messages": [{{"role": "user", "content": [{{"type": "image"}}]}}, \
{{"role": "assistant", "content": [{{"type": "text", "text": "An owl"}}]}}], "images": ["owl.png"]}}
""".encode()
SHAREGPT = b"""\
{"id": 1, "image": "owl.png", "system": "Hi", "conversations": [\
{"from": "human", "value": "<image>\\nWhat?"}, {"from": "gpt", "value": "An owl."}]}
"""
CAULDRON = b"""\
{"images": [{"path": "owl.png"}, {"bytes": "QUJD"}], "texts": [\
{"user": "What?", "assistant": "An owl.", "source": "owls"}]}
"""


def tar_of(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


OBELICS = b'{"images": [null, "owl.png"], "texts": ["An owl.", null], "metadata": "[]"}\n'
MMC4 = b"""\
{"text_list": ["An owl.", "White."], "image_info": [\
{"image_name": "owl.png", "raw_url": "https://a.b/c", "matched_text_index": 1}]}
"""
CSV = b'name,text,image\n1,"An ""owl"".\nWhite.",owl.png\n'
MARKDOWN = b"---\ntitle: Owls\n---\n# An owl\n\n![x](owl.png)\n\n|a|b|\n|-|-|\n|1|2|\n\n<p>x</p>\n"
TAR = tar_of({"a/1.txt": b"An owl.", "a/1.png": b"x", "a/1.json": b"{}"})
FOLDER = b'{"file_name": "owl.png", "text": "An owl."}\n'


@pytest.mark.parametrize(
    ("reader", "name", "valid"),
    [
        pytest.param("jsonl", "a.jsonl", JSONL, id="jsonl"),
        pytest.param("pairs", "a.jsonl", PAIRS, id="pairs"),
        pytest.param("html", "a.html", HTML, id="html"),
        pytest.param("folder", "captions.jsonl", FOLDER, id="folder"),
        pytest.param("chat", "a.jsonl", CHAT, id="chat"),
        pytest.param("sharegpt", "a.jsonl", SHAREGPT, id="sharegpt"),
        pytest.param("cauldron", "a.jsonl", CAULDRON, id="cauldron"),
        pytest.param("obelics", "a.jsonl", OBELICS, id="obelics"),
        pytest.param("mmc4", "a.jsonl", MMC4, id="mmc4"),
        pytest.param("csv", "a.csv", CSV, id="csv"),
        pytest.param("markdown", "a.md", MARKDOWN, id="markdown"),
        pytest.param("webdataset", "a.tar", TAR, id="webdataset"),
    ],
)
@examples(60)
@given(data=st.data())
def test_documents(tmp_path, reader, name, valid, data) -> None:
    kind = fuzz.jsonl_files if name.endswith(".jsonl") else fuzz.contents
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


# ── what these have found ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "change",
    [{"model_type": {}}, {"model_type": ["llama"]}, {"vocabulary_map": [{"a": "b" * 10_000}]},
     {"model_type": "x" * 10_000}],
)  # fmt: skip
def test_a_config_of_another_type_is_one_short_sentence(good_export, copied, change) -> None:
    folder = copied(good_export)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "chameleon"} | values | change))
    assert refused_or_used(lambda: read_model(folder))
