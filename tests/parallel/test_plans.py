"""How ranks divide modules follows from the table of parameters."""

import pytest
import torch
from torch import nn

from pardalis.errors import ConfigError
from pardalis.model import PRESETS, Decoder
from pardalis.parallel.plans import UNITS, modules_named, plans_of, shared_inputs


def decoder(preset: str) -> Decoder:
    with torch.device("meta"):
        return Decoder(PRESETS[preset]().sized(vocab_size=65_536, context=4096))


@pytest.mark.parametrize("preset", PRESETS)
def test_every_parameter_has_a_plan(preset):
    model = decoder(preset)
    covered = [
        id(getattr(module, name)) for module, plan in plans_of(model) for name in plan.parameters
    ]
    assert sorted(covered) == sorted(id(p) for p in model.parameters())


@pytest.mark.parametrize("preset", PRESETS)
def test_sharded_dimensions_are_divisible(preset):
    for module, plan in plans_of(decoder(preset)):
        for name, dimension in plan.parameters.items():
            if dimension is not None:
                assert getattr(module, name).shape[dimension] % 4 == 0


def test_the_division_is_that_of_megatron():
    model = decoder("tiny")
    plans = {id(module): plan for module, plan in plans_of(model)}
    block = model.trunk.blocks[0]
    first, second = plans[id(block.attention.q_proj)], plans[id(block.attention.o_proj)]
    assert (first.parameters, first.input, first.output) == ({"weight": 0}, None, -1)
    assert (second.parameters, second.input, second.output) == ({"weight": 1}, -1, None)
    assert plans[id(block.attention.q_norm)].handles_sharding
    assert plans[id(model.embedding)].parameters == {"weight": 0}
    assert plans[id(model.trunk.norm)].parameters == {"weight": None}


@pytest.mark.parametrize("preset", PRESETS)
def test_units_are_the_blocks(preset):
    model = decoder(preset)
    assert modules_named(model, UNITS) == list(model.trunk.blocks)
    blocks = model.trunk.blocks
    expected = [part for block in blocks for part in (block.attention, block.feed_forward)]
    assert shared_inputs(model) == expected


def test_a_new_kind_of_layer_needs_a_line():
    model = decoder("tiny")
    model.trunk.blocks[1].extra = nn.Linear(2, 2, device="meta")
    with pytest.raises(ConfigError, match=r"'trunk\.blocks\.1\.extra\.weight' matches 0 lines"):
        list(plans_of(model))
