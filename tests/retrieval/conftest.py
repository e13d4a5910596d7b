"""Two sources of small documents, and an index of the first by a tiny CLIP of random weights."""

from pathlib import Path

import pytest
import torch
from indexed_documents import write_source
from small_nets import write_clip

from pardalis.codec import Codec
from pardalis.data import SourceConfig
from pardalis.retrieval import ClipConfig, Index, IndexConfig, build_index

CAPTIONS = ["an owl", "a fox", "an oak", "two owls", "the cat", "a small fox"]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory) -> Path:
    return write_clip(tmp_path_factory.mktemp("nets") / "clip")


@pytest.fixture(scope="session")
def source(tmp_path_factory) -> SourceConfig:
    """Six captioned images and a text alone."""
    folder = tmp_path_factory.mktemp("documents")
    return write_source(folder, "pairs", [*CAPTIONS, "owl"], [*range(6), None])


@pytest.fixture(scope="session")
def config(clip_folder: Path) -> IndexConfig:
    return IndexConfig(embedder=ClipConfig(folder=clip_folder), document_tokens=40)


@pytest.fixture(scope="session")
def index(tmp_path_factory, source: SourceConfig, codec: Codec, config: IndexConfig) -> Index:
    return build_index(tmp_path_factory.mktemp("indices") / "index", [source], codec, config)
