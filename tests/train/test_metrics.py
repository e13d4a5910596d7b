"""Metrics: means, lines, and recovery after a crash."""

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pardalis import files
from pardalis.errors import ConfigError, DataError, TrainingError
from pardalis.train.metrics import MetricsWindow, MetricsWriter, read_metrics


def test_a_window_averages_numbers_and_tensors_over_the_steps_that_have_them() -> None:
    window = MetricsWindow()
    window.add({"loss": torch.tensor(1.0), "rate": 0.5, "loss_image": torch.tensor(float("nan"))})
    window.add({"loss": torch.tensor(3.0), "rate": 0.25, "loss_image": torch.tensor(4.0)})
    assert window.mean() == {"loss": 2.0, "rate": 0.375, "loss_image": 4.0}


def test_tensors_are_fetched_once_for_all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []
    original = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda t: fetched.append(t.shape) or original(t))
    window = MetricsWindow()
    for i in range(5):
        window.add({"a": torch.tensor(i), "b": torch.tensor(2.0 * i)})
    assert fetched == []
    window.mean()
    assert fetched == [(10,)]


@given(st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=20), st.data())
def test_fetching_in_between_changes_no_mean(values: list[float], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(values)))
    whole, parted = MetricsWindow(), MetricsWindow()
    for i, value in enumerate(values):
        whole.add({"x": torch.tensor(value)})
        parted.add({"x": torch.tensor(value)})
        if i + 1 == cut:
            parted = MetricsWindow(parted.fetch())
    assert parted.mean() == whole.mean()


def test_lines_are_written_and_read(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as writer:
        writer.write(10, 1.23456, {"loss": 0.1, "psnr": float("inf")})
        writer.write(20, 2.5, {"loss": 0.05})
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {"step": 10, "time_s": 1.235, "loss": 0.1},
        {"step": 20, "time_s": 2.5, "loss": 0.05},
    ]


def test_resuming_drops_lines_of_later_steps_and_a_half_written_one(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as writer:
        for step in (1, 2, 3, 4):
            writer.write(step, 0.0, {"loss": 1.0})
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b'{"step": 5, "lo')
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 3, 4]
    with MetricsWriter(tmp_path, step=2) as writer:
        assert writer.last["step"] == 2
        writer.write(3, 0.0, {"loss": 2.0})
    assert [line["loss"] for line in read_metrics(path)] == [1.0, 1.0, 2.0]


@given(cut=st.integers(0, 200))
def test_a_file_cut_anywhere_keeps_its_whole_lines(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    folder = tmp_path_factory.mktemp("run")
    lines = [f'{{"step": {i}, "time_s": 0.0, "loss": 1.0}}\n'.encode() for i in range(5)]
    content = b"".join(lines)[:cut]
    (folder / "metrics.jsonl").write_bytes(content)
    assert len(read_metrics(folder / "metrics.jsonl")) == content.count(b"\n")
    with MetricsWriter(folder, step=99) as writer:
        writer.write(100, 0.0, {})
    assert (folder / "metrics.jsonl").read_bytes().count(b"\n") == content.count(b"\n") + 1


@pytest.mark.parametrize("line", ["nonsense", "{}", "3"])
def test_damage_in_the_middle_is_an_error_with_its_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(DataError, match=r"Line 2 of .*metrics\.jsonl is not a metrics line"):
        read_metrics(path)


def test_a_missing_file_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No metrics can be read"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_a_full_disk_is_an_error(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, 0.0, {"loss": 1.0})
        writer._file.close()
        writer._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115
        with pytest.raises(
            TrainingError, match=r"step 2 could not be written.*the disk is full; free space"
        ):
            writer.write(2, 0.0, {"loss": 1.0})


def test_tensorboard_holds_the_same_numbers(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricsWriter(tmp_path, tensorboard=True) as writer:
        writer.write(10, 0.0, {"loss": 0.5})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(10, 0.5)]


def test_tensorboard_that_is_not_installed_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"pip install 'pardalis\[track\]'"):
        MetricsWriter(tmp_path, tensorboard=True)


@pytest.mark.parametrize(
    "line",
    ['{"step": 1, "loss": "a"}', '{"step": 1, "loss": null}', '{"step": 1, "loss": {}}',
     '{"step": 1, "loss": true}', f'{{"step": 1, "loss": 1{"0" * 400}}}', '{"step": -1}',
     f'{{"step": 1{"0" * 400}}}', '{"loss": 1}', "[1]"],
)  # fmt: skip
def test_a_line_that_holds_other_things_than_numbers_is_refused(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1, "loss": 2.5}}\n{line}\n')
    with pytest.raises(DataError, match=r"Line 2 of .*metrics\.jsonl is not a metrics line"):
        read_metrics(path)


def test_metrics_of_holes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MOST_BYTES", 1000)
    path = tmp_path / "metrics.jsonl"
    with open(path, "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DataError, match=r"No metrics can be read .*a line of more than"):
        read_metrics(path)
