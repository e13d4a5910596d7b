"""Files that somebody else made: nothing of them runs, hangs or lies.

Each case is a valid file with one change, which was thought of; test_fuzz.py has those that nobody
thought of. It is refused with one sentence, or read correctly.
"""

import ast
import copy
import dataclasses
import functools
import io
import json
import pickle
import re
import shutil
import stat
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile
import numpy as np
import pytest
import safetensors.torch
import torch

import pardalis
from pardalis.cli.main import main
from pardalis.config import load as load_recipe
from pardalis.data.shards import Shards
from pardalis.errors import BundleError, DataError, PardalisError
from pardalis.feature_nets.files import read_tensors
from pardalis.interop.tensors import open_tensors, write_safetensors
from pardalis.model import ModelConfig
from pardalis.train import checkpoint
from pardalis.weights import check_archive


def check(cases: list[hostile.Case], good: Path, folder: Path, read: Callable[[Path], Any]) -> int:
    """Read each case; return how many were refused."""
    refused, failures = 0, []
    for case in cases:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good, folder)
        case.change(folder)
        try:
            read(folder)
        except PardalisError as error:
            refused += 1
            if "\n" in str(error) or len(str(error)) > 3000 or not str(error).endswith("."):
                failures.append(f"{case}: not a sentence: {str(error)[:300]!r}")
        except Exception as error:
            failures.append(f"{case}: {type(error).__name__}: {str(error)[:200]}")
    assert not failures, "\n".join(failures)
    return refused


def test_bundles(good_bundle, tmp_path, bounded) -> None:
    image = "image_tokenizer"
    names = ("bundle.json", f"{image}/config.json", "text_tokenizer.json")
    broken = [case for name in names for case in hostile.text_cases(name)]
    for name in ("model.safetensors", f"{image}/model.safetensors"):
        broken += [*hostile.weight_cases(good_bundle, name), *hostile.special_cases(name)]
    broken += [case for name in names for case in hostile.special_cases(name)]
    broken += hostile.special_cases("LICENCES.md")[:2]
    assert check(broken, good_bundle, tmp_path / "bundle", hostile.use_bundle) == len(broken)


def test_a_tokenizer_at_which_its_library_panics(good_bundle, tmp_path) -> None:
    """A panic of Rust is no Exception, and would end the process."""
    folder = shutil.copytree(good_bundle, tmp_path / "bundle")
    path = folder / "text_tokenizer.json"
    values = json.loads(path.read_text())
    values["model"]["continuing_subword_prefix"] = "longer than any token"
    path.write_text(json.dumps(values))
    with pytest.raises(BundleError, match="not a text tokenizer that can be read"):
        pardalis.load(folder)


def test_adapters(good_bundle, good_adapter, tmp_path, bounded) -> None:
    use = hostile.use_adapter(good_bundle)
    names = ("adapter_config.json", "pardalis.json")
    broken = [case for name in names for case in hostile.text_cases(name)]
    broken += hostile.weight_cases(good_adapter, "adapter_model.safetensors")
    for name in (*names, "adapter_model.safetensors"):
        broken += hostile.special_cases(name)
    assert check(broken, good_adapter, tmp_path / "adapter", use) == len(broken)


def test_what_a_description_claims_is_compared_with_the_file(good_bundle, tmp_path, bounded):
    """A number of layers within bounds is refused before any layer is built."""
    values = json.loads((good_bundle / "bundle.json").read_text())
    lies: list[tuple[tuple[str, ...], object]] = [
        (("model", "n_layers"), 10**9), (("model", "n_layers"), 4000),
        (("model", "d_model"), 2**20), (("model", "feed_forward", "width"), 2**24),
        (("model", "vocab_size"), 2**31 - 1), (("model", "position", "theta"), float("inf")),
        (("model", "norm", "eps"), float("nan")), (("model", "norm", "eps"), -1.0),
        (("vocabulary", "modalities", "text"), [40, 2**31 - 1]),
        (("vocabulary", "special", "eos"), 10**9), (("vocabulary", "foreign_ids"), 2**31 - 1),
        (("vocabulary", "special", "eos"), -5), (("model", "kind"), ["decoder"]),
    ]  # fmt: skip
    cases = [
        hostile.Case(
            str(place), hostile.write("bundle.json", json.dumps(hostile.replaced(values, place, v)))
        )
        for place, v in lies
    ]
    assert check(cases, good_bundle, tmp_path / "bundle", hostile.use_bundle) == len(cases)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_tensor_that_is_not_finite_is_named(good_bundle, tmp_path, value) -> None:
    folder = tmp_path / "bundle"
    for name, key in (
        ("model.safetensors", "head.weight"),
        ("image_tokenizer/model.safetensors", "quant_conv.weight"),
    ):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good_bundle, folder)
        tensors = safetensors.torch.load_file(folder / name)
        tensors[key].view(-1)[3] = value
        safetensors.torch.save_file(tensors, folder / name)
        with pytest.raises(BundleError, match=rf"{name} .* {key} holds NaN or infinite values"):
            pardalis.load(folder)
        with pytest.raises(BundleError, match=rf"{key} holds NaN or infinite values"):
            write_safetensors(tmp_path / "out.safetensors", open_tensors(folder / name))


