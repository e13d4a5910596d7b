"""The tables of names cover every decoder, and nothing twice."""

import pytest
import torch
from torch import nn

from pardalis.errors import ConfigError
from pardalis.model import PRESETS, Decoder
from pardalis.parallel.plans import TENSOR_PLAN, shared_inputs_of, split_of, splits_of, units_of


def decoder(preset: str) -> Decoder:
    with torch.device("meta"):
        return Decoder(PRESETS[preset](vocab_size=65_536))


@pytest.mark.parametrize("preset", PRESETS)
def test_every_parameter_stands_in_one_line(preset):
    model = decoder(preset)
    lines = list(splits_of(model))
    covered = [id(p) for module, _ in lines for p in module.parameters(recurse=False)]
    assert sorted(covered) == sorted(id(p) for p in model.parameters())
    assert {split for _, split in lines} == set(TENSOR_PLAN)


@pytest.mark.parametrize("preset", PRESETS)
def test_what_is_cut_has_that_dimension(preset):
    for module, split in splits_of(decoder(preset)):
        for parameter in module.parameters(recurse=False):
            if split.parameters is not None:
                assert parameter.shape[split.parameters] % 4 == 0


@pytest.mark.parametrize("preset", PRESETS)
def test_units_are_the_blocks(preset):
    model = decoder(preset)
    assert units_of(model) == list(model.trunk.blocks)
    assert len(shared_inputs_of(model)) == 2 * model.config.n_layers


@pytest.mark.parametrize("name", ["trunk.blocks.0.mixer.in_proj", "heads", "trunk.blocks.x.o_proj"])
def test_a_name_that_nothing_is_known_of_is_refused(name):
    with pytest.raises(ConfigError, match=f"0 lines of .* are about '{name}' and one is needed"):
        split_of(name)


def test_a_new_kind_of_layer_needs_a_line():
    model = decoder("tiny")
    model.trunk.blocks[1].extra = nn.Linear(2, 2, device="meta")
    with pytest.raises(ConfigError, match=r"trunk\.blocks\.1\.extra"):
        list(splits_of(model))
