"""Which parameters decay, and in which order they stand."""

import pytest
import torch
from torch import nn

from pardalis.errors import ConfigError
from pardalis.model import Decoder, ModelConfig
from pardalis.train.optimizer import (
    AdamWConfig,
    adamw,
    load_optimizer_state,
    set_learning_rate,
)


def groups_of(model: nn.Module) -> dict[float, list[str]]:
    optimizer = adamw(model, AdamWConfig(weight_decay=0.1))
    return {g["weight_decay"]: list(g["param_names"]) for g in optimizer.param_groups}


def test_a_decoders_matrices_decay_and_nothing_else() -> None:
    model = Decoder(
        ModelConfig(
            vocab_size=32, context=8, d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, d_ff=16
        )
    )
    groups = groups_of(model)
    names = {name for name, _ in model.named_parameters()}
    matrices = {n for n in names if n.endswith("_proj.weight")} | {"head.weight"}
    assert set(groups[0.1]) == matrices
    assert set(groups[0.0]) == names - matrices
    # A norm with a scale per head has two dims, and is a norm all the same.
    assert "trunk.blocks.0.attention.q_norm.weight" in groups[0.0]
    assert "embedding.weight" in groups[0.0]


def test_names_are_sorted_whatever_the_order_of_construction() -> None:
    model = nn.ModuleDict({"b": nn.Linear(2, 2), "a": nn.Conv2d(2, 2, 1), "c": nn.GroupNorm(1, 2)})
    assert groups_of(model) == {
        0.1: ["a.weight", "b.weight"],
        0.0: ["a.bias", "b.bias", "c.bias", "c.weight"],
    }


def test_a_head_tied_to_the_embedding_does_not_decay() -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
    model["head"].weight = model["embedding"].weight
    assert groups_of(model) == {0.0: ["embedding.weight"]}


def test_frozen_parameters_are_left_out() -> None:
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    assert groups_of(model) == {0.1: ["weight"]}


def test_decay_and_learning_rate_do_what_adamw_says() -> None:
    model = nn.Linear(1, 1)
    nn.init.constant_(model.weight, 2.0)
    nn.init.constant_(model.bias, 2.0)
    optimizer = adamw(model, AdamWConfig(weight_decay=0.5))
    set_learning_rate(optimizer, 0.1)
    model.weight.grad, model.bias.grad = torch.zeros(1, 1), torch.zeros(1)
    optimizer.step()
    assert model.weight.item() == pytest.approx(2.0 * (1 - 0.1 * 0.5))
    assert model.bias.item() == 2.0


@pytest.mark.parametrize("options", [{"beta1": 1.0}, {"beta2": -0.1}, {"eps": -1.0}])
def test_a_wrong_field_is_named(options: dict) -> None:
    with pytest.raises(ConfigError, match=rf"^{next(iter(options))} must"):
        AdamWConfig(**options)


def test_a_state_that_was_stored_row_by_row_fits_a_channels_last_weight():
    """What a checkpoint does to memory layouts must not change the next update."""

    def net() -> nn.Conv2d:
        conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        with torch.no_grad():
            conv.weight.copy_(torch.arange(108.0).view(4, 3, 3, 3) / 108)
        return conv

    def update(conv: nn.Conv2d, optimizer: torch.optim.Optimizer) -> None:
        conv.weight.grad = (
            torch.sin(torch.arange(108.0))
            .view(4, 3, 3, 3)
            .contiguous(memory_format=torch.channels_last)
        )
        set_learning_rate(optimizer, 0.1)
        optimizer.step()

    whole = net()
    first = adamw(whole, AdamWConfig(fused=True))
    update(whole, first)
    state = first.state_dict()
    state["state"] = {
        i: {
            name: moment.clone(memory_format=torch.contiguous_format)
            for name, moment in moments.items()
        }
        for i, moments in state["state"].items()
    }
    resumed = net()
    resumed.load_state_dict(whole.state_dict())
    second = adamw(resumed, AdamWConfig(fused=True))
    load_optimizer_state(second, state)
    update(whole, first)
    update(resumed, second)
    assert torch.equal(whole.weight, resumed.weight)
