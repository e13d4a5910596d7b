"""docs/extend.md: parts from outside train, are saved, loaded and served, and equal the oracle.

Everything runs in a process of its own, since the parts stay in the tables of a process.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from documented import shown

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "extend.md"

DRIVER = """
from pathlib import Path
from pardalis.cli.main import main
for line in Path("commands.txt").read_text().splitlines():
    assert main(line.split()) == 0, line
for name in ("use.py", "oracle.py"):
    exec(compile(Path(name).read_text(), name, "exec"))
"""

ORACLE = """
import json
import torch
from pardalis.inference import EngineConfig, Request, SamplingConfig, generate_ids
from pardalis.inference import generate_reference
from pardalis.model import build, config_of, initialise
from pardalis import config as configs
from pardalis.pipeline import load_codec, load_recipe, training_loader
from pardalis.tokens import Limits
from pathlib import Path

grammar, model = bundle.codec.grammar, bundle.model
ids = bundle.codec.vocabulary
torch.manual_seed(0)
with torch.no_grad():  # so that a wrong cache would show
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.05)
prompt = (ids.bos_id, *range(ids.text.start, ids.text.start + 6))
requests = [
    Request(prompt_ids=prompt, limits=Limits(max_new_tokens=80, text=text, max_images=1), seed=seed,
            text=SamplingConfig(), image=SamplingConfig())
    for seed, text in ((0, True), (1, True), (2, False))
]
found = generate_ids(model, grammar, requests)
assert found == [generate_reference(model, grammar, request) for request in requests]
generate_ids(model, grammar, requests, EngineConfig(weights="int8"))

assert config_of(configs.to_dict(model.config)) == model.config
run = Path("runs/my-parts")
recipe, codec = load_recipe(run / "recipe.toml"), load_codec(run)
loader = training_loader(recipe, run, codec)
pause = codec.vocabulary.special["pause"]
rows = [(loader.at([p]).ids == pause).sum().item() for p in range(40)]
assert {loader.locate(p).epoch for p in range(40)} >= {0, 1}
again = training_loader(recipe, run, codec)
assert rows == [(again.at([p]).ids == pause).sum().item() for p in range(40)]
Path("seen.json").write_text(
    json.dumps({"pauses": rows, "written": pause in grammar.writable_ids()})
)
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("extend")
    (folder / "photos").mkdir()
    for n in range(6):
        pixels = np.random.default_rng(n).integers(0, 256, (64, 64, 3), np.uint8)
        PIL.Image.fromarray(pixels).save(folder / "photos" / f"{n}.png")
        (folder / "photos" / f"{n}.txt").write_text(f"red noise number {n}")
    items = shown(PAGE, ROOT)
    blocks = [item.text for item in items if item.language == "python"]
    [recipe] = [item.text for item in items if item.language == "toml"]
    commands = [command for item in items for command in item.commands]
    assert len(blocks) >= 6
    assert len(commands) == 3
    (folder / "my_parts.py").write_text("\n\n".join(blocks[:-1]))
    (folder / "use.py").write_text(blocks[-1])
    (folder / "my-parts.toml").write_text(recipe)
    (folder / "commands.txt").write_text(
        "".join(command.removeprefix("pardalis ") + "\n" for command in commands)
    )
    (folder / "oracle.py").write_text(ORACLE)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", DRIVER],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_part_took_part(project):
    description = json.loads((project / "runs/my-parts/bundle/bundle.json").read_text())
    assert description["model"]["kind"] == "twin"
    assert description["model"]["feed_forward"]["kind"] == "squared_relu"
    assert "pause" in description["vocabulary"]["special"]
    summary = json.loads((project / "runs/my-parts/summary.json").read_text())
    assert 0 < summary["cross_entropy"] < 10
    seen = json.loads((project / "seen.json").read_text())
    assert seen["written"]
    assert min(seen["pauses"]) == 0 < max(seen["pauses"])  # in some epochs


def test_a_bundle_of_a_kind_that_is_not_imported_is_refused(project):
    from pardalis import bundle as bundles
    from pardalis.errors import BundleError

    with pytest.raises(
        BundleError, match=r"model\.kind must be one of 'decoder', 'cross', got 'twin'"
    ):
        bundles.load(project / "runs/my-parts/bundle")


def test_a_file_that_is_not_there_is_named(capsys):
    from pardalis.cli.main import main

    assert main(["--import", "none.py", "show", "bundle", "x"]) == 2
    assert "There is no file none.py to import." in capsys.readouterr().err
    assert main(["--import", "no_such_module", "show", "bundle", "x"]) == 2
    assert "No module named 'no_such_module'; give a module" in capsys.readouterr().err
