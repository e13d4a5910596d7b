"""A folder with what the docs name, built once, and a copy of it for each page."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from docs_runner import Done
from docs_workspace import build_workspace
from fake_drawings import pinned_hash
from short_runs import short_runs
from small_nets import write_minilm_package

from pardalis.corpora import packages
from pardalis.feature_nets.efficientnet import EfficientNetLite0

_SIDE = 32  # pixels that the net sees of an image, for a fiftieth of the time


@pytest.fixture(scope="session")
def built_workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("docs") / "workspace"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch, short_runs():
        patch.chdir(folder)
        patch.setattr(EfficientNetLite0, "side", _SIDE)
        patch.setattr(packages, "_sha256", pinned_hash)
        build_workspace(folder)
    return folder


@pytest.fixture
def workspace(built_workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, which is the current folder; its large files are links.

    It has the same path for all pages, so that a run of one page is a run of the next.
    """
    folder = built_workspace.parent / "page"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(built_workspace, folder, symlinks=True, copy_function=_copy)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(packages, "_sha256", pinned_hash)
    monkeypatch.setattr(EfficientNetLite0, "side", _SIDE)
    monkeypatch.syspath_prepend(write_minilm_package(tmp_path / "packages"))
    return folder


def _copy(source: str, target: str) -> None:
    if os.path.getsize(source) > 2**20 and source.endswith(".pth"):
        os.link(source, target)
    else:
        shutil.copy2(source, target)


@pytest.fixture(scope="session")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """The long work of pages that others need not do again."""
    return Done(tmp_path_factory.mktemp("runs"))
