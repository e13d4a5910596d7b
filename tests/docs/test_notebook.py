"""Each cell of the notebook runs, and the last value of a cell can be shown."""

import json

import pytest
from docs_workspace import ROOT
from notebook_cells import code_cells, run_cell
from shapes import decoder_config

from pardalis.bundle import Bundle
from pardalis.model import Decoder, initialise

NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


@pytest.fixture
def workspace(codec, tmp_path, monkeypatch):
    config = decoder_config(
        vocab_size=codec.vocabulary.size, context=64, d_model=32, n_layers=2, n_heads=4,
        n_kv_heads=2, d_ff=64, init_std=0.3,
    )  # fmt: skip
    bundle = Bundle(initialise(Decoder(config), 0).eval(), codec, {})
    bundle.save(tmp_path / "runs" / "quickstart" / "bundle")
    monkeypatch.chdir(tmp_path)


def test_all_cells_run(workspace):
    names: dict[str, object] = {}
    shown = [run_cell(cell, names) for cell in code_cells(NOTEBOOK)]
    html = [value._repr_html_() for value in shown if hasattr(value, "_repr_html_")]
    assert html[0].startswith("<table>")
    assert html[1].startswith('<div><div><img src="data:image/png;base64,')
    assert len(html) == 3


def test_it_holds_no_outputs():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") for cell in cells)
