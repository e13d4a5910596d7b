"""The recipes of Pardalis are found by name from anywhere; a file of that name comes first."""

import json
import shutil
from pathlib import Path

import pytest

import pardalis
from pardalis.cli.main import main
from pardalis.errors import ConfigError
from pardalis.pipeline import load_recipe
from pardalis.pipeline.shipped import find_recipe, shipped_recipes

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_recipe_has_a_name() -> None:
    files = sorted(ROOT.glob("recipes/*.toml"))
    assert list(shipped_recipes().values()) == files
    for path in files:
        assert load_recipe(path.stem).name == path.stem


def test_a_wheel_has_them_inside_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "lib" / "site-packages" / "pardalis"
    shutil.copytree(ROOT / "recipes", package / "recipes")
    monkeypatch.setattr(pardalis, "__file__", str(package / "__init__.py"))
    assert find_recipe("quickstart") == package / "recipes" / "quickstart.toml"
    assert load_recipe("quickstart").name == "quickstart"


def test_a_file_comes_first_and_a_folder_does_not(tmp_path: Path) -> None:
    (tmp_path / "quickstart").mkdir()
    assert find_recipe("quickstart") == ROOT / "recipes" / "quickstart.toml"
    (tmp_path / "quickstart").rmdir()
    (tmp_path / "quickstart").write_text("name = 3")
    assert find_recipe("quickstart") == Path("quickstart")


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("quikstart", r"did you mean quickstart\? .*`shipped_recipes`\.$"),
        ("recipes/chameleon_7b.toml", r"did you mean chameleon_7b\?"),
        ("xyz", r"which are .*quickstart.*stability_parts\.$"),
        ("/quickstart", r"did you mean quickstart\?"),
        ("q" * 5000, r"which are .*stability_parts\.$"),
        ("ikons.toml", r"did you mean icons.toml\?"),
        ("icons.tom", r"did you mean icons.toml\?"),
        ("mine/ikon", r"did you mean mine/icon.toml\?"),
    ],
)
def test_an_unknown_name(given: str, hint: str) -> None:
    Path("mine").mkdir()
    for name in ("icons.toml", "mine/icon.toml"):
        Path(name).touch()
    with pytest.raises(ConfigError, match=rf"^No recipe at {given}; .*{hint}"):
        load_recipe(given)


def test_a_folder_of_documents_is_no_recipe() -> None:
    Path("icons").mkdir()
    with pytest.raises(ConfigError, match=r"^icons is a folder without a recipe.toml.*`init`"):
        load_recipe("icons/")
    Path("icons.toml").touch()
    with pytest.raises(ConfigError, match=r"^icons is a folder .*did you mean icons.toml\?$"):
        load_recipe("icons")


def test_commands_take_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "config", "encyclopedia", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "encyclopedia"
    assert main(["plan", "chameleon_7b", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recipe"] == "chameleon_7b"
    assert main(["run", "quickstart", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["run"] == "runs/quickstart"


def test_show_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(shipped_recipes())
    said = [line[24:] for line in lines]
    assert all(text.endswith(".") and " = " not in text for text in said)
    assert not any("Hardware" in text or "[[" in text or "pardalis " in text for text in said)
    assert main(["show", "recipes", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert all(Path(facts["path"]).is_file() for facts in shown.values())
