"""Links lead somewhere, and the tree of the README is that of the package."""

import re

import pytest
from docs_workspace import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("bench/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
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
