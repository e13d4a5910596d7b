"""Checkpoints: round trips, and errors for damaged ones."""

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemReader

from pardalis.errors import BundleError, TrainingError
from pardalis.files import working_name
from pardalis.parallel import World
from pardalis.train import checkpoint


def trained_state() -> dict:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(3, 4)).sum().backward()
    optimizer.step()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "half": torch.randn(3, 3).bfloat16(),
        "view": torch.arange(100)[10:13],
        "empty": torch.empty(0),
        "flags": [True, None, "word", 2.5, torch.tensor(7)],
        "pair": (torch.tensor([1.5]), ()),
        "nothing": {},
    }


def assert_same(a: object, b: object) -> None:
    assert type(a) is type(b) or (isinstance(a, dict) and isinstance(b, dict))
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


@contextmanager
def files_of_at_most(n_bytes: int) -> Iterator[None]:
    """Make the kernel refuse longer files: a write fails as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_state_round_trips_bit_for_bit_with_its_types_and_integer_keys(tmp_path: Path) -> None:
    state = trained_state()
    folder = checkpoint.save(tmp_path, 12, state, {"time_s": 1.5, "window": [{"loss": 0.1}]})
    assert folder == tmp_path / "checkpoints/step-00000012"
    loaded, notes = checkpoint.load(folder)
    assert_same(loaded, state)
    assert notes == {"time_s": 1.5, "window": [{"loss": 0.1}]}
    about = json.loads((folder / "run.json").read_text())
    assert (about["format_version"], about["step"]) == (2, 12)


def test_tensors_are_named_by_their_path() -> None:
    one = torch.ones(1)
    names = checkpoint.tensors_of({"model": {"a.weight": one}, "moments": [one]})
    assert list(names) == ["state/model/a.weight", "state/moments/0"]


def test_newest_and_prune_use_numbers_and_ignore_partial_checkpoints(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) is None
    for step in (9, 100, 20):
        checkpoint.save(tmp_path, step, {"x": torch.zeros(1)}, {})
    (tmp_path / "checkpoints/step-00000300.partial").mkdir()
    killed = working_name(tmp_path / "checkpoints/step-00000137", "partial")  # while it was written
    killed.mkdir()
    newest = checkpoint.newest(tmp_path)
    assert newest is not None
    assert checkpoint.step_of(newest) == 100
    checkpoint.prune(tmp_path, keep=2)
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000020", "step-00000100"]


@pytest.mark.parametrize("step", [99_999_999, 100_000_000])
def test_steps_of_any_length_are_found_again(tmp_path: Path, step: int) -> None:
    checkpoint.save(tmp_path, 99_999_998, {}, {})
    folder = checkpoint.save(tmp_path, step, {}, {})
    assert checkpoint.newest(tmp_path) == folder


@pytest.mark.parametrize("name", ["run.json", ".metadata", "__0_0.distcp"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut"])
def test_a_damaged_checkpoint_names_its_folder_and_what_to_do(
    tmp_path: Path, name: str, damage: str
) -> None:
    folder = checkpoint.save(tmp_path, 7, trained_state(), {})
    file = folder / name
    content = file.read_bytes()
    file.unlink()
    if damage != "missing":
        file.write_bytes(b"" if damage == "empty" else content[: len(content) // 2])
    with pytest.raises(BundleError, match="step-00000007 is not a complete checkpoint") as caught:
        checkpoint.load(folder)
    assert "delete this folder to resume from the checkpoint before it" in str(caught.value)


@pytest.mark.parametrize("name", ["run.json", ".metadata", "__0_0.distcp"])
def test_a_file_that_the_system_refuses_is_no_reason_to_delete(tmp_path: Path, name: str) -> None:
    folder = checkpoint.save(tmp_path, 7, trained_state(), {})
    (folder / name).unlink()
    (folder / name).symlink_to(folder / name)  # refused with another error than "not found"
    message = r"step-00000007 could not be read \(.*Too many levels of symbolic links.* again"
    with pytest.raises(BundleError, match=message) as caught:
        checkpoint.load(folder)
    assert "delete" not in str(caught.value)


@pytest.mark.parametrize(
    ("owner", "method"), [(checkpoint, "read_metadata"), (FileSystemReader, "read_data")]
)
@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_too_little_memory_is_no_reason_to_delete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: object, method: str, error: Exception
) -> None:
    folder = checkpoint.save(tmp_path, 7, trained_state(), {})

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(owner, method, fail)
    with pytest.raises(MemoryError):
        checkpoint.load(folder)


@pytest.mark.parametrize("version", [1, 3])
def test_another_format_is_for_another_version(tmp_path: Path, version: int) -> None:
    folder = checkpoint.save(tmp_path, 7, {}, {})
    about = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(about | {"format_version": version}))
    with pytest.raises(
        BundleError, match=rf"step-00000007 has .* format {version} .* the version that wrote it"
    ):
        checkpoint.load(folder)


@pytest.mark.parametrize("limit", [0, 1000, 300_000])
def test_a_full_disk_leaves_the_previous_checkpoint_whole(tmp_path: Path, limit: int) -> None:
    state = {"x": torch.ones(100_000)}
    checkpoint.save(tmp_path, 1, state, {})
    message = (  # nothing of PyTorch's "enforce fail", which hides the cause
        r"step 2 could not be written to \S*checkpoints: the file is larger than the system "
        r"allows; raise that limit \(ulimit -f\), then run the same command again\. "
        r"step-00000001 before it is intact\.$"
    )
    with files_of_at_most(limit), pytest.raises(TrainingError, match=message):
        checkpoint.save(tmp_path, 2, state, {})
    newest = checkpoint.newest(tmp_path)
    assert newest is not None
    assert newest.name == "step-00000001"
    assert torch.equal(checkpoint.load(newest)[0]["x"], state["x"])
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    checkpoint.save(tmp_path, 2, state, {})  # it works once there is space again


def test_a_run_whose_folder_was_moved_away_is_not_continued_elsewhere(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with checkpoint.Saver(run, World()) as saver:
        saver.save(1, {"x": torch.ones(2)}, {})
        saver.wait()
        run.rename(tmp_path / "moved")
        with pytest.raises(TrainingError, match="folder was moved or deleted while it was written"):
            saver.save(2, {"x": torch.ones(2)}, {})  # which raises too if it is done by then
            saver.wait()
    assert not run.exists()
    assert checkpoint.newest(tmp_path / "moved").name == "step-00000001"


def test_the_training_package_imports_no_distributed_checkpointing() -> None:
    code = (
        "import sys, pardalis.train.loop, pardalis.train.decoder_task;"
        "sys.exit('torch.distributed.checkpoint' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
