"""Every command and every block that the docs show does what it says, as it stands."""

import re
import traceback
from contextlib import closing
from pathlib import Path

import pytest
from docs_runner import Done, Page
from docs_workspace import ROOT
from documented import Shown, shown

HISTORY = ("CHANGELOG.md", "log.md")  # what was, and may be no more
OWN_TEST = ("extend.md",)  # it adds to the tables of its process: tests/flow/test_extend.py
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "bench" / "README.md"])
PAGES = [path for path in PAGES if path.name not in (*HISTORY, *OWN_TEST)]
RECIPES = sorted(ROOT.glob("recipes/*.toml"))
ITEMS = {path: shown(path, ROOT) for path in [*PAGES, *RECIPES]}

# What is not run: page, pattern in the text of the block or command, reason.
EXCEPTIONS = [
    ("README.md", r"^src/pardalis/\n", "the tree of files; test_links.py compares it"),
    ("docs/concepts/README.md", r"→", "a sketch of a flow"),
    ("docs/concepts/README.md", r"^bos \(text", "the grammar"),
    ("docs/concepts/decoding.md", r"^device +\|", "a sketch of a timeline"),
    ("docs/concepts/decoding.md", r"^noise = f\(", "a formula"),
    ("docs/many-gpus.md", r"^pardalis: rank 5", "messages; tests/parallel/test_failures.py"),
    ("docs/prepare-at-scale.md", r"--engine ray", "a cluster; tests/data/test_ray_workers.py"),
    ("docs/prepare-at-scale.md", r"^#SBATCH", "a scheduler"),
    ("docs/prepare-at-scale.md", r"^Worker 2", "a message; tests/data/test_blocks.py"),
    *(
        (f"recipes/sft_chameleon_{size}.toml", r"^pardalis plan", "test_recipes.py, at its size")
        for size in ("7b", "34b")
    ),
    ("docs/serving.md", r"\nserve\.run\(", "a cluster; tests/serve/test_ray.py runs it"),
    ("docs/parity.md", r"-m pytest", "the suite runs these tests"),
]


def exception(item: Shown) -> str | None:
    for page, pattern, reason in EXCEPTIONS:
        if item.page == page and re.search(pattern, item.text):
            return reason
    return None


# Said once in a process, of a norm in bfloat16 whose weights are in 32 bits: slower, and meant.
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize(
    "path", [path for path in ITEMS if ITEMS[path]], ids=lambda path: str(path.relative_to(ROOT))
)
def test_page(path: Path, workspace: Path, done: Done):
    page, failures = Page(done), []
    with closing(page):
        for item in ITEMS[path]:
            if exception(item) is None:
                try:
                    page.run(item)
                except (Exception, SystemExit):
                    failures.append(f"{item.place}\n{item.text}\n{traceback.format_exc()}")
    assert not failures, "\n\n".join(failures)


def test_every_exception_is_of_something():
    items = [item for found in ITEMS.values() for item in found]
    for page, pattern, reason in EXCEPTIONS:
        assert any(i.page == page and re.search(pattern, i.text) for i in items), (page, reason)


def test_the_pages_show_commands():
    assert sum(len(item.commands) for item in ITEMS[ROOT / "README.md"]) >= 15