@pytest.mark.parametrize("most", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("one", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_weights_of_several_types(good_bundle, tmp_path, most, one) -> None:
    """One tensor of another type than all others, each matrix and each norm in its turn."""
    path = shutil.copytree(good_bundle, tmp_path / "bundle") / "model.safetensors"
    tensors = {k: t.to(most) for k, t in safetensors.torch.load_file(path).items()}
    for name in ("head.weight", *(key for key in tensors if ".0." in key)):
        safetensors.torch.save_file(tensors | {name: tensors[name].to(one)}, path)
        use_model(path.parent)


def use_model(folder: Path) -> None:
    bundle = pardalis.load(folder)
    ids = torch.tensor([[bundle.codec.vocabulary.bos_id]])
    assert torch.isfinite(bundle.model(ids)).all()
    assert len({tensor.dtype for tensor in bundle.model.parameters()}) == 1


def test_shards(good_shards, tmp_path, bounded) -> None:
    arrays = [p.name for p in good_shards.glob("*.npy") if "weights" not in p.name]
    broken = [*hostile.text_cases("index.json"), *hostile.special_cases("index.json")]
    broken += hostile.special_cases("names.jsonl")
    for name in arrays:
        broken += [*hostile.array_cases(good_shards, name), *hostile.special_cases(name)]
    assert check(broken, good_shards, tmp_path / "shards", hostile.use_shards) == len(broken)


@pytest.mark.parametrize("name", ["../x.npy", "/tmp/x.npy", "a/b.npy", "..", "", 3, None])
def test_an_index_names_files_beside_it(good_shards, tmp_path, name) -> None:
    folder = shutil.copytree(good_shards, tmp_path / "shards")
    shutil.copy(good_shards / "ids-00000.npy", tmp_path / "x.npy")
    index = json.loads((folder / "index.json").read_text())
    index["shards"][0]["file"] = name
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match="name of a file beside it"):
        Shards.open(folder)


def test_an_id_outside_the_vocabulary(good_shards) -> None:
    shards = Shards.open(good_shards, vocab_size=3)
    with pytest.raises(DataError, match="has the token id 3, but the vocabulary has 3 ids"):
        shards.document(0)


def test_codes(good_codes, codec, tmp_path, bounded) -> None:
    def use(folder: Path) -> None:
        hostile.use_codes(codec.image_tokenizer, folder)

    broken = [*hostile.text_cases("codes.json"), *hostile.special_cases("codes.json")]
    broken += hostile.special_cases("part-00000.jsonl")[:2] + hostile.array_cases(
        good_codes, "part-00000.npy"
    )
    large = np.full((2, 4), 32, np.uint16)  # the codebook has 32 entries
    broken.append(hostile.Case("outside", lambda folder: np.save(folder / "part-00000.npy", large)))
    assert check(broken, good_codes, tmp_path / "c", use) == len(broken)


# ── nothing runs ───────────────────────────────────────────────────────────────────────────────


def test_checkpoints_run_no_code(good_checkpoint, tmp_path, bounded) -> None:
    ran = tmp_path / "ran"
    cases = [
        hostile.Case("metadata", hostile.write(".metadata", pickle.dumps(hostile.Executed(ran)))),
        *hostile.special_cases(".metadata"),
        *hostile.text_cases("run.json"),
        *hostile.special_cases("run.json"),
        hostile.Case("half", hostile.write(".metadata", b"\x80\x04\x95")),
        hostile.Case("memo", hostile.write(".metadata", b"\x80\x02Nr\xfe\xff\xff\xff.")),
        hostile.Case("builtin", hostile.write(".metadata", b"cbuiltins\neval\n(V1\ntR.")),
    ]
    real = (good_checkpoint / ".metadata").read_bytes()
    for what, name in {"above": "../__0_0.di", "absolute": "/__0_0.dist"}.items():
        assert len(name) < 30
        changed = _with_path(real, name)
        cases.append(hostile.Case(what, hostile.write(".metadata", changed)))
    assert check(cases, good_checkpoint, tmp_path / "c", checkpoint.load) == len(cases)
    assert not ran.exists()


def _with_path(metadata: bytes, name: str) -> bytes:
    value = pickle.loads(metadata)  # of our own making
    for place in value.storage_data.values():
        place.relative_path = name
    return pickle.dumps(value)


def test_values_in_a_checkpoint_run_no_code(good_checkpoint, tmp_path) -> None:
    ran = tmp_path / "ran"
    folder = shutil.copytree(good_checkpoint, tmp_path / "step-00000003")
    value = pickle.loads((folder / ".metadata").read_bytes())
    [place] = [p for key, p in value.storage_data.items() if key.fqn == "structure"]
    buffer = io.BytesIO()
    torch.save(hostile.Executed(ran), buffer)
    file = folder / place.relative_path
    place.offset, place.length = file.stat().st_size, len(buffer.getvalue())
    file.write_bytes(file.read_bytes() + buffer.getvalue())
    (folder / ".metadata").write_bytes(pickle.dumps(value))
    with pytest.raises(BundleError, match="is not a complete checkpoint"):
        checkpoint.load(folder)
    assert not ran.exists()


def test_a_checkpoint_that_claims_absurd_sizes(good_checkpoint, tmp_path, bounded) -> None:
    folder = shutil.copytree(good_checkpoint, tmp_path / "step-00000003")
    value = pickle.loads((folder / ".metadata").read_bytes())
    value.state_dict_metadata["state/model/a"].size = torch.Size([10**6, 10**6])
    (folder / ".metadata").write_bytes(pickle.dumps(value))
    with pytest.raises(BundleError, match="describes 40000000000"):
        checkpoint.load(folder)


@pytest.mark.parametrize(
    "name",
    ["ctorch.serialization\n_get_layout\n", "ctorch\nfloat32\n",
     "ctorch.distributed.checkpoint.metadata\n_MEM_FORMAT_ENCODING\n(I0\ntR",
     "ctorch.distributed.checkpoint.metadata\nMetadata\n"],
    ids=["function", "dtype", "member", "class"],
)  # fmt: skip
def test_metadata_changes_nothing_that_outlives_it(good_checkpoint, tmp_path, name) -> None:
    folder = shutil.copytree(good_checkpoint, tmp_path / "step-00000003")
    pickled = f"{name}(N(dS'_value_'\nI9\nstb0N."  # sets an attribute of what is named
    (folder / ".metadata").write_bytes(pickled.encode())
    with pytest.raises(BundleError, match="changes an object that is not of the metadata"):
        checkpoint.load(folder)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt", ".bin", ".safetensors"])
def test_foreign_weights_run_no_code(tmp_path, suffix) -> None:
    ran, path = tmp_path / "ran", tmp_path / f"weights{suffix}"
    for content in ({"a": hostile.Executed(ran)}, hostile.Executed(ran)):
        torch.save(content, path)
        for read in (open_tensors, read_tensors):
            with pytest.raises(PardalisError):
                read(path)
        path.write_bytes(pickle.dumps(content))
        for read in (open_tensors, read_tensors):
            with pytest.raises(PardalisError):
                read(path)
    assert not ran.exists()


def bomb(path: Path, content: object, megabytes: int = 64) -> None:
    """Write an archive of PyTorch's again, compressed, with a record of zeros."""
    torch.save(content, path)
    with zipfile.ZipFile(path) as archive:
        records = {each.filename: archive.read(each) for each in archive.infolist()}
    [data] = [name for name in records if name.endswith("/data/0")]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, record in records.items():
            archive.writestr(name, bytes(megabytes << 20) if name == data else record)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt"])
def test_a_compressed_archive_of_weights_is_refused(tmp_path, suffix, bounded) -> None:
    path = tmp_path / f"weights{suffix}"
    bomb(path, {"a": torch.zeros(16 << 20)})
    assert path.stat().st_size < 1 << 20
    for read in (open_tensors, read_tensors):
        with pytest.raises(BundleError, match="cannot be read"):
            read(path)


def test_an_archive_whose_entries_overlap_is_refused(tmp_path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(1000)}, path)
    with zipfile.ZipFile(path, "a") as archive:
        [entry] = [each for each in archive.infolist() if each.filename.endswith("/data/0")]
        for n in range(1, 9):  # of the same bytes
            again = copy.copy(entry)
            again.filename = entry.filename[:-1] + str(n)
            archive.filelist.append(again)
        archive.comment = b"changed"
    with pytest.raises(ValueError, match="overlap"):
        check_archive(path)
    with pytest.raises(BundleError, match="cannot be read"):
        read_tensors(path)


