"""What the docs say is true: commands parse, names exist, links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest

from pardalis.cli.main import build_parser

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
RECIPES = [*ROOT.glob("recipes/*.toml")]

COMMAND = re.compile(r"^(?:# +)?(?:\.venv/bin/)?(pardalis .*?)(?:   +.*|  #.*)?$", re.MULTILINE)


def documented_commands():
    for page in [*PAGES, *RECIPES]:
        for match in COMMAND.finditer(page.read_text()):
            yield pytest.param(match[1], id=f"{page.name}: {match[1]}")


@pytest.mark.parametrize("command", list(documented_commands()))
def test_documented_commands_parse(command):
    build_parser().parse_args(shlex.split(command.split("#")[0])[1:])


def test_the_readmes_python_block_uses_what_there_is():
    """It runs against a bundle elsewhere; here its imports and keyword arguments are checked."""
    import ast
    import inspect

    import pardalis

    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block
    tree = ast.parse(block[1])
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    exec(compile(ast.Module(imports, []), "README.md", "exec"), {})
    called = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("pardalis."):
            function = getattr(pardalis, node.func.attr)
            keywords = {keyword.arg: None for keyword in node.keywords}
            inspect.signature(function).bind(*node.args, **keywords)
            called += 1
    assert called == 4


def test_there_are_documented_commands():
    assert len(list(documented_commands())) >= 8


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_the_readme_names_every_part_of_the_tree():
    tree = re.search(r"## The tree\n\n```\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert tree
    package = ROOT / "src" / "pardalis"
    parts = {f"{p.name}/" if p.is_dir() else p.name for p in package.iterdir()}
    for part in parts - {"__init__.py", "__pycache__/", "py.typed"}:
        assert re.search(rf"^  {re.escape(part)} ", tree[1], re.MULTILINE), part
