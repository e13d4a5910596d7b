"""The losses of short runs, as they were when somebody last looked at them.

A change of these numbers is a change of what users train. If it is meant, write them anew with
``python tests/golden/test_losses.py`` and say why in the commit.
"""

import json
from pathlib import Path

import pytest
import torch
from shapes import decoder_config

from pardalis import config as configs
from pardalis.batch import Batch
from pardalis.model import Decoder, initialise
from pardalis.train import DecoderTask, DecoderTrainConfig

GOLDEN = Path(__file__).with_name("losses.json")
STEPS, VOCABULARY, ROWS, LENGTH = 12, 96, 4, 32
IMAGE_IDS = range(8, 40)

MODEL = {
    "vocab_size": VOCABULARY,
    "context": LENGTH,
    "d_model": 32,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "d_ff": 48,
}
TRAINING = {
    "batch_rows": ROWS,
    "schedule": {"learning_rate": 1e-2, "warmup_steps": 3},
    "statistics_every": 4,
}
STABLE = {"norm_placement": "reordered", "embedding_norm": True}

RUNS: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "default": ({}, {}),
    "stable": (STABLE, {"optimizer": {"norm_rate": 0.1}, "objective": {"z_loss": 1e-4}}),
    "chameleon_7b": ({"qk_norm_groups": 1, "dropout": 0.1}, {"optimizer": {"eps": 1e-5}}),
    "qk_clip": ({"qk_norm": "none"}, {"qk_clip": 0.05}),
    "muon": ({}, {"optimizer": {"kind": "muon"}}),
    "independent_decay": (
        {},
        {"optimizer": {"weight_decay": 1e-4, "weight_decay_coupling": "schedule"}},
    ),
    "in_parts": ({}, {"accumulation_steps": 2}),
    "text_only": ({}, {"objective": {"modality_weights": {"image": 0.0}}}),
}


class Rows:
    """Repetitive text and images of one law, so that there is something to learn."""

    def batch(self, step: int, rank: int = 0, size: int = 1) -> Batch:
        generator = torch.Generator().manual_seed(step)
        start = torch.randint(0, 7, (ROWS, 1), generator=generator)
        ids = 40 + (start + torch.arange(LENGTH + 1)) % 7
        ids[:, 8:24] = 8 + (3 * start + torch.arange(16)) % 32
        targets, documents = ids[:, 1:].clone(), torch.zeros(ROWS, LENGTH, dtype=torch.int64)
        documents[1, 20:] = 1
        positions = torch.arange(LENGTH).repeat(ROWS, 1)
        positions[1, 20:] -= 20
        weights = torch.ones(ROWS, LENGTH)
        weights[1, 19] = 0.0
        return Batch(ids[:, :-1].clone(), targets, weights, positions, documents)


def losses(name: str) -> list[float]:
    model, training = RUNS[name]
    config = configs.from_dict(DecoderTrainConfig, TRAINING | training)
    decoder = Decoder(decoder_config(**MODEL | model))
    modalities = {"image": IMAGE_IDS}
    task = DecoderTask(
        initialise(decoder, 0),
        Rows(),
        config.objective.build(modalities),
        config,
        total_steps=STEPS,
        modalities=modalities,
    )
    return [float(task.step(step)["loss"]) for step in range(STEPS)]


@pytest.mark.parametrize("name", RUNS)
def test_losses_are_as_they_were(name: str) -> None:
    """Muon computes in bfloat16, whose rounding differs more between machines."""
    assert losses(name) == pytest.approx(
        json.loads(GOLDEN.read_text())[name], rel=1e-2 if name == "muon" else 1e-4
    )


def test_each_part_changes_the_numbers() -> None:
    """All but parts of a batch, which are the same batch."""
    golden = {name: tuple(values) for name, values in json.loads(GOLDEN.read_text()).items()}
    assert golden.pop("in_parts") == pytest.approx(golden["default"], rel=1e-5)
    assert len(set(golden.values())) == len(golden)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({name: losses(name) for name in RUNS}, indent=1) + "\n")
