"""Weight decay, the parameters of Muon, and optimizer states by parameter name."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shapes import decoder_config
from torch import nn

from pardalis.errors import ConfigError
from pardalis.model import Decoder
from pardalis.train.optimizer import AdamWConfig, MuonConfig, Optimizer

DECODER = decoder_config(
    vocab_size=32, context=8, d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, d_ff=16
)


def groups_of(model: nn.Module) -> dict[float, list[str]]:
    optimizer = Optimizer(model, AdamWConfig(weight_decay=0.1), peak=1.0)
    groups: dict[float, list[str]] = {}
    for group in optimizer.param_groups:
        groups.setdefault(group["weight_decay"], []).extend(group["param_names"])
    return groups


def test_a_decoders_matrices_decay_and_nothing_else() -> None:
    model = Decoder(DECODER)
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


def test_norms_may_have_their_own_learning_rate() -> None:
    optimizer = Optimizer(Decoder(DECODER), AdamWConfig(norm_rate=0.1), peak=1.0)
    optimizer.set_learning_rate(0.5)
    rates = {n: g["lr"] for g in optimizer.param_groups for n in g["param_names"]}
    slow = {name for name, rate in rates.items() if rate == 0.05}
    assert slow == {name for name in rates if "norm." in name}
    assert {rates[name] for name in rates.keys() - slow} == {0.5}


def test_a_head_tied_to_the_embedding_does_not_decay() -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
    model["head"].weight = model["embedding"].weight
    assert groups_of(model) == {0.0: ["embedding.weight"]}


def test_frozen_parameters_are_left_out() -> None:
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    assert groups_of(model) == {0.1: ["weight"]}


def updated(weight: float, config: AdamWConfig, peak: float, rate: float) -> float:
    """Return a weight after an update with a zero gradient: only decay acts."""
    model = nn.Linear(1, 1)
    nn.init.constant_(model.weight, weight)
    nn.init.constant_(model.bias, weight)
    optimizer = Optimizer(model, config, peak)
    optimizer.set_learning_rate(rate)
    model.weight.grad, model.bias.grad = torch.zeros(1, 1), torch.zeros(1)
    optimizer.step()
    assert model.bias.item() == weight
    return model.weight.item()


def test_decay_is_coupled_to_the_learning_rate() -> None:
    assert updated(2.0, AdamWConfig(weight_decay=0.5), 1.0, 0.1) == pytest.approx(2 * 0.95)


@given(peak=st.floats(1e-5, 1.0), part=st.floats(0.0, 1.0))
def test_decay_coupled_to_the_schedule_does_not_depend_on_the_peak(
    peak: float, part: float
) -> None:
    """An update takes the weight decay times the learning rate over its peak."""
    config = AdamWConfig(weight_decay=0.01, weight_decay_coupling="schedule")
    # Measured: 3e-8, the rounding of fp32.
    assert updated(2.0, config, peak, part * peak) == pytest.approx(2 * (1 - 0.01 * part), rel=2e-7)


def test_a_decay_of_one_or_more_per_update_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^weight_decay must be at most 0.01 .* got 0.1"):
        AdamWConfig(weight_decay_coupling="schedule")


@pytest.mark.parametrize(
    "options", [{"beta1": 1.0}, {"beta2": -0.1}, {"eps": -1.0}, {"momentum": 1.0}]
)
def test_a_wrong_field_is_named(options: dict) -> None:
    with pytest.raises(ConfigError, match=rf"^{next(iter(options))} must"):
        MuonConfig(**options)


def seeded(model: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def update(model: nn.Module, optimizer: Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in sorted(model.named_parameters()):
        drawn = torch.randn(parameter.shape, generator=generator)
        parameter.grad = torch.empty_like(parameter).copy_(drawn)
    optimizer.set_learning_rate(0.1)
    optimizer.step()


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def stored(state: dict) -> dict:
    """Return what a checkpoint gives back: new tensors, row by row."""
    return {
        name: {k: t.clone(memory_format=torch.contiguous_format) for k, t in tensors.items()}
        for name, tensors in state.items()
    }


@pytest.mark.parametrize("fused", [False, True])
def test_adamw_equals_pytorchs(fused: bool) -> None:
    config = AdamWConfig(beta1=0.8, beta2=0.9, eps=1e-3, weight_decay=0.3, fused=fused)
    ours, theirs = seeded(nn.Linear(5, 3, bias=False), 0), seeded(nn.Linear(5, 3, bias=False), 0)
    optimizer = Optimizer(ours, config, peak=1.0)
    reference = torch.optim.AdamW(
        theirs.parameters(), lr=0.1, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.3, fused=fused
    )
    for step in range(3):
        update(ours, optimizer, step)
        theirs.weight.grad = ours.weight.grad.clone()
        reference.step()
    assert torch.equal(ours.weight, theirs.weight)


def test_muon_has_the_matrices_inside_blocks_and_adamw_the_rest() -> None:
    model = Decoder(DECODER)
    state = Optimizer(model, MuonConfig(), peak=1.0).state_dict()
    muons = {name for name, tensors in state.items() if "momentum_buffer" in tensors}
    assert muons == {name for name in state if name.endswith("_proj.weight")}
    assert all("exp_avg" in tensors for name, tensors in state.items() if name not in muons)
    assert set(state) == {name for name, _ in model.named_parameters()}


def test_muon_equals_pytorchs_with_updates_of_adamws_size() -> None:
    model = seeded(Decoder(DECODER), 0)
    theirs = nn.Parameter(model.trunk.blocks[0].feed_forward.up_proj.weight.detach().clone())
    reference = torch.optim.Muon([theirs], lr=0.1, adjust_lr_fn="match_rms_adamw")
    optimizer = Optimizer(model, MuonConfig(), peak=1.0)
    for step in range(2):
        update(model, optimizer, step)
        theirs.grad = model.trunk.blocks[0].feed_forward.up_proj.weight.grad.clone()
        reference.step()
    assert torch.equal(model.trunk.blocks[0].feed_forward.up_proj.weight, theirs)


def test_muon_needs_blocks() -> None:
    with pytest.raises(ConfigError, match=r"^kind = muon needs matrices between hidden states"):
        Optimizer(nn.Linear(2, 2), MuonConfig(), peak=1.0)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_an_update_after_loading_equals_that_of_an_uninterrupted_run(kind: str) -> None:
    config = {"adamw": AdamWConfig, "muon": MuonConfig}[kind]()
    whole, resumed = seeded(Decoder(DECODER), 0), Decoder(DECODER)
    first, second = Optimizer(whole, config, peak=1.0), Optimizer(resumed, config, peak=1.0)
    update(whole, first, 1)
    resumed.load_state_dict(whole.state_dict())
    second.load_state_dict(stored(first.state_dict()))
    update(whole, first, 2)
    update(resumed, second, 2)
    for name, weight in weights(whole).items():
        assert torch.equal(weight, weights(resumed)[name]), name


def test_state_exists_before_the_first_update() -> None:
    """A checkpoint is read into it, so it has the names and shapes that a later one has."""
    model = seeded(Decoder(DECODER), 0)
    optimizer = Optimizer(model, AdamWConfig(), peak=1.0)
    before = stored(optimizer.state_dict())
    assert all(not t.any() for tensors in before.values() for t in tensors.values())
    tensors_before = optimizer.state_dict()["head.weight"]
    update(model, optimizer, 0)
    after = optimizer.state_dict()
    shapes = [
        {n: {k: t.shape for k, t in ts.items()} for n, ts in s.items()} for s in (before, after)
    ]
    assert shapes[0] == shapes[1]
    # The same tensors, so what was read into them is what updates use.
    assert all(after["head.weight"][key] is t for key, t in tensors_before.items())
    assert after["head.weight"]["step"] == 1


@pytest.mark.parametrize(
    ("model", "config"),
    [
        (nn.Linear(3, 3), AdamWConfig()),
        (Decoder(DECODER), MuonConfig()),
    ],
)
def test_a_state_of_something_else_is_refused(model: nn.Module, config: AdamWConfig) -> None:
    state = Optimizer(Decoder(DECODER), AdamWConfig(), peak=1.0).state_dict()
    with pytest.raises(ValueError, match=r"^the optimizer's state differs, first in \S+\.\w+$"):
        Optimizer(model, config, peak=1.0).load_state_dict(state)


def test_a_state_that_was_stored_row_by_row_fits_a_channels_last_weight() -> None:
    """What a checkpoint does to memory layouts must not change the next update."""

    def net() -> nn.Module:
        conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        return seeded(conv, 0)

    whole, resumed = net(), net()
    first, second = (Optimizer(m, AdamWConfig(fused=True), peak=1.0) for m in (whole, resumed))
    update(whole, first, 1)
    resumed.load_state_dict(whole.state_dict())
    second.load_state_dict(stored(first.state_dict()))
    update(whole, first, 2)
    update(resumed, second, 2)
    assert torch.equal(whole.weight, resumed.weight)
