"""The cells of a notebook, and running them as a notebook does."""

import ast
import json
from pathlib import Path


def code_cells(path: Path) -> list[str]:
    """Return the code of each cell that has code."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]


def run_cell(cell: str, names: dict[str, object]) -> object:
    """Run a cell; return the value of its last expression, which a notebook shows."""
    *body, last = ast.parse(cell).body
    exec(compile(ast.Module(body, []), "cell", "exec"), names)
    if isinstance(last, ast.Expr):
        return eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    exec(compile(ast.Module([last], []), "cell", "exec"), names)
    return None