def test_a_compressed_entry_of_a_checkpoint_is_refused(good_checkpoint, tmp_path, bounded) -> None:
    folder = shutil.copytree(good_checkpoint, tmp_path / "step-00000003")
    value = pickle.loads((folder / ".metadata").read_bytes())
    [(index, place)] = [(i, p) for i, p in value.storage_data.items() if i.fqn == "state/model/a"]
    bomb(tmp_path / "entry", torch.zeros(16 << 20))
    content = (tmp_path / "entry").read_bytes()
    file = folder / place.relative_path
    offset = file.stat().st_size
    value.storage_data[index] = dataclasses.replace(place, offset=offset, length=len(content))
    file.write_bytes(file.read_bytes() + content)
    (folder / ".metadata").write_bytes(pickle.dumps(value))
    with pytest.raises(BundleError, match="is not a complete checkpoint") as caught:
        checkpoint.load(folder)
    assert "compressed" in str(caught.value) or "compressed" in repr(caught.value.__cause__)


SOURCE = Path(pardalis.__file__).parent
# The unpicklers that know the few names which their files need, and refuse or ignore all others.
RESTRICTED = {"train/checkpoint_reader.py", "interop/tensors.py", "feature_nets/files.py"}


@functools.cache
def nodes() -> list[tuple[str, ast.AST]]:
    """Return every node of our code, with the file that it is in."""
    return [
        (str(path.relative_to(SOURCE)), node)
        for path in sorted(SOURCE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
    ]


def test_no_code_of_ours_unpickles_or_evaluates() -> None:
    found = [
        f"{file}:{node.lineno}: {wrong}"
        for file, node in nodes()
        if (wrong := _runs_code(node, file in RESTRICTED))
    ]
    assert not found


def test_no_code_of_ours_reads_json_without_limits() -> None:
    """``pardalis.files`` bounds the size of a file, and the depth of its values.

    The process that renders templates imports nothing of ours, and reads what its parent writes.
    """
    found = [f"{file}:{node.lineno}" for file, node in nodes() if _reads_json(node)]
    files = {place.partition(":")[0] for place in found}
    assert files == {"files.py", "tokens/template_worker.py"}


def test_no_code_of_ours_reads_a_file_without_limits() -> None:
    """``pardalis.files`` bounds what is read, and refuses what is no file.

    The others read files of this package, of installed packages, or of their own writing.
    """
    found = {file for file, node in nodes() if _reads_whole(node)}
    assert {file for file in found if not file.startswith("corpora/")} <= {
        "files.py", "pipeline/shipped.py", "studies/stability.py",
    }  # fmt: skip


def _reads_whole(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    called = ast.unparse(node.func)
    is_method = called.endswith((".read_bytes", ".read_text")) and not called.startswith("files.")
    return is_method or called == "tomllib.load"


def _reads_json(node: ast.AST) -> bool:
    if isinstance(node, ast.ImportFrom):
        return node.module == "json"
    return isinstance(node, ast.Call) and ast.unparse(node.func) in ("json.loads", "json.load")


def _runs_code(node: ast.AST, is_restricted: bool) -> str | None:
    if isinstance(node, ast.ClassDef) and not is_restricted:
        bases = [ast.unparse(base) for base in node.bases]
        return next((base for base in bases if "Unpickler" in base), None)
    if not isinstance(node, ast.Call):
        return None
    called = ast.unparse(node.func)
    options = {each.arg: ast.unparse(each.value) for each in node.keywords}
    if called == "torch.load":
        return called if options.get("weights_only") != "True" else None
    if options.get("allow_pickle", "False") != "False":
        return called
    forbidden = (
        r"(pickle|dill|cloudpickle|joblib|marshal|shelve)\.(load|loads|open|Unpickler)"
        r"|yaml\.(load|load_all|unsafe_load|full_load)|eval|exec|np\.load|numpy\.load"
    )
    return called if re.fullmatch(forbidden, called) else None


# ── what a bundle says ─────────────────────────────────────────────────────────────────────────


def described(good_bundle: Path, folder: Path, **changes: Any) -> str:
    """Write a bundle whose description is changed; return the path of its folder."""
    shutil.copytree(good_bundle, folder)
    values = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps(values | changes))
    return str(folder)


CONTROL = "\x1b[2J\x1b]0;title\x07\x9b31m\u202e"


@pytest.mark.parametrize(
    "changes",
    [
        {"made_by": {"numbers": {"loss": "low", "big": 10**400, "rate": 0.5}}},
        {"made_by": {"numbers": [1]}}, {"made_by": {"start_from": {"numbers": {"loss": []}}}},
    ],
)  # fmt: skip
def test_odd_facts_of_a_bundle_are_shown(good_bundle, tmp_path, capsys, changes) -> None:
    assert main(["show", "bundle", described(good_bundle, tmp_path / "bundle", **changes)]) == 0
    assert "333 ids" in capsys.readouterr().out


@pytest.mark.parametrize("vocabulary", [{}, {"modalities": {"text": "ab"}, "special": {}}])
def test_an_odd_vocabulary_is_not_shown(good_bundle, tmp_path, capsys, vocabulary) -> None:
    folder = described(good_bundle, tmp_path / "bundle", vocabulary=vocabulary)
    assert main(["show", "bundle", folder]) == 4
    assert "A vocabulary needs" in capsys.readouterr().err


def test_a_bundle_does_not_control_the_terminal(good_bundle, tmp_path, capsys, monkeypatch):
    folder = described(good_bundle, tmp_path / "bundle", made_by={"recipe": CONTROL})
    template = Path(folder) / "chat_template.jinja"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    template.write_text(
        f"{{# {CONTROL} #}}{{% for m in messages %}}{{{{ m.content }}}}{{% endfor %}}"
    )
    assert main(["show", "bundle", folder]) == main(["show", "template", folder]) == 0
    template.write_text(f"{{{{ raise_exception({CONTROL!r}) }}}}")
    assert main(["show", "template", folder]) == 3
    out, err = capsys.readouterr()
    assert "\ufffd[2J" in out and "\ufffd[2J" in err
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & {*out, *err}


def test_numbers_that_json_has_not_are_null(good_bundle, tmp_path, capsys) -> None:
    made_by = {"loss": float("nan"), "rate": float("-inf"), "name": "\ud800"}
    folder = described(good_bundle, tmp_path / "bundle", made_by=made_by)
    assert main(["show", "bundle", folder, "--json"]) == 0

    def refuse(name: str) -> None:
        raise AssertionError(name)

    shown = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert shown["made_by"]["loss"] is shown["made_by"]["rate"] is None


# ── recipes ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 100_000, "a = " + "[" * 200 + "]" * 200, "d_model = " + "9" * 5000,
        "d_model = 0x" + "f" * 5000, "n_layers = 1000000000", "dropout = nan", "dropout = inf",
        "d_model = 1e400", "kind = []", "attention = 3", "attention = {qk_norm = 3}",
        "attention = {n_heads = {}}", "init = {std = inf}", "position = {theta = inf}",
        "a." * 200 + "b = 1", "\x00", "d_model = -1", "norm = {kind = {}}",
    ],
)  # fmt: skip
def test_recipes(tmp_path, text, bounded) -> None:
    base = "d_model = 8\nn_layers = 1\nvocab_size = 8\ncontext = 8\n"
    key = text.split(" ")[0]
    lines = [line for line in base.splitlines() if not line.startswith(f"{key} ")]
    if not key.startswith("attention"):
        lines.append("attention = {n_heads = 1}")
    lines.append("feed_forward = {width = 8}")
    path = tmp_path / "recipe.toml"
    path.write_text("\n".join([*lines, text]))
    with pytest.raises(PardalisError) as caught:
        load_recipe(ModelConfig, path)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "text",
    ["a" + ".a" * 100_000 + " = 1", "[" + "'a'.\"b\" . c ." * 40_000 + "d]",
     "x = {" + "a." * 100_000 + "a = 1}", "[a.b]\n" * 200_000],
    ids=["key", "quoted", "inline", "long"],
)  # fmt: skip
def test_a_recipe_that_takes_long_to_read_is_refused(tmp_path, bounded, text) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(PardalisError, match="not a TOML file that can be read: it"):
        load_recipe(ModelConfig, path)


def test_files_follow_the_umask(good_bundle) -> None:
    (good_bundle.parent / "plain").touch()
    needed = stat.S_IMODE((good_bundle.parent / "plain").stat().st_mode)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in good_bundle.rglob("*") if p.is_file()}
    assert set(modes.values()) == {needed}, modes
