"""Each cell of the notebook runs, and the last value of a cell can be shown."""

import ast
import json

import pytest
from docs_workspace import ROOT
from shapes import decoder_config

from pardalis.bundle import Bundle
from pardalis.model import Decoder, initialise

NOTEBOOK = json.loads((ROOT / "docs" / "notebook.ipynb").read_text(encoding="utf-8"))
CELLS = ["".join(c["source"]) for c in NOTEBOOK["cells"] if c["cell_type"] == "code"]


@pytest.fixture
def workspace(codec, tmp_path, monkeypatch):
    config = decoder_config(
        vocab_size=codec.vocabulary.size, context=64, d_model=32, n_layers=2, n_heads=4,
        n_kv_heads=2, d_ff=64, init_std=0.3,
    )  # fmt: skip
    bundle = Bundle(initialise(Decoder(config), 0).eval(), codec, {})
    bundle.save(tmp_path / "runs" / "quickstart" / "bundle")
    monkeypatch.chdir(tmp_path)


def run(cell: str, names: dict[str, object]) -> object:
    """Run a cell; return the value of its last expression, which a notebook shows."""
    *body, last = ast.parse(cell).body
    exec(compile(ast.Module(body, []), "cell", "exec"), names)
    if isinstance(last, ast.Expr):
        return eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    exec(compile(ast.Module([last], []), "cell", "exec"), names)
    return None


def test_all_cells_run(workspace):
    names: dict[str, object] = {}
    shown = [run(cell, names) for cell in CELLS]
    html = [value._repr_html_() for value in shown if hasattr(value, "_repr_html_")]
    assert html[0].startswith("<table>")
    assert html[1].startswith('<div><div><img src="data:image/png;base64,')
    assert len(html) == 3


def test_it_holds_no_outputs():
    assert not any(cell.get("outputs") for cell in NOTEBOOK["cells"])
