"""The tables cover every module of every decoder exactly once."""

import pytest
import torch
from torch import nn

from pardalis.errors import ConfigError
from pardalis.model import PRESETS, Decoder
from pardalis.parallel.plans import (
    SHARED_INPUTS,
    TENSOR_PLAN,
    UNITS,
    modules_named,
    plan_of,
    plans_of,
)


def decoder(preset: str) -> Decoder:
    with torch.device("meta"):
        return Decoder(PRESETS[preset](vocab_size=65_536))


@pytest.mark.parametrize("preset", PRESETS)
def test_every_parameter_has_one_line(preset):
    model = decoder(preset)
    lines = list(plans_of(model))
    covered = [id(p) for module, _ in lines for p in module.parameters(recurse=False)]
    assert sorted(covered) == sorted(id(p) for p in model.parameters())
    assert {plan for _, plan in lines} == set(TENSOR_PLAN)


@pytest.mark.parametrize("preset", PRESETS)
def test_sharded_dimensions_are_divisible(preset):
    for module, plan in plans_of(decoder(preset)):
        for parameter in module.parameters(recurse=False):
            if plan.parameters is not None:
                assert parameter.shape[plan.parameters] % 4 == 0


@pytest.mark.parametrize("preset", PRESETS)
def test_units_are_the_blocks(preset):
    model = decoder(preset)
    assert modules_named(model, UNITS) == list(model.trunk.blocks)
    assert len(modules_named(model, SHARED_INPUTS)) == 2 * model.config.n_layers


@pytest.mark.parametrize("name", ["trunk.blocks.0.mixer.in_proj", "heads", "trunk.blocks.x.o_proj"])
def test_an_unknown_name_is_refused(name):
    with pytest.raises(ConfigError, match=f"0 lines of .* match '{name}' and one is needed"):
        plan_of(name)


def test_a_new_kind_of_layer_needs_a_line():
    model = decoder("tiny")
    model.trunk.blocks[1].extra = nn.Linear(2, 2, device="meta")
    with pytest.raises(ConfigError, match=r"trunk\.blocks\.1\.extra"):
        list(plans_of(model))
