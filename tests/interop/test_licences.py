"""The terms of imported weights are carried along, word for word."""

from pathlib import Path

import pytest

from pardalis.interop.licences import licences_of


def folder_of(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name.replace("_md", ".md")).write_text(text)
    return folder


def test_files(tmp_path):
    folder = folder_of(
        tmp_path / "model", LICENSE="Use it.\n", NOTICE="By us.", README_md="---\nlicense: mit\n---"
    )
    (folder / "LICENSES").mkdir()
    assert licences_of(folder) == (
        "# Weights imported from model\n\n## LICENSE\n\nUse it.\n\n## NOTICE\n\nBy us.\n"
    )


def test_files_of_several_folders(tmp_path):
    one, two = (folder_of(tmp_path / name, LICENSE=f"Of {name}.") for name in ("one", "two"))
    assert licences_of(one, two).count("## LICENSE\n") == 2
    assert licences_of(one, two).startswith("# Weights imported from one\n")


CARD = """\
---
language: en
license: other
license_name: chameleon  # as they call it
license_link: https://example.org/licence
tags: [license]
---
# A model
license: not this
"""
LIST = "---\nlicense:\n- mit\n  - zlib\ntags:\n- x\n---\n"


@pytest.mark.parametrize(
    ("card", "quoted"),
    [
        (CARD, "    license: other\n    license_name: chameleon  # as they call it\n"
               "    license_link: https://example.org/licence\n"),
        (LIST, "    license:\n    - mit\n      - zlib\n"),
        ("\ufeff---\r\nlicense: mit\r\n---\r\n", "    license: mit\n"),
        ("---\nlicense: mit\n---", "    license: mit\n"),
    ],
)  # fmt: skip
def test_a_model_card_is_quoted_where_there_is_no_file(tmp_path, card, quoted):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "README.md").write_bytes(card.encode())
    assert licences_of(folder) == (
        "# Weights imported from model\n\n"
        f"The folder holds no licence file. Its README.md says:\n\n{quoted}"
    )


@pytest.mark.parametrize("card", ["", "# A model\nlicense: mit\n", "---\nlanguage: en\n---\n"])
def test_a_missing_licence_is_stated(tmp_path, card):
    assert licences_of(folder_of(tmp_path / "model", README_md=card)) == (
        "# Weights imported from model\n\n"
        "The folder holds no licence file. The terms of the weights are those of their source.\n"
    )


def test_our_own_text_stays_as_it_is(tmp_path):
    text = licences_of(folder_of(tmp_path / "model", LICENSE="Use it.\n"))
    exported = folder_of(tmp_path / "exported", LICENCES_md=text)
    assert licences_of(exported) == text
    (exported / "NOTICE").write_text("By us.\n")  # laid there since
    assert licences_of(exported) == f"{text}\n## NOTICE\n\nBy us.\n"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("models--facebook--chameleon-7b/snapshots/" + "0a" * 20, "facebook/chameleon-7b"),
        ("models--gpt2/snapshots/" + "0a" * 20, "gpt2"),
        ("models--facebook--chameleon-7b/snapshots/main", "main"),
        ("runs/" + "0a" * 20, "0a" * 20),
    ],
)
def test_the_heading(tmp_path, path, name):
    assert licences_of(folder_of(tmp_path / path)).startswith(f"# Weights imported from {name}\n")
