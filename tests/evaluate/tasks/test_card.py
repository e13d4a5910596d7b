"""Model cards: results of the very model, and of no other."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_tasks import write_task

from pardalis.bundle import Bundle, load
from pardalis.cli.main import main
from pardalis.errors import ConfigError
from pardalis.evaluate.tasks import evaluate_tasks, read_results
from pardalis.evaluate.tasks.card import card, card_of
from pardalis.evaluate.tasks.results import rows_of


@pytest.fixture(scope="module")
def results(bundle_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("card")
    write_task(folder)
    evaluate_tasks(bundle_folder, [folder / "animals.toml"], folder / "results")
    return folder / "results"


def test_a_card_tells_number_interval_items_and_hashes(bundle_folder, results):
    found = card_of(bundle_folder, results)
    [row] = rows_of(read_results(results))
    assert (
        f"| animals | {row.number} | {row.value:.4g} | {row.low:.4g} to {row.high:.4g} |" in found
    )
    assert f"| 5 | 0 | `{row.task_hash}` | `{row.data_hash}` |" in found
    assert read_results(results)["bundle"]["digest"] in found and found.startswith("# tiny\n")


def test_results_of_another_model_are_refused(bundle, bundle_folder, results, tmp_path):
    model = load(bundle_folder).model
    with torch.no_grad():
        model.head.weight[0, 0] += 1
    Bundle(model, bundle.codec, {}).save(tmp_path / "other")
    with pytest.raises(
        ConfigError, match=r"holds results of the model \w+, but .*other is \w+; ev"
    ):
        card_of(tmp_path / "other", results)


def test_names_end_no_cell_and_results_of_another_form_are_refused(bundle, results):
    found = read_results(results)
    entry = found["tasks"]["animals"]
    odd = replace(bundle, made_by={"recipe": "a\n# b"})
    text = card(odd, "d", found | {"tasks": {"x | y\nz": entry}}, "")
    assert "# a # b\n" in text and "| x \\| y z | " in text
    with pytest.raises(ConfigError, match=r"'animals' in results\.json has another form"):
        rows_of({"tasks": {"animals": entry | {"hash": 1, "data": []}}})


def test_export_writes_the_card(bundle_folder, results, tmp_path, capsys):
    out = str(tmp_path / "out")
    command = ["export", str(bundle_folder), "-o", out, "--to", "hf", "--results", str(results)]
    assert main(command) == 0
    assert "| animals |" in (tmp_path / "out" / "README.md").read_text()
    assert main([*command[:3], f"{out}.2", *command[4:], "--dtype", "bfloat16"]) == 2
    assert (
        "--results does not apply: a model card is of the stored weights" in capsys.readouterr().err
    )
    assert main([*command[:3], f"{out}.3", *command[4:6]]) == 0
    assert not (tmp_path / "out.3" / "README.md").exists()
