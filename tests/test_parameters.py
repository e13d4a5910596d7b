"""Each parameter of a network has exactly one line, which everybody reads."""

import pytest
import torch
from shapes import decoder_config
from torch import nn

from pardalis.errors import ConfigError
from pardalis.model import Decoder, initialise
from pardalis.parameters import ParameterSpec, by_part, spec_of, specs_of

TABLE = [
    ParameterSpec(r"a\.weight", "one", "normal", decays=True, split="outputs"),
    ParameterSpec(r"a\.bias", "one", "zeros"),
]


def test_a_name_ends_with_the_pattern_from_a_dot():
    assert spec_of("a.weight", TABLE) is TABLE[0]
    assert spec_of("blocks.0.a.weight", TABLE) is TABLE[0]
    for name in ("ba.weight", "a.weight.more", "a.scale"):
        with pytest.raises(ConfigError, match=f"'{name}' matches 0 lines"):
            spec_of(name, TABLE)


def test_two_lines_for_a_parameter_are_an_error_that_names_them():
    table = [*TABLE, ParameterSpec(r".\.weight", "two", "ones")]
    with pytest.raises(ConfigError, match=r"'x\.a\.weight' matches 2 lines.*'a.*, '\.\\") as error:
        spec_of("x.a.weight", table)
    assert "exactly one" in str(error.value)


def test_a_parameter_without_a_line_is_not_initialised_silently():
    config = decoder_config(vocab_size=20, context=8, d_model=8, n_layers=1, n_heads=2, d_ff=8)
    model = Decoder(config)
    model.trunk.blocks[0].experts = nn.Parameter(torch.zeros(2, 3, 4))
    with pytest.raises(ConfigError, match=r"trunk\.blocks\.0\.experts"):
        initialise(model, 0)


def test_parameters_of_any_number_of_dimensions_are_drawn():
    config = decoder_config(vocab_size=20, context=8, d_model=8, n_layers=1, n_heads=2, d_ff=8)
    model = Decoder(config)
    model.trunk.blocks[0].experts = nn.Parameter(torch.zeros(4, 30, 40))
    spec = ParameterSpec(r"blocks\.\d+\.experts", "feed_forward", "normal")
    model.parameter_table = [*model.parameter_table, spec]
    initialise(model, 0)
    assert model.trunk.blocks[0].experts.std().item() == pytest.approx(0.02, rel=0.05)
    assert next(name for name, _ in by_part(model)["feed_forward"]).endswith("experts")


def test_without_a_table_the_types_of_modules_decide():
    network = nn.ModuleDict(
        {"conv": nn.Conv2d(2, 2, 1), "norm": nn.GroupNorm(1, 2), "codes": nn.Embedding(3, 2)}
    )
    specs = specs_of(network)
    assert {name for name, spec in specs.items() if spec.decays} == {"conv.weight"}
    assert {name for name, spec in specs.items() if spec.is_norm} == {"norm.weight", "norm.bias"}


def test_a_matrix_that_is_an_embedding_too_does_not_decay():
    tied = nn.ModuleDict({"head": nn.Linear(2, 3, bias=False), "table": nn.Embedding(3, 2)})
    tied["head"].weight = tied["table"].weight
    assert not any(spec.decays for spec in specs_of(tied).values())
